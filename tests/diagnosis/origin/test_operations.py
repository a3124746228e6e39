"""Where what is not finite began, told from operations and what their tensors hold."""

from gradstab.diagnosis.origin.operations import (
    BACKWARD,
    FINITE,
    HIDDEN,
    INFINITE,
    LOSS,
    NAN,
    Operation,
    drawn_from,
    roots,
)


def test_the_first_operation_that_makes_it_of_finite_numbers():
    steps = [
        Operation("Placeholder", (), (0,), source="inputs"),
        Operation("Sqrt", (0,), (1,)),
        Operation("Mul", (1, 0), (2,)),
        Operation("SqrtGrad", (1, 2), (3,)),
        Operation("Mul", (3, 2), (4,)),
    ]
    assert roots(steps, [FINITE, FINITE, FINITE, INFINITE, NAN], [4]) == [3]
    assert roots(steps, [NAN, NAN, NAN, NAN, NAN], [4]) == [0]


def test_what_does_not_reach_the_gradient_began_nothing():
    steps = [
        Operation("Placeholder", (), (0,), source="inputs"),
        Operation("Log", (0,), (1,)),
        Operation("SelectV2", (1, 0), (2,)),
        Operation("Reciprocal", (0,), (3,)),
        Operation("Mul", (3, 2), (4,)),
    ]
    assert roots(steps, [FINITE, INFINITE, FINITE, INFINITE, NAN], [4]) == [3]
    assert roots(steps, [FINITE, INFINITE, FINITE, FINITE, FINITE], [4]) == []


def test_a_mask_of_infinity_is_meant_and_a_softmax_of_nothing_else_is_not():
    steps = [
        Operation("Placeholder", (), (0,), source="inputs"),
        Operation("Const", (), (1,)),
        Operation("SelectV2", (0, 1), (2,)),
        Operation("Softmax", (2,), (3,)),
    ]
    assert roots(steps, [FINITE, INFINITE, INFINITE, NAN], [3]) == [3]
    # An infinity of the data's own is not meant.
    assert roots(steps, [INFINITE, INFINITE, INFINITE, NAN], [3]) == [0]


def test_a_constant_of_nan_is_not_meant():
    steps = [Operation("Const", (), (0,)), Operation("Neg", (0,), (1,))]
    assert roots(steps, [NAN, NAN], [1]) == [0]


def test_through_what_nobody_can_look_into():
    steps = [
        Operation("Placeholder", (), (0,), source="variable"),  # the handle of a bad variable
        Operation("While", (0,), (1, 2)),
        Operation("TensorListStack", (2,), (3,)),
    ]
    assert roots(steps, [NAN, NAN, HIDDEN, NAN], [3]) == [0]
    assert roots(steps, [FINITE, NAN, HIDDEN, NAN], [3]) == [1]


def test_two_origins_are_told_in_the_order_of_the_step():
    steps = [
        Operation("Placeholder", (), (0,), source="inputs"),
        Operation("Log", (0,), (1,)),
        Operation("RealDiv", (0,), (2,)),
        Operation("AddV2", (2, 1), (3,)),
    ]
    assert roots(steps, [FINITE, INFINITE, INFINITE, NAN], [3]) == [1, 2]


def test_what_a_loss_is_computed_of():
    steps = [
        Operation("Placeholder", (), (0,), source="inputs"),
        Operation("Placeholder", (), (1,), source="targets"),
        Operation("MatMul", (0,), (2,), layer="head"),
        Operation("Sub", (1, 2), (3,), phase=LOSS),
        Operation("Log", (3,), (4,), phase=LOSS),
        Operation("Log", (1,), (5,), phase=LOSS),
        Operation("Reciprocal", (3,), (6,), phase=BACKWARD),
    ]
    assert drawn_from(steps, 4) == {"targets", "outputs"}
    assert drawn_from(steps, 5) == {"targets"}
    assert drawn_from(steps, 6) == {"targets", "outputs"}
