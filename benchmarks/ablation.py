"""Which part saves which run: all combinations of initializers, penalties, clips and optimizers.

The CNN of `examples/corrected_article_cnn.py` learns the digits of scikit-learn from two bad
starts: exploding (kernels N(0, 0.2²), raw pixels 0..16) and vanishing (kernels N(0, 0.01²), pixels
0..1).
In each, the initializer {random: that of the setting, Xavier, He}, the penalty {none, L1, L2}, the
clip {none, by value, by norm, by global norm} and the optimizer {SGD with momentum, Adagrad,
RMSprop, Adam} are combined, with three seeds: 864 runs. Then the best combination, chosen on
validation data, and the plain one are run with batches of 8 and 128 besides 32.

Each run yields the test accuracy, and the gradient norm of each kernel on a fixed batch before and
after training. The gradient is that of the cross-entropy alone, so that a penalty can't hide a
vanishing gradient.

    python benchmarks/ablation.py --jobs 2    # the campaign; started again, it goes on
    python benchmarks/ablation.py --quick     # a small slice in seconds, by the same code

Results: `docs/ablation.md` (the tables between its two marks), `docs/images/ablation.png` and
`benchmarks/results/ablation.json`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from ablation_parts.report import PLAIN, select, write, write_results

from gradstab import data, functional, initializers, models, optimizers, regularizers

ROOT = Path(__file__).resolve().parent.parent

# The parts ----------------------------------------------------------------------------------------

SETTINGS = {
    "exploding": {"stddev": 0.2, "scale": 1.0},
    "vanishing": {"stddev": 0.01, "scale": 16.0},
}
INITIALIZERS = {
    "random": lambda seed, stddev: initializers.RandomNormal(stddev=stddev, seed=seed),
    "Xavier": lambda seed, stddev: initializers.GlorotUniform(seed=seed),
    "He": lambda seed, stddev: initializers.HeNormal(seed=seed),
}
PENALTIES = {
    "no penalty": lambda: None,
    "L1": lambda: regularizers.L1(1e-5),
    "L2": lambda: regularizers.L2(1e-4),
}
# 0.01 for each of the 238,000 entries allows a global norm of 4.9, 1.0 for each of the 12 variables
# one of 3.5: three bounds of one order.
CLIPS = {
    "no clip": lambda optimizer: optimizer,
    "value": lambda optimizer: optimizers.clip_by_value(optimizer, 0.01),
    "norm": lambda optimizer: optimizers.clip_by_norm(optimizer, 1.0),
    "global norm": lambda optimizer: optimizers.clip_by_global_norm(optimizer, 1.0),
}
OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.01),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.001),
    "Adam": lambda: keras.optimizers.Adam(0.001),
}
PARTS = {
    "initializer": INITIALIZERS,
    "penalty": PENALTIES,
    "clip": CLIPS,
    "optimizer": OPTIMIZERS,
}
KEY = ("setting", "initializer", "penalty", "clip", "optimizer", "batch_size", "seed")
TRACED_ONCE_FOR = ("penalty", "clip", "optimizer", "batch_size")

FULL = {
    "settings": list(SETTINGS),
    "parts": {name: list(choices) for name, choices in PARTS.items()},
    "batch_sizes": [8, 128],
    "num_seeds": 3,
    "epochs": 4,
}
QUICK = {
    "settings": list(SETTINGS),
    "parts": {
        "initializer": ["random", "He"],
        "penalty": ["no penalty"],
        "clip": ["no clip", "global norm"],
        "optimizer": ["SGD"],
    },
    "batch_sizes": [128],
    "num_seeds": 1,
    "epochs": 1,
}


# One run ------------------------------------------------------------------------------------------


@functools.cache
def load_digits():
    """Return images and labels of each split, the same for all runs."""
    digits = data.load("digits", seed=0)
    return {split: digits.arrays(split) for split in ("train", "validation", "test")}


class Trainer:
    """A model with its penalty, clip and optimizer: traced once, then run from many starts."""

    def __init__(self, penalty, clip, optimizer, batch_size):
        keras.backend.clear_session()
        self.splits = load_digits()
        self.batch_size = batch_size
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model = models.cnn_classifier((8, 8, 1), 10, kernel_regularizer=PENALTIES[penalty]())
        self.kernels = [v for v in self.model.trainable_variables if v.name == "kernel"]
        self.optimizer = CLIPS[clip](OPTIMIZERS[optimizer]())
        self.optimizer.build(self.model.trainable_variables)
        self.optimizer_start = [v.numpy() for v in self.optimizer.variables]

        @tf.function(autograph=False, reduce_retracing=True)
        def step(images, labels):
            with tf.GradientTape() as tape:
                loss = self.loss(labels, self.model(images, training=True))
                loss += sum(self.model.losses)
            variables = self.model.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)

        @tf.function
        def train(images, labels, batches):
            for batch in batches:
                step(tf.gather(images, batch), tf.gather(labels, batch))

        @tf.function
        def gradient_norms(images, labels):
            with tf.GradientTape() as tape:
                loss = self.loss(labels, self.model(images))
            return functional.norms(tape.gradient(loss, self.kernels))

        @tf.function
        def predict(images):
            return self.model(images)

        self.train, self.gradient_norms, self.predict = train, gradient_norms, predict

    def run(self, setting, initializer, seed, epochs):
        """Train once, and return what is measured."""
        began = time.perf_counter()
        self._restart(INITIALIZERS[initializer], SETTINGS[setting]["stddev"], seed)
        scale = SETTINGS[setting]["scale"]
        splits = {split: (x / np.float32(scale), y) for split, (x, y) in self.splits.items()}
        fixed_batch = [tf.constant(each[:256]) for each in splits["train"]]
        norms_at_start = self.gradient_norms(*fixed_batch).numpy()
        self.train(*map(tf.constant, splits["train"]), tf.constant(self._batches(seed, epochs)))
        norms_at_end = self.gradient_norms(*fixed_batch).numpy()
        validation_loss, validation_accuracy = self._score(*splits["validation"])
        _, test_accuracy = self._score(*splits["test"])
        weights_finite = all(np.isfinite(v.numpy()).all() for v in self.model.variables)
        return {
            "test_accuracy": test_accuracy,
            "validation_accuracy": validation_accuracy,
            "validation_loss": validation_loss,
            "weights_finite": weights_finite,
            "gradient_norms_at_start": _json_numbers(norms_at_start),
            "gradient_norms_at_end": _json_numbers(norms_at_end),
            "seconds": round(time.perf_counter() - began, 3),
        }

    def _restart(self, initializer, stddev, seed):
        kernel_seeds = np.random.default_rng([seed, 0]).integers(2**31, size=len(self.kernels))
        for variable in self.model.trainable_variables:
            variable.assign(np.zeros(variable.shape))
        for kernel, kernel_seed in zip(self.kernels, kernel_seeds, strict=True):
            kernel.assign(initializer(int(kernel_seed), stddev)(kernel.shape))
        for variable, value in zip(self.optimizer.variables, self.optimizer_start, strict=True):
            variable.assign(value)

    def _batches(self, seed, epochs):
        """Row numbers of every batch: the same order for all runs of a seed."""
        generator = np.random.default_rng([seed, 1])
        rows = len(self.splits["train"][1])
        steps = rows // self.batch_size
        orders = [generator.permutation(rows)[: steps * self.batch_size] for _ in range(epochs)]
        return np.concatenate(orders).reshape(-1, self.batch_size).astype("int32")

    def _score(self, images, labels):
        logits = self.predict(tf.constant(images))
        accuracy = float(np.mean(np.argmax(logits.numpy(), axis=1) == labels))
        return _json_numbers([self.loss(labels, logits)])[0], accuracy


def _json_numbers(values):
    """Return floats, with `None` for what JSON has no number for."""
    return [float(value) if np.isfinite(value) else None for value in values]


# The campaign -------------------------------------------------------------------------------------


def run_group(group, runs, epochs, records):
    """Make the trainer of a group and do its runs, each written as it ends."""
    trainer = Trainer(**dict(zip(TRACED_ONCE_FOR, group, strict=True)))
    for run in runs:
        result = trainer.run(run["setting"], run["initializer"], run["seed"], epochs)
        with open(records, "a", encoding="utf-8") as file:
            file.write(json.dumps({**run, **result}) + "\n")
    return len(runs)


def use_one_thread():
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def do_runs(wanted, plan, records, jobs):
    """Do the runs that are not in the records yet, in `jobs` processes."""
    done = {tuple(record[name] for name in KEY) for record in read_records(records)}
    groups = {}
    for run in wanted:
        if tuple(run[name] for name in KEY) not in done:
            groups.setdefault(tuple(run[name] for name in TRACED_ONCE_FOR), []).append(run)
    open_runs = sum(map(len, groups.values()))
    print(f"{len(wanted)} runs, {len(wanted) - open_runs} of them done before", flush=True)
    if not groups:
        return
    if plan is FULL:
        print_projected_time(groups, plan["epochs"], jobs)
    work = [(group, runs, plan["epochs"], records) for group, runs in groups.items()]
    began, finished = time.perf_counter(), 0

    def report(number):
        nonlocal finished
        finished += number
        minutes = (time.perf_counter() - began) / 60
        left = minutes * (open_runs - finished) / finished
        print(f"{finished} of {open_runs} runs in {minutes:.1f} min, {left:.1f} to go", flush=True)

    if jobs == 1:
        for arguments in work:
            report(run_group(*arguments))
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context, use_one_thread) as pool:
        for future in concurrent.futures.as_completed(pool.submit(run_group, *a) for a in work):
            report(future.result())


def print_projected_time(groups, epochs, jobs):
    """Time the making of one trainer and one short run, and say how long all will take."""
    began = time.perf_counter()
    trainer = Trainer("L2", "global norm", "Adam", 32)
    trainer.run("vanishing", "He", 0, 1)
    to_make = time.perf_counter() - began
    began = time.perf_counter()
    trainer.run("vanishing", "He", 0, 1)
    to_run = (time.perf_counter() - began) * epochs
    seconds = (len(groups) * to_make + sum(map(len, groups.values())) * to_run) / jobs
    print(f"projected: {seconds / 60:.0f} min in {jobs} processes", flush=True)


def combinations(plan, parts, batch_size, seeds):
    """Return all runs: every setting with every choice of every part and every seed."""
    names = ("setting", *parts)
    return [
        {**dict(zip(names, values, strict=True)), "batch_size": batch_size, "seed": seed}
        for values in itertools.product(plan["settings"], *parts.values())
        for seed in seeds
    ]


def best_combination(records):
    """Return the parts with the highest mean validation accuracy over settings and seeds."""
    scores = {}
    for record in select(records, batch_size=32):
        parts = tuple(record[name] for name in PARTS)
        scores.setdefault(parts, []).append(record["validation_accuracy"])
    best = max(sorted(scores), key=lambda parts: statistics.fmean(scores[parts]))
    return dict(zip(PARTS, best, strict=True))


def begin(records, plan):
    """Write the header of a new campaign, or check that the one that is there has this plan."""
    if records.exists():
        lines = records.read_text("utf-8").splitlines(keepends=True)
        header = json.loads(lines[0])
        if header["plan"] != plan:
            raise SystemExit(f"{records} belongs to a campaign with another plan: move it away")
        # A line that was cut when the campaign was killed is left out, and its run done again.
        write(records, "".join(line for line in lines if line.endswith("}\n")))
        return header
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    # The commit gives the seeds, so that nobody chooses them.
    first = int((commit or "0")[:8], 16)
    header = {
        "plan": plan,
        "commit": commit or None,
        "seeds": [first + number for number in range(plan["num_seeds"])],
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
    }
    write(records, json.dumps(header) + "\n")
    return header


def read_records(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()[1:]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small slice, in seconds")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each if several")
    parser.add_argument("--records", type=Path, help="default: runs/ablation.jsonl")
    parser.add_argument("--output", type=Path, help="where docs and benchmarks are; default: here")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    output = arguments.output or (Path(tempfile.mkdtemp()) if arguments.quick else ROOT)
    records = arguments.records or output / "runs" / "ablation.jsonl"

    header = begin(records, plan)
    wanted = combinations(plan, plan["parts"], 32, header["seeds"])
    do_runs(wanted, plan, records, arguments.jobs)

    best = best_combination(read_records(records))
    for batch_size in plan["batch_sizes"]:
        for parts in [PLAIN] if best == PLAIN else [PLAIN, best]:
            choices = {name: [choice] for name, choice in parts.items()}
            wanted += combinations(plan, choices, batch_size, header["seeds"])
    do_runs(wanted, plan, records, arguments.jobs)

    print(write_results(header, read_records(records), best, output))
    print(f"\nwritten: {output}/docs/ablation.md, its image, and benchmarks/results/ablation.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
