"""Substitution leaves an object as it found it, however blocks nest."""

import keras
import pytest

from gradstab.keras_hooks.substitute import (
    replaced_attribute,
    replaced_method,
    replaced_untracked,
)

WAYS = {
    "attribute": replaced_attribute,
    "untracked": replaced_untracked,
    "method": replaced_method,
}


class _Holder:
    of_class = "class"

    def __init__(self):
        self.own = "own"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["own", "of_class"])
def test_blocks_nest_and_what_was_there_comes_back(way, name):
    holder = _Holder()
    before = dict(vars(holder))
    with WAYS[way](holder, name, "first"):
        with WAYS[way](holder, name, "second"):
            assert getattr(holder, name) == "second"
        assert getattr(holder, name) == "first"
    assert vars(holder) == before
    assert getattr(holder, name) == {"own": "own", "of_class": "class"}[name]


@pytest.mark.parametrize("way", WAYS)
def test_it_comes_back_after_an_exception(way):
    holder = _Holder()
    before = dict(vars(holder))
    with pytest.raises(KeyError), WAYS[way](holder, "of_class", "other"):
        raise KeyError
    assert vars(holder) == before


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_there_is_not_replaced(way):
    holder = _Holder()
    with pytest.raises(AttributeError), WAYS[way](holder, "missing", 1):
        pass
    assert set(vars(holder)) == {"own"}


def test_a_method_that_a_person_gave_an_instance_comes_back():
    optimizer = keras.optimizers.SGD()
    vars(optimizer)["apply"] = mine = print
    with replaced_method(optimizer, "apply", id):
        assert optimizer.apply is id
    assert optimizer.apply is mine


def test_a_property_is_written_and_written_back():
    variable = keras.Variable(1.0)
    mine = keras.constraints.NonNeg()
    variable.constraint = mine
    before = set(vars(variable))
    with replaced_attribute(variable, "constraint", None):
        assert variable.constraint is None
    assert variable.constraint is mine
    assert set(vars(variable)) == before
