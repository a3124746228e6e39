"""Origins of steps that were not finite: injected origins compared with those reported.

    python benchmarks/bad_step_origin.py [--quick] [--output FILE] [--net NET]

Five small nets (multilayer perceptron, convolutional with BatchNorm, GRU, transformer, and a
perceptron in mixed precision), each with every kind of origin: a bad entry of inputs, targets or
sample weights; a label outside the classes; a weight, a moving statistic or a moment that is not
finite; a layer or a loss that takes the log, divides, takes a root, overflows; a gradient that is
lost at a root, norm, power or guarded log of zero; an overflow of float16. Each is injected at the
fourth of eight batches, in a separate `fit` or `training.train`, without and with XLA; half of the
arithmetic faults in each. Without XLA, on CPUs, a label outside the classes raises an error of
TensorFlow's that names it; those are left out there.

A report is right if the kind is, and the layer if one is at fault; for bad entries row and column
too. The floor is 95 % of all. Then healthy runs alternate, with and without the code that stores
the batch of a bad step: the ratio of epoch times, median with its 95 % interval.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from harness import campaign
from harness.origin import git, origin
from harness.tables import markdown, with_interval
from harness.turns import Turnstile, ratio, take_turns
from origin_parts.faults import AT, Case, of_arithmetic, of_data_and_state
from origin_parts.nets import BATCH, NETS, build, data

import gradstab
from gradstab.cli.console import write_whole
from gradstab.diagnosis.origin.bad_steps import BadSteps
from gradstab.optimizers.watching.find import bind, stabilized_optimizer

FLOOR = 0.95
QUICK = ("inputs: NaN", "weights: second", "moments: first", "layer: log", "gradient: root",
         "loss: log")  # fmt: skip
EXPECTED_SECONDS = {False: 60.0, True: 120.0}


class Inject(keras.callbacks.Callback):
    """Switches the fault on before its batch."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self._case = case

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Look whether it is its batch."""
        if batch == AT:
            self._case.before(self.model)


class Told(keras.callbacks.Callback):
    """Looks for what began bad steps when training ends, as gradstab's callbacks do on the way."""

    def on_train_begin(self, logs: Any = None) -> None:
        """Join what looks for bad steps."""
        bind(self.model)
        self._bad_steps = BadSteps.join(self.model)
        telemetry = stabilized_optimizer(self.model).telemetry
        self._since = telemetry.peek().cursor

    def on_train_end(self, logs: Any = None) -> None:
        """Look."""
        telemetry = stabilized_optimizer(self.model).telemetry
        self._bad_steps.see(telemetry.peek(since=self._since))
        self.found = [each.to_dict() for each in self._bad_steps.found]
        self._bad_steps.leave()


def told_of(case: Case, *, xla: bool, by_train: bool) -> list[dict[str, Any]]:
    """Run a case and return what is told of its origins."""
    told = Told()
    callbacks = [told, Inject(case)]
    if by_train:
        pipeline = tf.data.Dataset.from_tensor_slices(case.arrays).batch(BATCH)
        # It raises if the fault is there from the first step on.
        with contextlib.suppress(gradstab.DivergenceError):
            gradstab.training.train(
                case.model, pipeline, epochs=1, callbacks=callbacks, verbose=0,
                jit_compile="step" if xla else False,
            )  # fmt: skip
    else:
        x, y, weights = case.arrays
        case.model.fit(
            x, y, sample_weight=weights, batch_size=BATCH, shuffle=False, verbose=0,
            callbacks=callbacks,
        )  # fmt: skip
    return told.found


