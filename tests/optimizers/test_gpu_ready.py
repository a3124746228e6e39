"""The compiled step runs on a GPU: every operation of it is looked up in TensorFlow's registry.

The usual wheels for Linux know their GPU kernels where there is no GPU, so the audit works anywhere
with them. Where there is a GPU, the tests marked `gpu` run the same steps on it.
"""

import functools
import inspect
import re
from typing import NamedTuple

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.framework import kernels, op_def_registry

from gradstab import callbacks, schedules, training
from gradstab.optimizers import StabilizedOptimizer
from gradstab.optimizers.watching.find import stabilized_optimizer
from gradstab.optimizers.watching.watched import watched_step
from gradstab.training.epochs import loop_of
from gradstab.training.feeds import make_feed
from gradstab.training.strategy import StepLoop
from gradstab.transforms import Transform

needs_kernels = pytest.mark.skipif(
    not tf.test.is_built_with_cuda(), reason="this TensorFlow was built without GPU kernels"
)
needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not tf.config.list_physical_devices("GPU"), reason="TensorFlow sees no GPU"),
]

# Some of these have kernels that stand for any device, and wait for the host all the same.
CALLS_THE_HOST = re.compile(
    r"PyFunc|Host(Compute|Send|Recv)|(To|From)Host|(In|Out)feed|^Print|Summary|File|^(MergeV2|Save)"
)

# The audit --------------------------------------------------------------------------------------


class Node(NamedTuple):
    """An operation, the function that holds it, and whether XLA compiles that."""

    definition: tf.compat.v1.NodeDef
    function: str
    xla: bool


class Finding(NamedTuple):
    """What can't be on a GPU, why, and who made it."""

    op: str
    reason: str
    origin: str


def nodes_of(concrete):
    """Yield every operation of a `ConcreteFunction` and of all functions that it calls."""
    library = {
        function.signature.name: function for function in checks.functions_of(concrete.graph)
    }
    top = concrete.function_def
    todo, seen = [(top, _is_xla(top))], set()
    while todo:
        function, xla = todo.pop()
        name = function.signature.name
        if (name, xla) in seen:
            continue
        seen.add((name, xla))
        for node in function.node_def:
            yield Node(node, name, xla)
            for called in _called(node):
                callee = library[called]
                todo.append((callee, xla or _is_xla(node) or _is_xla(callee)))


def findings(concrete):
    """List what keeps a `ConcreteFunction`, or a variable that it uses, off a GPU."""
    _register_kernels_of_xla()
    found = []
    for node in nodes_of(concrete):
        op, device = node.definition.op, node.definition.device
        reasons = []
        if CALLS_THE_HOST.search(op):
            reasons.append("calls the host")
        if not _has_kernel(op, node.definition.attr, xla=node.xla):
            types = _types(node.definition.attr)
            reasons.append(f"has no {'XLA' if node.xla else 'GPU'} kernel for {types}")
        if tf.DeviceSpec.from_string(device).device_type == "CPU":
            reasons.append(f"is placed on {device}")
        found += [Finding(op, reason, _origin(node)) for reason in reasons]
    for variable in concrete.variables:
        attributes = {"dtype": tf.compat.v1.AttrValue(type=variable.dtype.as_datatype_enum)}
        if not _has_kernel("VarHandleOp", attributes, xla=False):
            reason = f"has no GPU kernel for a variable of {variable.dtype.name}"
            found.append(Finding("VarHandleOp", reason, variable.name))
    return found


def _is_xla(node_or_function):
    attributes = node_or_function.attr
    return "_XlaMustCompile" in attributes and attributes["_XlaMustCompile"].b


def _called(node):
    for attribute in node.attr.values():
        if attribute.HasField("func"):
            yield attribute.func.name
        yield from (function.name for function in attribute.list.func)


def _has_kernel(op, attributes, *, xla):
    devices = ("XLA_GPU_JIT",) if xla else ("GPU", "DEFAULT")
    return any(
        kernel.device_type in devices and _serves(kernel, op, attributes) for kernel in _kernels(op)
    )


@functools.cache
def _kernels(op):
    return tuple(kernels.get_registered_kernels_for_op(op).kernel)


@functools.cache
def _register_kernels_of_xla():
    """TensorFlow registers them when it first compiles with XLA."""
    tf.function(lambda x: x + 1, jit_compile=True)(tf.constant(1))
    assert any(kernel.device_type == "XLA_GPU_JIT" for kernel in _kernels("AddV2"))


def _serves(kernel, op, attributes):
    """Whether a kernel takes the types that a node has, as TensorFlow finds it for the node."""
    label = attributes["_kernel"].s.decode() if "_kernel" in attributes else ""
    if kernel.label != label:
        return False
    for constraint in kernel.constraint:
        name = constraint.name
        value = attributes[name] if name in attributes else _default(op, name)
        types = value.list.type if value.HasField("list") else [value.type]
        if not set(types) <= set(constraint.allowed_values.list.type):
            return False
    return True


