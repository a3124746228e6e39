"""Overhead of guarding, clipping, recording and `GradientMonitor` per training step.

    python benchmarks/monitor_overhead.py [--quick] [--output FILE] [--resume] [--rounds N]
        [--models MLP ...] [--optimizers SGD Adam] [--xla 0 1]
    python benchmarks/monitor_overhead.py --table FILE

Whole steps of `model.fit` on one synthetic batch that `tf.data` repeats, for five models, SGD with
momentum and Adam, XLA off and on; the small MLP takes 64 steps per call. The contenders of a
configuration:

- plain: the Keras optimizer; Keras global_clipnorm: the same with `global_clipnorm=1.0`
- guard and clip: `gradstab.stabilize(optimizer, clip=1.0)` without telemetry, which gradstab can't
  switch off. So `Telemetry.record` of this optimizer is replaced by a function that only counts the
  step, and a check confirms that nothing was recorded.
- + telemetry: `gradstab.stabilize(optimizer, clip=1.0)` as it is
- default: `gradstab.stabilize(optimizer)`
- + monitor: the same with `GradientMonitor(run_dir)`, at its own cadence
- monitor alone: the plain optimizer with `GradientMonitor(run_dir)`
- TerminateOnNaN: the plain optimizer with the callback of Keras, which waits for each step's loss

One epoch is a block of steps, about half a second of the plain optimizer: at least 4 steps, and at
least 50 if steps are short, so that a block covers the monitor's cadence; otherwise the monitor
reads at the end of every block, which is more often than usual. All contenders of a configuration
share one process, which does nothing else, and take turns block by block, in a new random order
each round; the first blocks, which compile, are not counted. Then the two contenders of the floor,
+ monitor and Keras global_clipnorm, continue alone for two minutes: the time of one block scatters
by a tenth on shared machines, so a ratio needs a hundred rounds to be known to 2 %. Ratios are
medians over the rounds of two blocks of the same round, with a bootstrapped 95 % interval. The seed
of the orders is the first eight hex digits of the commit.

With `--output` each configuration is written at once, and the same call resumes; at another commit
or with another number of rounds only with `--resume`, and then with the original seed and rounds.
It exits with 1 if a floor fails or a configuration can't be measured. `--quick` takes a shallower
MLP without XLA and few short rounds, to see that everything works; its numbers mean little, and it
exits with 0 unless something can't be measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# A configuration runs in a process of its own, which needs the accelerator's memory.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

import keras
import numpy as np
from harness import campaign
from harness.origin import has_uncommitted_changes, machine
from harness.tables import markdown, with_interval
from harness.turns import Turnstile, ratio, take_turns
from overhead_parts import nets
from overhead_parts.nets import repeated_batch

import gradstab
from gradstab.callbacks import GradientMonitor

# Of Keras global_clipnorm; the second one where steps of the small MLP are held against it.
FLOOR, SMALL_FLOOR, SMALL_STEPS = 1.05, 1.10, 64
AIM, AIM_PLAIN = 1.0, 1.02
MEMORY_FLOOR, MEMORY_VARIABLES = 1_000_000, 500
ROUNDS, QUICK_ROUNDS = 12, 3
FLOOR_SECONDS, QUICK_FLOOR_SECONDS = 120.0, 0.3
BLOCK_SECONDS, QUICK_BLOCK_SECONDS = 0.5, 0.1
LEAST_STEPS, CADENCE, SHORT_STEP_SECONDS = 4, 50, 0.02
WARM_UP_BLOCKS, MANY_BLOCKS = 2, 100_000
SHALLOW, SMALL = "shallow MLP", "small MLP"
# What builds them, and the size of a batch.
MODELS: dict[str, tuple[Callable[[], Any], int]] = {
    SHALLOW: (functools.partial(nets.mlp, 5), 32),
    SMALL: (functools.partial(nets.mlp, 2), 32),
    "MLP": (functools.partial(nets.mlp, 50), 32),
    "CNN": (nets.cnn, 32),
    "transformer": (nets.transformer, 32),
    "ResNet-50": (nets.resnet_50, 4),
}
FULL = [name for name in MODELS if name != SHALLOW]
# On two cores, without XLA and with: seconds until all contenders are ready, and of a block.
PROJECTED = {
    SHALLOW: ((15, 0.1), (30, 0.1)),
    SMALL: ((15, 0.5), (25, 0.5)),
    "MLP": ((55, 0.6), (120, 0.6)),
    "CNN": ((20, 0.5), (70, 0.5)),
    "transformer": ((70, 0.9), (100, 0.8)),
    "ResNet-50": ((200, 1.1), (300, 2.8)),
}
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "SGD": functools.partial(keras.optimizers.SGD, 1e-4, momentum=0.9),
    "Adam": functools.partial(keras.optimizers.Adam, 1e-4),
}


# The contenders ---------------------------------------------------------------------------------


def guarded(make: Callable[..., Any]) -> Any:
    return gradstab.stabilize(make(), clip=1.0)


def without_recording(optimizer: Any) -> Any:
    telemetry = optimizer.telemetry

    def count(*measured: Any, **more: Any) -> None:
        telemetry._steps.assign_add(1)

    telemetry.record = count
    return optimizer


PLAIN, CLIPNORM, DEFAULT = "plain", "Keras global_clipnorm", "default"
UNRECORDED, RECORDED, MONITORED = "guard and clip", "+ telemetry", "+ monitor"
# Optimizer and callbacks, from what makes the plain optimizer and a folder.
CONTENDERS: dict[str, Callable[[Callable[..., Any], Path], tuple[Any, list[Any]]]] = {
    PLAIN: lambda make, folder: (make(), []),
    CLIPNORM: lambda make, folder: (make(global_clipnorm=1.0), []),
    UNRECORDED: lambda make, folder: (without_recording(guarded(make)), []),
    RECORDED: lambda make, folder: (guarded(make), []),
    DEFAULT: lambda make, folder: (gradstab.stabilize(make()), []),
    MONITORED: lambda make, folder: (guarded(make), [GradientMonitor(folder / "guarded")]),
    "monitor alone": lambda make, folder: (make(), [GradientMonitor(folder / "alone")]),
    "TerminateOnNaN": lambda make, folder: (make(), [keras.callbacks.TerminateOnNaN()]),
}


# One configuration, in its own process ----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What is the same for all contenders."""

    model: str
    optimizer: str
    xla: bool

    def __str__(self) -> str:
        return f"{self.model}, {self.optimizer}, {'XLA' if self.xla else 'no XLA'}"

    def compiled(self, optimizer: Any) -> Any:
        """Return the model, always with the same weights."""
        keras.utils.set_random_seed(0)
        model = MODELS[self.model][0]()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        calls = SMALL_STEPS if self.model == SMALL else 1
        model.compile(optimizer, loss, jit_compile=self.xla, steps_per_execution=calls)
        return model

    def projected_seconds(self, rounds: int, floor_seconds: float) -> float:
        """Return about how long measuring takes."""
        ready, block = PROJECTED[self.model][self.xla]
        return ready + rounds * len(CONTENDERS) * block + floor_seconds


