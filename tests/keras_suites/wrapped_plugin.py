"""A pytest plugin under which Keras' own tests make wrapped optimizers.

`-p keras_suites.wrapped_plugin --variant=no_transforms` has every optimizer that a test makes, by a
class, by a name, or by a config, come out as a `StabilizedOptimizer` round it. Keras itself is left
as it is: what its modules make for themselves, such as the parts that a config is loaded into, is
plain. A `LossScaleOptimizer` stays outside, round the wrapped optimizer.

It also counts, so that nobody takes for a proof what ran without gradstab: the steps that wrapped
optimizers took, and those that an optimizer took which nothing was wrapped round.
"""

import ast
import inspect
import json
import sys
import textwrap
import types
import weakref
from pathlib import Path

import pytest
from keras_suites.left_out import LEFT_OUT

PLAIN = "plain"
LEFT_OUT_HERE = "left out"


def _infinite_clips(transforms):
    bound = float("inf")
    return [
        transforms.ClipByValue(bound),
        transforms.ClipByNorm(bound),
        transforms.ClipByGlobalNorm(bound),
    ]


# Name of a variant, and the transforms that each optimizer gets beside what it clips by itself.
VARIANTS = {
    PLAIN: None,
    "no_transforms": lambda transforms: [],
    "infinite_bound": _infinite_clips,
}

# Where not all optimizers are wrapped. A MultiOptimizer's test runs twice: wrapped round it, with
# plain parts; and, under a name with this suffix, with wrapped parts in a plain one.
MULTI = "optimizers/multi_optimizer_test.py"
PARTS = "_with_wrapped_parts"

# How tests that ask for what the inner optimizer has find it there. By test: the names of the
# attributes and variables that it reads, and the function of `Reading` that goes between.
_STATE = {"_accumulated_gradients": "inner_of", "_iterations": "inner_of"}
_BASE = "optimizers/optimizer_test.py::OptimizerTest::"
_MUON = "optimizers/muon_test.py::MuonTest::"
_STRATEGY = "backend/tensorflow/optimizer_distribute_test.py::OptimizerDistributeTest::"
READS = {
    _BASE + "test_gradient_accumulation": _STATE,
    _BASE + "test_overwrite_with_gradient_with_gradient_accumulation": _STATE,
    _BASE + "test_optimizer_auto_naming": {"name": "inner_of"},
    # They count the variables, of which a wrapper has some of its own.
    _BASE + "test_setting_lr_to_callable_untracks_lr_var": {"variables": "inner_of"},
    "optimizers/sgd_test.py::SGDTest::test_single_step": {"variables": "inner_of"},
    "optimizers/nadam_test.py::NadamTest::test_build_with_empty_var_list": {
        "_u_product": "inner_of"
    },
    # Muon's arithmetic, and its rule for one variable, which are no steps.
    _MUON + "test_Newton_Schulz": {"zeropower_via_newtonschulz5": "inner_of"},
    _MUON + "test_lr_adjust_none": {"lr_adjust": "inner_of"},
    _MUON + "test_lr_adjust_2d": {"lr_adjust": "inner_of"},
    _MUON + "test_adamw_single_step": {"update_step": "inner_of"},
    _MUON + "test_muon_single_step": {"update_step": "inner_of"},
    # It patches how the optimizer writes, and fails on writes that go past that.
    "optimizers/optimizer_sparse_test.py::OptimizerSparseTest::test_sparse_gradients": {
        "optimizer_to_patch": "inner_of",
        "mock_variable_assign": "unless_own",
    },
    f"{MULTI}::MultiOptimizerTest::test_default_fallback": {
        "_var_to_optimizer_idx": "inner_of",
        "_var_key": "inner_of",
    },
    f"{MULTI}::MultiOptimizerTest::test_serialization": {
        "_var_to_optimizer_idx": "inner_of",
        "_var_key": "inner_of",
        "__class__": "inner_of",
    },
    # Here the replicas' gradients are summed before they are accumulated, in Keras afterwards.
    _STRATEGY + "test_gradient_accumulation": {
        "_accumulated_gradients": "one_replica_of",
        "_iterations": "inner_of",
    },
    # Both replicas pass one and the same tensor, which TensorFlow takes for a single share.
    _STRATEGY + "test_ema": {"grads": "share_of"},
}