def _default(op, name):
    (attribute,) = (each for each in op_def_registry.get(op).attr if each.name == name)
    return attribute.default_value


def _types(attributes):
    types = {
        name: tf.dtypes.as_dtype(value.type).name
        for name, value in attributes.items()
        if value.HasField("type")
    }
    return ", ".join(f"{name}={types[name]}" for name in sorted(types)) or "it"


def _origin(node):
    """Return the lines that made a node: those of gradstab and of the tests, and the last."""
    debug = context.context().get_graph_debug_info(node.function)
    trace = debug.name_to_trace_id.get(node.definition.name)
    if trace is None:
        return node.definition.name
    frames = [debug.frames_by_id[frame] for frame in debug.traces_by_id[trace].frame_id]
    lines = [(debug.files[frame.file_index], frame) for frame in frames]
    ours = [line for line in lines if "/gradstab/" in line[0] or line[0] == __file__]
    shown = [*ours[-2:], *(line for line in lines[-1:] if line not in ours[-2:])]
    return " > ".join(f"{path}:{frame.line} ({frame.func})" for path, frame in shown)


# The steps --------------------------------------------------------------------------------------

DRAW = np.random.default_rng(0)
IMAGES = DRAW.normal(size=(20, 8, 8, 1)).astype("float32")
TOKENS = DRAW.integers(20, size=(20, 6)).astype("int32")
LABELS = (np.arange(20) % 3).astype("int32")
BATCH_SIZE = 8


def _cnn(dropout):
    layers = [
        keras.layers.Input((8, 8, 1)),
        # Its bias would have no gradient but noise, which Adam makes large.
        keras.layers.Conv2D(4, 3, use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.MaxPooling2D(),
        keras.layers.Dropout(dropout),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ]
    return keras.Sequential(layers), IMAGES


def _embedding(dropout):
    layers = [
        keras.layers.Input((6,), dtype="int32"),
        keras.layers.Embedding(20, 4),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(dropout),
        keras.layers.Dense(3),
    ]
    return keras.Sequential(layers), TOKENS


MODELS = {"cnn": _cnn, "embedding": _embedding}
WINDOW = {"gradient_accumulation_steps": 2, "use_ema": True, "ema_overwrite_frequency": 3}
SETTINGS = {
    "each_step": ("float32", {}),
    "window": ("float32", WINDOW),
    "float16": ("mixed_float16", {}),
    "float16_window": ("mixed_float16", WINDOW),
    "bfloat16": ("mixed_bfloat16", {}),
}
FORMS = ("graph", "xla_step")


def _with_every_model(*cases, quick):
    """Every model in every case; with sparse rows the first one is quick, without these are."""
    return [
        pytest.param(model, *case, marks=[] if case in of else [pytest.mark.slow])
        for model, of in (("cnn", quick), ("embedding", cases[:1]))
        for case in cases
    ]


def _compiled(model_name, setting, *, extra=(), dropout=0.5, jit_compile=False):
    """Return a compiled model whose optimizer holds every transform, and its data."""
    policy, arguments = SETTINGS[setting]
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    model, x = MODELS[model_name](dropout)
    rate = schedules.Adjustable(schedules.LinearWarmup(0.01, warmup_steps=4))
    inner = keras.optimizers.Adam(rate, weight_decay=0.01, epsilon=1e-3, **arguments)
    optimizer = StabilizedOptimizer(
        inner, [*(make() for make in checks.TRANSFORMS.values()), *extra]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=jit_compile)
    return model, (x, LABELS)


def _in_place(model):
    """Have our callbacks begin, as `fit` and `train` do before the first step is traced."""
    ours = [callbacks.GradientMonitor(), callbacks.DivergenceGuard()]
    keras.callbacks.CallbackList(ours, model=model, add_history=True).on_train_begin()
    assert stabilized_optimizer(model)._plan.forward_state.variables


def _batches(data):
    return tf.data.Dataset.from_tensor_slices(data).batch(BATCH_SIZE)


def _step_of_fit(model, data):
    """Return the function that `fit` calls per batch, and its `ConcreteFunction`."""
    model.make_train_function()
    _in_place(model)
    watched = watched_step(model)
    function = inspect.getclosurevars(watched._function).nonlocals["multi_step_on_iterator"]
    with watched.attached():
        return function, function.get_concrete_function(iter(_batches(data)))


def _step_of_train(model, data, form, monkeypatch):
    """Return the `ConcreteFunction` in which `training.train` runs many steps."""
    taken = []

    def traced(self, function, *arguments):
        taken.append(function.get_concrete_function(*arguments))
        return original(self, function, *arguments)

    original = StepLoop._traced
    with monkeypatch.context() as patch:
        patch.setattr(StepLoop, "_traced", traced)
        _in_place(model)
        epoch = make_feed("train_data", data, batch_size=BATCH_SIZE).open(0)
        epoch.trace(loop_of(model, "train_step", form))
    (concrete,) = taken
    return concrete


@functools.cache
def _traced(model_name, setting, form):
    """Return a model and its step of `train`, traced once for all tests that read it."""
    model, data = _compiled(model_name, setting)
    with pytest.MonkeyPatch.context() as patch:
        return model, _step_of_train(model, data, form, patch)


def _assert_nothing(found):
    assert not found, "\n" + "\n".join(
        f"{finding.op} {finding.reason}: {finding.origin}" for finding in sorted(set(found))
    )


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("model_name", "setting"),
    _with_every_model(
        *((setting,) for setting in ("each_step", "float16", "float16_window", "bfloat16")),
        quick=[("each_step",), ("float16_window",)],
    ),
)
def test_the_step_of_train(model_name, setting, form):
    _, concrete = _traced(model_name, setting, form)
    _assert_nothing(findings(concrete))


