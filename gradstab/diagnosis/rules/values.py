"""Rules on what the data holds: entries that are not finite, that never change, or that are few."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gradstab.diagnosis.finding import Finding
from gradstab.diagnosis.looks.bundle import Looks
from gradstab.diagnosis.rules.comparison import healings

# Features up to which each has a name of its own; beyond, some are always empty.
_TABLE: Final = 50
# Rows that a class would hold if all were equally frequent, from which on an absent class is odd,
# and the most classes for which that is looked at: vocabularies have words that never occur.
_EXPECTED_ROWS: Final = 20
_FEW_CLASSES: Final = 100
# Share of the most frequent class from which on accuracy alone deceives.
_ONE_SIDED: Final = 0.9
# Merit on rows trained on, and on others, between which lies learning by heart.
_BY_HEART: Final = 0.6
_NOT_AT_ALL: Final = 0.2
# Agreement beyond chance, of neighbours and of answers, below which labels are noise.
_UNRELATED: Final = 0.08
# Rows below which a net has next to nothing to learn from, and weights per row that go with it.
_FEW_ROWS: Final = 50
_WEIGHTS_PER_ROW: Final = 100


def nonfinite_data(looks: Looks) -> Iterator[Finding]:
    """Find NaN and infinity in inputs and targets."""
    for each in looks.data.inputs:
        if each.nonfinite and each.first_nonfinite is not None:
            row, feature = each.first_nonfinite
            yield Finding(
                "nonfinite-data",
                "error",
                None,
                f"Input `{each.name}` holds {each.nonfinite} entries that are NaN or infinite, the "
                f"first in row {row}, feature {feature}; one is enough to make all weights NaN.",
                {"entries": each.nonfinite, "rows": each.nonfinite_rows, "row": row,
                 "feature": feature},
                "Drop or fill them before training: `x = np.nan_to_num(x)`, or leave these rows "
                "out.",
            )  # fmt: skip
    for target in looks.data.targets:
        if target.nonfinite:
            yield Finding(
                "nonfinite-data",
                "error",
                None,
                f"Target `{target.name}` holds {target.nonfinite} entries that are NaN or "
                f"infinite, the first in row {target.first_nonfinite}.",
                {"entries": target.nonfinite, "row": target.first_nonfinite},
                "Leave these rows out: `keep = np.isfinite(y)`.",
            )


def constant_data(looks: Looks) -> Iterator[Finding]:
    """Find inputs and targets that never change."""
    for each in looks.data.inputs:
        if each.all_constant and each.kind == "float":
            yield Finding(
                "constant-data",
                "error" if len(looks.data.inputs) == 1 else "warning",
                None,
                f"Input `{each.name}` is the same in every row, so it carries no information.",
                {"rows": each.rows},
                "Look at how the input is loaded: print two rows of it.",
            )
        elif (
            each.constant_features
            and each.kind == "float"
            and len(each.shape) == 1
            and (each.features <= _TABLE)
        ):
            yield Finding(
                "constant-data",
                "info",
                None,
                f"{each.constant_features} of {each.features} features of input `{each.name}` never"
                " change.",
                {"features": each.constant_features, "of": each.features},
                "Leave them out; when you scale, do not divide by their deviation of 0.",
            )
    for target in looks.data.targets:
        if target.constant and target.rows > 1:
            yield Finding(
                "constant-data",
                "error",
                None,
                f"Target `{target.name}` is the same in every row: there is nothing to learn.",
                {"rows": target.rows, "value": target.mean},
                "Look at how the labels are loaded: print `np.unique(y, return_counts=True)`.",
            )


def class_imbalance(looks: Looks) -> Iterator[Finding]:
    """Find classes that never occur, rows sorted by class, and one class that is nearly all."""
    for head, target in looks.heads_with_targets():
        if target.kind not in ("classes", "one-hot", "binary") or len(target.shape) > 1:
            continue
        if target.constant:
            continue  # said by constant-data
        counted = list(target.counts)
        units = head.units or 0
        width = target.shape[-1] if target.kind == "one-hot" else units
        expected = target.rows / max(width, 1)
        missing = [place for place in range(width) if place >= len(counted) or not counted[place]]
        # A unit 0 that no label uses is how people count from 1; then nothing is lost.
        missing = [place for place in missing if place or target.is_sorted]
        if width > 1 and missing and width <= _FEW_CLASSES and expected >= _EXPECTED_ROWS:
            order = " The rows are sorted by class." if target.is_sorted else ""
            yield Finding(
                "class-imbalance",
                "warning",
                None,
                f"{len(missing)} of {width} classes never occur in the labels (the first is class "
                f"{missing[0]}), so they can't be learned.{order}",
                {"missing": len(missing), "classes": width, "sorted": target.is_sorted},
                "Shuffle before you split: `order = np.random.permutation(len(x)); x, y = x[order],"
                " y[order]`, or use `train_test_split(x, y, stratify=y)`.",
            )
        elif target.is_sorted:
            yield Finding(
                "class-imbalance",
                "info",
                None,
                "The rows are sorted by class: `validation_split` takes the last rows, which are "
                "all of one class.",
                {"sorted": True},
                "Shuffle inputs and labels together before you split.",
            )
        elif target.majority >= _ONE_SIDED and target.classes > 1:
            plan = looks.trial.plan
            is_stuck = plan is not None and plan.end.skill < 0.05 and plan.end.explained < 0.1
            yield Finding(
                "class-imbalance",
                "warning" if is_stuck else "info",
                None,
                f"{target.majority:.0%} of the rows are of one class: a model that always predicts "
                "this class has a high accuracy.",
                {"majority": target.majority},
                "Weight the classes, `fit(..., class_weight={0: 1.0, 1: "
                f"{target.majority / max(1 - target.majority, 1e-3):.0f}.0}})`, and judge by F1 or "
                "by the area under the precision-recall curve.",
            )


def too_little_data(looks: Looks) -> Iterator[Finding]:
    """Find very few rows for very many weights, and rows that are only learned by heart."""
    rows, weights = looks.data.rows, looks.structure.trainable_weights
    plan = looks.trial.plan
    by_heart = plan is not None and plan.fitted > _BY_HEART and plan.merit < _NOT_AT_ALL
    if plan is not None and by_heart and not healings(looks):
        yield Finding(
            "too-little-data",
            "warning",
            None,
            f"On its training rows the model learns {plan.fitted:.0%}, on other rows "
            f"{max(plan.merit, 0):.0%}: it memorizes its {rows} rows.",
            {"rows": rows, "weights": weights, "fitted": plan.fitted, "kept": plan.merit},
            "Get more rows, augment them, or use a smaller model.",
        )
        return
    if rows is not None and rows < _FEW_ROWS and weights > _WEIGHTS_PER_ROW * rows:
        yield Finding(
            "too-little-data",
            "info",
            None,
            f"{rows} rows for {weights} weights: the net can memorize them.",
            {"rows": rows, "weights": weights},
            "Get more rows, or use a much smaller model; evaluate on held-out rows.",
        )


def unrelated_labels(looks: Looks) -> Iterator[Finding]:
    """Find labels that do not go with the inputs: shuffled apart, or read from another file."""
    for target in looks.data.targets:
        agree, plan = target.neighbours_agree, looks.trial.plan
        if agree is None or plan is None or target.majority >= _ONE_SIDED:
            continue
        best = max((run.end.skill for run in looks.trial.runs if run.finite), default=0.0)
        if agree < _UNRELATED and best < _UNRELATED and not healings(looks):
            yield Finding(
                "label-encoding",
                "warning",
                None,
                "The labels seem unrelated to the inputs: nearest neighbours share their label "
                f"{max(agree, 0):.0%} more often than by chance, and no training that was tried "
                "did better than guessing on held-out rows.",
                {"neighbours_agree": agree, "best_skill": best},
                "Look at some rows with their labels. Shuffle inputs and labels together: "
                "`order = np.random.permutation(len(x)); x, y = x[order], y[order]`.",
            )
    kinds = [target.kind for target in looks.data.targets[:1]]
    if looks.data.contradictions > 0.5 and set(kinds) & {"classes", "binary", "one-hot"}:
        yield Finding(
            "label-encoding",
            "info",
            None,
            f"{looks.data.contradictions:.0%} of the repeated input rows have different labels.",
            {"contradictions": looks.data.contradictions},
            "Check that inputs and labels are in the same order, and shuffled together.",
        )
