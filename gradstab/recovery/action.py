"""Something that recovery did to a run."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Action:
    """Something that was done to a run.

    Attributes:
        name: `"rollback"`, `"rate_raised"`, `"masked"`, or `"recovered"`, which is the check
            afterwards.
        step: Steps of this run until then, dropped ones counted.
        kind: What kind of trouble it was.
        message: In words.
    """

    name: str
    step: int
    kind: str
    message: str
