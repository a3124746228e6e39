"""The demo's settings and methods, its table, and its conclusions.

Without Keras, so that the command's help can name them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gradstab.cli.console import table

CLASSES: Final = 10
# Twice what guessing gives, and what a working CNN passes within a few epochs.
_AT_CHANCE: Final = 2 / CLASSES
_TRAINED: Final = 0.9


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to break the training of the CNN.

    Attributes:
        name: For tables.
        about: What is broken, in words.
        stddev: Standard deviation of normal kernels; `None` for He's.
        scaled: Whether pixels are scaled to 0..1; raw ones are 0..16.
        fault: What is wrong with the data: `"nan image"`, `"corrupted batch"` or nothing.
    """

    name: str
    about: str
    stddev: float | None = None
    scaled: bool = True
    fault: str | None = None


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to train: with our optimizer wrapper or not, with the other parts or not."""

    name: str
    about: str
    wrapped: bool
    parts: bool


@dataclasses.dataclass(frozen=True)
class Parts:
    """Numbers of "all parts", the same in all settings.

    Chosen on validation images of other seeds than are reported; `benchmarks/demo_floors.py`
    measures what they come to.

    Attributes:
        peak_learning_rate: Rate between warm-up and cosine.
        warmup_share: Length of the warm-up as a part of the run.
        l2: Strength of the L2 penalty on kernels.
        clip: Bound on the global gradient norm.
    """

    peak_learning_rate: float = 0.05
    warmup_share: float = 0.1
    l2: float = 5e-4
    clip: float = 1.0


PARTS: Final = Parts()
SETTINGS: Final = (
    Setting("exploding", "kernels N(0, 0.2²), raw pixels 0..16", stddev=0.2, scaled=False),
    Setting("vanishing", "kernels N(0, 0.01²), pixels scaled", stddev=0.01),
    Setting("NaN image", "a good start, one training image is NaN", fault="nan image"),
    Setting(
        "corrupted batch",
        "a good start, then one batch with inputs x 1000 and labels shifted by one",
        fault="corrupted batch",
    ),
)
PLAIN: Final = Way("plain Keras", "SGD 0.01, momentum 0.9", wrapped=False, parts=False)
ONE_LINE: Final = Way("one line", "gradstab.stabilize(SGD(...))", wrapped=True, parts=False)
ALL_PARTS: Final = Way(
    "all parts",
    "rescaling, He, L2, warm-up into cosine, clipping, skipping",
    wrapped=True,
    parts=True,
)
NO_WRAPPER: Final = Way(
    "all but wrapper", "the same without clipping and skipping", wrapped=False, parts=True
)
WAYS: Final = (PLAIN, ONE_LINE, ALL_PARTS, NO_WRAPPER)


@dataclasses.dataclass(frozen=True)
class Result:
    """What came out of one run.

    Attributes:
        setting: Name of the setting.
        way: Name of the way.
        accuracy: On the test images.
        loss: Final loss on clean training images; NaN if the weights are.
        verdict: `"trained"`, `"in part"`, `"at chance"` or `"NaN"`.
        skipped: Steps that the wrapper skipped; `None` without it.
        clipped: Steps that it clipped or limited; `None` without it.
        steps: Steps of the run.
        seconds: Time of the run.
        series: `epoch`, `loss`, `grad_norm`, measured between epochs.
    """

    setting: str
    way: str
    accuracy: float
    loss: float
    verdict: str
    skipped: int | None
    clipped: int | None
    steps: int
    seconds: float
    series: Mapping[str, Sequence[float]]

    def as_json(self) -> dict[str, Any]:
        """Return it as strict JSON can hold it, NaN as `None`."""
        fields = dataclasses.asdict(self)
        fields["series"] = {name: [_json(v) for v in each] for name, each in self.series.items()}
        return {name: _json(value) for name, value in fields.items()}


def run_key(setting: Setting, way: Way) -> tuple[str | None, str]:
    """Return what two runs share if they are the same computation.

    All parts replace the kernels and the pixels' scale of a setting, so settings that differ in
    nothing else come to one run.

    >>> run_key(SETTINGS[0], ALL_PARTS) == run_key(SETTINGS[1], ALL_PARTS)
    True
    """
    return (setting.fault if way.parts else setting.name), way.name


def verdict(accuracy: float, finite: bool) -> str:
    """Return in a word what became of a model.

    Args:
        accuracy: On the test images.
        finite: Whether all weights are.

    >>> verdict(0.09, finite=True)
    'at chance'
    """
    if not finite:
        return "NaN"
    if accuracy <= _AT_CHANCE:
        return "at chance"
    return "trained" if accuracy >= _TRAINED else "in part"


def results_table(results: Sequence[Result]) -> str:
    """Return one line per run."""
    rows = [
        [
            each.setting,
            each.way,
            f"{each.accuracy:.3f}",
            "NaN" if math.isnan(each.loss) else f"{each.loss:.4f}",
            each.verdict,
            *("-" if count is None else str(count) for count in (each.skipped, each.clipped)),
        ]
        for each in results
    ]
    header = ("setting", "way", "test accuracy", "loss", "verdict", "skipped", "shortened")
    return table(header, rows, left=2)


def conclusions(results: Sequence[Result]) -> list[str]:
    """Return, for each setting, which part saves it and which does not, as the results have it."""
    by_setting: dict[str, dict[str, Result]] = {}
    for result in results:
        by_setting.setdefault(result.setting, {})[result.way] = result
    return [f"{setting}: {_conclude(ways)}" for setting, ways in by_setting.items()]


def _conclude(ways: Mapping[str, Result]) -> str:
    plain, one, every, rest = (ways[way.name] for way in (PLAIN, ONE_LINE, ALL_PARTS, NO_WRAPPER))
    said = [f"{PLAIN.name} {_ended(plain)}."]
    if _good(plain):
        said[0] = "with this seed nothing breaks: plain Keras trains as well."
    if _good(one):
        said.append(f"One line saves it{_interventions(one)}." if not _good(plain) else
                    f"One line does no harm{_interventions(one)}.")  # fmt: skip
    else:
        said.append(f"One line does not help: it {_ended(one)}{_interventions(one)}.")
    if _good(every) and _good(rest):
        said.append(
            "All parts together train, and so do they without the wrapper: rescaling, He, L2 and "
            "warm-up are enough here."
        )
    elif _good(every):
        said.append(
            f"All parts together train{_interventions(every)}; without the wrapper the same "
            f"{_ended(rest)}, so it is skipping and clipping that save it."
        )
    elif _good(rest):
        said.append(
            f"All parts together fail: that run {_ended(every)}{_interventions(every)}. Without "
            "the wrapper they train, so here it does harm."
        )
    else:
        said.append(
            f"All parts together do not help either: with the wrapper that run {_ended(every)}, "
            f"without it {_ended(rest)}."
        )
    return " ".join(said)


def _good(result: Result) -> bool:
    return result.verdict == "trained"


def _ended(result: Result) -> str:
    how = {
        "trained": "trains",
        "in part": "learns in part",
        "at chance": "stays at chance",
        "NaN": "ends in NaN",
    }[result.verdict]
    return f"{how} ({result.accuracy:.3f})"


def _interventions(result: Result) -> str:
    if result.skipped is None or result.clipped is None:
        return ""
    return f" ({result.skipped} of {result.steps} steps skipped, {result.clipped} shortened)"


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
