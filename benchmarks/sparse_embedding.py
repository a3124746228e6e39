"""What gradient transforms add to training a large embedding: peak memory, time of a step.

    python benchmarks/sparse_embedding.py [--quick] [--output FILE] [--rounds N]

A table of 1,000,000 rows of 64 numbers, of which each step reads 256; lookup, mean over 8 ids, one
dense output, squared error. The gradient of the table comes from the tape as `tf.IndexedSlices`.
The same compiled step runs with the inner optimizer alone (SGD, Adam, Adagrad) and inside
gradstab's, which skips what is not finite and clips by global norm, by norm or by value. Bounds are
such that clipping acts. The lookup is `keras.layers.Embedding`; with SGD also `tf.gather` on the
variable, since with the layer, which reads the variable as a whole, a step takes as much memory
again as the table and many times longer, and hides what is added to it.

Peak memory is the high-water mark of a process of its own per contender, median of three; it is
shown whole, and without what the process held before the model and without the table itself.
Times come from runs interleaved in one process: the ratio of medians over rounds, with a
bootstrapped 95 % interval over pairs. The floor is 5 % more than the inner optimizer alone, for
both. `--quick` takes 20,000 rows, two optimizers and few rounds, to see that everything works; its
numbers mean little, and it exits with 0.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from harness.origin import git, origin

import gradstab
from gradstab import transforms
from gradstab.cli.console import table, write_whole

FLOOR = 1.05
WIDTH, EXAMPLES, IDS = 64, 32, 8  # 256 rows a step
POOL = 32  # steps whose ids are drawn beforehand
SAMPLE_SECONDS = 0.03  # of the inner optimizer alone
MEGABYTE = 2.0**20

INNER: dict[str, Callable[[], Any]] = {
    "SGD": lambda: keras.optimizers.SGD(0.01),
    "SGD, tf.gather": lambda: keras.optimizers.SGD(0.01),
    "Adam": lambda: keras.optimizers.Adam(1e-3),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.01),
}
ALONE = "alone"
CHAINS: dict[str, Callable[[], Any]] = {
    "skip, global norm": lambda: transforms.ClipByGlobalNorm(1e-3),
    "skip, norm": lambda: transforms.ClipByNorm(1e-3),
    "skip, value": lambda: transforms.ClipByValue(1e-5),
}


class Contender:
    """A model, its optimizer, and the compiled step."""

    def __init__(self, inner: str, chain: str, num_rows: int) -> None:
        self._gathers = "gather" in inner
        keras.utils.set_random_seed(0)
        # Zeros, so that making the table leaves no peak above what the steps need.
        embedding = keras.layers.Embedding(num_rows, WIDTH, embeddings_initializer="zeros")
        self.model = keras.Sequential(
            [
                keras.layers.Input((IDS,), dtype="int32"),
                embedding,
                keras.layers.GlobalAveragePooling1D(),
                keras.layers.Dense(1),
            ]
        )
        self.optimizer = INNER[inner]()
        if chain != ALONE:
            self.optimizer = gradstab.optimizers.StabilizedOptimizer(
                self.optimizer, [transforms.SkipNonFinite(), CHAINS[chain]()]
            )
        self.optimizer.build(self.model.trainable_variables)
        self.step = tf.function(self._step, autograph=False)
        self._taken = 0

    def _step(self, ids: Any, y: Any) -> Any:
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self._outputs(ids) - y) ** 2)
        gradients = tape.gradient(loss, variables)
        if not isinstance(gradients[0], tf.IndexedSlices):
            raise TypeError(f"the gradient of the table is dense: {gradients[0]!r}")
        self.optimizer.apply(gradients, variables)
        return loss

    def _outputs(self, ids: Any) -> Any:
        if not self._gathers:
            return self.model(ids, training=True)
        embedding, pooling, dense = self.model.layers
        return dense(pooling(tf.gather(embedding.embeddings.value, ids)))

    def run(self, steps: list[tuple[Any, Any]], count: int) -> float:
        """Take so many steps and return the seconds per step."""
        started = time.perf_counter()
        for _ in range(count):
            loss = self.step(*steps[self._taken % len(steps)])
            self._taken += 1
        loss.numpy()
        return (time.perf_counter() - started) / count

    def check(self) -> None:
        """Raise unless every step so far was applied and clipped."""
        if isinstance(self.optimizer, gradstab.optimizers.StabilizedOptimizer):
            reading = self.optimizer.telemetry.read()
            if reading.total_skipped or reading.total_clipped < self._taken:
                raise RuntimeError(
                    f"of {self._taken} steps {reading.total_clipped} were clipped and "
                    f"{reading.total_skipped} skipped"
                )


def draw_steps(num_rows: int) -> list[tuple[Any, Any]]:
    draw = np.random.default_rng(0)
    return [
        (
            tf.constant(
                draw.choice(num_rows, EXAMPLES * IDS, replace=False).reshape(EXAMPLES, IDS), "int32"
            ),
            tf.constant(draw.normal(size=(EXAMPLES, 1)) + 3, "float32"),
        )
        for _ in range(POOL)
    ]


def table_size(num_rows: int) -> float:
    """Return the size of the table in MiB."""
    return num_rows * WIDTH * 4 / MEGABYTE


def peak_memory() -> float:
    """Return the high-water mark of this process's memory in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # `ru_maxrss` begins at the peak of the process that started this one.
        words = status.read_text().partition("VmHWM:")[2].split()
        if words:
            return int(words[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MEGABYTE if sys.platform == "darwin" else 1024)


def measure_memory_here(inner: str, chain: str, num_rows: int) -> dict[str, float]:
    """Return the peak of this process, which must not have done anything else."""
    steps = draw_steps(num_rows)
    before = peak_memory()
    contender = Contender(inner, chain, num_rows)
    built = peak_memory()
    contender.run(steps, 20)
    contender.check()
    peak = peak_memory()
    if peak - before < table_size(num_rows):
        raise RuntimeError(f"a peak of {peak} MiB after {before} can't be that of the table")
    return {"before": before, "built": built, "peak": peak}


def measure_memory(inner: str, chain: str, num_rows: int, repeats: int) -> dict[str, float]:
    runs = []
    for _ in range(repeats):
        done = subprocess.run(
            [sys.executable, __file__, "--one", inner, chain, str(num_rows)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    size = table_size(num_rows)
    return {
        "peak": statistics.median(run["peak"] for run in runs),
        "on_top_of_table": statistics.median(run["peak"] - run["before"] - size for run in runs),
    }


def measure_time(inner: str, num_rows: int, rounds: int) -> dict[str, list[float]]:
    steps = draw_steps(num_rows)
    contenders = {chain: Contender(inner, chain, num_rows) for chain in (ALONE, *CHAINS)}
    for contender in contenders.values():
        contender.run(steps, 3)
    count = max(1, round(SAMPLE_SECONDS / contenders[ALONE].run(steps, 3)))
    draw = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {chain: [] for chain in contenders}
    for _ in range(rounds):
        for chain in draw.permutation(list(contenders)):
            seconds[chain].append(contenders[chain].run(steps, count))
    for contender in contenders.values():
        contender.check()
    contenders.clear()
    keras.utils.clear_session()
    gc.collect()
    return seconds


def ratio_of_medians(baseline: list[float], ours: list[float]) -> list[float]:
    """Return the ratio of the medians and its 95 % interval, from rounds drawn in pairs."""
    pairs = np.array([baseline, ours])
    draws = np.random.default_rng(0).integers(0, pairs.shape[1], size=(4000, pairs.shape[1]))
    medians = np.median(pairs[:, draws], axis=2)
    low, high = np.percentile(medians[1] / medians[0], [2.5, 97.5])
    middle = np.median(pairs, axis=1)
    return [float(middle[1] / middle[0]), float(low), float(high)]


def rows_of(inner: str, memory: dict[str, Any], seconds: dict[str, Any]) -> list[dict[str, Any]]:
    alone = memory.get(ALONE)
    return [
        {
            "inner": inner,
            "chain": chain,
            "peak_mib": memory[chain]["peak"] if alone else None,
            "on_top_of_table_mib": memory[chain]["on_top_of_table"] if alone else None,
            "memory_ratio": memory[chain]["peak"] / alone["peak"] if alone else None,
            "step_ms": 1e3 * statistics.median(seconds[chain]),
            "time_ratio": ratio_of_medians(seconds[ALONE], seconds[chain]),
        }
        for chain in (ALONE, *CHAINS)
    ]


def lines_of(rows: list[dict[str, Any]]) -> list[list[str]]:
    lines = []
    for row in rows:
        alone = row["chain"] == ALONE
        measured = row["peak_mib"] is not None
        median, low, high = row["time_ratio"]
        lines.append(
            [
                row["inner"] if alone else "",
                row["chain"],
                f"{row['peak_mib']:,.0f}" if measured else "",
                f"{row['on_top_of_table_mib']:,.0f}" if measured else "",
                "1" if alone else f"{row['memory_ratio']:.3f}" if measured else "",
                f"{row['step_ms']:.3f}",
                "1" if alone else f"{median:.3f} ({low:.3f} .. {high:.3f})",
                "" if alone else ", ".join(_verdicts(row)),
            ]
        )
    return lines


def _verdicts(row: dict[str, Any]) -> list[str]:
    verdicts = {"memory": row["memory_ratio"], "time": row["time_ratio"][0]}
    return [
        f"{name} {'holds' if value <= FLOOR else 'FAILS'}"
        for name, value in verdicts.items()
        if value is not None
    ]


def main() -> int:
    arguments = _parse()
    if arguments.one:
        inner, chain, num_rows = arguments.one
        print(json.dumps(measure_memory_here(inner, chain, int(num_rows))))
        return 0
    tf.get_logger().setLevel("ERROR")  # It warns of steps that are compiled once each.
    num_rows, rounds, repeats = (20_000, 5, 1) if arguments.quick else (1_000_000, 40, 3)
    rounds = arguments.rounds or rounds
    names = list(INNER)[:2] if arguments.quick else list(INNER)
    commit = git("rev-parse", "HEAD")
    results = []
    for place, inner in enumerate(names):
        # The quick form starts processes for one optimizer only.
        chains = (ALONE, *CHAINS) if not arguments.quick or place == 0 else ()
        memory = {chain: measure_memory(inner, chain, num_rows, repeats) for chain in chains}
        results.extend(rows_of(inner, memory, measure_time(inner, num_rows, rounds)))
        print(f"{inner} measured", flush=True)
    size = table_size(num_rows)
    print(f"{num_rows:,} rows of {WIDTH} ({size:.0f} MiB), {EXAMPLES * IDS} of them in a step")
    header = ("inner", "transforms", "peak, MiB", "on top of the table", "times alone", "step, ms",
              "times alone (95 %)", f"floor {FLOOR}")  # fmt: skip
    print(table(header, lines_of(results), left=2))
    content = {
        "benchmark": "sparse_embedding",
        "quick": arguments.quick,
        **origin(commit),
        "rows": num_rows,
        "width": WIDTH,
        "rounds": rounds,
        "floor": FLOOR,
        "results": results,
    }
    if arguments.output is not None:
        write_whole(arguments.output, json.dumps(content, indent=1, allow_nan=False))
        print(f"Written to {arguments.output}")
    failed = any("FAILS" in line[-1] for line in lines_of(results))
    return 1 if failed and not arguments.quick else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20,000 rows and few rounds")
    parser.add_argument("--output", type=Path, help="write the results as JSON to this file")
    parser.add_argument("--rounds", type=int, help="rounds to time (default: 40)")
    # One contender's memory, in this process.
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