# Wrapping ---------------------------------------------------------------------------------------


class Wrapping:
    """Wraps optimizers as a variant says, and counts what they do.

    Args:
        variant: One of `VARIANTS`.
    """

    def __init__(self, variant):
        import keras
        from keras.src import optimizers

        import gradstab

        self.variant = variant
        self.module = None  # Of the test that runs: the path of its module, and its name.
        self.test = ""
        self.wrapped = self.steps = self.plain_steps = 0
        self._gradstab = gradstab
        self._ours = gradstab.optimizers.StabilizedOptimizer
        self._base = keras.optimizers.Optimizer
        self._loss_scale = keras.optimizers.LossScaleOptimizer
        self._keras = optimizers
        self._originals = dict(vars(optimizers))
        self._made = weakref.WeakSet()

    @property
    def off(self):
        return self.variant == PLAIN

    def wrap(self, optimizer, name=None):
        """Return an optimizer with the variant's transforms round it, unless it has them."""
        if self.off or not self.applies_to(type(optimizer)):
            return optimizer
        transforms = self._gradstab.transforms
        own = {
            "clipvalue": transforms.ClipByValue,
            "clipnorm": transforms.ClipByNorm,
            "global_clipnorm": transforms.ClipByGlobalNorm,
        }
        taken_over = {name: getattr(optimizer, name) for name in own if getattr(optimizer, name)}
        for name in taken_over:
            setattr(optimizer, name, None)
        return self._ours(
            optimizer,
            [
                *(own[name](bound) for name, bound in taken_over.items()),
                *VARIANTS[self.variant](transforms),
            ],
            name=name,
            taken_over=taken_over,
        )

    def applies_to(self, owner):
        """Whether a test's optimizers of this class are wrapped where it stands."""
        if not issubclass(owner, self._base) or owner is self._base:
            return False
        if issubclass(owner, (self._ours, self._loss_scale)):
            return False
        if self.module != MULTI:
            return True
        return issubclass(owner, self._originals["MultiOptimizer"]) is not self.in_parts

    @property
    def in_parts(self):
        """Whether the parts of a MultiOptimizer are wrapped, instead of itself."""
        return PARTS in self.test

    def factory(self, of_keras):
        """Return what stands for a class of Keras in tests."""
        return Factory(of_keras, self)

    def inner_of(self, value):
        """Return the optimizer inside one of ours, and anything else as it is."""
        return value.inner_optimizer if isinstance(value, self._ours) else value

    # Patching -------------------------------------------------------------------------------

    def while_importing(self):
        """Have test modules find factories where they look for optimizers."""
        if self.off:
            return
        for name, value in self._originals.items():
            if isinstance(value, type) and issubclass(value, self._base):
                setattr(self._keras, name, self._stand_in(value))
        get = self._keras.get
        self._keras.get = lambda identifier: self._wrapped_or_none(get(identifier))

    def once_imported(self, modules):
        """Put factories for what was imported by name; subclassing needs Keras' class again."""
        if self.off:
            return
        self._keras.Optimizer = self._originals["Optimizer"]
        for module in modules:
            for name, value in list(vars(module).items()):
                if isinstance(value, type) and issubclass(value, self._base):
                    setattr(module, name, self._stand_in(value))

    def _stand_in(self, value):
        return value if value is self._loss_scale else self.factory(value)

    def _wrapped_or_none(self, optimizer):
        return None if optimizer is None else self.wrap(optimizer)

    def watch(self):
        """Count steps: of our optimizers, and of Keras' that are in none of ours."""
        import tensorflow as tf

        unwatched = {"apply": self._ours.apply, "apply_scaled": self._ours.apply_scaled}
        unseen_init, plain_apply = self._ours.__init__, self._base.apply
        as_written = tf.autograph.experimental.do_not_convert

        def init(optimizer, *args, **kwargs):
            unseen_init(optimizer, *args, **kwargs)
            self.wrapped += 1
            self._made.add(optimizer)

        def counted(function):
            def step(optimizer, *args, **kwargs):
                self.steps += 1
                return function(optimizer, *args, **kwargs)

            return as_written(step)

        def apply(optimizer, *args, **kwargs):
            self.plain_steps += not self._is_inside_ours(optimizer)
            return plain_apply(optimizer, *args, **kwargs)

        self._ours.__init__ = init
        for name, function in unwatched.items():
            setattr(self._ours, name, counted(function))
        # The class that defines it: those of Keras inherit it.
        owner = next(each for each in self._base.__mro__ if "apply" in vars(each))
        owner.apply = as_written(apply)

    def own_variables(self):
        """All variables that our optimizers own, the inner ones' not among them."""
        return [each for optimizer in self._made for each in optimizer._variables]

    def _is_inside_ours(self, optimizer):
        inner = [each.inner_optimizer for each in self._made]
        return any(
            optimizer is each or any(optimizer is part for part in getattr(each, "optimizers", ()))
            for each in inner
        )

    def take_counts(self):
        """Return what was counted since the last call."""
        counts = {name: getattr(self, name) for name in ("wrapped", "steps", "plain_steps")}
        self.wrapped = self.steps = self.plain_steps = 0
        return counts


