"""What every test begins with: the same seeds, Keras' defaults, and plots that need no screen."""

import collections
import gc
import os
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Convolutions take several times as long without, and TensorFlow has it off on many processors.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ["MPLBACKEND"] = "agg"

import numpy as np
import pytest


def pytest_configure(config):
    """Split the CPU into four logical devices, for as many replicas: it can't be done later."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # pytest-xdist's own process hands out the tests and runs none
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)  # the other process needs some of it


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` chooses
def pytest_collection_modifyitems(items):
    """Mark the cases of a test beyond its first ones as slow, where `quick_cases` says so."""
    seen = collections.Counter()
    for item in items:
        marker = item.get_closest_marker("quick_cases")
        if marker is not None:
            name = item.nodeid.partition("[")[0]
            seen[name] += 1
            if seen[name] > marker.args[0]:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _isolated():
    """Seed all generators, and leave nothing of one test's Keras to the next."""
    np.random.seed(0)  # noqa: NPY002  code that draws from NumPy's global generator is seeded too
    # Tests of what works without Keras must not load it, nor wait for it.
    keras = sys.modules.get("keras")
    if keras is not None:
        keras.utils.set_random_seed(0)
    yield
    keras = sys.modules.get("keras")
    if keras is not None:
        keras.utils.clear_session(free_memory=False)
        keras.config.set_dtype_policy("float32")
        keras.config.set_floatx("float32")


@pytest.fixture(autouse=True, scope="module")
def _swept():
    """Take what outlives a module from the garbage collector's sight.

    TensorFlow keeps what it has compiled: millions of objects, which it would look through again
    and again, for seconds each time.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def run_python(tmp_path):
    """Run code in a fresh interpreter, outside the checkout, and return what it prints."""

    def run(code, *arguments):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
