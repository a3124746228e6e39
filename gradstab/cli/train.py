"""`gradstab train`: the corrected CNN on images, in a run directory."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any, Final

from gradstab._errors import RunDirectoryError
from gradstab.cli.begun import KEPT, begun_command, check_same, write_command
from gradstab.cli.console import (
    InputError,
    RunFailedError,
    positive_number,
    quiet_tensorflow,
    refusing_bad_input,
    say,
    whole_number,
    writable_folder,
)
from gradstab.cli.data_arguments import add_data_arguments, check_data, load_data

SUMMARY: Final = "train a CNN on images"
DESCRIPTION: Final = (
    "Trains a CNN with warm-up and decay of the rate, skipping of bad steps, and clipping. "
    "The run directory gets config.json, command.json, history.json, record.jsonl, model.keras "
    "(the best by validation loss), checkpoints/, gradient_norm.png and loss.png."
)
_EPOCHS: Final = 5

# Keras' own rates for Adam and RMSprop. Adam's was looked at on validation images of Fashion-MNIST.
_PEAK_RATES: Final = {"adam": 1e-3, "rmsprop": 1e-3, "adagrad": 0.03, "sgd": 0.05}
_RECIPES: Final = ("adagrad", "adam", "rmsprop")
_JIT_COMPILE: Final[dict[str, bool | str]] = {"auto": "auto", "on": True, "off": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_data_arguments(parser)
    parser.add_argument(
        "--epochs",
        type=whole_number(1),
        metavar="N",
        help=f"passes over the training images ({_EPOCHS}; of a resumed run its own)",
    )
    one_of = parser.add_mutually_exclusive_group()
    one_of.add_argument(
        "--recipe",
        choices=_RECIPES,
        dest="optimizer",
        default=argparse.SUPPRESS,
        help="an adaptive optimizer with published settings, a warm-up, and a cosine decay to zero "
        "(adam)",
    )
    one_of.add_argument(
        "--optimizer",
        choices=sorted(_PEAK_RATES),
        default="adam",
        help="the same, and sgd with momentum 0.9, a warm-up and a cosine decay (%(default)s)",
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
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in RUN_DIR; --epochs may be larger than before",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")


def run(arguments: argparse.Namespace) -> int:
    """Train, test the best model and return the exit code."""
    check_data(arguments.data, arguments.image_size)
    output = writable_folder(arguments.output)
    before = begun_command(output, arguments.resume)
    arguments.learning_rate = arguments.learning_rate or _PEAK_RATES[arguments.optimizer]
    arguments.epochs = arguments.epochs or before.get("epochs", _EPOCHS)
    command = {name: getattr(arguments, name) for name in KEPT}
    check_same(output, before, command)
    with refusing_bad_input():
        quiet_tensorflow()
    import keras

    datasets = load_data(arguments.data, arguments.batch_size, arguments.image_size, arguments.seed)
    keras.utils.set_random_seed(arguments.seed)
    with refusing_bad_input():
        total_steps = arguments.epochs * int(datasets.train.cardinality())
        model = _compiled_model(arguments, datasets, total_steps)
    if before.get("epochs", arguments.epochs) != arguments.epochs and not arguments.quiet:
        say(
            f"Resumed with {arguments.epochs} epochs instead of {before['epochs']}: the course of "
            "the learning rate now spans all of them"
        )
    try:
        history = _train(arguments, model, datasets, total_steps, command)
    except RunDirectoryError as error:
        raise InputError(str(error)) from error
    except BrokenPipeError:
        raise
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


def _train(
    arguments: argparse.Namespace,
    model: Any,
    datasets: Any,
    total_steps: int,
    command: dict[str, Any],
) -> Any:
    """Train the model in its run directory, and return the history."""
    import keras

    from gradstab.callbacks.gradient_monitor import GradientMonitor
    from gradstab.training.identity import ScheduleChangedWarning
    from gradstab.training.loop import train

    # Once the directory is held by this run, before it writes anything itself.
    begins = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: write_command(arguments.output, command)
    )
    monitor = GradientMonitor(
        arguments.output,
        every_n_steps=_steps_between_entries(total_steps),
        effective_rates=arguments.optimizer in _RECIPES,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleChangedWarning)  # told in words of this command
        return train(
            model,
            datasets.train,
            validation_data=datasets.validation,
            epochs=arguments.epochs,
            callbacks=[begins, monitor],
            run_dir=arguments.output,
            resume=arguments.resume,
            seed=arguments.seed,
            jit_compile=_JIT_COMPILE[arguments.jit_compile],
            verbose=0 if arguments.quiet else "auto",
        )


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
