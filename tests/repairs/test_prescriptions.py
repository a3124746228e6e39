"""Each prescription heals its textbook case, and refuses where it does not apply."""

import dataclasses

import keras
import numpy as np
import pytest

import gradstab
from gradstab.repairs.draft import Draft, Plan
from gradstab.repairs.prescriptions import catalogue
from gradstab.repairs.prescriptions.catalogue import CATALOGUE, WRITING, named
from gradstab.repairs.trial import Bench

DENSE, INPUT = keras.layers.Dense, keras.Input
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(600, 8)).astype("float32")
FLAGS = (X[:, 0] * X[:, 1] > 0).astype("float32")  # Not to be told by a linear layer.
CLASSES = (X[:, 0] > 0).astype("int32") + (X[:, 1] > 0).astype("int32")
LINE = (X[:, :1] - X[:, 1:2]).astype("float32")
IMAGES = np.clip(
    DRAW.random((300, 8, 8, 1)) * 0.2 + 0.8 * (np.arange(300) % 2)[:, None, None, None], 0, 1
).astype("float32")  # Dark and light ones.


def _net(*layers, loss="binary_crossentropy", optimizer=None, width=8):
    model = keras.Sequential([INPUT((width,)), *layers])
    model.compile(optimizer or keras.optimizers.Adam(1e-2), loss)
    return model


def _hidden(activation="relu", units=32, **arguments):
    return DENSE(units, activation, **arguments)


@dataclasses.dataclass(frozen=True)
class Textbook:
    """A sick model, its data and its plan."""

    model: object
    x: np.ndarray
    y: np.ndarray
    plan: Plan = dataclasses.field(default_factory=lambda: Plan(20, 32))


def _with_holes():
    x = X.copy()
    x[::20, 3] = np.nan
    return Textbook(_net(DENSE(1), loss="mse"), x, LINE)


def _brightened():
    layers = [
        INPUT((8, 8, 1)),
        keras.layers.RandomBrightness(0.2, value_range=(0, 255), seed=1),
        keras.layers.Flatten(),
        DENSE(1, "sigmoid"),
    ]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
    return Textbook(model, IMAGES, (np.arange(300) % 2).astype("float32"), Plan(10, 32))


def _unflattened():
    model = keras.Sequential(
        [INPUT((8, 8, 1)), keras.layers.MaxPooling2D(), DENSE(8, "relu"), DENSE(2, "softmax")]
    )
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    return Textbook(model, IMAGES, np.arange(300) % 2)


def _deep(activation="sigmoid", count=8, **arguments):
    return [_hidden(activation, 16, **arguments) for _ in range(count)]


OFFSET = X * 300 + 1000
TEXTBOOK = {
    "DropNonFinite": _with_holes,
    "MatchValueRange": _brightened,
    "ScaleInputs": lambda: Textbook(_net(_hidden("tanh"), DENSE(1, "sigmoid")), OFFSET, FLAGS),
    "ScaleTargets": lambda: Textbook(_net(DENSE(1), loss="mse"), X, LINE * 1e4 + 3e4),
    "FitHead": lambda: Textbook(_net(_hidden(), DENSE(1, "softmax")), X, FLAGS),
    "InsertFlatten": _unflattened,
    "Reinitialize": lambda: Textbook(
        _net(_hidden(kernel_initializer="zeros"), DENSE(1, "sigmoid", kernel_initializer="zeros")),
        X, FLAGS),
    "TrainFrozenLayers": lambda: Textbook(
        _net(_hidden(trainable=False), DENSE(1, "sigmoid", trainable=False)), X, FLAGS),
    "SetLearningRate": lambda: Textbook(
        _net(_hidden(), DENSE(1, "sigmoid"), optimizer=keras.optimizers.SGD(1e-5)), X, FLAGS),
    "ClipGradients": lambda: Textbook(
        _net(DENSE(1), loss="mse", optimizer=keras.optimizers.SGD(0.05)), X * 6, LINE * 6),
    "UseAdam": lambda: Textbook(
        _net(_hidden(), DENSE(1, "sigmoid"), optimizer=keras.optimizers.SGD(1e-4)), X, FLAGS,
        Plan(60, 16)),
    "SwapActivations": lambda: Textbook(_net(*_deep(), DENSE(1, "sigmoid")), X, FLAGS),
    "ReviveUnits": lambda: Textbook(
        _net(_hidden(bias_initializer=keras.initializers.Constant(-50.0)), DENSE(1, "sigmoid")),
        X, (X[:, 0] > 0).astype("float32"), Plan(30, 32)),
    "LightenRegularization": lambda: Textbook(
        _net(_hidden(kernel_regularizer=keras.regularizers.L2(1.0)), DENSE(1, "sigmoid")),
        X, FLAGS),
    "InsertNormalization": lambda: Textbook(
        _net(*_deep("tanh", 6, kernel_initializer=keras.initializers.RandomNormal(stddev=0.01)),
             DENSE(1, "sigmoid")), X, FLAGS),
    "AddResiduals": lambda: Textbook(
        _net(*_deep("tanh", 14, kernel_initializer=keras.initializers.RandomNormal(stddev=0.05)),
             DENSE(1, "sigmoid")), X, FLAGS),
    "WidenLayers": lambda: Textbook(_net(_hidden(units=1), DENSE(1, "sigmoid")), X, FLAGS),
    "SetBatchSize": lambda: Textbook(
        _net(_hidden(), DENSE(1, "sigmoid")), X, FLAGS, Plan(20, 600)),
    "TrainLonger": lambda: Textbook(
        _net(_hidden(), DENSE(1, "sigmoid"), optimizer=keras.optimizers.Adam(1e-3)),
        X, FLAGS, Plan(12, 32)),
}  # fmt: skip


