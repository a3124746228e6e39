"""What wrapping an optimizer, and watching it, add to the start of a training.

    python benchmarks/start_up.py [--quick] [--output FILE] [--resume] [--rounds N]
        [--models MLP ...] [--xla 0 1]
    python benchmarks/start_up.py --table FILE

CPU seconds of the process, user and system, from before `import gradstab` (Keras, TensorFlow and
the model are there already) to the end of the first step of `model.fit`: importing what is used,
making the optimizer, tracing, graph optimization, XLA's compilation and the step itself. Python
files are compiled to byte code beforehand, as installing does. The contenders, all with Adam:

- Keras: the plain optimizer; Keras global_clipnorm: the same with `global_clipnorm=1.0`
- clip: `gradstab.stabilize(optimizer, clip=1.0)`; default: `gradstab.stabilize(optimizer)`
- monitor: the plain optimizer with `GradientMonitor(run_dir)`; default + monitor: both
- train: `gradstab.training.train`, one epoch of 16 steps, with the default

Each measurement is a process of its own, contenders in another random order each round. Ratios are
medians over rounds of two measurements of the same round, over Keras global_clipnorm. A second call
of `fit` or `train` with the same model, data and callbacks follows in the same process: its CPU
seconds, and how often the step was traced in it.

With `--output` each configuration is written as it comes, and the same call goes on where it was.
It exits with 1 if a floor fails or a configuration can't be measured. `--quick` takes two rounds of
a shallow MLP without XLA; its numbers mean little, and it exits with 0 unless something can't be
measured.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

PLAIN, CLIPNORM, CLIP, DEFAULT = "Keras", "Keras global_clipnorm", "clip", "default"
MONITOR, BOTH, TRAIN = "monitor", "default + monitor", "train"
CONTENDERS = (PLAIN, CLIPNORM, CLIP, DEFAULT, MONITOR, BOTH, TRAIN)
SECOND = (CLIPNORM, DEFAULT, MONITOR, BOTH, TRAIN)
# Of Keras global_clipnorm.
FLOORS = {CLIP: 1.15, DEFAULT: 1.2, MONITOR: 1.5, BOTH: 1.5}
SHALLOW = "shallow MLP"
MODELS = ("MLP", "CNN", "transformer", SHALLOW)
FULL = [name for name in MODELS if name != SHALLOW]
ROUNDS, QUICK_ROUNDS, BATCH_SIZE, TRAIN_STEPS = 5, 2, 32, 16
# CPU seconds of one measurement, imports included, without XLA and with.
PROJECTED = {SHALLOW: (6, 8), "MLP": (18, 30), "CNN": (8, 14), "transformer": (14, 30)}


# One measurement, in its own process ------------------------------------------------------------


def built(name: str) -> Any:
    from overhead_parts import nets

    makers: dict[str, Callable[[], Any]] = {
        SHALLOW: lambda: nets.mlp(2),
        "MLP": lambda: nets.mlp(50),
        "CNN": nets.cnn,
        "transformer": lambda: nets.transformer(2),
    }
    return makers[name]()


def measure_here(name: str, xla: bool, contender: str) -> dict[str, Any]:
    import keras
    from overhead_parts.nets import repeated_batch

    keras.utils.set_random_seed(0)
    model = built(name)
    data = repeated_batch(model, BATCH_SIZE)
    next(iter(data))
    traces, ends = [0], []

    def loss(targets: Any, outputs: Any) -> Any:
        traces[0] += 1
        return keras.losses.sparse_categorical_crossentropy(targets, outputs, from_logits=True)

    class FirstStep(keras.callbacks.Callback):
        """Notes when the first step, and what other callbacks do after it, has ended."""

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            """Wait for its numbers."""
            _ = [float(value) for value in (logs or {}).values()]
            ends.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        optimizer, callbacks = prepared(contender, Path(folder))
        model.compile(optimizer, loss, jit_compile=xla)
        callbacks.append(FirstStep())
        run = training if contender == TRAIN else fitting
        run(model, data, callbacks)
        ended = time.process_time()
        first, first_traces = ends[0] - started, traces[0]
        run(model, data, callbacks)
        second = time.process_time() - ended
    return {
        "first_step": first,
        "first_call": ended - started,
        "second_call": second,
        "first_traces": first_traces,
        "second_traces": traces[0] - first_traces,
    }


def prepared(contender: str, folder: Path) -> tuple[Any, list[Any]]:
    """Return optimizer and callbacks of a contender."""
    import keras

    if contender in (PLAIN, CLIPNORM):
        return keras.optimizers.Adam(global_clipnorm=1.0 if contender == CLIPNORM else None), []
    import gradstab

    callbacks = [gradstab.callbacks.GradientMonitor(folder)] if contender in (MONITOR, BOTH) else []
    adam = keras.optimizers.Adam()
    if contender == MONITOR:
        return adam, callbacks
    return gradstab.stabilize(adam, **({"clip": 1.0} if contender == CLIP else {})), callbacks


def fitting(model: Any, data: Any, callbacks: list[Any]) -> None:
    model.fit(data, steps_per_epoch=1, verbose=0, callbacks=callbacks)


def training(model: Any, data: Any, callbacks: list[Any]) -> None:
    import gradstab

    gradstab.training.train(model, data.take(TRAIN_STEPS), epochs=1, verbose=0, callbacks=callbacks)


# The table --------------------------------------------------------------------------------------


def configuration(name: str, xla: bool) -> str:
    return f"{name}, {'XLA' if xla else 'no XLA'}"


def measure(name: str, xla: bool, rounds: int, seed: int) -> dict[str, Any] | None:
    """Return the measurements of a configuration, a list in the order of rounds per contender."""
    import numpy as np
    from harness import campaign
    from harness.turns import ratio

    draw = np.random.default_rng([seed, *configuration(name, xla).encode()])
    measured: dict[str, list[dict[str, Any]]] = {contender: [] for contender in CONTENDERS}
    for _ in range(rounds):
        for contender in draw.permutation(list(CONTENDERS)):
            result = campaign.in_fresh_process(__file__, [name, xla, str(contender)])
            if result is None:
                return None
            measured[contender].append(result)
    first = {each: [one["first_step"] for one in of] for each, of in measured.items()}
    return {
        "model": name,
        "xla": xla,
        "times_clipnorm": {each: ratio(first[each], first[CLIPNORM], draw) for each in CONTENDERS},
        "measured": measured,
    }


def lines_of(result: Mapping[str, Any]) -> str:
    from harness.tables import with_interval

    lines = [f"  {'':24}{'first step, s':>14}{'times global_clipnorm':>26}{'second, s':>12}"
             f"{'its traces':>12}"]  # fmt: skip
    for name, of in result["measured"].items():
        lines.append(
            f"  {name:24}{median(of, 'first_step'):14.2f}"
            f"{with_interval(result['times_clipnorm'][name]):>26}{median(of, 'second_call'):12.2f}"
            f"{median(of, 'second_traces'):12.0f}"
        )
    return "\n".join(lines)


def median(of: list[dict[str, Any]], key: str) -> float:
    values = sorted(one[key] for one in of)
    return float(values[len(values) // 2])


def summary(content: Mapping[str, Any]) -> str:
    """Return the table of all configurations, in Markdown."""
    from harness.tables import markdown, with_interval

    header = ["model", "XLA", "clipnorm, s", PLAIN,
              *(f"{name} (floor {floor})" for name, floor in FLOORS.items()), "floors",
              *(f"second {name}, s (traces)" for name in SECOND)]  # fmt: skip
    rows = []
    for result in content["results"].values():
        times, of = result["times_clipnorm"], result["measured"]
        failed = [name for name, floor in FLOORS.items() if times[name][0] > floor]
        rows.append([
            result["model"],
            "on" if result["xla"] else "off",
            f"{median(of[CLIPNORM], 'first_step'):.2f}",
            f"{times[PLAIN][0]:.2f}",
            *(with_interval(times[name]) for name in FLOORS),
            f"FAILS: {', '.join(failed)}" if failed else "hold",
            *(f"{median(of[name], 'second_call'):.2f} ({median(of[name], 'second_traces'):.0f})"
              for name in SECOND),
        ])  # fmt: skip
    return (
        f"{markdown(header, rows)}\n\nCPU seconds to the end of the first step as multiples of "
        f"Keras global_clipnorm: medians (95 % intervals) of {content['rounds']} rounds."
    )


def main() -> int:
    arguments = _parse()
    if arguments.one:
        print(json.dumps(measure_here(*json.loads(arguments.one))))
        return 0
    if arguments.table:
        print(summary(json.loads(arguments.table.read_text(encoding="utf-8"))))
        return 0
    from harness import campaign
    from harness.origin import has_uncommitted_changes, machine

    import gradstab

    compileall.compile_dir(Path(gradstab.__file__).parent, quiet=1)
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    head = {
        "benchmark": "start_up",
        "quick": arguments.quick,
        **machine(),
        "uncommitted_changes": has_uncommitted_changes(),
        "rounds": rounds,
    }
    content = campaign.begin(head, arguments.output, arguments.resume)
    rounds, seed = content["rounds"], int(content["commit"][:8], 16)
    names = arguments.models or ([SHALLOW] if arguments.quick else FULL)
    switches = arguments.xla or ([0] if arguments.quick else [0, 1])
    wanted = {
        configuration(name, bool(xla)): (name, bool(xla)) for name in names for xla in switches
    }
    projected = {
        key: float(PROJECTED[name][xla] * len(CONTENDERS) * rounds)
        for key, (name, xla) in wanted.items()
    }
    complete = campaign.run(
        projected,
        lambda key: measure(*wanted[key], rounds, seed),
        content,
        arguments.output,
        lines_of,
    )
    text = summary(content)
    print(f"\n{text}")
    return 0 if complete and (arguments.quick or "FAILS" not in text) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a shallow MLP, two rounds")
    parser.add_argument("--output", type=Path, help="write results as JSON to this file")
    parser.add_argument("--resume", action="store_true", help="go on with FILE as it began")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: all")
    parser.add_argument("--xla", nargs="+", type=int, choices=(0, 1), help="default: 0 1")
    parser.add_argument("--rounds", type=int, help=f"rounds to measure (default: {ROUNDS})")
    parser.add_argument("--table", type=Path, help="print the table of a result file, and no more")
    # One measurement, in this process.
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