class Factory:
    """Stands for an optimizer class: makes it wrapped, and is that class in all other respects."""

    def __init__(self, of_keras, wrapping):
        self._of_keras = of_keras
        self._wrapping = wrapping

    def __call__(self, *args, **kwargs):
        # A name that the test gives is the wrapper's as well.
        return self._wrapping.wrap(self._of_keras(*args, **kwargs), kwargs.get("name"))

    def __instancecheck__(self, instance):
        return isinstance(self._wrapping.inner_of(instance), self._of_keras)

    def __getattr__(self, name):
        return getattr(self._of_keras, name)

    def __mro_entries__(self, bases):
        """Have a test's own subclass make wrapped optimizers as well."""
        wrapping = self._wrapping

        class Subclassed(self._of_keras):
            def __new__(cls, *args, **kwargs):
                made = super().__new__(cls)
                made.__init__(*args, **kwargs)
                return wrapping.wrap(made)

        return (Subclassed,)


# Reading what the inner optimizer has -----------------------------------------------------------


class Reading:
    """Functions that go between a test and what it reads of an optimizer.

    Args:
        wrapping: What made the optimizers.
    """

    def __init__(self, wrapping):
        self._wrapping = wrapping

    def inner_of(self, value):
        """Return the optimizer inside one of ours, and anything else as it is."""
        return self._wrapping.inner_of(value)

    def unless_own(self, check):
        """Return a check of writes to variables that lets pass what our optimizers own."""

        def checked(variable, *arguments):
            if not any(variable is each.value for each in self._wrapping.own_variables()):
                check(variable, *arguments)

        return checked

    def one_replica_of(self, optimizer):
        """Return the accumulators as if each replica had its share in its own."""
        totals = self.inner_of(optimizer)._accumulated_gradients
        return types.SimpleNamespace(
            _accumulated_gradients=[self.share_of(total) for total in totals]
        )

    def share_of(self, total):
        """Return one of the equal shares, one for each replica, that sum up to this."""
        import tensorflow as tf

        return total / tf.distribute.get_strategy().num_replicas_in_sync


class _Rewriting(ast.NodeTransformer):
    """Have `x.attribute` read as `_reading.function(x).attribute`, or `name` as `function(name)`.

    Args:
        reads: Function by attribute or name.
    """

    def __init__(self, reads):
        self._reads = reads
        self.found = set()

    def visit_Attribute(self, node):
        self.generic_visit(node)
        if node.attr in self._reads:
            node.value = self._between(node.attr, node.value)
        return node

    def visit_Name(self, node):
        is_read = node.id in self._reads and isinstance(node.ctx, ast.Load)
        return self._between(node.id, node) if is_read else node

    def _between(self, name, value):
        self.found.add(name)
        function = ast.Attribute(ast.Name("_reading", ast.Load()), self._reads[name], ast.Load())
        return ast.Call(function, [value], [])


