"""Says why a model does not learn, before the first epoch is lost."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, Final, Literal

import keras
import numpy as np

from gradstab._validation import check_int
from gradstab.diagnosis.causes import explained
from gradstab.diagnosis.diagnosis import Diagnosis
from gradstab.diagnosis.finding import Finding
from gradstab.diagnosis.looks.bundle import Looks
from gradstab.diagnosis.looks.data import DataLook
from gradstab.diagnosis.looks.structure import StructureLook
from gradstab.diagnosis.looks.trial import TrialLook, learned
from gradstab.diagnosis.measuring.clock import Clock
from gradstab.diagnosis.measuring.data import look_at_data
from gradstab.diagnosis.measuring.sample import Sample, take_sample, tensors
from gradstab.diagnosis.measuring.signal import look_at_signal
from gradstab.diagnosis.measuring.state import preserved
from gradstab.diagnosis.measuring.structure import look_at_structure
from gradstab.diagnosis.measuring.trial import look_at_trial
from gradstab.diagnosis.rules.catalogue import CODES, RULES, STATIC, apply
from gradstab.diagnosis.rules.heads import OF_PROBABILITIES
from gradstab.diagnosis.rules.labels import are_meant_as_classes

# Seconds of work after which no further trial begins.
_SECONDS: Final = 6.0
# Seconds after which none begins on a machine that others keep busy too.
_WALL: Final = 60.0
# Rows of the batch that is looked at layer by layer.
_ROWS: Final = 64
_FEWEST_ROWS: Final = 16
_FIRST_CALLS: Final = 2.0
# Entries of the inputs of that batch at most: a pass of large images takes seconds.
_ENTRIES: Final = 2_000_000


def diagnose(
    model: Any,
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    epochs: int | None = None,
    batch_size: int = 32,
    probe_steps: int | Literal["auto"] = "auto",
    mute: Sequence[str] = (),
    seed: int = 0,
) -> Diagnosis:
    """Say why a model does not learn: the cause, the layer and the remedy.

    It checks the data, the model, one batch forward and backward, and short trainings on a copy of
    the state: as planned, and with one thing changed, such as the rate or the scale of the inputs.
    If one learns clearly better, its change names the cause. It takes some seconds, however large
    the data.

    Afterwards the variables of model and optimizer and the states of the random generators are as
    before, bit for bit. A model that was not built yet is built.

    Args:
        model: A compiled model, with or without an optimizer wrapped by gradstab.
        x: Inputs as `fit` takes them: arrays, a `tf.data.Dataset`, a `keras.utils.PyDataset`.
        y: Targets, if `x` does not hold them.
        sample_weight: Weights of the rows, if `x` does not hold them.
        epochs: Epochs that you plan to train. If given, their number is checked too.
        batch_size: Rows per step, if `x` is not batched.
        probe_steps: Steps of a short training; `"auto"` for as many as planned, or as a few seconds
            allow.
        mute: Codes of findings to leave out.
        seed: Chooses rows and their order.

    Returns:
        A `Diagnosis`, to be printed.

    Raises:
        ValueError: If the model is not compiled, or the data have no rows.
        TypeError: If `fit` would not accept `x`.

    Example:
        >>> import keras, numpy as np, gradstab
        >>> model = keras.Sequential([
        ...     keras.Input((4,)), keras.layers.Dense(1, activation="softmax", name="out")])
        >>> model.compile("adam", "binary_crossentropy")
        >>> x = np.random.default_rng(0).normal(size=(64, 4))
        >>> diagnosis = gradstab.diagnose(model, x, x[:, 0] > 0)
        >>> [finding.code for finding in diagnosis.roots]
        ['single-unit-softmax']
    """
    _check(model, mute)
    epochs = None if epochs is None else check_int("epochs", epochs)
    batch_size = check_int("batch_size", batch_size)
    steps = None if probe_steps == "auto" else check_int("probe_steps", probe_steps)
    return diagnosed(model, x, y, sample_weight, epochs, batch_size, steps, mute, seed)


def diagnosed(
    model: Any,
    x: Any,
    y: Any,
    sample_weight: Any = None,
    epochs: int | None = None,
    batch_size: int = 32,
    probe_steps: int | None = None,
    mute: Sequence[str] = (),
    seed: int = 0,
    seconds: float = _SECONDS,
) -> Diagnosis:
    """Diagnose as `diagnose` does, in so many seconds of work."""
    with warnings.catch_warnings():
        # Keras warns of some of what is looked for; the findings say it.
        warnings.simplefilter("ignore")
        looks = look(
            model, x, y, sample_weight, epochs, batch_size, probe_steps, seed,
            Clock(seconds, _WALL),
        )  # fmt: skip
    findings = [each for each in apply(RULES, looks) if each.code not in mute]
    findings += [each for each in _unchecked(looks) if each.code not in mute]
    return Diagnosis(tuple(explained(findings)), looks)


def look(
    model: Any,
    x: Any,
    y: Any,
    sample_weight: Any,
    epochs: int | None,
    batch_size: int,
    probe_steps: int | None,
    seed: int,
    clock: Clock,
) -> Looks:
    """Measure what rules judge by, and put everything back."""
    sample = take_sample(x, y, sample_weight, batch_size, seed)
    with preserved(model):
        names, by_name = _outputs(model, sample)
        if isinstance(sample.y, dict) and not by_name:
            sample = sample.in_order(names)
        data = look_at_data(model, sample, epochs, seed)
    with preserved(model):
        batch, other = _two_batches(sample, seed)
        began = clock.seconds()
        signal, outputs = look_at_signal(model, batch, other)
        rows = len(keras.tree.flatten(batch[0])[0])
        # The first call of each operation takes its time whatever the rows.
        seconds = max(clock.seconds() - began - _FIRST_CALLS, 0.0) / rows
        shapes = [each.shape[1:] for each in outputs] or _shapes(model)
        structure = _with_outputs(look_at_structure(model, shapes, names), outputs)
        data = _as_the_loss_reads(data, structure)
    looks = Looks(data, structure, signal)
    skipped = _why_no_trial(model, sample, looks)
    if skipped:
        return dataclasses.replace(looks, trial=TrialLook(skipped=skipped))
    with preserved(model):
        trial = look_at_trial(
            model, sample, data, structure, signal, probe_steps, seed, clock, seconds
        )
    return dataclasses.replace(looks, trial=trial)


def _check(model: Any, mute: Sequence[str]) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a `keras.Model`. Received: model={type(model).__name__}")
    if not getattr(model, "compiled", False) or model.optimizer is None:
        raise ValueError(
            "`model` must be compiled with an optimizer, for a diagnosis judges the loss and the "
            f"rate too. Received: model={model.name!r}, not compiled. Call `model.compile(...)`"
        )
    if isinstance(mute, str) or any(code not in CODES for code in mute):
        raise ValueError(
            f"`mute` must be a list of codes of findings: {', '.join(sorted(CODES))}. "
            f"Received: mute={mute!r}"
        )


def _outputs(model: Any, sample: Sample) -> tuple[list[str], bool]:
    """Return the names of the outputs, and whether the model gives them by name; build it."""
    few, _, _ = tensors(sample.take(np.arange(min(sample.rows, 2))))
    try:
        outputs = model(few)
    except Exception:
        if not model.built:
            raise
        outputs = None  # the next look says what was raised
    if isinstance(outputs, dict):
        return sorted(outputs), True
    return list(getattr(model, "output_names", None) or []), False


def _two_batches(sample: Sample, seed: int) -> tuple[Any, Any]:
    """Return a batch and as many other rows."""
    wide = sum(each[:1].size for each in keras.tree.flatten(sample.x))
    most = max(_FEWEST_ROWS // 2, min(_ROWS, _ENTRIES // max(wide, 1)))
    rows = min(sample.rows, most, max(min(sample.batch_size, _ROWS), _FEWEST_ROWS))
    order = np.random.default_rng(seed).permutation(sample.rows)
    others = order[rows:] if sample.rows >= 2 * rows else order[::-1]
    return (
        tensors(sample.take(order[:rows])),
        tensors(sample.take(np.resize(others, rows))),
    )


def _shapes(model: Any) -> list[tuple[Any, ...]]:
    return [tuple(each.shape[1:]) for each in getattr(model, "outputs", None) or []]


def _with_outputs(structure: StructureLook, outputs: list[Any]) -> StructureLook:
    """Return the structure with what the outputs looked like on a batch."""
    heads = []
    for head, values in zip(structure.heads, outputs, strict=False):
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
        is_shared = values.ndim > 1 and values.shape[-1] > 1 and low is not None and low >= 0
        sums = is_shared and bool((abs(values.sum(-1) - 1) < 1e-2).all())
        heads.append(dataclasses.replace(head, minimum=low, maximum=high, sums_to_one=sums))
    return dataclasses.replace(structure, heads=tuple(heads) or structure.heads)


def _as_the_loss_reads(data: DataLook, structure: StructureLook) -> DataLook:
    """Return the data with whole numbers as quantities where the loss takes them for such.

    Classes one after the other that are judged by accuracy are meant as classes, whatever the loss.
    """
    targets = [
        dataclasses.replace(target, kind="continuous", neighbours_agree=None)
        if target.kind == "classes"
        and head.units == 1
        and head.loss not in OF_PROBABILITIES
        and not are_meant_as_classes(head, target)
        else target
        for head, target in zip(structure.heads, data.targets, strict=False)
    ]
    return dataclasses.replace(data, targets=(*targets, *data.targets[len(targets) :]))


def _why_no_trial(model: Any, sample: Sample, looks: Looks) -> str:
    errors = [each.code for each in apply(STATIC, looks) if each.severity == "error"]
    if errors:
        return f"{errors[0]} has to be fixed first"
    if looks.signal.error:
        return looks.signal.error
    if sample.y is None and looks.structure.heads and any(h.loss for h in looks.structure.heads):
        return "there are no targets"
    if type(model).train_step is not keras.Model.train_step:
        return "the model has a training step of its own"
    if model.distribute_strategy.num_replicas_in_sync > 1:
        return "the model is spread over several replicas"
    return ""


def _unchecked(looks: Looks) -> list[Finding]:
    """Return what could not be checked, so that silence does not pass for health."""
    told = [*looks.data.problems, *looks.structure.problems]
    errors = [each for each in apply(STATIC, looks) if each.severity == "error"]
    if looks.trial.error:
        told.append(f"The trial could not be run: {looks.trial.error}")
    elif looks.trial.skipped and not errors:
        told.append(f"No trial was run: {looks.trial.skipped}.")
    elif looks.trial.is_cut and not learned(looks.trial):
        told.append("The time ran out before all trials that could show a cause.")
    if not looks.data.targets:
        told.append("There are no targets, so checks against targets were left out.")
    return [
        Finding(
            "unchecked", "info", None, text, {},
            "Diagnose a plain `keras.Model` with the same layers, on dense batches of the data.",
        )
        for text in told
    ]  # fmt: skip
