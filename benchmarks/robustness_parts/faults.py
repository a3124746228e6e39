"""The table of faults: kinds of fault, nets, optimizers, `fit` and `training.train`.

A run counts as told if its verdict, an exception or a warning says so; as mended if it ends as good
as a healthy one, within a factor; as silently dead if it is neither.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from gradstab._errors import DivergenceError
from gradstab.callbacks import DivergenceGuard
from gradstab.optimizers.stabilize import stabilize
from gradstab.training import train

_DRAW = np.random.default_rng(0)
_LABELS = _DRAW.integers(0, 3, 192)
_IMAGES = (_DRAW.normal(size=(192, 8, 8, 1)) * 0.3 + _LABELS[:, None, None, None]).astype("float32")
_EPOCHS, _FAULT_AT = 6, 3

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "Adam": lambda: keras.optimizers.Adam(1e-2),
    "SGD, momentum": lambda: keras.optimizers.SGD(1e-2, momentum=0.9),
}


def net(kind: str, optimizer: Any, activation: str = "relu") -> Any:
    """Return one of the nets, compiled."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    body: dict[str, list[Any]] = {
        "CNN": [
            layers.Conv2D(8, 3, padding="same", name="first"),
            layers.BatchNormalization(),
            layers.Activation(activation),
            layers.GlobalAveragePooling2D(),
        ],
        "MLP": [
            layers.Flatten(),
            layers.Dense(16, activation, name="first"),
            layers.Dense(16, activation),
        ],
        "GRU": [layers.Reshape((8, 8)), layers.GRU(12, name="first")],
    }
    model = keras.Sequential([keras.Input((8, 8, 1)), *body[kind], layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def _poison(kind: str, value: float) -> Callable[[Any], None]:
    def act(model: Any) -> None:
        inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        variables = {
            "weights": lambda: model.get_layer("first").trainable_variables[:1],
            "moments": lambda: [v for v in inner.variables if len(v.shape) > 1][:1],
            "statistics": lambda: [v for v in model.non_trainable_variables if "moving" in v.path][
                :1
            ],
        }[kind]()
        for variable in variables:
            variable.assign(np.full(variable.shape, value))

    return act


def _scale(factor: float) -> Callable[[Any], None]:
    def act(model: Any) -> None:
        for variable in model.trainable_variables:
            variable.assign(variable * factor)

    return act


def _rate(factor: float) -> Callable[[Any], None]:
    def act(model: Any) -> None:
        model.optimizer.learning_rate = float(model.optimizer.learning_rate) * factor

    return act


def _dead(model: Any) -> None:
    layer = model.get_layer("first")
    bias = layer.trainable_variables[-1]
    bias.assign(np.full(bias.shape, -1e3))


def _with(**changes: Any) -> Callable[[], tuple[Any, Any]]:
    def data() -> tuple[Any, Any]:
        x, y = _IMAGES.copy(), _LABELS.copy()
        for rows, value in changes.get("x", ()):
            x[rows] = value
        return x * changes.get("scale", 1.0), y

    return data


# Name: what befalls the model in the middle of training, or what the data are.
AT_HALF: dict[str, Callable[[Any], None]] = {
    "NaN in weights": _poison("weights", np.nan),
    "inf in weights": _poison("weights", np.inf),
    "NaN in moments": _poison("moments", np.nan),
    "huge moments": _poison("moments", 1e20),
    "NaN in statistics": _poison("statistics", np.nan),
    "huge statistics": _poison("statistics", 1e20),
    "weights x 1e6": _scale(1e6),
    "weights x 0": _scale(0.0),
    "rate x 1e4": _rate(1e4),
    "dead units": _dead,
}
DATA: dict[str, Callable[[], tuple[Any, Any]]] = {
    "one NaN sample": _with(x=[(7, np.nan)]),
    "all NaN": _with(x=[(slice(None), np.nan)]),
    "one inf sample": _with(x=[(7, np.inf)]),
    "one huge sample": _with(x=[(7, 1e30)]),
    "inputs x 1e12": _with(scale=1e12),
}
_SCALES = {"inputs x 1e12": 1e12}


class _At(keras.callbacks.Callback):
    def __init__(self, act: Callable[[Any], None]) -> None:
        super().__init__()
        self._act = act

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == _FAULT_AT:
            self._act(self.model)


def table(*, quick: bool) -> Iterator[tuple[str, str]]:
    """Yield each run and what came of it: mended, told, or silently dead."""
    nets = ("MLP",) if quick else ("CNN", "MLP", "GRU")
    optimizers = ("Adam",) if quick else tuple(OPTIMIZERS)
    faults = [*AT_HALF, *DATA] if not quick else ["NaN in weights", "one NaN sample", "all NaN"]
    for kind in nets:
        for name in optimizers:
            for runs in ("train",) if quick else ("fit", "train"):
                for fault in faults:
                    yield f"{fault} | {kind} | {name} | {runs}", _outcome(fault, kind, name, runs)


def _outcome(fault: str, kind: str, name: str, runs: str) -> str:
    model = net(kind, stabilize(OPTIMIZERS[name](), max_consecutive=5))
    x, y = DATA[fault]() if fault in DATA else (_IMAGES, _LABELS)
    guard = DivergenceGuard(verbose=False)
    callbacks = [guard, *([_At(AT_HALF[fault])] if fault in AT_HALF else [])]
    told = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            if runs == "fit":
                model.fit(x, y, epochs=_EPOCHS, batch_size=16, verbose=0, callbacks=callbacks)
            else:
                arguments: dict[str, Any] = {"seed": 0, "jit_compile": False, "verbose": 0}
                train(
                    model, (x, y), epochs=_EPOCHS, batch_size=16, callbacks=callbacks, **arguments
                )
        except DivergenceError as error:
            told = str(error)
        except Exception as error:
            return f"raw {type(error).__name__}: {str(error)[:100]}"
    told = told or guard.verdict or ""
    said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    # On whole inputs, on the scale of those that it was trained on.
    x = _IMAGES * _SCALES.get(fault, 1.0)
    accuracy = float(np.mean(np.argmax(model.predict(x, verbose=0), -1) == _LABELS))
    if accuracy > 0.6:
        return "mended, told" if told or said else "mended"
    return "told" if told or said else f"silently dead (accuracy {accuracy:.2f})"