def block_of_steps(model: Any, data: Any, block_seconds: float) -> int:
    """Return how many steps take about so long; the model is trained a little meanwhile."""
    model.fit(data, steps_per_epoch=1, shuffle=False, verbose=0)  # It compiles.
    steps, seconds = LEAST_STEPS, 0.0
    while True:
        started = time.perf_counter()
        model.fit(data, steps_per_epoch=steps, shuffle=False, verbose=0)
        seconds = time.perf_counter() - started
        if seconds >= block_seconds / 2:
            break
        steps *= 2
    step_seconds = seconds / steps
    least = CADENCE if step_seconds <= SHORT_STEP_SECONDS else LEAST_STEPS
    steps = max(least, round(block_seconds / step_seconds))
    return -(-steps // model.steps_per_execution) * model.steps_per_execution


def measure_here(
    of: Configuration, rounds: int, block_seconds: float, floor_seconds: float, seed: int
) -> dict[str, Any]:
    # So that the monitor draws nothing at the end of its run, which is not measured.
    sys.modules["matplotlib"] = None
    make = OPTIMIZERS[of.optimizer]
    plain = of.compiled(make())
    data = repeated_batch(plain, MODELS[of.model][1])
    steps = block_of_steps(plain, data, block_seconds)
    optimizers = {}

    def fit(name: str, folder: Path) -> Callable[[Turnstile], Any]:
        def run(turnstile: Turnstile) -> Any:
            optimizers[name], callbacks = CONTENDERS[name](make, folder)
            model = plain if name == PLAIN else of.compiled(optimizers[name])
            return model.fit(
                data, epochs=MANY_BLOCKS, steps_per_epoch=steps, shuffle=False, verbose=0,
                callbacks=[turnstile, *callbacks],
            )  # fmt: skip

        return run

    def say(message: str) -> None:
        print(f"  {of}: {message}", file=sys.stderr, flush=True)

    draw = np.random.default_rng([seed, *str(of).encode()])
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: fit(name, Path(folder)) for name in CONTENDERS}
        seconds = take_turns(
            runs, rounds, draw, WARM_UP_BLOCKS, say, (CLIPNORM, MONITORED), floor_seconds
        )
    check_recording(optimizers)
    # Of common rounds alone, so that they compare.
    medians = {name: float(np.median(times[:rounds])) for name, times in seconds.items()}
    return {
        **dataclasses.asdict(of),
        "steps_per_block": steps,
        "floor_rounds": len(seconds[MONITORED]),
        "ms_per_step": {name: 1e3 * median / steps for name, median in medians.items()},
        "times_plain": {name: ratio(seconds[name], seconds[PLAIN], draw) for name in seconds},
        "times_clipnorm": {name: ratio(seconds[name], seconds[CLIPNORM], draw) for name in seconds},
        "seconds": {name: [round(each, 6) for each in times] for name, times in seconds.items()},
    }


