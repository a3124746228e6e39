"""Records that somebody made to break the report: each is read, or refused in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

_HEADER = {
    "kind": "run",
    "schema": 1,
    "started": "2026-01-01T00:00:00+00:00",
    "versions": {"keras": "3"},
    "variables": ["a/kernel", "a/bias"],
    "layers": ["a"],
    "trained_layers": ["a"],
    "config": {"optimizer": "Adam", "max_norm": 1.0},
}


def _step(step: Any, **scalars: Any) -> dict[str, Any]:
    return {
        "kind": "step",
        "step": step,
        "scalars": {"loss": 1.0 / (step + 1), "grad_norm": 1.0, "clipped": 0.0} | scalars,
    }


def _sampled(step: int, **changed: Any) -> dict[str, Any]:
    entry = _step(step)
    entry["per_variable"] = {
        name: [1.0, 2.0] for name in ("grad_norm", "weight_norm", "update_ratio")
    }
    entry["per_layer"] = {"activation_mean": [0.1], "activation_std": [1.0], "zeros": [0.5]}
    entry["per_trained_layer"] = {"effective_rate_median": [0.1]}
    return entry | changed


def _event(step: Any, name: Any = "skip", **details: Any) -> dict[str, Any]:
    return {"kind": "event", "step": step, "event": name, "details": details}


def _plain(steps: int = 5) -> list[Any]:
    return [_HEADER, *(_sampled(step) for step in range(1, steps + 1))]


def _with_header(**fields: Any) -> list[Any]:
    return [_HEADER | fields, *_plain()[1:]]


def _with_scalars(*values: Any) -> list[Any]:
    return [_HEADER, *(_step(place + 1, loss=v, grad_norm=v) for place, v in enumerate(values))]


def _lines(entries: list[Any]) -> bytes:
    return b"".join(
        entry if isinstance(entry, bytes) else json.dumps(entry).encode() + b"\n"
        for entry in entries
    )


def _long(count: int) -> list[Any]:
    return [_HEADER, *(_step(step) for step in range(count))]


_ODD = [
    0, -1, 1.5, "text", "", None, True, [], {}, [1, 2], {"a": 1}, "\x1b[2J<script>", 10**400, "nan",
]  # fmt: skip


def cases(*, quick: bool) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each record.

    Args:
        quick: Whether the largest ones are made smaller.
    """
    for name in (
        "started",
        "versions",
        "config",
        "variables",
        "layers",
        "trained_layers",
        "schema",
    ):
        for place, value in enumerate(_ODD):
            yield f"header: {name} {place}", _lines(_with_header(**{name: value}))
    for place, value in enumerate(_ODD):
        yield f"config: max_norm {place}", _lines(_with_header(config={"max_norm": value}))
        yield f"config: optimizer {place}", _lines(_with_header(config={"optimizer": value}))
        yield f"step: number {place}", _lines([*_plain(), {**_step(1), "step": value}])
        yield f"step: scalar {place}", _lines([*_plain(), _step(9, loss=value)])
        yield f"step: scalars {place}", _lines([*_plain(), {**_step(9), "scalars": value}])
        yield f"step: sample {place}", _lines([*_plain(), _sampled(9, per_variable={"a": value})])
        yield f"step: layers {place}", _lines([*_plain(), _sampled(9, per_layer=value)])
        yield f"event: step {place}", _lines([*_plain(), _event(value)])
        yield f"event: name {place}", _lines([*_plain(), _event(3, value)])
        yield f"event: cause {place}", _lines([*_plain(), _event(3, cause=value, variable=value)])
        yield f"event: missed {place}", _lines([*_plain(), _event(3, "missed", steps=value)])
        yield f"event: stop {place}", _lines([*_plain(), _event(3, "stop", message=value)])
        yield f"line: {place}", _lines([*_plain(), value])
    for place, values in enumerate(
        [
            ["inf"], ["-inf"], ["nan"], ["inf", "-inf", "nan"] * 4, [1e308, -1e308, 1e308],
            [1e308, "inf", 1.0], [5e-324, 1e308], [0.0] * 5, [-1.0] * 5, [2**62], ["inf"] * 50,
            [1.0, "inf"] * 20, [1e-300, 1e300] * 5,
        ]
    ):  # fmt: skip
        yield f"scalars: {place}", _lines(_with_scalars(*values))
        pairs = [[value, value] for value in values]
        samples = [
            _sampled(place + 1, per_variable={"grad_norm": pair, "update_ratio": pair})
            for place, pair in enumerate(pairs)
        ]
        yield f"samples: {place}", _lines([_HEADER, *samples])
    far = [_step(1), _step(2**62), _step(2**63 - 1)]
    yield "steps far apart", _lines([_HEADER, *far])
    yield "events far away", _lines([*_plain(), _event(2**63 - 1), _event(0)])
    yield "a header alone", _lines([_HEADER])
    yield "two headers", _lines([_HEADER, _HEADER])
    yield "other variables", _lines([*_plain(), _HEADER | {"variables": ["b"]}])
    yield "no variables", _lines([_HEADER | {"variables": []}, _step(1)])
    yield "one name twice", _lines(_with_header(variables=["a", "a"]))
    yield "no header", _lines([_step(1)])
    yield "empty", b""
    yield "zeros", bytes(5000)
    yield "noise", np.random.default_rng(0).bytes(20_000)
    yield "one long line", b'{"kind": "run", "x": "' + b"a" * 1_000_000
    yield "deep", b"[" * 200_000
    yield "not utf-8", b'{"kind": "run", "schema": 1, "started": "\xff\xfe"}\n'
    yield (
        "nan without quotes",
        _lines([_HEADER]) + b'{"kind": "step", "step": 1, "scalars": {"loss": NaN}}\n',
    )
    many = 20_000 if quick else 200_000
    yield "many lines", _lines(_long(many))
    yield (
        "many names",
        _lines([_HEADER, *(_step(step, **{f"scalar_{step}": 1.0}) for step in range(many // 10))]),
    )
    yield (
        "many events",
        _lines([*_plain(), *(_event(step, cause=f"{step}") for step in range(many))]),
    )
    yield "many runs", _lines([_HEADER | {"variables": [f"{n}"]} for n in range(many // 10)])
    wide = {"variables": [f"v{n}" for n in range(2000)]}
    yield (
        "many variables",
        _lines(
            [
                _HEADER | wide,
                *(_sampled(n, per_variable={"grad_norm": [math.pi] * 2000}) for n in range(20)),
            ]
        ),
    )
    changing = [
        line
        for n in range(many // 40)
        for line in (
            _HEADER | {"variables": [f"v{n}"]},
            {"kind": "step", "step": n, "scalars": {}, "per_variable": {"grad_norm": [1.0]}},
        )
    ]
    yield "variables that change", _lines(changing)
