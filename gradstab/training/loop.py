"""`train`: `fit` with the loop on the device, and a run directory that survives a kill."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
from collections.abc import Iterable
from typing import Any

import keras

from gradstab._validation import check_float
from gradstab.recovery.termination import Termination
from gradstab.training.array_feed import ArrayFeed
from gradstab.training.checkpoint import RunDirectory, coefficients_of
from gradstab.training.feeds import make_feed
from gradstab.training.given import check_passes, sort_data
from gradstab.training.identity import check_same_run, describe_run
from gradstab.training.leftovers import Progress
from gradstab.training.penalized import check_penalties, penalized, penalties_of
from gradstab.training.penalty import Penalty
from gradstab.training.ready import build, check_model
from gradstab.training.run import Run
from gradstab.training.settings import Settings
from gradstab.training.weighting import check_class_weight
from gradstab.training.workers import Workers


def train(
    model: Any,
    # What `fit` takes, by `fit`'s names.
    train_data: Any,
    y: Any = None,
    validation_data: Any = None,
    *,
    epochs: int,
    initial_epoch: int = 0,
    batch_size: int = 32,
    steps_per_epoch: int | None = None,
    validation_split: float = 0.0,
    class_weight: dict[int, float] | None = None,
    callbacks: Any = (),
    verbose: int | str = "auto",
    # What is added to the loss, and what is kept.
    penalties: Iterable[Penalty] = (),
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    seed: int | None = None,
    monitor: str | None = None,
    monitor_mode: str = "auto",
    early_stopping_patience: int | None = None,
    # How the loop runs.
    jit_compile: bool | str = "auto",
    steps_per_call: int | str = "auto",
    worker_timeout: float = 600.0,
) -> keras.callbacks.History:
    """Train a compiled Keras model with the whole loop on the device.

    Use it instead of `fit` if steps are short, if a run must survive a kill, or if a diverging run
    should end with its cause named. Callbacks, metrics, progress bar and history are Keras' own and
    are called in `fit`'s order. Overrides of `train_step`, `test_step` and `compute_loss` are
    respected.

    One call runs steps for about a second. Between calls the host updates the progress bar and
    handles interrupts. A callback that overrides a batch hook is called after every step. Two
    things change that: its attribute `needs_every_batch = False` (it is then called every
    `every_n_steps` steps, if it has that attribute), or the argument `steps_per_call`.

    With `run_dir`, a killed run can be started again with the same arguments and `resume=True`. It
    continues after its last completed epoch. After SIGTERM, which schedulers send before they kill,
    the run ends its step, saves, exits with 143, and continues after that step. On the CPU both
    end, bit for bit, where they would have ended without the kill. This requires:

    - The order of the data is a function of the epoch. That holds for arrays (by `seed`), for a
      `PyDataset` that does not reorder its batches itself, and for a pipeline with a `for_epoch`
      attribute, such as those of `gradstab.data.load`. For others it is up to the caller.
    - Random layers draw from seed generators of their own, as Keras' do.
    - Callbacks have no state but the saved one: the whole state of `EarlyStopping`,
      `ReduceLROnPlateau` and `ModelCheckpoint`, and attributes named in `kept_attributes`.

    A learning rate that was cut stays cut, and changed coefficients of penalties and of gradstab's
    regularizers stay changed.

    Under a `tf.distribute` strategy each step splits its batch of `batch_size` over the replicas
    and weights their losses by their numbers of examples, so that the update is that of one
    replica, however uneven the split. (The reduction `"mean_with_sample_weight"` is treated the
    same way, although weights should count there. A batch with fewer examples than replicas goes
    whole to each.) BatchNorm's statistics are averaged over the replicas after every epoch. With
    `MultiWorkerMirroredStrategy` all workers call this function with the same arguments and data.
    The first one writes `run_dir`, which all must be able to read. If a worker is lost, the others
    stop with `WorkerLostError`; start all again with `resume=True`.

    The directory holds `config.json` (arguments, versions, form of the loop), `history.json`
    (written after every epoch), `record.jsonl` (for `gradstab report`), `model.keras` (the model at
    its best `monitor`; before the first epoch ends, the initial model) and `checkpoints/` (weights,
    optimizer, random states and callbacks, after the last epoch and the one before, in case a file
    of the last is lost or broken). The record is written by a `GradientMonitor` that does not
    change the logs, unless one of the callbacks writes there.

    Args:
        model: A compiled `keras.Model`, built or not. Without a strategy one device trains it, the
            GPU if TensorFlow sees one.
        train_data: The inputs `x`, an array or a list or dictionary of arrays; or a tuple
            `(x, y)` or `(x, y, sample_weight)`; or a `tf.data.Dataset`, a `keras.utils.PyDataset`
            or a generator of batches. Arrays are kept on the device and shuffled by seed and epoch.
        y: The targets; None if the model needs none, or if `train_data` holds them. In that case
            the validation data may be passed here.
        validation_data: The same as `train_data`, for an evaluation after each epoch.
        epochs: The epoch to train up to, as in `fit`; resumed runs included.
        initial_epoch: The epoch to begin at, as in `fit`; ignored by a resumed run.
        batch_size: Examples per step, for arrays.
        steps_per_epoch: Batches per epoch of a pipeline or a generator; a pipeline is repeated as
            needed.
        validation_split: The share of the arrays, from their end, to validate on.
        class_weight: Weights of the examples by class; 1 for classes that are not listed.
        callbacks: Keras callbacks.
        verbose: 0 is silent, 1 a progress bar, 2 a line per epoch, `"auto"` is 1.
        penalties: Penalties that this run adds to the training loss and shows in its logs:
            `GradientPenalty`, `JacobianPenalty`, `RecurrentGradientNorm`, or your own subclasses of
            `Penalty`. Penalties set by `set_penalties` act anyway.
        run_dir: A directory for the run; None writes nothing.
        resume: Continue the run in `run_dir`; if there is none, begin one.
        seed: Fixes the order of arrays, and is passed to `keras.utils.set_random_seed` at the
            start. None draws a random order (kept in `run_dir`) and sets no seed.
        monitor: The log by which the best model is kept. Default: `"val_loss"` with validation
            data, else `"loss"`.
        monitor_mode: `"min"`, `"max"`, or `"auto"` by the name of the log.
        early_stopping_patience: Stop after this many epochs without a better `monitor`.
        jit_compile: False is a plain graph; True or `"step"` compiles the step with XLA; `"loop"`
            the whole loop, for arrays only; `"auto"` times them on real batches, undoes the
            changes, and takes the fastest. XLA is not tried if the run is too short to gain from
            it. Forms differ in the last digits, and dropout may draw other numbers under XLA; a
            resumed run keeps its form.
        steps_per_call: Number of steps in one call, or `"auto"`.
        worker_timeout: Seconds after which a worker that does not answer counts as lost. Must
            exceed the time of compiling the step, and of saving the model.

    Returns:
        The `History`, as from `fit`; a resumed run's holds all its epochs. Its `params["loop"]`
        holds the form of the loop, the reason for it, and the timings.

    Raises:
        ValueError: If an argument is invalid, or there are no data; if `run_dir` can't be written,
            is in use by another run, holds a run already (without `resume`), or holds another or a
            broken run (with it).
        TypeError: If an argument has the wrong type. gradstab.DivergenceError: If a gradstab
        optimizer skipped too many steps in a row, unless a `DivergenceGuard` among the callbacks
        acts instead. gradstab.WorkerLostError: If another worker crashed, which TensorFlow notices
        within about
            ten seconds, or did not answer for `worker_timeout` seconds.

    Example:
    >>> import keras, numpy as np, gradstab
    >>> model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", loss="mse")
    >>> x, y = np.ones((64, 4)), np.ones((64, 1))
    >>> history = gradstab.training.train(model, (x, y), (x, y), epochs=3, seed=0, verbose=0)
    >>> sorted(history.history), len(history.history["loss"])
    (['loss', 'val_loss'], 3)
    """
    check_model(model)
    penalties = check_penalties(penalties, model)
    if penalties and penalties_of(model):
        raise ValueError(
            "`penalties` can't be given for a model that has some already. Received: "
            f"penalties={penalties!r}, and set_penalties gave it {penalties_of(model)!r}. Give "
            "them all here, after set_penalties(model, []), or all there"
        )
    train_data, validation_data = sort_data(train_data, y, validation_data, validation_split)
    watched = monitor or ("loss" if validation_data is None else "val_loss")
    settings = Settings(
        epochs=epochs,
        initial_epoch=initial_epoch,
        class_weight=check_class_weight(class_weight),
        validation_split=validation_split,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        seed=seed,
        jit_compile=jit_compile,
        steps_per_call=steps_per_call,
        monitor=watched,
        monitor_mode=monitor_mode,
        early_stopping_patience=early_stopping_patience,
        verbose=verbose,
    )
    if watched.startswith("val_") and validation_data is None:
        raise ValueError(f"`monitor` needs `validation_data`. Received: monitor={watched!r}")
    workers = Workers(model.distribute_strategy, check_float("worker_timeout", worker_timeout))
    if not workers.writes:
        settings = dataclasses.replace(settings, verbose=0)
    directory = None if run_dir is None else RunDirectory(run_dir, workers.writes)
    if directory is None and resume:
        raise ValueError("`resume=True` needs the run's directory. Received: run_dir=None")
    with contextlib.ExitStack() as stack:
        config: dict[str, Any] = {}
        progress = Progress()
        if directory is not None:
            stack.enter_context(directory.held())
            config, progress = directory.open(resume=resume)
        termination = Termination()
        if workers.count == 1:
            stack.enter_context(termination)
        first_epoch = progress.epochs_done or initial_epoch
        if config and initial_epoch > progress.epochs_done:
            raise ValueError(
                f"`initial_epoch` is after the last completed epoch of the run in `run_dir`. "
                f"Received: initial_epoch={initial_epoch}, and {progress.epochs_done} are done. "
                "Leave `initial_epoch` out of a resumed run"
            )
        check_passes(train_data, epochs - first_epoch, steps_per_epoch)
        order_seed = config.get("order_seed", random.randrange(2**31)) if seed is None else seed
        order_seed = workers.agree(order_seed)
        feed = make_feed(
            "train_data",
            train_data,
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
            seed=order_seed,
            first_epoch=first_epoch,
            class_weight=settings.class_weight,
        )
        validation = None
        if validation_data is not None:
            validation = make_feed("validation_data", validation_data, batch_size=batch_size)
        if settings.form == "xla_loop" and not isinstance(feed, ArrayFeed):
            raise ValueError(
                "`jit_compile='loop'` needs arrays as `train_data`. Received: a tf.data.Dataset. "
                "Pass 'step' instead"
            )
        stack.enter_context(penalized(model, penalties))
        if seed is not None:
            keras.utils.set_random_seed(seed)
        build(model, feed)
        new_config: dict[str, Any] = {}
        if directory is not None:
            new_config = describe_run(
                model,
                settings,
                steps=feed.steps,
                data={
                    "train_data": feed.fingerprint(),
                    "validation_data": None if validation is None else validation.fingerprint(),
                },
                coefficients=coefficients_of(model),
            ) | {"order_seed": order_seed}
        if config:
            check_same_run(config, new_config)
            new_config["begins_with"] = config.get("begins_with", new_config["begins_with"])
        if directory is not None and (progress.epochs_done or progress.step):
            directory.restore(model, progress)
        advice = "Nothing was saved, for want of a `run_dir`"
        if directory is not None:
            saved = os.fspath(directory.path)
            advice = f"The last complete epoch is in {saved!r}: start all again with resume=True"
        run = Run(
            model=model,
            settings=settings,
            feed=feed,
            validation=validation,
            directory=directory,
            progress=progress,
            config=new_config,
            old_config=config,
            workers=workers,
            termination=termination,
        )
        with workers.together(advice):
            return run.train(callbacks)
