"""The package from outside: its version, its names, what importing it costs, who finds what."""

import importlib
import importlib.metadata
import inspect
import json
import os
import subprocess
import sys

import pytest

import gradstab

# The public face and the parameters that others call by name.
FACE = {
    "stabilize": "inner_optimizer clip",
    "unwrap": "",
    "DivergenceError": "",
    "optimizers.StabilizedOptimizer": "inner_optimizer transforms",
    "optimizers.StabilizedOptimizer.bind": "model",
    "optimizers.StabilizedOptimizer.raise_if_diverged": "",
    "optimizers.clip_by_value": "inner_optimizer clip_value",
    "optimizers.clip_by_norm": "inner_optimizer max_norm",
    "optimizers.clip_by_global_norm": "inner_optimizer max_norm",
    "transforms.ClipByValue": "clip_value",
    "transforms.ClipByNorm": "max_norm",
    "transforms.ClipByGlobalNorm": "max_norm",
    "transforms.SkipNonFinite": "max_consecutive",
    "transforms.LimitUpdateRatio": "max_ratio epsilon",
    "callbacks.GradientMonitor": "run_dir every_n_steps",
    "callbacks.DivergenceGuard": "on_divergence",
    "initializers.RandomNormal": "stddev seed",
    "initializers.RandomUniform": "minval maxval seed",
    "initializers.GlorotUniform": "seed",
    "initializers.GlorotNormal": "seed",
    "initializers.HeUniform": "seed",
    "initializers.HeNormal": "seed",
    "initializers.LecunUniform": "seed",
    "initializers.LecunNormal": "seed",
    "initializers.Orthogonal": "gain seed",
    "regularizers.L1": "l1",
    "regularizers.L2": "l2",
    "regularizers.L1L2": "l1 l2",
    "layers.TiedDense": "tied_to activation use_bias",
    "layers.ScaledResidual": "branch method projection",
    "layers.SharedBlock": "block num_uses",
    "schedules.LinearWarmup": "schedule warmup_steps",
    "schedules.Join": "schedules boundaries",
    "schedules.Adjustable": "schedule",
    "recipes.adagrad": "peak_learning_rate total_steps",
    "recipes.rmsprop": "peak_learning_rate total_steps",
    "recipes.adam": "peak_learning_rate total_steps",
    "models.cnn_classifier": (
        "input_shape num_classes filters dense_units kernel_initializer kernel_regularizer"
    ),
    "data.load": "",
    "data.Datasets": "train validation test class_names",
    "training.train": (
        "model train_data validation_data epochs callbacks run_dir resume seed jit_compile verbose"
    ),
    "monitoring.read_record": "path",
    "monitoring.RecordWriter": "path variables config",
    "reports.plot_gradient_norm": "record ax",
    "reports.plot_loss": "ax",
    "reports.plot_comparison": "results",
    "reports.plot_heatmap": "values row_labels column_labels ax title",
}
PACKAGES = [name for name in gradstab.__all__ if name.islower() and name != "__version__"]


def _find(path):
    value = gradstab
    for name in path.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("path", FACE)
def test_public_names_take_these_parameters(path):
    value, parameters = _find(path), FACE[path].split()
    if parameters:
        assert set(parameters) <= set(inspect.signature(value).parameters)


def test_every_name_of_all_resolves():
    for name in gradstab.__all__:
        value = getattr(gradstab, name)
        if inspect.ismodule(value) and hasattr(value, "__path__"):
            assert value.__doc__
            for member in value.__all__:
                assert getattr(value, member) is not None
            assert value.__all__ == sorted(set(value.__all__))
    assert set(gradstab.__all__) <= set(dir(gradstab))
    with pytest.raises(AttributeError, match="no attribute 'stabilise'"):
        _ = gradstab.stabilise


def test_every_public_keras_class_is_registered_under_its_name():
    import keras

    for package in ("transforms", "optimizers", "schedules", "regularizers", "layers"):
        members = _find(package)
        for name in members.__all__:
            member = getattr(members, name)
            if not inspect.isclass(member) or inspect.isabstract(member):
                continue
            if hasattr(member, "get_config") and member.__module__.startswith("gradstab"):
                found = keras.saving.get_registered_object(f"gradstab>{name}")
                assert found is member, f"gradstab>{name} is {found}"


def test_the_version_is_the_installed_one():
    try:
        installed = importlib.metadata.version("gradstab")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("gradstab runs from its source here and is not installed")
    assert gradstab.__version__ == installed


_LOAD = """
import json, sys
{imports}
optimizer = keras.saving.deserialize_keras_object(json.loads(sys.argv[1]))
assert optimizer.transforms[0].max_norm == 0.5, optimizer.transforms
print(type(optimizer).__name__)
"""


@pytest.fixture(scope="module")
def config():
    import keras

    optimizer = gradstab.optimizers.clip_by_global_norm(keras.optimizers.Adam(1e-3), max_norm=0.5)
    config = keras.saving.serialize_keras_object(optimizer)
    # As a model file names it where only the registered name is left to go by.
    assert config["registered_name"] == "gradstab>StabilizedOptimizer"
    return json.dumps(config)


@pytest.mark.slow
@pytest.mark.parametrize("imports", ["import gradstab, keras", "import keras, gradstab"])
def test_a_saved_optimizer_is_found_after_import_in_either_order(run_python, config, imports):
    assert run_python(_LOAD.format(imports=imports), config) == "StabilizedOptimizer"


@pytest.mark.slow
def test_importing_gradstab_costs_little_beyond_keras(run_python, tmp_path):
    code = """
import sys, time
import keras, tensorflow
# Compiled by the first import, as it is by every user's first one, wherever that may be written.
sys.dont_write_bytecode, sys.pycache_prefix = False, sys.argv[1]
def cost():
    for name in [name for name in sys.modules if name.split(".")[0] == "gradstab"]:
        del sys.modules[name]
    start = time.process_time()  # the time on an idle machine, whatever else this one does
    import gradstab
    seconds = time.process_time() - start
    assert "gradstab.optimizers.stabilized" in sys.modules
    return seconds
print(min(cost() for _ in range(5)))
"""
    assert float(run_python(code, str(tmp_path))) < 0.1


def test_help_answers_at_once():
    # What the installed script does, so that it holds for a checkout that is not installed too.
    code = "import sys; from gradstab.cli.main import main; sys.exit(main())"
    seconds = []
    for _ in range(3):
        start = _cpu_time_of_children()
        done = subprocess.run(
            [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False
        )
        seconds.append(_cpu_time_of_children() - start)
        assert done.returncode == 0, done.stderr
        assert "demo" in done.stdout
    assert min(seconds) < 0.5


def _cpu_time_of_children():
    """The time that they take on an idle machine, whatever else this one does."""
    times = os.times()
    return times.children_user + times.children_system