@pytest.mark.slow
@needs_kernels
def test_the_loop_that_xla_compiles_whole(monkeypatch):
    model, data = _compiled("cnn", "each_step")
    concrete = _step_of_train(model, data, "xla_loop", monkeypatch)
    assert all(node.xla for node in nodes_of(concrete))
    _assert_nothing(findings(concrete))


@pytest.mark.slow
@needs_kernels
def test_the_step_of_train_on_a_pipeline(monkeypatch):
    model, data = _compiled("cnn", "each_step")
    _assert_nothing(findings(_step_of_train(model, _batches(data), "graph", monkeypatch)))


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize(
    ("model_name", "setting", "jit_compile"),
    _with_every_model(
        ("window", False),
        ("float16_window", False),
        ("window", True),
        quick=[("window", False), ("window", True)],
    ),
)
def test_the_step_of_fit(model_name, setting, jit_compile):
    model, data = _compiled(model_name, setting, jit_compile=jit_compile)
    _assert_nothing(findings(_step_of_fit(model, data)[1]))


# What the audit can see ---------------------------------------------------------------------------


@pytest.mark.slow
def test_it_looks_at_the_function_that_fit_runs():
    model, data = _compiled("embedding", "each_step")
    function, _ = _step_of_fit(model, data)
    model.fit(_batches(data), shuffle=False, verbose=0)
    assert function.experimental_get_tracing_count() == 1
    assert stabilized_optimizer(model).telemetry.peek().cursor == 3


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_it_sees_all_of_the_step(form):
    """Forward and backward pass, sparse rows, both branches of the verdict, the record."""
    model, concrete = _traced("embedding", "each_step", form)
    nodes = list(nodes_of(concrete))
    ops = {node.definition.op for node in nodes}
    assert {"While", "MatMul", "StatelessRandomUniformV2", "UnsortedSegmentSum"} <= ops
    assert ops & {"If", "Case"}
    # Each of the optimizer's own variables is written somewhere in it.
    written = {"AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"}
    writes = [node for node in nodes if node.definition.op in written]
    assert len(writes) >= len(model.optimizer.variables)
    assert any(node.xla for node in nodes) == (form == "xla_step")


class _Extra(Transform):
    """A transform that does something to one gradient, in a branch of its own."""

    def __init__(self, function):
        self.function = function

    def apply(self, values, state, context):
        def changed(index, value):
            same = tf.reduce_any(tf.math.is_nan(value))
            return (
                tf.cond(same, lambda: value, lambda: self.function(value)) if not index else value
            )

        return values.mapped(changed), state


def _on_the_host(value):
    result = tf.py_function(lambda x: x, [value], value.dtype)
    result.set_shape(value.shape)
    return result


def _on_the_cpu(value):
    with tf.device("/cpu:0"):
        return value * 2.0


def _by_a_kernel_for_cpus(value):
    root = tf.linalg.sqrtm(tf.eye(2, dtype=value.dtype))
    return value * root[0, 0]


def _with_a_type_for_cpus(value):
    signs = tf.cast(tf.sign(tf.reshape(value, [-1])), tf.int32)
    return value + tf.cast(tf.argmax(signs), value.dtype)


def _printing(value):
    tf.print(tf.reduce_max(value))
    return value


