"""Real text that comes with Python: the help topics of `pydoc_data.topics`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

Splits = list[tuple[Any, Any]]


def documentation() -> tuple[str, str]:
    """Return all topics, in an order that their names decide, and what tells this text apart."""
    from pydoc_data.topics import topics

    order = sorted(topics, key=lambda topic: hashlib.sha256(topic.encode()).hexdigest())
    text = "\n".join(topics[topic] for topic in order)
    return text, f"pydoc_data.topics ({hashlib.sha256(text.encode()).hexdigest()[:12]})"


def coded(parts: Sequence[str], vocabulary: int) -> Any:
    """Number the most frequent of some characters or words from 1; all others are 0."""
    distinct, places, counts = np.unique(parts, return_inverse=True, return_counts=True)
    codes = np.zeros(len(distinct), "int32")
    codes[np.argsort(-counts, kind="stable")[: vocabulary - 1]] = np.arange(
        1, min(vocabulary, len(distinct) + 1)
    )
    return codes[places]


def characters(window: int, vocabulary: int, sizes: Sequence[int]) -> tuple[Splits, str]:
    """Return windows of characters, with the next ones as targets, cut into parts."""
    text, name = documentation()
    codes = coded(list(text), vocabulary)
    windows = codes[: len(codes) // (window + 1) * (window + 1)].reshape(-1, window + 1)
    parts = _cut(windows, sizes)
    return [(part[:, :-1], part[:, 1:]) for part in parts], (
        f"{name}, windows of {window} characters: {', '.join(map(str, sizes))}"
    )


def words(window: int, vocabulary: int, sizes: Sequence[int]) -> tuple[Splits, str]:
    """Return windows of words, with the word after each as target, cut into parts."""
    text, name = documentation()
    codes = coded(re.findall(r"\w+", text.lower()), vocabulary)
    windows = codes[: len(codes) // (window + 1) * (window + 1)].reshape(-1, window + 1)
    parts = _cut(windows, sizes)
    return [(part[:, :-1], part[:, -1]) for part in parts], (
        f"{name}, windows of {window} words: {', '.join(map(str, sizes))}"
    )


def _cut(windows: Any, sizes: Sequence[int]) -> list[Any]:
    if len(windows) < sum(sizes):
        raise RuntimeError(f"the text has {len(windows)} windows, {sum(sizes)} are needed")
    return np.split(windows[: sum(sizes)], np.cumsum(sizes)[:-1])
