"""What every public transform must pass as it is, and the tools that the checks share.

A new transform goes into `TRANSFORMS`, with arguments at which it acts on gradients of norm 1 and
more. `tests/transforms/test_transforms_common.py` runs the checks, and fails if one is missing.
"""

import functools
import inspect
import operator

import keras
import numpy as np
import tensorflow as tf

from gradstab import transforms
from gradstab.optimizers import StabilizedOptimizer

MODES = ("eager", "graph", "xla")

TRANSFORMS = {
    "ClipByValue": lambda: transforms.ClipByValue(0.1),
    "ClipByNorm": lambda: transforms.ClipByNorm(0.1),
    "ClipByGlobalNorm": lambda: transforms.ClipByGlobalNorm(max_norm=0.1),
    "SkipNonFinite": lambda: transforms.SkipNonFinite(max_consecutive=3),
    "LimitUpdateRatio": lambda: transforms.LimitUpdateRatio(0.01, epsilon=0.1),
    "ClipByBlockRMS": lambda: transforms.ClipByBlockRMS(0.1),
    "AdaptiveGradientClipping": lambda: transforms.AdaptiveGradientClipping(clip_factor=0.1),
    "PercentileClipping": lambda: transforms.PercentileClipping(
        20.0, history_length=3, max_norm=2.0
    ),
    "ZScoreClipping": lambda: transforms.ZScoreClipping(
        0.5, decay=0.8, warmup_steps=1, max_norm=2.0
    ),
    "AdaGradientClipping": lambda: transforms.AdaGradientClipping(
        1.1, decay=0.9, warmup_steps=1, max_norm=0.1
    ),
    "LimitRateJumps": lambda: transforms.LimitRateJumps(1.5),
    "LimitOutliers": lambda: transforms.LimitOutliers(0.1),
    "LimitOvershoot": lambda: transforms.LimitOvershoot(0.1),
    "SkipOutliers": lambda: transforms.SkipOutliers(history_length=4, warmup_steps=4),
    "CentralizeGradients": lambda: transforms.CentralizeGradients(),
    "AddGradientNoise": lambda: transforms.AddGradientNoise(0.01, seed=3),
    "Only": lambda: transforms.Only(transforms.ClipByNorm(0.1), include="*e*"),
}


def public_transforms():
    """Names of all classes in `gradstab.transforms` that a person can list in an optimizer."""
    return [
        name
        for name in transforms.__all__
        if inspect.isclass(getattr(transforms, name))
        and issubclass(getattr(transforms, name), transforms.Transform)
        and getattr(transforms, name) is not transforms.Transform
    ]


# Tools ------------------------------------------------------------------------------------------


def compiled(function, mode):
    """Return a function as it runs eagerly, in a graph, or compiled by XLA."""
    if mode == "eager":
        return function
    return tf.function(function, jit_compile=mode == "xla", reduce_retracing=False)


def make_variables(dtype="float32", seed=0):
    """A small set of weights: an embedding, a kernel, a bias."""
    draw = np.random.default_rng(seed)
    return [
        keras.Variable(draw.normal(size=shape), dtype=dtype, name=name)
        for shape, name in (((5, 2), "embeddings"), ((3, 2), "kernel"), ((4,), "bias"))
    ]


def make_gradients(seed=1, dtype="float32", scale=1.0):
    """Dense gradients for `make_variables`."""
    draw = np.random.default_rng(seed)
    return [tf.constant(scale * draw.normal(size=shape), dtype) for shape in ((5, 2), (3, 2), (4,))]


def sparse(rows, values, dense_shape, dtype="float32"):
    return tf.IndexedSlices(
        tf.constant(values, dtype), tf.constant(rows, "int32"), tf.constant(dense_shape, "int32")
    )


def stepper(optimizer, variables, mode="eager"):
    """Return a function that takes one step, in the given mode, and the list of its traces."""
    traces = []

    def step(*gradients):
        traces.append(1)
        optimizer.apply(list(gradients), variables)

    return compiled(step, mode), traces


@functools.cache
def mirrored(num_replicas):
    """A strategy with so many replicas, on logical CPUs (see conftest.py).

    TensorFlow's collective operations take groups of one size only in a process: two, as Keras'
    users have them. Other numbers of replicas are reduced without them.
    """
    devices = [f"/cpu:{place}" for place in range(num_replicas)]
    reduction = None if num_replicas == 2 else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction)


