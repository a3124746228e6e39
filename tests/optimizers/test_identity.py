"""An infinite bound is the identity, for every optimizer that Keras has (and will have)."""

import inspect

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import transforms
from gradstab.optimizers import StabilizedOptimizer


def _is_wrapper(optimizer_class):
    parameters = inspect.signature(optimizer_class).parameters
    return bool({"inner_optimizer", "optimizer_map"} & set(parameters))


KERAS = {
    name: value
    for name, value in vars(keras.optimizers).items()
    if inspect.isclass(value)
    and issubclass(value, keras.optimizers.Optimizer)
    and value is not keras.optimizers.Optimizer
    and not _is_wrapper(value)
}
CASES = {name: (value, {}) for name, value in KERAS.items()}
CASES["SGD, momentum"] = (keras.optimizers.SGD, {"momentum": 0.9})
CASES["SGD, nesterov"] = (keras.optimizers.SGD, {"momentum": 0.9, "nesterov": True})
CASES["Adam, all"] = (
    keras.optimizers.Adam,
    {
        "amsgrad": True,
        "weight_decay": 0.01,
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 2,
    },
)
CHAINS = {
    "gradient": lambda: [
        transforms.ClipByValue(np.inf),
        transforms.ClipByNorm(np.inf),
        transforms.ClipByGlobalNorm(np.inf),
        transforms.SkipNonFinite(),
    ],
    "update": lambda: [transforms.LimitUpdateRatio(np.inf)],
}
cases = pytest.mark.parametrize("case", CASES)


def test_the_list_is_not_empty():
    assert {"SGD", "Adam", "Muon", "ScheduleFreeAdamW"} <= set(KERAS)
    assert not {"LossScaleOptimizer", "MultiOptimizer"} & set(KERAS)


def _weights():
    weights = checks.make_variables()[1:]  # XLA takes its time for every one
    weights[0].constraint = keras.constraints.MaxNorm(1.5, axis=0)
    return weights


def _gradients(seed):
    return checks.make_gradients(seed, scale=10.0**seed)[1:]


def _pair(case, chain):
    make, arguments = CASES[case]
    plain = make(0.05, **arguments)
    wrapped = StabilizedOptimizer(make(0.05, **arguments), chain)
    return (plain, _weights()), (wrapped, _weights())


def _held(optimizer, weights):
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return checks.values_of([*weights, *inner.variables])


def _assert_equal(pairs):
    for expected, got in zip(*(_held(*pair) for pair in pairs), strict=True):
        assert got.tobytes() == expected.tobytes()


def _both_stages():
    # Fewer than above: XLA takes seconds for each optimizer.
    return [transforms.ClipByGlobalNorm(np.inf), transforms.LimitUpdateRatio(np.inf)]


@pytest.mark.quick_cases(3)
@cases
def test_bit_for_bit_eagerly(case):
    for chain in CHAINS.values():
        pairs = _pair(case, chain())
        for seed in range(3):
            for optimizer, weights in pairs:
                optimizer.apply(_gradients(seed), weights)
        _assert_equal(pairs)


@pytest.fixture
def arithmetic():
    """Switch Grappler's rewriting of arithmetic, which differs with what stands round it."""
    options = tf.config.optimizer
    before = options.get_experimental_options().get("arithmetic_optimization", True)

    def switch(on):
        options.set_experimental_options({"arithmetic_optimization": on})

    yield switch
    switch(before)


@pytest.mark.quick_cases(1)
@cases
def test_compiled(case, arithmetic):
    """Bit for bit in a graph as it was written; to 1e-6 where Grappler or XLA rewrite it."""
    pairs = _pair(case, _both_stages())
    graphs = [checks.stepper(*pair, mode="graph")[0] for pair in pairs]
    for (optimizer, weights), graph in zip(pairs, graphs, strict=True):
        optimizer.build(weights)
        graph.get_concrete_function(*_gradients(0))  # traced once, for all three
    xla = [tf.function(graph, jit_compile=True, autograph=False) for graph in graphs]
    for way, steps in (("as written", graphs), ("grappler", graphs), ("xla", xla)):
        arithmetic(way != "as written")
        for seed in range(2):
            for step in steps:
                step(*_gradients(seed))
        if way == "as written":
            _assert_equal(pairs)
        for expected, got in zip(*(_held(*pair) for pair in pairs), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_a_multi_optimizer_too():
    """Its parts have rates of their own, and it raises when asked for one."""

    def make():
        parts = {"kernel": keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True)}
        default = keras.optimizers.Adam(0.01)
        return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(default, parts))

    pairs = (make(), _weights()), (StabilizedOptimizer(make(), _both_stages()), _weights())
    for seed in range(3):
        for optimizer, weights in pairs:
            optimizer.apply(_gradients(seed), weights)
    _assert_equal(pairs)


def test_sparse_gradients_with_distinct_rows():
    def run(optimizer):
        weights = checks.make_variables()[:1]
        for seed in range(3):
            rows = checks.make_gradients(seed)[0][:2]
            optimizer.apply([checks.sparse([4, 1], rows, (5, 2))], weights)
        return weights[0].numpy().tobytes()

    for case in ("SGD", "SGD, momentum", "Adam", "RMSprop", "Adagrad"):
        plain, wrapped = (run(optimizer) for optimizer, _ in _pair(case, _both_stages()))
        assert plain == wrapped