FAULTS = {
    "py_function": (_on_the_host, "EagerPyFunc", "calls the host"),
    "device": (_on_the_cpu, "Mul", "is placed on /device:CPU:0"),
    "no_kernel": (_by_a_kernel_for_cpus, "MatrixSquareRoot", "has no GPU kernel for T=float32"),
    "no_kernel_for_int32": (_with_a_type_for_cpus, "ArgMax", "has no GPU kernel for .*T=int32"),
    "print": (_printing, "PrintV2", "calls the host"),
}


@pytest.fixture(scope="module")
def found_of_all_faults():
    """The findings in one step that has all the faults, each in a transform of its own."""
    extra = [_Extra(function) for function, _, _ in FAULTS.values()]
    model, data = _compiled("cnn", "each_step", extra=extra)
    with pytest.MonkeyPatch.context() as patch:
        return findings(_step_of_train(model, data, "graph", patch))


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("fault", FAULTS)
def test_it_finds_what_keeps_a_transform_off_the_gpu(fault, found_of_all_faults):
    function, op, reason = FAULTS[fault]
    from_here = [f for f in found_of_all_faults if f.op == op and re.match(reason, f.reason)]
    assert from_here
    assert all(f" ({function.__name__})" in finding.origin for finding in from_here)


@pytest.mark.slow
@needs_kernels
def test_it_finds_what_xla_can_not_compile(monkeypatch):
    model, data = _compiled("cnn", "each_step", extra=[_Extra(_by_a_kernel_for_cpus)])
    found = findings(_step_of_train(model, data, "xla_step", monkeypatch))
    assert [(f.op, f.reason) for f in found if f.op == "MatrixSquareRoot"] == [
        ("MatrixSquareRoot", "has no XLA kernel for T=float32")
    ]


@needs_kernels
def test_it_finds_a_variable_that_can_not_lie_on_a_gpu():
    counter = tf.Variable(0, dtype=tf.int32)
    concrete = tf.function(lambda: counter.read_value()).get_concrete_function()
    assert [(f.op, f.reason) for f in findings(concrete)] == [
        ("VarHandleOp", "has no GPU kernel for a variable of int32")
    ]


# On a device --------------------------------------------------------------------------------------


class Trained(NamedTuple):
    """What a run leaves, and on which devices."""

    model: keras.Model
    state: list
    places: set


def _trained(device, model_name, setting, form):
    # XLA may draw other numbers.
    dropout = 0.5 if form == "graph" else 0.0
    with tf.device(device):
        model, data = _compiled(model_name, setting, dropout=dropout)
        ours = [callbacks.GradientMonitor(), callbacks.DivergenceGuard()]
        training.train(
            model,
            data,
            epochs=2,
            batch_size=BATCH_SIZE,
            seed=0,
            verbose=0,
            jit_compile=form == "xla_step",
            callbacks=ours,
        )
    variables = [*model.variables, *model.optimizer.variables]
    reading = stabilized_optimizer(model).telemetry.peek()
    measured = [reading.grad_norm, reading.grad_norm_after, reading.loss, reading.skipped]
    places = {tf.DeviceSpec.from_string(variable.value.device) for variable in variables}
    state = [value.astype("float64") for value in checks.values_of(variables)]
    names = {f"{place.device_type}:{place.device_index}" for place in places}
    return Trained(model, [*state, *measured], names)


def _agree(device, model_name, setting, form):
    got = _trained(f"/{device}", model_name, setting, form)
    assert got.places == {device.upper()}
    expected = _trained("/cpu:0", model_name, setting, form)
    for value, other in zip(got.state, expected.state, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model_name", ["cnn", "embedding"])
def test_everything_lies_on_the_device_that_trains(model_name):
    """On a CPU that is not the first, so that what names the first is seen without a GPU."""
    _agree("cpu:1", model_name, "window", "graph")


@pytest.fixture
def full_float32():
    """GPUs multiply float32 in 19 bits unless told otherwise."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    yield
    tf.config.experimental.enable_tensor_float_32_execution(before)


@pytest.mark.usefixtures("full_float32")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("setting", ["each_step", "window"])
@pytest.mark.parametrize("model_name", [pytest.param(name, marks=needs_gpu) for name in MODELS])
def test_a_gpu_gives_what_the_cpu_gives(model_name, setting, form):
    _agree("gpu:0", model_name, setting, form)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("setting", ["float16", "float16_window", "bfloat16"])
@pytest.mark.parametrize("model_name", [pytest.param(name, marks=needs_gpu) for name in MODELS])
def test_half_precision_on_a_gpu(model_name, setting, form):
    """It rounds by the device, so nothing is compared: steps are applied and stay finite."""
    model, _, places = _trained("/gpu:0", model_name, setting, form)
    assert places == {"GPU:0"}
    assert all(np.isfinite(weights).all() for weights in checks.values_of(model.weights))
    reading = stabilized_optimizer(model).telemetry.peek()
    assert 0 <= reading.total_skipped < reading.cursor