def replicated(strategy, optimizer, variables, mode="graph"):
    """Return a function that takes one step from the shares of all replicas.

    It takes one list of gradients per replica, each as `optimizer.apply` takes it.
    """
    with strategy.scope():
        optimizer.build(variables)

    def step(*shares):
        def on_replica():
            place = tf.get_static_value(
                tf.distribute.get_replica_context().replica_id_in_sync_group
            )
            optimizer.apply(list(shares[place]), variables)

        strategy.run(on_replica)

    return compiled(step, mode)


def shares_of(gradients, num_replicas, seed=5):
    """Split dense gradients at random into as many addends, one list per replica."""
    draw = np.random.default_rng(seed)
    shares = [
        [tf.constant(draw.normal(size=g.shape), g.dtype) for g in gradients]
        for _ in range(num_replicas - 1)
    ]
    rest = [g - sum(parts) for g, *parts in zip(gradients, *shares, strict=True)]
    return [*shares, rest]


def same_on_all_replicas(variables):
    for variable in variables:
        first, *rest = variable.value.values
        for copy in rest:
            np.testing.assert_array_equal(first.numpy(), copy.numpy())


def close(variables, expected, tolerance=1e-6):
    for got, value in zip(values_of(variables), values_of(expected), strict=True):
        np.testing.assert_allclose(got, value, rtol=tolerance, atol=tolerance)


def functions_of(graph):
    """Return the definitions of all functions that a graph calls, however deep."""
    return operator.attrgetter("library.function")(graph.as_graph_def())


def nodes_of(graph):
    """Return the definitions of all operations of a graph and of the functions that it calls."""
    called = [node for function in functions_of(graph) for node in function.node_def]
    return [*graph.as_graph_def().node, *called]


def values_of(variables):
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def contents(variables):
    """Every variable by its place and path, as bytes: NaN equals NaN, -0.0 differs from 0.0."""
    return {
        f"{place}: {getattr(v, 'path', v.name)}": value.tobytes()
        for place, (v, value) in enumerate(zip(variables, values_of(variables), strict=True))
    }


def lasting_state(optimizer):
    """All that a skipped step must leave as it was: what is neither telemetry nor a random seed."""
    wrapper = optimizer
    while not isinstance(wrapper, StabilizedOptimizer):
        wrapper = wrapper.inner_optimizer
    counter = wrapper.variables[0]  # Keras' own, which counts skipped steps too
    assert counter.path.endswith("iteration")
    return [
        variable
        for variable in optimizer.variables
        if variable is not counter
        and not variable.name.startswith("telemetry_")
        and "seed_generator" not in variable.path
    ]


def differences(before, after):
    """Names of the variables whose bytes changed."""
    assert before.keys() == after.keys()
    return [name for name in before if before[name] != after[name]]


# The checks -------------------------------------------------------------------------------------


def _built(name, dtype="float32", inner=None, skip=False):
    inner = inner or keras.optimizers.SGD(1.0, momentum=0.5)
    chain = [TRANSFORMS[name]()]
    if skip and name != "SkipNonFinite":
        chain.insert(0, transforms.SkipNonFinite())
    variables = make_variables(dtype)
    return StabilizedOptimizer(inner, chain), variables


def config_round_trip(name):
    transform = TRANSFORMS[name]()
    arguments = list(inspect.signature(type(transform)).parameters)
    config = transform.get_config()
    assert list(config) == arguments
    assert config == {argument: getattr(transform, argument) for argument in arguments}
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(transform))
    assert type(again) is type(transform)
    assert again.get_config() == config
    assert repr(again) == repr(transform) == transform.__repr__()
    assert repr(transform).startswith(f"{name}(")
    registered = keras.saving.get_registered_name(type(transform))
    assert registered == f"gradstab>{name}"
    assert getattr(type(transform), "__final__", False), "variation comes from wrapping"
    assert transform.stage == "gradient" or transform.cause is None, "an update can't be vetoed"


