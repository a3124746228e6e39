"""A sick model is healed and its change shown; a healthy one, and the one given, are left alone."""

import keras
import numpy as np
import pytest

import gradstab
from gradstab.repairs.draft import Draft, Plan
from gradstab.repairs.prescriptions.base import Change
from gradstab.repairs.prescriptions.catalogue import CATALOGUE
from gradstab.repairs.result import Action, Repair
from gradstab.repairs.search import recipes_for

DENSE, INPUT = keras.layers.Dense, keras.Input
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(500, 6)).astype("float32")
FLAGS = (X[:, 0] + X[:, 1] > 0).astype("float32")


def _model(*layers, loss="binary_crossentropy", optimizer=None, metrics=("accuracy",)):
    keras.utils.set_random_seed(3)
    model = keras.Sequential([INPUT((6,)), *layers])
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss, metrics=list(metrics))
    return model


@pytest.fixture(scope="module")
def healed():
    model = _model(DENSE(16, "relu"), DENSE(1, "softmax", name="out"))
    before = [weight.copy() for weight in model.get_weights()]
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    # One prescription, since what is tried beside it depends on the time that is left.
    found = gradstab.repair(model, X, FLAGS, epochs=8, batch_size=32, allow=["FitHead"])
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    return model, before, found


def test_it_names_the_change_and_what_it_is_worth(healed):
    found = healed[-1]
    assert found.verdict == "repaired"
    assert [action.name for action in found.actions] == ["make output, loss and labels fit"]
    evidence = found.actions[0].evidence
    assert evidence.after > evidence.undone + 0.3
    assert found.diff().splitlines()[1:] == [
        '- keras.layers.Dense(1, activation="softmax")',
        '+ keras.layers.Dense(1, activation="sigmoid")',
    ]
    text = str(found)
    assert text.startswith("repaired: ")
    assert found.diff() in text
    assert repr(found) == "<Repair: repaired: make output, loss and labels fit>"


def test_the_model_it_gives_learns_and_keeps_the_metrics(healed):
    found = healed[-1]
    history = found.model.fit(*found.prepare(X, FLAGS), verbose=0, **found.fit_arguments).history
    assert history["accuracy"][-1] > 0.9
    assert found.fit_arguments == {"epochs": 8, "batch_size": 32}


def test_the_model_given_is_not_changed(healed):
    model, before, _ = healed
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert model.layers[-1].activation is keras.activations.softmax
    assert model.optimizer.iterations == 0


def test_words_are_escaped_on_its_page(healed):
    model, _, found = healed
    draft = Draft(model, X, FLAGS, Plan(1, 32))
    action = Action("<i>", (Change("<s>", "<u>"),), None)
    odd = Repair(model, "repaired", "<b>", actions=[action], draft=draft, score_before=0.0,
                 score=1.0, cost=1.0, diagnosis=None)  # fmt: skip
    assert not any(tag in odd.to_html() for tag in ("<i>", "<s>", "<u>", "<b>"))
    assert "&lt;b&gt;" in odd.to_html()
    assert found.to_html() == found._repr_html_()


def test_a_healthy_model_needs_none():
    model = _model(DENSE(16, "relu"), DENSE(1, "sigmoid"))
    found = gradstab.repair(model, X, FLAGS, epochs=10)
    assert (found.verdict, found.actions, found.diff()) == ("not needed", (), "")
    assert found.model is model
    assert found.score > 0.6


def test_labels_without_a_pattern_are_not_repairable():
    model = _model(DENSE(16, "relu"), DENSE(1, "sigmoid"))
    found = gradstab.repair(model, X, DRAW.permutation(FLAGS), epochs=4)
    assert found.verdict == "not repairable"
    assert found.reason
    assert found.model is model


def test_two_inputs_two_outputs_and_a_wrapped_optimizer():
    first, second = INPUT((6,), name="first"), INPUT((6,), name="second")
    both = DENSE(8, "tanh")(keras.layers.Concatenate()([first, second]))
    outputs = [DENSE(1, "softmax", name="flag")(both), DENSE(1, name="sum")(both)]
    model = keras.Model([first, second], outputs)
    model.compile(gradstab.stabilize(keras.optimizers.Adam(0.01)), ["binary_crossentropy", "mse"])
    y = [FLAGS, X.sum(1, keepdims=True)]
    found = gradstab.repair(model, [X, X[:, ::-1].copy()], y, epochs=8)
    assert found.verdict in ("repaired", "improved")
    assert found.model.get_layer("flag").activation is keras.activations.sigmoid
    assert type(found.model.optimizer) is type(model.optimizer)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"model": "model.keras"}, TypeError, "Keras model"),
        ({"x": iter([1])}, TypeError, "Gather"),
        ({"y": FLAGS[:10]}, ValueError, r"\[10, 500\]"),
        ({"epochs": 0}, ValueError, "epochs"),
        ({"budget": 0.5}, ValueError, "budget"),
        ({"allow": ["Pray"]}, ValueError, "Pray"),
        ({"validation_data": (X,)}, ValueError, "validation_data"),
    ],
)
def test_wrong_arguments_are_named(change, kind, message):
    arguments = {"model": _model(DENSE(1, "sigmoid")), "x": X, "y": FLAGS, **change}
    with pytest.raises(kind, match=message):
        gradstab.repair(arguments.pop("model"), arguments.pop("x"), arguments.pop("y"), **arguments)


def test_a_model_that_is_not_compiled_is_refused():
    with pytest.raises(ValueError, match="compile"):
        gradstab.repair(keras.Sequential([INPUT((6,)), DENSE(1)]), X, FLAGS)


def test_recipes_answer_the_first_root_first_and_hold_three_changes_at_most():
    codes = ["learning-rate-too-high", "saturated-units"]
    recipes = recipes_for(codes, ["bottleneck"], CATALOGUE, CATALOGUE)
    names = [{type(each).__name__ for each in recipe} for recipe in recipes]
    assert names[0] == {"SetLearningRate", "SwapActivations", "ScaleInputs"}
    assert names[1] == {"SetLearningRate"}
    assert all(1 <= len(recipe) <= 3 for recipe in recipes)
    assert recipes_for([], [], CATALOGUE, CATALOGUE)
    assert recipes_for(["optimizer"], [], [], CATALOGUE) == []