def rewrite(function, reads, reading):
    """Have a test function read through `reading`, in place.

    Raises:
        LookupError: If it does not hold what it should read.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    definition.decorator_list = []
    rewriting = _Rewriting(reads)
    tree = ast.fix_missing_locations(rewriting.visit(tree))
    ast.increment_lineno(tree, function.__code__.co_firstlineno - 1)
    if rewriting.found != set(reads):
        missing = sorted(set(reads) - rewriting.found)
        raise LookupError(f"{function.__qualname__} does not read {missing} any more")
    scope = {}
    exec(compile(tree, function.__code__.co_filename, "exec"), function.__globals__, scope)
    function.__globals__["_reading"] = reading
    function.__code__ = scope[definition.name].__code__


def _written(test):
    """Return the function that was written, of a test that has parameters too."""
    for cell in test.__closure__ or ():
        if isinstance(cell.cell_contents, types.FunctionType):
            return cell.cell_contents
    return test


# pytest -----------------------------------------------------------------------------------------


def pytest_addoption(parser):
    parser.addoption("--variant", choices=VARIANTS, default="no_transforms")
    parser.addoption("--report-to", type=Path, help="JSON file: what ran, and what it did")


def pytest_configure(config):
    for marker in ("requires_trainable_backend", "multi_device"):
        config.addinivalue_line("markers", marker)
    # Keras' repository has it; the package does not.
    stub = types.ModuleType("conftest")
    stub.skip_if_backend = lambda name, reason: pytest.mark.skipif(False, reason=reason)
    sys.modules.setdefault("conftest", stub)
    wrapping = Wrapping(config.getoption("--variant"))
    wrapping.watch()
    wrapping.while_importing()
    config.pluginmanager.register(Recorder(wrapping, config), "wrapped-recorder")


class Recorder:
    """Runs the tests with wrapped optimizers, and records how each of them went."""

    def __init__(self, wrapping, config):
        self._wrapping = wrapping
        self._config = config
        self._records = {}
        self._not_found = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(self, collector, obj):
        if module_of(collector) == MULTI and isinstance(obj, type) and not self._wrapping.off:
            for name, test in list(vars(obj).items()):
                if name.startswith("test_") and not name.endswith(PARTS):
                    setattr(obj, name + PARTS, test)

    def pytest_collection_modifyitems(self, items):
        self._wrapping.once_imported({item.module for item in items})
        if self._wrapping.off:
            return
        modules = {module_of(item) for item in items}
        self._not_found = {
            node for node in (*LEFT_OUT, *READS) if node.split("::", 1)[0] in modules
        }
        self._leave_out(items)
        self._rewrite(items)

    def _leave_out(self, items):
        left_out = {item.nodeid for item in items} & set(LEFT_OUT)
        self._not_found -= left_out
        self._records.update((node, {"outcome": LEFT_OUT_HERE}) for node in left_out)
        items[:] = [item for item in items if item.nodeid not in left_out]

    def _rewrite(self, items):
        reading = Reading(self._wrapping)
        functions = {}
        for item in items:
            function = _written(getattr(item.cls, item.name))
            functions[f"{module_of(item)}::{item.cls.__name__}::{function.__name__}"] = function
        for node in READS.keys() & functions.keys():
            rewrite(functions[node], READS[node], reading)
            self._not_found.discard(node)

    def pytest_runtest_setup(self, item):
        import keras

        self._wrapping.module, self._wrapping.test = module_of(item), item.name
        keras.utils.set_random_seed(0)  # NumPy's too, from which Keras' tests draw
        self._wrapping.take_counts()

    def pytest_runtest_logreport(self, report):
        record = self._records.setdefault(
            report.nodeid, {"outcome": "passed", "message": "", "seconds": 0.0}
        )
        record["seconds"] += report.duration
        if report.when == "call":
            record.update(self._wrapping.take_counts())
        if report.outcome != "passed":
            record["outcome"] = report.outcome
            record["message"] = (
                report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            )

    def pytest_collectreport(self, report):
        if report.outcome != "passed":
            message = report.longreprtext if report.failed else str(report.longrepr)
            self._records[report.nodeid] = {"outcome": "failed", "message": message}

    def pytest_sessionfinish(self):
        path = self._config.getoption("--report-to")
        if path is not None:
            report = {"tests": self._records, "not_found": sorted(self._not_found)}
            path.write_text(json.dumps(report), encoding="utf-8")


def module_of(item):
    """Path of a test's module below `keras/src`, as the tables name it."""
    return item.nodeid.split("::", 1)[0]