def dtypes(name, dtype):
    """In half precision a step gives what float32 gives, rounded; in float64 it is as exact."""
    reference, exact = _built(name)
    optimizer, variables = _built(name, dtype)
    for seed in (1, 2):
        reference.apply(make_gradients(seed), exact)
        optimizer.apply(make_gradients(seed, dtype), variables)
    tolerance = {"float16": 4e-3, "bfloat16": 4e-2, "float64": 1e-6}.get(dtype, 0)
    for variable, other in zip(variables, exact, strict=True):
        assert keras.backend.standardize_dtype(variable.dtype) == dtype
        got = np.asarray(keras.ops.convert_to_numpy(variable), "float64")
        np.testing.assert_allclose(got, values_of([other])[0], atol=tolerance, rtol=tolerance)


def none_gradients(name):
    """A variable without a gradient stays, and counts for nothing."""
    optimizer, variables = _built(name)
    alone, part = _built(name)
    before = contents(variables[1:2])
    optimizer.build(variables)
    first, _, last = make_gradients()
    optimizer.apply([first, last], [variables[0], variables[2]])
    alone.apply([first, last], [part[0], part[2]])
    assert not differences(before, contents(variables[1:2]))
    for variable, other in zip(variables[::2], part[::2], strict=True):
        np.testing.assert_array_equal(variable.numpy(), other.numpy())


def zero_gradients(name):
    """Zero stays zero: nothing is divided by a norm of 0."""
    optimizer, variables = _built(name)
    before = contents(variables)
    for _ in range(2):
        optimizer.apply([tf.zeros(v.shape) for v in variables], variables)
    assert not differences(before, contents(variables))
    assert int(optimizer.iterations) == 2


def every_mode(name):
    """Eager, graph and XLA agree over all that a run may meet, and only the first step traces.

    Eagerly a sparse gradient with duplicate rows stands for the dense one beside it. A NaN step is
    skipped whole, and the next good step is as if it had not been.
    """
    runs = [_built(name, inner=keras.optimizers.Adagrad(0.1), skip=True) for _ in range(3)]
    (eager, expected), (graph, in_graph), (xla, in_xla) = runs
    graph_step, graph_traces = stepper(graph, in_graph, "graph")
    xla_step, xla_traces = stepper(xla, in_xla, "xla")
    for seed, scale in enumerate((1.0, 10.0, np.nan, 0.0, 0.01)):
        gradients = make_gradients(seed, scale=scale)
        rows = np.array([[1.0, -2.0], [0.5, 3.0], [1.0, 1.0]], "float32") * scale
        summed = np.zeros((5, 2), "float32")
        np.add.at(summed, [3, 1, 3], rows)
        states = [[*variables, *lasting_state(optimizer)] for optimizer, variables in runs]
        before = [contents(state) for state in states]
        eager.apply([sparse([3, 1, 3], rows, (5, 2)), *gradients[1:]], expected)
        for step in (graph_step, xla_step):
            step(tf.constant(summed), *gradients[1:])
        if np.isnan(scale):
            for old, state in zip(before, states, strict=True):
                assert not differences(old, contents(state))
            assert [optimizer.telemetry.peek().total_skipped for optimizer, _ in runs] == [1] * 3
        if seed == 0:
            first = len(graph_traces), len(xla_traces)
        for variables in (in_graph, in_xla):
            for got, other in zip(values_of(variables), values_of(expected), strict=True):
                np.testing.assert_allclose(got, other, rtol=1e-6, atol=1e-6)
    assert (len(graph_traces), len(xla_traces)) == first


def over_replicas(name, num_replicas):
    """Shares on several replicas give the step of their sum; a NaN in one is skipped by all."""
    strategy = mirrored(num_replicas)
    inner = functools.partial(keras.optimizers.Adam, 0.1, weight_decay=0.01)
    alone, variables = _built(name, inner=inner(), skip=True)
    with strategy.scope():
        many, others = _built(name, inner=inner(), skip=True)
    step, _ = stepper(alone, variables, "graph")
    on_all = replicated(strategy, many, others)
    for seed, scale in enumerate((1.0, 10.0, np.nan, 0.01)):
        gradients = make_gradients(seed, scale=scale)
        shares = shares_of(make_gradients(seed, scale=10.0), num_replicas)
        if np.isnan(scale):
            shares[-1][0] *= np.nan
        else:
            shares = shares_of(gradients, num_replicas)
        state = [*others, *lasting_state(many)]
        before = contents(state)
        step(*gradients)
        on_all(*shares)
        if np.isnan(scale):
            assert not differences(before, contents(state))
    close(others, variables)
    same_on_all_replicas([*others, *many.variables])
    got, expected = many.telemetry.peek(), alone.telemetry.peek()
    np.testing.assert_allclose(np.delete(got.grad_norm, 2), np.delete(expected.grad_norm, 2), 1e-5)
    assert got.total_skipped == expected.total_skipped == 1
    assert got.cause == expected.cause
    assert int(many.iterations.numpy()) == 3


