"""One step as plain data: its operations in order, and which of their tensors are not finite."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Final

# What a tensor holds at worst.
FINITE, INFINITE, NAN = 0, 1, 2
# Of a tensor that nobody can look into, such as a list of tensors or a variable's handle.
HIDDEN: Final = -1

FORWARD, LOSS, BACKWARD = "forward", "loss", "backward"


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a step.

    Attributes:
        kind: Its type, as TensorFlow names it.
        inputs: Numbers of the tensors that go in.
        outputs: Numbers of the tensors that come out.
        phase: `FORWARD`, `LOSS` or `BACKWARD`.
        layer: The layer that it belongs to, by the name under which the model lists it.
        inside: The layer below that one that it belongs to, if there is one.
        dtype: Type of what comes out.
        source: What it stands for where nothing goes in: `"inputs"`, `"targets"`,
            `"sample_weights"`, or `"variable"`.
        place: Which one: the number of the batch's part, or of the variable.
    """

    kind: str
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    phase: str = FORWARD
    layer: str | None = None
    inside: str | None = None
    dtype: str = "float32"
    source: str | None = None
    place: int = 0


def roots(
    operations: Sequence[Operation], states: Sequence[int], targets: Iterable[int]
) -> list[int]:
    """Return where what is not finite in some tensors began, in the order of the step.

    An operation begins it if something that is not finite comes out and nothing such went in. An
    infinite constant, such as a mask is made of, begins nothing; the operation that makes NaN of it
    does.

    Args:
        operations: In an order in which each comes after those that it takes from.
        states: `FINITE`, `INFINITE`, `NAN` or `HIDDEN`, of each tensor.
        targets: Numbers of tensors.

    Returns:
        Places of operations.

    >>> steps = [
    ...     Operation("Placeholder", (), (0,), source="inputs"),
    ...     Operation("Log", (0,), (1,)),
    ...     Operation("Mul", (1, 0), (2,)),
    ... ]
    >>> roots(steps, [FINITE, INFINITE, NAN], [2])
    [1]
    """
    states = _without_hidden(operations, states)
    is_meant = _meant(operations, states)
    makers = {tensor: place for place, each in enumerate(operations) for tensor in each.outputs}
    found: set[int] = set()
    seen: set[int] = set()
    pending = [makers[each] for each in targets if states[each] and each in makers]
    while pending:
        place = pending.pop()
        if place in seen:
            continue
        seen.add(place)
        bad = [t for t in operations[place].inputs if states[t] and not is_meant[t]]
        if not bad:
            found.add(place)
        pending.extend(makers[each] for each in bad if each in makers)
    return sorted(found)


def _without_hidden(operations: Sequence[Operation], states: Sequence[int]) -> list[int]:
    """Return states in which a hidden tensor is as bad as the worst beside and before it."""
    known = list(states)
    for each in operations:
        worst = max((known[t] for t in (*each.inputs, *each.outputs)), default=FINITE)
        for tensor in each.outputs:
            if known[tensor] == HIDDEN:
                known[tensor] = max(worst, FINITE)
    return known


def _meant(operations: Sequence[Operation], states: Sequence[int]) -> list[bool]:
    """Return which tensors hold an infinity that comes from a constant, and no NaN."""
    is_meant = [False] * len(states)
    for each in operations:
        bad = [tensor for tensor in each.inputs if states[tensor]]
        comes_from_constant = each.kind == "Const" if not each.inputs else bool(bad)
        if comes_from_constant and all(is_meant[tensor] for tensor in bad):
            for tensor in each.outputs:
                is_meant[tensor] = states[tensor] == INFINITE
    return is_meant


def drawn_from(operations: Sequence[Operation], place: int) -> set[str]:
    """Return what an operation of a loss is computed of.

    `"outputs"` of the model, `"targets"`, `"sample_weights"`, `"inputs"`, `"variable"`.
    """
    makers = {tensor: p for p, each in enumerate(operations) for tensor in each.outputs}
    found: set[str] = set()
    seen: set[int] = set()
    pending = [makers[each] for each in operations[place].inputs if each in makers]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        each = operations[current]
        if each.source is not None:
            found.add(each.source)
        elif each.layer is not None and each.phase == FORWARD:
            found.add("outputs")
        else:
            pending.extend(makers[tensor] for tensor in each.inputs if tensor in makers)
    return found
