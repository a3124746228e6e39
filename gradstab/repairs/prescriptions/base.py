"""What a prescription is."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

from gradstab.repairs.code import code_of
from gradstab.repairs.draft import Draft


@dataclasses.dataclass(frozen=True)
class Change:
    """Lines to take out of a script, and lines to put in.

    Attributes:
        before: Code as it is; nothing where code is added.
        after: Code as it is to be; nothing where code is taken out.
    """

    before: str
    after: str


class Prescription(abc.ABC):
    """A change of a recipe.

    Attributes:
        name: What it does, in a few words.
        heals: Codes of the findings that it is made for.
        helps: Codes of findings that it may heal as well.
        reshapes: Whether it changes layers, for which they have to be known as a graph.
        is_costly: Whether writing it takes a search of its own.
    """

    name: ClassVar[str]
    heals: ClassVar[tuple[str, ...]] = ()
    helps: ClassVar[tuple[str, ...]] = ()
    reshapes: ClassVar[bool] = True
    is_costly: ClassVar[bool] = False

    @abc.abstractmethod
    def write(self, draft: Draft) -> list[Change]:
        """Change a draft, and return the lines that do the same to a script.

        Nothing, and a draft as it was, where the change does not apply.
        """

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.name}>"


def changed(draft: Draft, layer: Any, **entries: Any) -> Change:
    """Replace entries of a layer's config, and return the change as code."""
    before = code_of(layer, draft.settings.get(layer.name))
    draft.change(layer, **entries)
    return Change(before, code_of(layer, draft.settings[layer.name]))
