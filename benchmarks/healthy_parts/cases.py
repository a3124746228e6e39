"""Cases of a folder as rows: the healthy twin of each faulty model, and healthy but odd nets."""

from __future__ import annotations

import inspect
import runpy
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from healthy_parts.rows import Row, points


def rows(folder: Path) -> list[Row]:
    """Return a row for each case file of a folder, in the order of their names.

    A case file has `ID`, `METRIC`, `BUDGET` for `fit`, `data(seed)`, `build(faulty)` for a compiled
    model, and `score(model, x, y)`.
    """
    files = sorted([*folder.glob("case_*.py"), *folder.glob("healthy_*.py")])
    return [_row(types.SimpleNamespace(**runpy.run_path(str(file)))) for file in files]


def _row(case: Any) -> Row:
    def train(make: Callable[[], Any], seed: int, quick: bool) -> float:
        has_faulty_data = "faulty" in inspect.signature(case.data).parameters
        x, y, other_x, other_y = case.data(seed, **({"faulty": False} if has_faulty_data else {}))
        budget = dict(getattr(case, "HEALTHY_BUDGET", case.BUDGET))
        if quick:
            budget["epochs"] = 1
        model = case.build(False)
        model.optimizer = make()
        model.fit(x, y, verbose=0, **budget)
        score = case.score(model, other_x, other_y)
        return 100.0 * score if case.METRIC == "accuracy" else points(score)

    return Row(case.ID, lambda: case.build(False).optimizer, train)