def over_micro_batches(name, size=3):
    """A window of micro-batches is the step of their mean."""
    inner = functools.partial(keras.optimizers.SGD, 0.1, momentum=0.9)
    many, variables = _built(name, inner=inner(gradient_accumulation_steps=size))
    whole, expected = _built(name, inner=inner())
    step, _ = stepper(many, variables, "graph")
    for window in range(3):
        parts = [make_gradients(10 * window + seed) for seed in range(size)]
        for gradients in parts:
            step(*gradients)
        whole.apply([sum(each) / size for each in zip(*parts, strict=True)], expected)
    close(variables, expected)
    got, value = many.telemetry.peek(), whole.telemetry.peek()
    assert got.cursor == value.cursor == 3
    np.testing.assert_allclose(got.grad_norm, value.grad_norm, rtol=1e-5)
    np.testing.assert_array_equal(got.clipped, value.clipped)


def under_a_loss_scale(name):
    """It sees unscaled gradients, and an overflow is skipped whole, whatever the chain."""
    optimizer, variables = _built(name)
    scaled = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=256.0)
    plain, expected = _built(name)
    step, _ = stepper(scaled, variables, "graph")
    for seed in range(4):
        scale = float(scaled.dynamic_scale.numpy()) if scaled.built else 256.0
        gradients = make_gradients(seed)
        if seed == 2:
            before = contents(variables)
            step(*[g * np.inf for g in gradients])
            assert not differences(before, contents(variables))
            assert float(scaled.dynamic_scale.numpy()) == 128.0
        else:
            step(*[g * scale for g in gradients])
            plain.apply(gradients, expected)
    close(variables, expected)
    assert optimizer.telemetry.peek().cause == [None, None, "overflow", None]


def with_sparse_rows(name):
    """Duplicate rows of a sparse gradient count as the dense gradient that they stand for."""
    (sparse_one, variables), (dense_one, expected) = _built(name), _built(name)
    step, _ = stepper(sparse_one, variables, "graph")
    for seed in range(3):
        _, *rest = make_gradients(seed)
        rows = np.random.default_rng(seed).normal(size=(4, 2)).astype("float32")
        summed = np.zeros((5, 2), "float32")
        np.add.at(summed, [3, 1, 3, 0], rows)
        step(sparse([3, 1, 3, 0], rows, (5, 2)), *rest)
        dense_one.apply([tf.constant(summed), *rest], expected)
    close(variables, expected)


def in_fit(name):
    """`fit` gives the same weights however it is compiled, and a bad batch changes none."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(32, 3)).astype("float32")
    y = draw.normal(size=(32, 1)).astype("float32")
    x[13] = np.nan
    trained = []
    for arguments in (
        {"run_eagerly": True},
        {"jit_compile": False},
        {"jit_compile": False, "steps_per_execution": 4},
        {"jit_compile": True},
    ):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)]
        )
        optimizer, _ = _built(name, inner=keras.optimizers.SGD(0.1, momentum=0.5), skip=True)
        model.compile(optimizer, "mse", **arguments)
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
        assert optimizer.telemetry.peek().total_skipped == 1
        trained.append(model)
    for model in trained[1:]:
        close(model.trainable_variables, trained[0].trainable_variables)


def acts(name):
    """It does something: at the first step, or at a second one that is far out of line with it."""
    optimizer, variables = _built(name)
    plain, untouched = keras.optimizers.SGD(1.0, momentum=0.5), make_variables()
    for scale, rate in ((1.0, 0.01), (1e3, 1.0)):
        gradients = make_gradients(scale=scale)
        if TRANSFORMS[name]().cause is not None:
            gradients[0] = tf.fill((5, 2), np.inf)
        for each, own in ((optimizer, variables), (plain, untouched)):
            each.learning_rate = rate
            each.scale_loss(tf.constant(1.0))
            each.apply(gradients, own)
    assert differences(contents(variables), contents(untouched))