def judged(case: Case, told: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what was to be told, what was, and whether it is right."""
    first = told[0] if told else {"kind": "nothing", "layer": None, "told": ""}
    layer = first["layer"]
    where = case.entry is None or (first.get("row"), tuple(first.get("column", ()))) == case.entry
    kind = first["kind"] == case.kind
    return {
        "kind": case.kind,
        "layer": case.layer,
        "told_kind": first["kind"],
        "told_layer": layer,
        "told": first["told"],
        "right_kind": kind,
        "right_layer": kind and layer == case.layer and where,
    }


def compiled(case: Case, *, xla: bool) -> Case:
    case.model.compile(gradstab.stabilize("adam"), case.loss, jit_compile=xla)
    return case


def measure_net(net: str, *, xla: bool, quick: bool) -> dict[str, Any]:
    """Inject every origin into a net."""
    tf.get_logger().setLevel("ERROR")
    seed = 0
    keras.utils.set_random_seed(seed)
    results: dict[str, Any] = {}
    started = time.perf_counter()
    shared = build(net)
    shared.compile(gradstab.stabilize("adam"), "categorical_crossentropy", jit_compile=xla)
    shared.optimizer.build(shared.trainable_variables)
    variables = {id(v): v for v in (*shared.variables, *shared.optimizer.variables)}.values()
    begun = [(variable, np.array(variable.numpy())) for variable in variables]
    for name, make in of_data_and_state(net, seed).items():
        if quick and name not in QUICK:
            continue
        for variable, value in begun:
            variable.assign(value)
        case = make(shared)
        results[name] = judged(case, told_of(case, xla=xla, by_train=False))
    own = of_arithmetic(net, seed, half=int(xla))
    for place, (name, make_own) in enumerate(own.items()):
        if (quick and name not in QUICK) or (name == "labels" and not xla):
            continue
        case = compiled(make_own(), xla=xla)
        results[name] = judged(case, told_of(case, xla=xla, by_train=place % 2 == 1))
        keras.utils.clear_session()
    return {"origins": results, "seconds": time.perf_counter() - started}


class Joined(keras.callbacks.Callback):
    """Does nothing but have the batch of a bad step kept."""

    def on_train_begin(self, logs: Any = None) -> None:
        """Join."""
        self._bad_steps = BadSteps.join(self.model)

    def on_train_end(self, logs: Any = None) -> None:
        """Leave."""
        self._bad_steps.leave()


def measure_cost(rounds: int) -> dict[str, Any]:
    """Return the ratio of epochs with and without what keeps a bad step's batch."""
    found = {}
    for net, xla in (("mlp", False), ("mlp", True), ("cnn", False)):

        def train(turnstile: Turnstile, joined: bool, net: str = net, xla: bool = xla) -> None:
            keras.utils.set_random_seed(0)
            model = build(net)
            model.compile(gradstab.stabilize("adam"), "categorical_crossentropy", jit_compile=xla)
            x, y, _ = data(net, 0)
            many = [np.concatenate([each] * 10) for each in (x, y)]
            model.fit(
                *many, batch_size=BATCH, epochs=1_000_000, verbose=0,
                callbacks=[turnstile, *([Joined()] if joined else [])],
            )  # fmt: skip

        runs = {
            "without": lambda t, f=train: f(t, False),
            "with": lambda t, f=train: f(t, True),
        }
        draw = np.random.default_rng(0)
        seconds = take_turns(runs, rounds, draw, warm_up_epochs=2)
        name = f"{net}{', XLA' if xla else ''}"
        steps = 10 * 8
        found[name] = {
            "ratio": ratio(seconds["with"], seconds["without"], draw),
            "step_ms": 1e3 * float(np.median(seconds["without"])) / steps,
        }
    return found


def table_of(content: dict[str, Any]) -> str:
    rows, total = [], [0, 0, 0]
    for name, result in content["results"].items():
        if "origins" not in result:
            continue
        all_of = list(result["origins"].values())
        counts = [len(all_of), sum(e["right_kind"] for e in all_of),
                  sum(e["right_layer"] for e in all_of)]  # fmt: skip
        total = [a + b for a, b in zip(total, counts, strict=True)]
        rows.append([name, *map(str, counts)])
    rows.append(["all", *map(str, total)])
    return markdown(("net", "origins", "right kind", "right kind, layer and place"), rows)


def share_right(content: dict[str, Any]) -> float:
    every = [e for r in content["results"].values() for e in r.get("origins", {}).values()]
    return sum(e["right_layer"] for e in every) / max(1, len(every))


def main() -> int:
    arguments = _parse()
    if arguments.one:
        task = json.loads(arguments.one)
        print(json.dumps(
            measure_cost(task["rounds"]) if task["net"] == "cost" else measure_net(**task)
        ))  # fmt: skip
        return 0
    nets = [arguments.net] if arguments.net else ["mlp"] if arguments.quick else list(NETS)
    rounds = 3 if arguments.quick else 40
    tasks: dict[str, Any] = {
        f"{net}{', XLA' if xla else ''}": {"net": net, "xla": xla, "quick": arguments.quick}
        for net in nets
        for xla in (False, True)
    }
    wanted = {name: EXPECTED_SECONDS[task["xla"]] for name, task in tasks.items()}
    if not arguments.net:
        tasks["cost"] = {"net": "cost", "rounds": rounds}
        wanted["cost"] = 90.0
    commit = git("rev-parse", "HEAD")
    head = {"benchmark": "bad_step_origin", "quick": arguments.quick, **origin(commit),
            "rounds": rounds, "floor": FLOOR}  # fmt: skip
    content = campaign.begin(head, arguments.output, arguments.resume)

    def show(result: dict[str, Any]) -> str:
        if "origins" not in result:
            return ""
        wrong = {n: e for n, e in result["origins"].items() if not e["right_layer"]}
        return "\n".join(
            f"  wrong: {n}: {e['kind']} {e['layer']}, told {e['told_kind']} {e['told_layer']}: "
            f"{e['told']}"
            for n, e in wrong.items()
        )

    whole = campaign.run(
        wanted,
        lambda name: campaign.in_fresh_process(__file__, tasks[name]),
        content, arguments.output, show,
    )  # fmt: skip
    print(table_of(content))
    for name, each in content["results"].get("cost", {}).items():
        if isinstance(each, dict):
            print(f"healthy {name}: {with_interval(each['ratio'])} times, "
                  f"step {each['step_ms']:.3f} ms")  # fmt: skip
    share = share_right(content)
    print(f"{share:.1%} right, floor {FLOOR:.0%}")
    if arguments.output is not None:
        write_whole(arguments.output, json.dumps(content, indent=1, allow_nan=False))
        print(f"Written to {Path(arguments.output)}")
    return 0 if whole and share >= FLOOR else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one net and few origins")
    parser.add_argument("--output", type=Path, help="write the results as JSON to this file")
    parser.add_argument("--resume", action="store_true", help="go on with another commit's file")
    parser.add_argument("--net", choices=list(NETS), help="this net alone, without the cost")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
