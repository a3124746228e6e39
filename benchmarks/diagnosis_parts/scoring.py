"""One diagnosis of a case, and what the diagnoses of all cases amount to."""

from __future__ import annotations

import importlib.util
import inspect
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Floors, as shares: what a diagnosis has to reach.
FLOORS = {
    "main cause first": 0.7,
    "main cause among three": 0.9,
    "layer": 0.8,
    "fair findings": 0.8,
    "healthy left alone": 0.95,
    "healthy without error": 1.0,
    "in time": 1.0,
}
# Seconds that a diagnosis may take, unless two epochs take longer.
SECONDS = 10.0
# What others report, and on what; none of it was measured here.
PUBLISHED = (
    ("DeepFD", "diagnoses 27 of 52 faulty programs; replicated: recall .33 at 278 s a fault"),
    ("DeepDiagnosis, NeuraLint, UMLAUT", "replicated: recall .15, .19, .19 at 33, 7, 46 s"),
    ("GPT-4", "22 faults: recall .84, precision .39"),
    (
        "DeepDiagnosis, DeepLocalize, UMLAUT",
        "healthy runs flagged: 68 of 188, 133 of 186, 49 of 49",
    ),
)


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} can't be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def twins(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Yield each case with whether its faulty twin is meant."""
    for path in sorted(folder.glob("case_*.py")):
        yield path, True
        yield path, False
    for path in sorted(folder.glob("healthy_*.py")):
        yield path, False


def built(path: Path, faulty: bool, seed: int) -> tuple[Any, Any, tuple[Any, ...], dict[str, int]]:
    """Return a case, the model of one twin, its data, for validation too, and its budget."""
    import keras

    case = load(path)
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    which = {"faulty": faulty} if "faulty" in inspect.signature(case.data).parameters else {}
    data = case.data(seed, **which)
    budget = case.BUDGET if faulty else getattr(case, "HEALTHY_BUDGET", case.BUDGET)
    return case, case.build(faulty), data, budget


def diagnosed(path: Path, faulty: bool, seed: int) -> dict[str, Any]:
    """Diagnose one twin, and say what came of it."""
    import gradstab

    case, model, (x, y, *_), budget = built(path, faulty, seed)
    started = time.perf_counter()
    diagnosis = gradstab.diagnose(model, x, y, seed=seed, **budget)
    seconds = time.perf_counter() - started
    if seconds > SECONDS and not (faulty and getattr(case, "RAISES", False)):
        started = time.perf_counter()
        model.fit(x, y, epochs=2, batch_size=budget["batch_size"], verbose=0)
        two_epochs = time.perf_counter() - started
    else:
        two_epochs = 0.0
    return {
        "case": path.stem,
        "kind": case.KIND,
        "faulty": faulty,
        "seconds": seconds,
        "in_time": seconds <= max(SECONDS, two_epochs),
        "roots": [_of(each) for each in diagnosis.roots],
        "findings": [_of(each) for each in diagnosis.findings],
        **(_scored(case, diagnosis) if faulty else {}),
    }


def _of(finding: Any) -> list[Any]:
    return [finding.code, finding.severity, finding.layer]


def _scored(case: Any, diagnosis: Any) -> dict[str, Any]:
    above = [each.code for each in diagnosis.findings if each.severity != "info"]
    fair = {*case.CAUSES, *case.ALTERNATIVES}
    layers = [each.layer for each in diagnosis.roots[:3] if each.code in fair]
    return {
        **judged(case, [each.code for each in diagnosis.roots]),
        "layer": None if case.LAYER is None else case.LAYER in layers,
        "above": len(above),
        "fair": sum(code in fair for code in above),
    }


def judged(case: Any, codes: Sequence[str]) -> dict[str, Any]:
    """Say whether ranked codes name the cause of a case: first, or among the first three."""
    right = {*case.CAUSES[:1], *case.ALTERNATIVES}
    return {
        "main": case.CAUSES[0],
        "first": bool(codes) and codes[0] in right,
        "among_three": any(code in right for code in codes[:3]),
    }


def shares(results: list[dict[str, Any]]) -> dict[str, float]:
    """Return what share of the floors' subjects holds."""
    faulty = [each for each in results if each["faulty"]]
    healthy = [each for each in results if not each["faulty"]]
    layered = [each for each in faulty if each["layer"] is not None]

    def severities(each: dict[str, Any]) -> set[str]:
        return {severity for _, severity, _ in each["findings"]}

    return {
        "main cause first": _share([each["first"] for each in faulty]),
        "main cause among three": _share([each["among_three"] for each in faulty]),
        "layer": _share([each["layer"] for each in layered]),
        "fair findings": sum(e["fair"] for e in faulty) / max(sum(e["above"] for e in faulty), 1),
        "healthy left alone": _share([severities(each) <= {"info"} for each in healthy]),
        "healthy without error": _share(["error" not in severities(each) for each in healthy]),
        "in time": _share([each["in_time"] for each in results]),
    }


def _share(hits: list[bool]) -> float:
    return sum(hits) / len(hits) if hits else 1.0
