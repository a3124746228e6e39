"""The smallest change that heals a model: found from its diagnosis, tried, and shown as a diff."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from typing import Any, Final

import keras

from gradstab._validation import check_float, check_int
from gradstab.diagnosis.diagnose import diagnose
from gradstab.repairs.draft import Draft, Plan, compile_arguments
from gradstab.repairs.prescriptions.base import Change
from gradstab.repairs.search import (
    Evidence,
    Search,
    allowed_by,
    gain_that_counts,
    recipes_for,
)
from gradstab.repairs.trial import Bench, Trial, seeded

NOT_NEEDED: Final = "not needed"
REPAIRED: Final = "repaired"
IMPROVED: Final = "improved"
NOT_REPAIRABLE: Final = "not repairable"

# A score is hardly better than a constant answer's up to the first, and good from the second on.
_CHANCE, _GOOD = 0.15, 0.5
# The share of what was missing to a perfect score that a repair has to bring.
_SHARE: Final = 0.5


@dataclasses.dataclass(frozen=True)
class Action:
    """A prescription that was taken.

    Attributes:
        name: What it does.
        changes: Lines of code, before and after.
        evidence: Scores before, after, and with this change undone; `None` where time ran out.
    """

    name: str
    changes: tuple[Change, ...]
    evidence: Evidence | None


class Repair:
    """What `repair` found.

    Scores: 1 is perfect, 0 is what a constant answer gets.

    Attributes:
        model: The repaired model, compiled, with fresh weights; ready for
            `model.fit(*repair.prepare(x, y), **repair.fit_arguments)`. The given model itself
            where nothing was changed.
        verdict: `"not needed"`, `"repaired"`, `"improved"` or `"not repairable"`.
        reason: Why that, in a sentence.
        actions: Changes in the order in which they were made.
        fit_arguments: Arguments of `fit` beside the data.
        score_before: Score of the model as it was given, trained as planned.
        score: Score of the repaired one.
        cost: Time of the search, in multiples of one training as planned.
        diagnosis: The diagnosis that it began with.
    """

    def __init__(
        self,
        model: Any,
        verdict: str,
        reason: str,
        *,
        actions: Sequence[Action],
        draft: Draft,
        score_before: float,
        score: float,
        cost: float,
        diagnosis: Any,
    ) -> None:
        self.model, self.verdict, self.reason = model, verdict, reason
        self.actions = tuple(actions)
        self.fit_arguments: dict[str, Any] = dict(draft.fit_arguments)
        self.score_before, self.score, self.cost = score_before, score, cost
        self.diagnosis = diagnosis
        self._draft = draft

    def prepare(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Return data as the repaired model takes it: labels from 0 on, what is not finite out."""
        return self._draft.prepared(x, y)

    def diff(self) -> str:
        """Return the change to make in the script: `-` lines to take out, `+` lines to put in."""
        lines = []
        for action in self.actions:
            lines.append(f"# {action.name}")
            for change in action.changes:
                lines += [f"- {change.before}"] if change.before else []
                lines += [f"+ {change.after}"] if change.after else []
        return "\n".join(lines)

    def __str__(self) -> str:
        lines = [f"{self.verdict}: {self.reason}"]
        lines.append(
            f"score {self.score_before:.2f} before, {self.score:.2f} after "
            f"(1 is perfect, 0 a constant answer); {self.cost:.1f} plain runs of search"
        )
        for action in self.actions:
            lines.append(f"- {action.name}{_told(action.evidence)}")
        if self.actions:
            lines += ["", self.diff()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        names = ", ".join(action.name for action in self.actions)
        return f"<Repair: {self.verdict}{': ' + names if names else ''}>"

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self) -> str:
        """Return the repair as a section of a page; what comes from the model is escaped."""
        rows = "".join(
            f"<tr><td>{html.escape(action.name)}</td>"
            + "".join(f"<td>{number}</td>" for number in _numbers(action.evidence))
            + "</tr>"
            for action in self.actions
        )
        table = (
            "<table><tr><th>change</th><th>before</th><th>after</th><th>undone</th></tr>"
            f"{rows}</table>"
            if rows
            else ""
        )
        diff = f"<pre>{html.escape(self.diff())}</pre>" if self.actions else ""
        return (
            f"<section><h2>Repair: {html.escape(self.verdict)}</h2>"
            f"<p>{html.escape(self.reason)}</p>{table}{diff}</section>"
        )


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
    """Find the smallest change that heals a model, and show it as a diff.

    The model is diagnosed and trained once as planned. Where it is sick, changes that answer the
    diagnosis are tried on copies, alone and up to three together; the better ones are trained
    longer. What does not help is taken out again. The model that was given is never changed.

    Args:
        model: A compiled model. Sequential and functional models can get other layers. Of
            subclassed ones only the training is changed, and they need a `get_config`.
        x: Inputs: an array, or a list or dict of arrays, with the examples along the first axis.
        y: Targets, likewise.
        validation_data: Inputs and targets to score on; by default a fifth of the data is held out.
        epochs: Epochs as planned.
        batch_size: Batch size as planned.
        budget: Time to spend, in multiples of one training as planned. Diagnosis and first traces
            come on top for nets that train within seconds.
        seed: Draws first weights, the examples held out, and the order of examples.
        allow: Class names of prescriptions to try; all by default.

    Raises:
        TypeError: If data is not given as arrays.
        ValueError: If the model is not compiled or can't be copied, or arguments are out of range.

    Example:
    >>> import keras, numpy as np, gradstab
    >>> x = np.random.default_rng(0).normal(size=(400, 4)).astype("float32")
    >>> y = (x.sum(1) > 0).astype("float32")
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, "softmax", name="out")])
    >>> model.compile("adam", "binary_crossentropy")
    >>> print(gradstab.repair(model, x, y, epochs=20).diff())  # doctest: +SKIP
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
    diagnosis = _diagnosed(model, x, y, epochs, batch_size, seed)
    roots = [root for root in diagnosis.roots if root.severity != "info"]
    plain = bench.trial([])
    if plain.model is None:
        raise ValueError(f"`model` can't be copied. {plain.error}")
    for share in (0.25, 1.0):
        bench.train(plain, share)
    if not roots and plain.score > _CHANCE:
        return _unchanged(model, plain, NOT_NEEDED, "it learns, and the diagnosis finds no fault",
                          plain.seconds, diagnosis)  # fmt: skip
    search = Search(bench, plain, budget)
    found = search.best(recipes_for([root.code for root in roots], allowed))
    least = gain_that_counts(bench.num_scored)
    if found is None or found.score < plain.score + least:
        return _no_gain(model, plain, roots, search, diagnosis)
    found, evidence = search.pruned(found, least / 2)
    gain = found.score - plain.score
    is_good = found.score >= _GOOD or gain >= _SHARE * (1 - plain.score)
    holds = search.holds(found, seed + 1, plain.score + max(least, gain / 2)) if is_good else None
    verdict = REPAIRED if is_good and holds is not False else IMPROVED
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


def _no_gain(model: Any, plain: Trial, roots: Any, search: Search, diagnosis: Any) -> Repair:
    if plain.score >= _GOOD:
        reason = "it learns, and no change made it better"
        return _unchanged(model, plain, NOT_NEEDED, reason, search.spent, diagnosis)
    cause = roots[0].cause if roots else plain.error or "no cause was found"
    reason = f"{cause} No change that was tried helped."
    return _unchanged(model, plain, NOT_REPAIRABLE, reason, search.spent, diagnosis)


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


def _diagnosed(model: Any, x: Any, y: Any, epochs: int, batch_size: int, seed: int) -> Any:
    return diagnose(model, x, y, epochs=epochs, batch_size=batch_size, seed=seed)


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


def _told(evidence: Evidence | None) -> str:
    if evidence is None:
        return " (not undone: the budget was spent)"
    return f" ({evidence.after:.2f} with it, {evidence.undone:.2f} undone)"


def _numbers(evidence: Evidence | None) -> list[str]:
    if evidence is None:
        return ["", "", ""]
    return [f"{number:.2f}" for number in dataclasses.astuple(evidence)]
