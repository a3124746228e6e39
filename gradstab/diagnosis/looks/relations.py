"""How inputs and targets go together: neighbours that agree, rows that contradict others."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

_Array = np.ndarray[Any, Any]

# Rows among which repeated ones are looked for.
_ROWS: Final = 20_000


def agreement_of_neighbours(inputs: _Array, targets: _Array, seed: int) -> float | None:
    """Return how much more often than by chance the nearest other row has the same label.

    Args:
        inputs: Shape (rows, features), scaled.
        targets: Class of each row, shape (rows,).
        seed: Chooses the rows that are compared.
    """
    rows = np.random.default_rng(seed).permutation(len(inputs))[:800]
    points, labels = inputs[rows].astype("float32"), targets[rows]
    if len(rows) < 60 or len(np.unique(labels)) < 2:
        return None
    squares = (points**2).sum(1)
    distance = squares[:, None] + squares[None] - 2 * points @ points.T
    np.fill_diagonal(distance, np.inf)
    distance[distance < 1e-9 * max(float(squares.mean()), 1e-30)] = np.inf  # the same row again
    agree = float((labels[distance.argmin(1)] == labels).mean())
    chance = float(sum((labels == each).mean() ** 2 for each in np.unique(labels)))
    return (agree - chance) / max(1 - chance, 1e-9)


def contradictions(inputs: _Array, targets: _Array) -> float:
    """Return the share of repeated input rows that come with different targets."""
    few = np.ascontiguousarray(inputs[:_ROWS].reshape(min(len(inputs), _ROWS), -1))
    labels = targets[:_ROWS].reshape(len(few), -1)
    seen: dict[bytes, bytes] = {}
    differing = sum(
        seen.setdefault(row.tobytes(), label.tobytes()) != label.tobytes()
        for row, label in zip(few, labels, strict=True)
    )
    repeated = len(few) - len(seen)
    return differing / repeated if repeated else 0.0