def _bench(book):
    return Bench(book.model, book.x, book.y, (book.x, book.y), book.plan, seed=0)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", TEXTBOOK)
def test_it_heals_its_textbook_case(name):
    keras.utils.set_random_seed(0)
    book = TEXTBOOK[name]()
    if name == "DropNonFinite":  # Rows to score on have no holes.
        fine = np.isfinite(book.x).all(1)
        bench = Bench(book.model, book.x, book.y, (book.x[fine], book.y[fine]), book.plan, 0)
    else:
        bench = _bench(book)
    sick, healed = bench.trial([]), bench.trial([named(name)])
    bench.train(sick, 1.0)
    bench.train(healed, 1.0)
    assert [type(each).__name__ for each in healed.actions] == [name]
    assert healed.error is None
    assert healed.score > sick.score + 0.1
    (changes,) = healed.actions.values()
    assert all(change.before != change.after for change in changes)


def _healthy():
    layers = [_hidden(kernel_initializer="he_normal"), DENSE(1, "sigmoid")]
    return Textbook(_net(*layers, optimizer=keras.optimizers.Adam(1e-3)), X, FLAGS)


# Those that always find something to change: another rate, clipping, units, and a longer run.
ALWAYS = ("SetLearningRate", "ClipGradients", "ReviveUnits", "InsertNormalization", "TrainLonger")


@pytest.mark.parametrize("name", [name for name in TEXTBOOK if name not in ALWAYS])
def test_it_is_refused_where_it_does_not_apply(name):
    book = _healthy()
    draft = Draft(book.model, book.x, book.y, book.plan)
    before = dataclasses.replace(draft)
    assert named(name).write(draft) == []
    for field in (
        "settings",
        "before",
        "after",
        "at_input",
        "at_output",
        "around",
        "loss",
        "cleaning",
    ):
        assert getattr(draft, field) == getattr(before, field)
    assert draft.fit_arguments == {"epochs": 20, "batch_size": 32}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("ClipGradients", lambda: _net(DENSE(1), optimizer=_wrapped())),
        ("ReviveUnits", lambda: _net(_hidden("tanh"), DENSE(1, "sigmoid"))),
        ("InsertNormalization", lambda: _net(_hidden(), keras.layers.BatchNormalization(),
                                             DENSE(1, "sigmoid"))),
        ("AddResiduals", lambda: _net(*_deep(), *_in_residuals(4), DENSE(1, "sigmoid"))),
    ],
)  # fmt: skip
def test_others_are_refused_where_their_work_is_done(name, model):
    assert named(name).write(Draft(model(), X, FLAGS, Plan(1, 32))) == []


def _in_residuals(count):
    return [gradstab.layers.ScaledResidual(_hidden(units=16)) for _ in range(count)]


