"""A median within its interval, by bootstrap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def median_interval(
    values: Sequence[float], draw: np.random.Generator
) -> tuple[float, float, float]:
    """Return the low end of the 95 % interval of a median, the median, and the high end.

    Args:
        values: One per pair or seed.
        draw: Draws the 4000 samples of the bootstrap.
    """
    numbers = np.array(values)
    medians = np.median(numbers[draw.integers(0, len(numbers), (4000, len(numbers)))], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(np.median(numbers)), float(high)
