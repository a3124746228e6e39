"""The form of targets, and scores whose values are known."""

import numpy as np
import pytest

from gradstab.repairs.task import Kind, Task, score, task_of

INDEX = np.array([0, 1, 2, 1, 0, 2])


@pytest.mark.parametrize(
    ("y", "units", "asks", "expected"),
    [
        (INDEX, 3, False, Task(Kind.CLASS_INDEX, 3)),
        (INDEX, 10, False, Task(Kind.CLASS_INDEX, 10)),
        (INDEX + 1, 3, False, Task(Kind.CLASS_INDEX, 3, 1)),
        (INDEX + 1, 4, False, Task(Kind.CLASS_INDEX, 4)),
        (INDEX, 1, True, Task(Kind.CLASS_INDEX, 3)),
        (INDEX, 1, False, Task(Kind.VALUES)),
        (np.eye(3)[INDEX], 3, False, Task(Kind.ONE_HOT, 3)),
        (np.array([[1, 1, 0], [0, 0, 0]]), 3, True, Task(Kind.MULTI_LABEL, 3)),
        (np.array([[1, 1, 0], [0, 0, 0]]), 3, False, Task(Kind.VALUES)),
        (np.array([0.0, 1.0, 1.0]), 1, False, Task(Kind.BINARY, 2)),
        (np.array([[-1], [1], [1]]), 1, False, Task(Kind.BINARY, 2, -1)),
        (np.array([0.5, 1.5]), 1, True, Task(Kind.VALUES)),
        (np.array([np.nan, np.nan]), 1, True, Task(Kind.VALUES)),
    ],
)
def test_the_form_of_targets(y, units, asks, expected):
    assert task_of(y, units, asks) == expected


def test_labels_begin_at_zero():
    assert Task(Kind.CLASS_INDEX, 3, 1).labels(np.array([1, 3])).tolist() == [0, 2]
    assert Task(Kind.BINARY, 2, -1).labels(np.array([-1, 1])).tolist() == [0.0, 1.0]
    y = np.array([0, 1])
    assert Task(Kind.BINARY, 2).labels(y) is y


def test_a_perfect_answer_scores_1_and_the_best_constant_one_0():
    values = np.array([[1.0], [2.0], [6.0]])
    assert score(Task(Kind.VALUES), values, values) == 1.0
    assert score(Task(Kind.VALUES), values, np.full((3, 1), 3.0)) == pytest.approx(0.0)
    task = Task(Kind.CLASS_INDEX, 3)
    assert score(task, INDEX, np.eye(3)[INDEX]) == pytest.approx(1.0, abs=1e-5)
    assert score(task, INDEX, np.full((6, 3), 1 / 3)) == pytest.approx(0.0, abs=1e-6)
    flags = np.array([0.0, 1.0, 0.0, 0.0])
    assert score(Task(Kind.BINARY, 2), flags, flags[:, None]) == pytest.approx(1.0, abs=1e-5)
    constant = np.full((4, 1), 0.25)
    assert score(Task(Kind.BINARY, 2), flags, constant) == pytest.approx(0.0, abs=1e-6)


def test_logits_score_as_their_probabilities_do():
    logits = np.random.default_rng(0).normal(size=(6, 3)) * 4
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    task = Task(Kind.CLASS_INDEX, 3)
    assert score(task, INDEX, logits) == pytest.approx(score(task, INDEX, shares))


@pytest.mark.parametrize("answer", [np.full((6, 3), np.nan), np.zeros((6, 2)), np.zeros((5, 3))])
def test_an_answer_that_is_none_scores_the_least(answer):
    assert score(Task(Kind.CLASS_INDEX, 3), INDEX, answer) == -1.0


def test_a_wrong_certainty_counts_less_than_nothing():
    wrong = np.eye(3)[(INDEX + 1) % 3]
    assert score(Task(Kind.CLASS_INDEX, 3), INDEX, wrong) < -0.5
