"""What is told of an origin, and which entries of a batch are not finite."""

import json

import numpy as np
import pytest

from gradstab.diagnosis.origin.entries import marked, not_finite
from gradstab.diagnosis.origin.origin import KINDS, Origin
from gradstab.diagnosis.origin.words import named


def test_the_first_entry_and_how_many_rows_have_one():
    values = np.zeros((4, 3, 2))
    values[1, 2, 0], values[3, 0, 1] = np.nan, -np.inf
    found = not_finite(values)
    assert (found.row, found.column, found.rows, found.of_rows) == (1, (2, 0), 2, 4)
    assert np.isnan(found.value)


def test_nothing_where_all_is_finite_or_no_float():
    assert not_finite(np.ones(3)) is None
    assert not_finite(np.array([1, 2])) is None
    assert not_finite(np.array(["a", "b"])) is None
    assert not_finite(np.zeros((0, 2))) is None


def test_a_single_number_has_no_row():
    found = not_finite(np.float32(np.nan))
    assert (found.row, found.column) == (None, ())
    assert marked(np.array([1, 7]), np.array([False, True])).value == 7


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_sentence(kind):
    what = "It is gone." if kind == "unknown" else "division by 0"
    told = str(Origin(kind, step=3, layer="a", part="a/kernel", what=what, row=2))
    assert told.startswith("What began it at step 3: ")
    assert told.endswith(".")
    assert "None" not in told


def test_the_sentence_names_row_column_and_example():
    origin = Origin("inputs", row=2, column=(1, 0), rows=3, of_rows=8, example=40, part="left")
    told = str(origin)
    assert "the inputs `left` held" in told
    assert "row 2 of the batch, column 1, 0, example 40 of the arrays; 3 of 8 rows" in told
    assert json.loads(json.dumps(origin.to_dict()))["column"] == [1, 0]


def test_the_same_fault_in_another_row_is_no_news():
    first = Origin("inputs", step=3, row=2, column=(1,))
    assert first.same_as(Origin("inputs", step=9, row=0, column=(1,)))
    assert not first.same_as(Origin("inputs", step=3, row=2, column=(0,)))


def test_float16_overflows_where_float32_would_not():
    assert named("MatMul") == ("overflow", "numbers so large that the result overflows")
    assert "65504" in named("MatMul", "float16")[1]
    assert "65504" in named("Exp", "float16")[1]
    assert "65504" not in named("Log", "float16")[1]
    assert named("While")[0] == "loop"