def check_recording(optimizers: Mapping[str, Any]) -> None:
    """Raise unless recording was off where it should be, and on elsewhere."""
    for name, recorded in ((UNRECORDED, False), (RECORDED, True), (MONITORED, True)):
        reading = optimizers[name].telemetry.peek()
        if not reading.cursor or np.any(reading.grad_norm > 0) != recorded:
            raise RuntimeError(f"{name}: of {reading.cursor} steps, recorded: {not recorded}")


def telemetry_bytes() -> int:
    """Return the bytes that an optimizer of gradstab's keeps besides those of the inner one."""
    dense = [keras.layers.Dense(4) for _ in range(MEMORY_VARIABLES // 2)]
    model = keras.Sequential([keras.layers.Input((4,)), *dense])
    optimizer = gradstab.stabilize(keras.optimizers.Adam(1e-4), clip=1.0)
    optimizer.build(model.trainable_variables)
    inner = {id(variable) for variable in optimizer.inner_optimizer.variables}
    own = [variable for variable in optimizer.variables if id(variable) not in inner]
    return sum(keras.ops.convert_to_numpy(variable).nbytes for variable in own)


# The table --------------------------------------------------------------------------------------


def lines_of(result: Mapping[str, Any]) -> str:
    lines = [f"  {'':24}{'ms per step':>12}{'times plain':>26}{'times global_clipnorm':>26}"]
    for name, milliseconds in result["ms_per_step"].items():
        ratios = (with_interval(result[of][name]) for of in ("times_plain", "times_clipnorm"))
        lines.append(f"  {name:24}{milliseconds:12.3f}" + "".join(f"{each:>26}" for each in ratios))
    return "\n".join(lines)


def row_of(result: Mapping[str, Any]) -> list[str]:
    times, milliseconds = result["times_plain"], result["ms_per_step"][PLAIN]
    of_clipnorm, of_plain = result["times_clipnorm"][MONITORED], times[MONITORED]
    floor = SMALL_FLOOR if result["model"] == SMALL else FLOOR
    return [
        result["model"],
        result["optimizer"],
        "on" if result["xla"] else "off",
        f"{milliseconds:.2f}",
        *(f"{times[name][0]:.3f}" for name in CONTENDERS if name not in (PLAIN, MONITORED)),
        with_interval(of_plain),
        with_interval(of_clipnorm),
        "holds" if of_clipnorm[0] <= FLOOR else "FAILS",
        *(
            f"{with_interval(ratio)} {'holds' if ratio[0] <= floor else 'FAILS'}"
            for ratio in (result["times_clipnorm"][name] for name in (RECORDED, DEFAULT))
        ),
        "reached" if of_clipnorm[0] <= AIM else "missed",
        "-" if "MLP" in result["model"] else "reached" if of_plain[0] <= AIM_PLAIN else "missed",
    ]


def summary(content: Mapping[str, Any]) -> str:
    """Return the table of all configurations, in Markdown, and the size of the telemetry."""
    others = (name for name in CONTENDERS if name not in (PLAIN, MONITORED))
    header = ["model", "optimizer", "XLA", "plain, ms", *others, MONITORED, "+ monitor / clipnorm",
              f"floor {FLOOR}",
              *(f"{name} / clipnorm, floor {FLOOR} ({SMALL_FLOOR} for the {SMALL})"
                for name in (RECORDED, DEFAULT)),
              f"aim {AIM}", f"aim {AIM_PLAIN} of plain"]  # fmt: skip
    found = content["results"]
    rows = [row_of(found[name]) for name in map(str, every_configuration()) if name in found]
    size = content["telemetry_bytes"]
    floor_rounds = [result["floor_rounds"] for result in found.values()] or [0]
    return (
        f"{markdown(header, rows)}\n\nStep times as multiples of plain, and of Keras "
        f"global_clipnorm in the column before the floor: medians (95 % intervals) of "
        f"{content['rounds']} rounds; of {min(floor_rounds)} to {max(floor_rounds)} rounds in the "
        f"column before the floor.\nPersistent telemetry of {MEMORY_VARIABLES} trainable "
        f"variables: {size:,} bytes; floor: less than {MEMORY_FLOOR:,}: "
        f"{'holds' if size < MEMORY_FLOOR else 'FAILS'}"
    )


def every_configuration() -> list[Configuration]:
    return [Configuration(*each) for each in itertools.product(MODELS, OPTIMIZERS, (False, True))]


def main() -> int:
    arguments = _parse()
    if arguments.one:
        of, *numbers = json.loads(arguments.one)
        print(json.dumps(measure_here(Configuration(**of), *numbers)))
        return 0
    if arguments.table:
        print(summary(json.loads(arguments.table.read_text(encoding="utf-8"))))
        return 0
    head = {
        "benchmark": "monitor_overhead",
        "quick": arguments.quick,
        **machine(),
        "uncommitted_changes": has_uncommitted_changes(),
        "rounds": arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS),
        "telemetry_bytes": telemetry_bytes(),
    }
    content = campaign.begin(head, arguments.output, arguments.resume)
    rounds, seed = content["rounds"], int(content["commit"][:8], 16)
    wanted = {
        str(each): each
        for each in every_configuration()
        if each.model in (arguments.models or ([SHALLOW] if arguments.quick else FULL))
        and each.optimizer in (arguments.optimizers or OPTIMIZERS)
        and each.xla in (arguments.xla or ([0] if arguments.quick else [0, 1]))
    }

    block_seconds = QUICK_BLOCK_SECONDS if arguments.quick else BLOCK_SECONDS
    floor_seconds = QUICK_FLOOR_SECONDS if arguments.quick else FLOOR_SECONDS

    def measure(name: str) -> dict[str, Any] | None:
        task = dataclasses.asdict(wanted[name]), rounds, block_seconds, floor_seconds, seed
        return campaign.in_fresh_process(__file__, task)

    projected = {
        name: each.projected_seconds(rounds, floor_seconds) for name, each in wanted.items()
    }
    complete = campaign.run(projected, measure, content, arguments.output, lines_of)
    text = summary(content)
    print(f"\n{text}")
    return 0 if complete and (arguments.quick or "FAILS" not in text) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a shallow MLP, few rounds")
    parser.add_argument("--output", type=Path, help="write results as JSON to this file")
    parser.add_argument("--resume", action="store_true", help="go on with FILE as it began")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: all")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, help="default: all")
    parser.add_argument("--xla", nargs="+", type=int, choices=(0, 1), help="default: 0 1")
    parser.add_argument("--rounds", type=int, help=f"rounds to measure (default: {ROUNDS})")
    parser.add_argument("--table", type=Path, help="print the table of a result file, and no more")
    # One configuration, in this process.
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
