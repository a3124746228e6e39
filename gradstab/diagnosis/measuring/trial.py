"""Fills the look at the trial: the plan's own start, and the same with one thing changed.

Which changes are tried follows from what was seen before: a direction of the rate is followed while
it helps, inputs are scaled where they are not, and copies of the model with other activations are
made only where nothing cheaper helped. A plan that learns well is left alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from gradstab.diagnosis.looks.data import DataLook
from gradstab.diagnosis.looks.signal import SignalLook
from gradstab.diagnosis.looks.structure import StructureLook
from gradstab.diagnosis.looks.trial import LEARNS, Run, TrialLook, learned
from gradstab.diagnosis.measuring import variants
from gradstab.diagnosis.measuring.clock import Clock
from gradstab.diagnosis.measuring.laboratory import CHUNK, Laboratory
from gradstab.diagnosis.measuring.sample import Sample, tensors
from gradstab.diagnosis.measuring.scaling import both, scaled_inputs, scaled_targets
from gradstab.diagnosis.measuring.suspicions import begins_off, hides_rows, is_wild
from gradstab.diagnosis.rules.heads import OF_NUMBERS

# A change that gets so far ends the search.
_WELL: Final = 0.8
# Ratio of kernels to Glorot's from which on others are tried even where the plan learns.
_FAR: Final = 8.0
# Width of a hidden layer up to which a wider copy is tried, and dropout from which on none is.
_NARROW: Final = 16
_DROPPED: Final = 0.3
# What counts as better while a direction is followed.
_BETTER: Final = 0.03
# Merit below which a plan learned nothing, so that the likeliest remedy is tried first.
_NOTHING: Final = 0.1
# Merit by which a larger rate may be worse and is still followed.
_NOISE: Final = 0.02
# Seconds of one training, and steps that it has at least and at most.
_SECONDS: Final = 1.0
_LEAST: Final = 30
_MOST: Final = 1500
# Steps of a trial where the plan's epochs were not told.
_UNTOLD: Final = 300
# Share of the time left that the whole plan may take.
_WHOLE: Final = 0.8
# Rows that are judged on, and the fewest of which some are kept aside.
_KEPT: Final = 512
_ENOUGH: Final = 100
# Rows of a step at most: larger batches only cost time in so short a trial.
_BATCH: Final = 128
# Rows of a step where steps are slow; and what 20 steps would take by the look at the signal, in
# units of the seconds left, beyond which no trial begins. That look takes some seven passes.
_FEWEST: Final = 8
_SLOW: Final = 4.0


@dataclasses.dataclass
class _Search:
    """What is tried, one after the other."""

    laboratory: Laboratory
    steps: int
    clock: Clock
    planned: int | None = None
    is_cut: bool = False
    runs: dict[str, Run] = dataclasses.field(default_factory=dict)

    def try_(self, change: str, steps: int | None = None, **changes: Any) -> Run | None:
        """Run a trial unless the time is over or it was run already."""
        if change in self.runs:
            return self.runs[change]
        wanted = steps or self.steps
        if self.clock.left() < 0.7 * wanted * self.laboratory.step_seconds and change != "plan":
            self.is_cut = True
            return None
        self.runs[change] = self.laboratory.run(change, wanted, **changes)
        return self.runs[change]

    def has_learned(self) -> bool:
        """Whether the plan, as far as its end can be told, learned well enough."""
        return learned(TrialLook(tuple(self.runs.values()), self.planned))

    @property
    def best(self) -> float:
        """Merit of the best run."""
        return max(run.merit for run in self.runs.values())


def look_at_trial(
    model: Any,
    sample: Sample,
    data: DataLook,
    structure: StructureLook,
    signal: SignalLook,
    probe_steps: int | None,
    seed: int,
    clock: Clock,
    row_seconds: float = 0.0,
) -> TrialLook:
    """Train for a short while in several ways; whoever calls puts the model's state back.

    Args:
        model: A built, compiled model.
        sample: Rows of its data.
        data: The look at the data.
        structure: The look at the structure.
        signal: The look at the signal.
        probe_steps: Steps of a training, or `None`.
        seed: Chooses the order of the rows.
        clock: Tells the time that is left.
        row_seconds: Seconds that the look at the signal took for a row, beyond its first calls.
    """
    batch = min(sample.batch_size, _BATCH)
    if row_seconds * batch * 2 * CHUNK > _SLOW * clock.left():
        batch = min(batch, _FEWEST)
        if row_seconds * batch * 2 * CHUNK > _SLOW * clock.left():
            return TrialLook(skipped="a step takes too long for a trial")
    try:
        optimizer = variants.copy_of_optimizer(model.optimizer)
        train, kept = _split(sample, seed)
        kinds = [
            "other" if target.kind == "continuous" and head.loss not in OF_NUMBERS else target.kind
            for head, target in zip(structure.heads, data.targets, strict=False)
        ]
        laboratory = Laboratory(model, optimizer, train, kept, batch, seed, kinds)
        laboratory.warm_up()
        steps = probe_steps or _steps(data.total_steps, laboratory.step_seconds)
        search = _Search(laboratory, steps, clock, data.total_steps)
        search.try_("plan")
    except Exception as error:  # the pass before went well, so what a person's code raises is told
        return TrialLook(error=f"{type(error).__name__}: {str(error).strip()[:300]}")
    constant = laboratory.constant(kept)
    share = signal.penalty / constant if constant else 0.0
    with contextlib.suppress(tf.errors.ResourceExhaustedError):  # what was run stands
        _follow(search, model, data, structure, signal, share, seed)
    return TrialLook(
        runs=tuple(search.runs.values()),
        planned_steps=data.total_steps,
        batch_size=batch,
        constant_loss=constant,
        penalty_share=share,
        is_cut=search.is_cut,
    )


def _steps(planned: int | None, seconds: float) -> int:
    affordable = int(_SECONDS / max(seconds, 1e-5))
    wanted = planned or _UNTOLD
    steps = min(wanted, max(_LEAST, affordable), _MOST)
    return math.ceil(steps / CHUNK) * CHUNK


def _follow(
    search: _Search,
    model: Any,
    data: DataLook,
    structure: StructureLook,
    signal: SignalLook,
    penalty_share: float,
    seed: int,
) -> None:
    plan = search.runs["plan"]
    laboratory = search.laboratory
    if search.has_learned():
        if structure.iterations == 0 and begins_off(structure, _FAR) and plan.merit < _WELL:
            search.try_("start", start=variants.first_weights(model, seed, structure))
        return
    if hides_rows(structure, signal):
        _try_copy(search, "relu", model, structure, seed)
    scaled = scaled_inputs(laboratory, data)
    targets = scaled_targets(laboratory, data, structure)
    if scaled is not None and plan.merit < _NOTHING:
        search.try_("inputs", data=scaled)
    if targets is not None and plan.merit < _NOTHING:
        search.try_("targets", data=targets)
    if not is_wild(plan):
        search.try_("rate*10", rate=10.0)
        if search.has_learned():
            return
    if scaled is not None:
        search.try_("inputs", data=scaled)
    _follow_rate(search, plan, "rate", {})
    if targets is not None and search.best < _WELL:
        search.try_("targets", data=targets)
    if scaled is not None and search.best < _WELL:
        _follow_rate(search, search.runs.get("inputs") or plan, "inputs, rate", {"data": scaled})
        if targets is not None:
            search.try_("inputs, targets", data=both(scaled, targets))
    if penalty_share > 0.03 and search.best < _WELL:
        search.try_("penalty", penalty=0.0)
    if structure.iterations == 0 and begins_off(structure) and search.best < _WELL:
        start = variants.first_weights(model, seed, structure)
        fresh = search.try_("start", start=start)
        if fresh is not None and fresh.merit > plan.merit + 0.1 and search.best < _WELL:
            _follow_rate(search, fresh, "start, rate", {"start": start})
    steps = data.total_steps
    if steps is not None and search.steps >= steps and plan.finite:
        seconds = 3 * search.steps * laboratory.step_seconds
        if seconds < max(3 * _SECONDS, 0.3 * search.clock.left()):
            search.try_("longer", steps=3 * search.steps)
    if search.best < _WELL:
        _try_copies(search, model, structure, seed)
    if steps is not None and search.steps < steps and search.best > plan.merit + _BETTER:
        # Before a plan is found fault with, it is given all of its steps where there is time.
        has_time = steps * laboratory.step_seconds < _WHOLE * search.clock.left()
        if has_time:
            search.try_("whole", steps=steps)


def _follow_rate(search: _Search, base: Run, name: str, changes: dict[str, Any]) -> None:
    """Try ten times and a tenth of the rate, and go on where it helps.

    A net that has not moved at all may need more than ten times its rate before anything shows.
    """
    for sign in (-1,) if is_wild(base) else (1, -1):
        latest = base
        for power in (1, 2, 3):
            word = f"{name}{'*' if sign > 0 else '/'}{10**power}"
            run = search.try_(word, rate=10.0 ** (sign * power), **changes)
            if run is None or (sign > 0 and not run.finite):
                break
            least = latest.merit + (_BETTER if sign < 0 else -_NOISE)
            if run.finite and (run.merit < least or run.merit > _WELL):
                break
            latest = run if run.finite else latest


def _split(sample: Sample, seed: int) -> tuple[Any, Any]:
    rows = sample.rows
    order = np.random.default_rng(seed + 1).permutation(rows)
    count = min(_KEPT, rows // 5) if rows >= _ENOUGH else 0
    kept, rest = np.sort(order[:count]), np.sort(order[count:])
    few = kept if count else rest[:_KEPT]
    train, aside = sample.take(rest), sample.take(few)
    return tensors(train), tensors(aside)


def _try_copies(search: _Search, model: Any, structure: StructureLook, seed: int) -> None:
    """Try copies of the model: other activations, nothing dropped, wider; and another optimizer."""
    dense = [
        each.units or 0
        for each in structure.layers
        if each.kind == "Dense" and each.name not in {head.layer for head in structure.heads}
    ]
    _try_copy(search, "relu", model, structure, seed)
    if max((each.rate for each in structure.layers), default=0.0) >= _DROPPED:
        _try_copy(search, "dropout", model, structure, seed)
    if min(dense, default=_NARROW + 1) <= _NARROW:
        _try_copy(search, "wider", model, structure, seed)
    is_plain = structure.optimizer not in ("Adam", "AdamW", "Nadam", "Adamax", "RMSprop")
    if is_plain and search.clock.left() > 2 * _SECONDS and search.best < LEARNS:
        _try_elsewhere(search, "adam", model, model, keras.optimizers.Adam(1e-3))


def _try_copy(search: _Search, name: str, model: Any, structure: StructureLook, seed: int) -> None:
    """Try a copy with other activations, without dropout, or with wider layers."""
    if name in search.runs:
        return
    if search.clock.left() < _SECONDS + search.steps * search.laboratory.step_seconds:
        search.is_cut = True
        return
    heads = {head.layer for head in structure.heads}
    change = {
        "relu": variants.rectified(heads, structure),
        "dropout": variants.without_dropout(),
        "wider": variants.wider(heads),
    }[name]
    search.laboratory.restart()
    copied = variants.varied(model, change, seed)
    if copied is not None:
        _try_elsewhere(search, name, copied, model, model.optimizer)


def _try_elsewhere(search: _Search, name: str, copied: Any, model: Any, optimizer: Any) -> None:
    laboratory = search.laboratory
    with contextlib.suppress(Exception):  # what can't be copied whole is not tried
        if copied is not model:
            copied.compile(optimizer="sgd", loss=model.loss, loss_weights=_loss_weights(model))
        other = Laboratory(
            copied,
            variants.copy_of_optimizer(optimizer),
            laboratory.train,
            laboratory.kept,
            laboratory.batch_size,
            laboratory.seed,
            laboratory.kinds,
        )
        search.runs[name] = other.run(name, search.steps, seconds=3 * _SECONDS)
    laboratory.restart()


def _loss_weights(model: Any) -> Any:
    config = model.get_compile_config() or {}
    return config.get("loss_weights") if isinstance(config, dict) else None
