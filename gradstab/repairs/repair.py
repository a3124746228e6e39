"""Finds the smallest change that makes a model learn, tries it, and shows it as a diff."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import keras

from gradstab._validation import check_float, check_int
from gradstab.diagnosis.diagnose import diagnosed
from gradstab.diagnosis.measuring.clock import Clock
from gradstab.diagnosis.rules.comparison import healing
from gradstab.repairs.draft import Plan, compile_arguments
from gradstab.repairs.result import Action, Repair
from gradstab.repairs.search import (
    GOOD,
    Search,
    allowed_by,
    answers,
    gain_that_counts,
    recipes_for,
    usual,
)
from gradstab.repairs.trial import Bench, Trial, seeded

NOT_NEEDED: Final = "not needed"
REPAIRED: Final = "repaired"
IMPROVED: Final = "improved"
NOT_REPAIRABLE: Final = "not repairable"

# Work of the diagnosis in units of the plain run, and its least and most seconds.
_DIAGNOSIS: Final = 1.5
_SECONDS: Final = (2.0, 6.0)
# Merit of a trial from which on its rate is taken as it is.
_WELL: Final = 0.8
# Up to this a score is hardly better than a constant answer's.
_CHANCE: Final = 0.15
_SLOW: Final = ("learning-rate-too-low", "too-few-epochs", "batch-size", "optimizer")
# The share of what was missing to a perfect score that a repair has to bring.
_SHARE: Final = 0.5
# The least score of a net that is called repaired.
_FAIR: Final = GOOD / 2


def repair(
    model: Any,
    x: Any,
    y: Any,
    *,
    validation_data: Any = None,
    epochs: int = 10,
    batch_size: int = 32,
    budget: float = 3.0,
    seed: int = 0,
    allow: Sequence[str] | None = None,
) -> Repair:
    """Find the smallest change that makes a model learn, and show it as a diff.

    The model is diagnosed and trained once as planned. If it does not learn well, changes for its
    findings are tried on copies, alone and up to three together, and the better ones are trained
    longer. Changes that do not help are removed again. The model that you pass is never changed.

    Args:
        model: A compiled model. Layers are changed in sequential and functional models only. For
            subclassed models, which need a `get_config`, only the training is changed.
        x: Inputs: an array, or a list or dict of arrays, with the examples along the first axis.
        y: Targets, likewise.
        validation_data: Inputs and targets to score on; by default a fifth of the data is held out.
        epochs: Epochs as planned.
        batch_size: Batch size as planned.
        budget: Work to spend, in multiples of one training as planned. It is counted in steps, and
            a trace as 500 steps, so that the result does not depend on the load of the machine. The
            diagnosis, some seconds, comes on top.
        seed: Seed of initial weights, held-out examples, and the order of examples.
        allow: Class names of prescriptions to try; all by default.

    Raises:
        TypeError: If the data are not arrays.
        ValueError: If the model is not compiled or can't be copied, or arguments are out of range.

    Example:
    >>> import keras, numpy as np, gradstab
    >>> x = np.random.default_rng(0).normal(size=(400, 4)).astype("float32")
    >>> y = (x.sum(1) > 0).astype("float32")
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, "softmax", name="out")])
    >>> model.compile("adam", "binary_crossentropy")
    >>> found = gradstab.repair(model, x, y, epochs=20)
    >>> found.verdict
    'repaired'
    >>> for line in found.diff().splitlines()[:3]: print(line)
    # make output, loss and labels fit
    - keras.layers.Dense(1, activation="softmax")
    + keras.layers.Dense(1, activation="sigmoid")

    Reference:
        Zhang et al. (2021), "AUTOTRAINER: An Automatic DNN Training Problem Detection and Repair
        System", for repairs from a catalogue; Jamieson and Talwalkar (2016), "Non-stochastic Best
        Arm Identification and Hyperparameter Optimization", for successive halving.
    """
    _check(model, x, y, validation_data)
    check_int("epochs", epochs, minimum=1)
    check_int("batch_size", batch_size, minimum=1)
    check_float("budget", budget, minimum=1.0)
    allowed = allowed_by(allow)
    bench = Bench(model, x, y, validation_data, Plan(epochs, batch_size), seed)
    clock = Clock(math.inf)
    plain = bench.trial([])
    if plain.model is None:
        raise ValueError(f"`model` can't be copied. {plain.error}")
    for share in (0.25, 1.0):
        bench.train(plain, share)
    # Of what is quickly trained the diagnosis is not to take many times as long.
    seconds = min(max(_DIAGNOSIS * clock.seconds(), _SECONDS[0]), _SECONDS[1])
    diagnosis = diagnosed(model, x, y, None, epochs, batch_size, seed=seed, seconds=seconds)
    roots = [root for root in diagnosis.roots if root.severity != "info"]
    # That a plan could be quicker is no fault where it gets there.
    is_fine = plain.score >= GOOD and all(root.code in _SLOW for root in roots)
    if is_fine or (not roots and plain.score > _CHANCE):
        reason = "it learns, and the diagnosis finds no fault"
        return _unchanged(model, plain, NOT_NEEDED, reason, 1.0, diagnosis)
    bench.known_rate = _rate_that_heals(diagnosis.looks)
    search = Search(bench, plain, budget, seed + 1)
    least = gain_that_counts(bench.num_scored)
    codes = [root.code for root in roots]
    hints = [root.code for root in diagnosis.roots if root.severity == "info"]
    applicable = bench.applicable(allowed)
    found = search.best(recipes_for(codes, hints, applicable, allowed), least / 2)
    if found is not None:
        more = [*answers(codes, applicable)[0], *usual(allowed)]
        found = search.extended(found, list(dict.fromkeys(more)), least / 2)
    # What is good already, or has no fault that shows, has to get much better: some change or other
    # always helps a little.
    wanted = _SHARE * (1 - plain.score) if plain.score >= GOOD or not roots else 0.0
    if found is None or found.score < max(plain.score, 0.0) + max(least, wanted):
        return _no_gain(model, plain, roots, search, diagnosis)
    found, evidence = search.pruned(found, least / 2)
    # Half of what was missing, but not from far below a constant answer to hardly above one.
    is_much = found.score - plain.score >= _SHARE * (1 - plain.score) and found.score >= _FAIR
    verdict = REPAIRED if found.score >= GOOD or is_much else IMPROVED
    cause = roots[0].cause if roots else "it does not learn, and the diagnosis names no cause"
    return Repair(
        _fresh(model, found, seed),
        verdict,
        cause,
        actions=[
            Action(each.name, tuple(changes), evidence.get(each))
            for each, changes in found.actions.items()
        ],
        draft=found.draft,
        score_before=plain.score,
        score=found.score,
        cost=search.spent,
        diagnosis=diagnosis,
    )


def _rate_that_heals(looks: Any) -> float | None:
    """Return the rate at which a trial of the diagnosis learned well, with nothing else changed."""
    found = healing(looks, "rate")
    rate = looks.structure.learning_rate
    if found is None or found.partner is not None or found.run.merit < _WELL:
        return None
    return None if rate is None or looks.structure.is_scheduled else rate * found.factor


def _no_gain(model: Any, plain: Trial, roots: Any, search: Search, diagnosis: Any) -> Repair:
    verdict, reason = NOT_REPAIRABLE, "No change that was tried helped."
    if plain.score >= GOOD and all(root.severity != "error" for root in roots):
        verdict, reason = NOT_NEEDED, "it learns, and no change made it better"
    elif roots:
        reason = f"{roots[0].cause} {reason}"
    elif plain.error:
        reason = f"{plain.error}. {reason}"
    else:
        verdict = NOT_NEEDED
        reason = (
            "it learns little, but the diagnosis finds no fault, and no change made it much "
            "better: it may be all that can be learned from these data in this time"
        )
    return _unchanged(model, plain, verdict, reason, search.spent, diagnosis)


def _unchanged(
    model: Any, plain: Trial, verdict: str, reason: str, cost: float, diagnosis: Any
) -> Repair:
    return Repair(model, verdict, reason, actions=(), draft=plain.draft, score_before=plain.score,
                  score=plain.score, cost=cost, diagnosis=diagnosis)  # fmt: skip


def _fresh(model: Any, trial: Trial, seed: int) -> Any:
    """Return the repaired model with fresh weights, and with the person's metrics."""
    with seeded(seed):
        fresh = trial.draft.built()
    config = compile_arguments(model)
    metrics = {}
    for name in ("metrics", "weighted_metrics"):
        try:
            metrics[name] = keras.saving.deserialize_keras_object(config.get(name))
        except (TypeError, ValueError):  # A function of the person's own: it has no config.
            metrics[name] = None
    fresh.compile(
        fresh.optimizer, trial.draft.loss, loss_weights=trial.draft.loss_weights,
        jit_compile=config.get("jit_compile", "auto"),
        steps_per_execution=config.get("steps_per_execution", 1), **metrics,
    )  # fmt: skip
    return fresh


def _check(model: Any, x: Any, y: Any, validation_data: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a Keras model. Received: model={model!r}")
    if not getattr(model, "compiled", False):
        raise ValueError("`model` must be compiled. Call `model.compile(optimizer, loss)` first")
    if validation_data is not None and len(validation_data) < 2:
        raise ValueError("`validation_data` must be a pair of inputs and targets")
    for name, data in (("x", x), ("y", y)):
        leaves = keras.tree.flatten(data)
        if not leaves or any(not hasattr(leaf, "shape") for leaf in leaves):
            raise TypeError(
                f"`{name}` must be an array, or a list or dict of arrays, since parts of it are "
                f"drawn by row. Received: {type(data).__name__}. Gather a data set into arrays "
                "first, at best some thousand examples"
            )
    counts = {len(leaf) for leaf in keras.tree.flatten((x, y))}
    if len(counts) != 1:
        raise ValueError(f"`x` and `y` must have as many examples. Received: {sorted(counts)}")
