"""Which examples are for training, for validation and for testing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradstab._validation import check_float
from gradstab.data.errors import DataError

Rows = npt.NDArray[np.int64]


def check_fractions(fractions: Mapping[str, float]) -> dict[str, float]:
    """Return `fractions`, by the names of their splits, or refuse what leaves nothing to train on.

    Raises:
        TypeError: If one is not a number.
        ValueError: If one does not lie between 0 and 1, or their sum is not below 1.
    """
    checked = {
        split: check_float(f"{split}_fraction", fraction, maximum=1.0)
        for split, fraction in fractions.items()
    }
    if sum(checked.values()) >= 1.0:
        given = ", ".join(f"{split}_fraction={value!r}" for split, value in checked.items())
        raise ValueError(f"The fractions must leave a part to train on. Received: {given}")
    return checked


def stratified_split(
    labels: npt.NDArray[Any],
    fractions: Mapping[str, float],
    class_names: Sequence[str],
    seed: int,
) -> dict[str, Rows]:
    r"""Divide the rows among the splits so that every class is in each of them.

    A split with the fraction $f$ of $n$ rows gets $\lceil f n \rceil$ of them, and of a class with
    $n_c$ rows either $\lfloor f n_c \rfloor$ or one more, whichever classes are furthest from
    their share (the method of largest remainders), but at least one. What is left is for training.

    Args:
        labels: The class of each row, `(n,)`, integers from 0.
        fractions: The part of each split beside `"train"`.
        class_names: A name for each class, for messages.
        seed: Which rows go where is a function of this and of `labels`.

    Returns:
        Ascending row numbers for `"train"` and for every name in `fractions`; no row is in two.

    Raises:
        DataError: If a class has fewer rows than there are splits.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    num_splits = len(fractions) + 1
    if counts.min() < num_splits:
        short = ", ".join(
            f"{name!r} has {count}"
            for name, count in zip(class_names, counts, strict=True)
            if count < num_splits
        )
        raise DataError(
            f"Each class needs at least {num_splits} examples, one each for "
            f"{', '.join(['train', *fractions])}. Received: {short}. Add examples or leave the "
            "class out"
        )
    generator = np.random.default_rng(seed)
    pools = [generator.permutation(np.flatnonzero(labels == k)) for k in range(len(class_names))]
    splits = {}
    for done, (split, fraction) in enumerate(fractions.items(), start=1):
        # One row of each class is kept for each split that is still to come.
        at_most = np.array([len(pool) for pool in pools]) - (num_splits - done)
        shares = _apportion(fraction * counts, _round_up(fraction * len(labels)), at_most)
        splits[split] = np.sort(
            np.concatenate([pool[:share] for pool, share in zip(pools, shares, strict=True)])
        )
        pools = [pool[share:] for pool, share in zip(pools, shares, strict=True)]
    return {"train": np.sort(np.concatenate(pools)), **splits}


def _round_up(number: float) -> int:
    # 0.2 * 15 is 3.0000000000000004, and no fourth row is meant.
    return math.ceil(number - 1e-9)


def _apportion(quotas: npt.NDArray[Any], total: int, at_most: npt.NDArray[Any]) -> Rows:
    shares = np.clip(np.floor(quotas + 1e-9).astype(np.int64), 1, at_most)
    while shares.sum() < total and np.any(shares < at_most):
        shares[np.argmax(np.where(shares < at_most, quotas - shares, -np.inf))] += 1
    return shares