def test_a_softmax_over_the_rows_of_a_batch_is_turned():
    model = _net(DENSE(3), keras.layers.Softmax(axis=0), loss="sparse_categorical_crossentropy")
    (change,) = named("FitHead").write(Draft(model, X, CLASSES, Plan(1, 32)))
    assert (change.before, change.after) == (
        "keras.layers.Softmax(axis=0)",
        "keras.layers.Softmax()",
    )


def test_features_that_never_change_do_not_hide_how_small_the_others_are():
    x = X / 1000
    x[:, 3] = 0
    model = _net(_hidden(), DENSE(1, "sigmoid"))
    assert named("ScaleInputs").write(Draft(model, x, FLAGS, Plan(1, 32)))


def test_residuals_go_round_the_layer_as_it_is_changed():
    draft = Draft(_net(*_deep(count=6), DENSE(1, "sigmoid")), X, FLAGS, Plan(1, 32))
    named("SwapActivations").write(draft)
    changes = named("AddResiduals").write(draft)
    assert len(changes) == 5  # The first layer widens 8 inputs to 16 units.
    assert changes[0].after == (
        'gradstab.layers.ScaledResidual(keras.layers.Dense(16, activation="relu", '
        'kernel_initializer="he_normal"))'
    )
    made = draft.built()
    assert [type(layer).__name__ for layer in made.layers] == [
        "Dense", *["ScaledResidual"] * 5, "Dense"
    ]  # fmt: skip
    first = keras.Sequential(made.layers[:1])(X)
    np.testing.assert_array_equal(keras.Sequential(made.layers[:6])(X), first)  # It begins so.


def _wrapped():
    from gradstab import stabilize

    return stabilize(keras.optimizers.Adam(1e-3))


def test_every_prescription_is_in_the_catalogue_once_and_in_the_order_of_writing():
    classes = [type(each) for each in CATALOGUE]
    assert set(classes) == set(WRITING)
    assert len(classes) == len(WRITING) == len(TEXTBOOK)
    assert {each.__name__ for each in classes} == set(TEXTBOOK)


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'Pray'. There are: DropNonFinite"):
        catalogue.named("Pray")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("head", "loss", "y", "expected"),
    [
        ((1, "softmax"), "binary_crossentropy", FLAGS, ("sigmoid", "binary_crossentropy")),
        ((1, "sigmoid"), "categorical_crossentropy", FLAGS, ("sigmoid", "binary_crossentropy")),
        ((3, "sigmoid"), "mse", CLASSES, ("softmax", "sparse_categorical_crossentropy")),
        ((3, None), "categorical_crossentropy", np.eye(3)[CLASSES],
         ("softmax", "categorical_crossentropy")),
        ((1, "relu"), "mse", LINE, ("linear", "mse")),
        ((1, "sigmoid"), "binary_crossentropy", LINE * 5, ("linear", "mean_squared_error")),
        ((1, None), keras.losses.BinaryCrossentropy(from_logits=True), FLAGS,
         ("sigmoid", "binary_crossentropy")),
    ],
)  # fmt: skip
def test_a_head_that_fits(head, loss, y, expected):
    draft = Draft(_net(DENSE(*head, name="out"), loss=loss), X, y, Plan(1, 32))
    named("FitHead").write(draft)
    model = draft.built()
    assert (model.layers[-1].activation.__name__, model.loss) == expected
    model.fit(X, y, verbose=0)


def test_labels_from_1_on_are_moved():
    draft = Draft(_net(DENSE(3, "softmax"), loss="sparse_categorical_crossentropy"), X, CLASSES + 1,
                  Plan(1, 32))  # fmt: skip
    (change,) = named("FitHead").write(draft)
    assert (change.before, change.after) == ("y", "y - 1")
    assert np.array_equal(draft.prepared(X, CLASSES + 1)[1], CLASSES)


def test_scaled_targets_leave_predictions_in_their_units():
    y = LINE * 1e4 + 3e4
    draft = Draft(_net(DENSE(1), loss="mse"), X, y, Plan(1, 32))
    named("ScaleTargets").write(draft)
    model = draft.built()
    assert abs(float(model.predict(X, verbose=0).mean()) - 3e4) < 3e4 * 0.5
    assert draft.loss_weights == pytest.approx(1 / np.var(y), rel=1e-3)
