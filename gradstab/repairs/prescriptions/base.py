"""The base class of prescriptions."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

from gradstab.repairs.code import code_of
from gradstab.repairs.draft import Draft


@dataclasses.dataclass(frozen=True)
class Change:
    """Lines to remove from a script, and lines to add.

    Attributes:
        before: The present code; empty if code is only added.
        after: The new code; empty if code is only removed.
    """

    before: str
    after: str


class Prescription(abc.ABC):
    """A change of a recipe.

    Attributes:
        name: The change in a few words.
        heals: Codes of the findings that it is made to fix.
        helps: Codes of other findings that it may fix.
        reshapes: Whether it changes layers, which needs a sequential or functional model.
        is_costly: Whether `write` runs a search of its own.
    """

    name: ClassVar[str]
    heals: ClassVar[tuple[str, ...]] = ()
    helps: ClassVar[tuple[str, ...]] = ()
    reshapes: ClassVar[bool] = True
    is_costly: ClassVar[bool] = False

    @abc.abstractmethod
    def write(self, draft: Draft) -> list[Change]:
        """Change a draft, and return the lines that make the same change in a script.

        If the change does not apply, return no lines and leave the draft as it was.
        """

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.name}>"


def changed(draft: Draft, layer: Any, **entries: Any) -> Change:
    """Replace entries of a layer's config, and return the change as code."""
    before = code_of(layer, draft.settings.get(layer.name))
    draft.change(layer, **entries)
    return Change(before, code_of(layer, draft.settings[layer.name]))
