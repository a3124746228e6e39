"""`gradstab train`: the corrected CNN on images, in a run directory."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

from gradstab._errors import RunDirectoryError
from gradstab.cli.console import (
    InputError,
    RunFailedError,
    positive_number,
    quiet_tensorflow,
    read_command,
    refusing_bad_input,
    say,
    seed_number,
    whole_number,
    writable_folder,
    write_whole,
)

SUMMARY: Final = "train the CNN on images"
DESCRIPTION: Final = (
    "Trains the CNN with a warmed-up, decaying rate, bad steps skipped and the gradient clipped. "
    "The run directory gets config.json, command.json, history.json, record.jsonl, model.keras "
    "(the best by validation loss), checkpoints/, gradient_norm.png and loss.png."
)
COMMAND_FILE: Final = "command.json"
BATCH_SIZE: Final = 32
SEED: Final = 0

# Keras' own rates for Adam and RMSprop. Adam's was looked at on validation images of Fashion-MNIST.
_PEAK_RATES: Final = {"adam": 1e-3, "rmsprop": 1e-3, "adagrad": 0.03, "sgd": 0.05}
_RECIPES: Final = ("adagrad", "adam", "rmsprop")
_JIT_COMPILE: Final[dict[str, bool | str]] = {"auto": "auto", "on": True, "off": False}
# What a resumed run must not change.
_KEPT: Final = (
    "data",
    "epochs",
    "optimizer",
    "learning_rate",
    "clip",
    "batch_size",
    "image_size",
    "augment",
    "l2",
    "seed",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_data_arguments(parser)
    parser.add_argument(
        "--epochs",
        type=whole_number(1),
        default=5,
        metavar="N",
        help="passes over the training images (%(default)s)",
    )
    one_of = parser.add_mutually_exclusive_group()
    one_of.add_argument(
        "--recipe",
        choices=_RECIPES,
        dest="optimizer",
        default=argparse.SUPPRESS,
        help="an adaptive optimizer with published settings, a warm-up as long as it needs, and a "
        "cosine to zero (adam)",
    )
    one_of.add_argument(
        "--optimizer",
        choices=sorted(_PEAK_RATES),
        default="adam",
        help="the same by the name of the optimizer, and sgd with momentum 0.9, a warm-up and a "
        "cosine (%(default)s)",
    )
    parser.add_argument(
        "--learning-rate",
        type=positive_number,
        metavar="RATE",
        help=f"highest rate ({', '.join(f'{n} {r:g}' for n, r in _PEAK_RATES.items())})",
    )
    parser.add_argument(
        "--clip",
        type=_clip,
        default="auto",
        metavar="NORM",
        help="a bound on the global gradient norm, `auto` or `none` (%(default)s)",
    )
    parser.add_argument(
        "--l2",
        type=_penalty,
        default=0.0,
        metavar="STRENGTH",
        help="L2 penalty on the kernels (none)",
    )
    parser.add_argument(
        "--augment", action="store_true", help="flip, zoom and shear the training images"
    )
    parser.add_argument(
        "--jit-compile",
        choices=("auto", "on", "off"),
        default="auto",
        help="XLA; auto times both and takes the faster (%(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="RUN_DIR",
        help="the run directory",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in RUN_DIR")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")


def add_data_arguments(parser: argparse.ArgumentParser, *, of_a_run: bool = False) -> None:
    """Add the arguments that say what the data is.

    Args:
        parser: Gets the arguments.
        of_a_run: Whether what is left out is taken from a run, instead of having a default.
    """
    left_out = "that of the run" if of_a_run else "%(default)s"
    parser.add_argument(
        "--data",
        required=not of_a_run,
        metavar="DATA",
        help="digits, fashion_mnist, cifar10, or a folder with one folder of images per class",
    )
    parser.add_argument(
        "--batch-size",
        type=whole_number(1),
        default=None if of_a_run else BATCH_SIZE,
        metavar="N",
        help=f"images per step ({left_out})",
    )
    parser.add_argument(
        "--image-size",
        type=whole_number(8),
        metavar="PIXELS",
        help="height and width to which the images of a folder are resized (their own)",
    )
    parser.add_argument(
        "--seed",
        type=seed_number,
        default=None if of_a_run else SEED,
        metavar="N",
        help=f"of the splits, the first weights and the order of the data ({left_out})",
    )


def load_data(data: str, batch_size: int, image_size: int | None, seed: int) -> Any:
    """Return the `Datasets` that the command line names."""
    from gradstab.data.datasets import load

    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
    if image_size is not None:
        options["image_size"] = image_size
    with refusing_bad_input():
        return load(data, **options)


def run(arguments: argparse.Namespace) -> int:
    """Train, test the best model and return the exit code."""
    output = writable_folder(arguments.output)
    arguments.learning_rate = arguments.learning_rate or _PEAK_RATES[arguments.optimizer]
    command = {name: getattr(arguments, name) for name in _KEPT}
    _check_command(output, command, arguments.resume)
    with refusing_bad_input():
        quiet_tensorflow()
    import keras

    from gradstab.callbacks.gradient_monitor import GradientMonitor
    from gradstab.training.loop import train

    datasets = load_data(arguments.data, arguments.batch_size, arguments.image_size, arguments.seed)
    keras.utils.set_random_seed(arguments.seed)
    with refusing_bad_input():
        total_steps = arguments.epochs * int(datasets.train.cardinality())
        model = _compiled_model(arguments, datasets, total_steps)
    # Once the directory is held by this run, before it writes anything itself.
    begins = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: write_whole(
            output / COMMAND_FILE, json.dumps(command, indent=1)
        )
    )
    monitor = GradientMonitor(
        output,
        every_n_steps=_steps_between_entries(total_steps),
        effective_rates=arguments.optimizer in _RECIPES,
    )
    try:
        try:
            history = train(
                model,
                datasets.train,
                datasets.validation,
                epochs=arguments.epochs,
                callbacks=[begins, monitor],
                run_dir=output,
                resume=arguments.resume,
                seed=arguments.seed,
                jit_compile=_JIT_COMPILE[arguments.jit_compile],
                verbose=0 if arguments.quiet else "auto",
            )
        finally:
            # Keras does not call it when training raises, and then the record is needed most.
            monitor.on_train_end()
    except RunDirectoryError as error:
        raise InputError(str(error)) from error
    except OSError as error:  # a full disk, a folder that was taken away
        said = str(error)
        where = "" if "`run_dir`" in said else "the run directory can't be written any more: "
        raise RunFailedError(f"{where}{said}") from error
    _draw_loss(output, history)
    best = keras.models.load_model(output / "model.keras")
    metrics = best.evaluate(datasets.test, verbose=0, return_dict=True)
    say(describe_metrics(metrics, output / "model.keras"))
    say(f"Run directory: {output}")
    return 0


def describe_metrics(metrics: dict[str, float], model: Path) -> str:
    """Return one line with the metrics on test data."""
    values = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    return f"Test data, {model}: {values}"


def _compiled_model(arguments: argparse.Namespace, datasets: Any, total_steps: int) -> Any:
    import keras

    from gradstab.models.cnn import cnn_classifier
    from gradstab.regularizers.penalties import L2

    model = cnn_classifier(
        datasets.input_shape,
        datasets.num_classes,
        kernel_initializer="he_normal",
        kernel_regularizer=L2(arguments.l2) if arguments.l2 else None,
        rescale=1 / datasets.pixel_max,
        augment=arguments.augment,
    )
    model.compile(
        _optimizer(arguments, total_steps),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _optimizer(arguments: argparse.Namespace, total_steps: int) -> Any:
    import keras

    from gradstab.optimizers.stabilize import stabilize
    from gradstab.recipes import adaptive
    from gradstab.schedules.compose import Adjustable
    from gradstab.schedules.warmup import LinearWarmup

    peak = arguments.learning_rate
    if arguments.optimizer in _RECIPES:
        recipe = getattr(adaptive, arguments.optimizer)
        return recipe(peak, total_steps, clip=arguments.clip)
    warmup = total_steps // 20
    cosine = keras.optimizers.schedules.CosineDecay(peak, total_steps - warmup)
    rate = Adjustable(LinearWarmup(cosine, warmup))
    return stabilize(keras.optimizers.SGD(rate, momentum=0.9), clip=arguments.clip)


def _steps_between_entries(total_steps: int) -> int:
    """Return how often to write into the record: some hundred entries, where a run is long."""
    return min(50, max(1, total_steps // 100))


def _check_command(output: Path, command: dict[str, Any], resume: bool) -> None:
    """Refuse a run that would overwrite another, or go on with another than was begun."""
    file = output / COMMAND_FILE
    if not file.exists() and not (output / "config.json").exists():
        return
    if not resume:
        raise InputError(f"{output} holds a run already. Add --resume, or name another --output")
    if not file.exists():
        raise InputError(f"the run in {output} was not begun by `gradstab train`")
    before = read_command(file)
    changed = [name for name in _KEPT if before.get(name) != command[name]]
    if changed:
        told = ", ".join(_as_argument(name, before.get(name)) for name in changed)
        raise InputError(f"the run in {output} was begun with {told}. Resume it with the same")


def _as_argument(name: str, value: Any) -> str:
    """Return what stands for a value on the command line."""
    flag = f"--{name.replace('_', '-')}"
    if name == "clip" and value is None:
        return f"{flag} none"
    if value is None or value is False:
        return f"no {flag}"
    return flag if value is True else f"{flag} {value}"


def _draw_loss(output: Path, history: Any) -> None:
    try:
        from gradstab.reports.figures import plot_loss, save

        save(plot_loss(history), output / "loss.png")
    except ImportError as error:
        print(f"No plots: {error}")


def _clip(text: str) -> float | str | None:
    if text == "auto":
        return text
    return None if text == "none" else positive_number(text)


def _penalty(text: str) -> float:
    return 0.0 if text in ("0", "0.0") else positive_number(text)
