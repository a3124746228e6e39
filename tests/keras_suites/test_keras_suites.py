"""Keras' own tests of optimizers and callbacks, with every optimizer wrapped.

They ship with Keras and run in processes of their own, one for each variant, under
`wrapped_plugin`. `left_out` lists what does not run, and why. Keras' tests are read where they lie;
nothing of them is copied.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from keras_suites.left_out import KERAS_SKIPS, LEFT_OUT, NEEDS, SUITES
from keras_suites.wrapped_plugin import LEFT_OUT_HERE, MULTI, PARTS, PLAIN, VARIANTS

import gradstab

KERAS = Path(keras.__file__).parent / "src"
HERE = Path(__file__).parent

# The wheel of 3.15.1 holds them, that of 3.15.0 does not.
pytestmark = pytest.mark.skipif(
    not any(KERAS.glob("optimizers/*_test.py")), reason="this release of Keras ships no tests"
)

WRAPPED = [variant for variant in VARIANTS if variant != PLAIN]

# How many tests ran and how many steps they took: 208 and 808, 55 and 89 with Keras 3.15. Far fewer
# would mean that tests were lost on the way.
AT_LEAST = {"optimizers": (200, 750), "callbacks": (50, 80)}

# Every suite in every variant takes minutes, and the quickest most of one.
RUNS = [
    pytest.param((variant, suite), id=f"{suite}-{variant}", marks=pytest.mark.slow)
    for suite in SUITES
    for variant in WRAPPED
]


def _importable(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def suite_files(*suites, optional=True):
    """Test files, relative to Keras' source; or those of them whose package is there."""
    files = [
        path.relative_to(KERAS).as_posix()
        for suite in suites or SUITES
        for pattern in SUITES[suite]
        for path in sorted(KERAS.glob(pattern))
    ]
    return [file for file in files if optional or _importable(NEEDS.get(file, "keras"))]


class Run:
    """Keras' tests in a process of their own, which begins at once.

    Args:
        variant: How optimizers are wrapped.
        tests: Files or single tests, relative to Keras' source.
        folder: An empty folder.
    """

    def __init__(self, variant, tests, folder):
        self._path = folder / f"{variant}.json"
        self._output = folder / f"{variant}.log"
        roots = [HERE.parent, Path(gradstab.__file__).parent.parent]
        hidden = {"PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_CURRENT_TEST"}
        environment = {
            **{name: value for name, value in os.environ.items() if name not in hidden},
            "PYTHONPATH": os.pathsep.join([*map(str, roots), os.environ.get("PYTHONPATH", "")]),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "KERAS_BACKEND": "tensorflow",
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        # Not our configuration: Keras' tests warn, and its package holds none of its own.
        options = ["-c", os.devnull, f"--rootdir={KERAS}", "-p", "no:cacheprovider", "-q"]
        # Collects all garbage at the end, five times over.
        options += ["-p", "no:unraisableexception"]
        plugin = ["-p", "keras_suites.wrapped_plugin", f"--variant={variant}"]
        command = [sys.executable, "-m", "pytest", *options, *plugin, f"--report-to={self._path}"]
        with self._output.open("w") as output:
            self._process = subprocess.Popen(
                [*command, "--disable-warnings", *(str(KERAS / test) for test in tests)],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def stop(self):
        """End it, if it has not ended."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def report(self):
        """Wait for the end, and return what the plugin reports."""
        self._process.wait(timeout=900)
        assert self._path.exists(), self._output.read_text()[-5000:]
        report = json.loads(self._path.read_text())
        assert report["tests"], self._output.read_text()[-5000:]
        return report


class Runs(dict):
    """Runs by variant and suite, which begin when they are first asked for."""

    def __init__(self, folders):
        super().__init__()
        self._folders = folders

    def __missing__(self, key):
        variant, suite = key
        files = suite_files(suite, optional=False)
        self[key] = Run(variant, files, self._folders.mktemp(f"{suite}-{variant}"))
        return self[key]


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory):
    """Of the runs that are asked for, the first two begin at once, one on each core."""
    started = Runs(tmp_path_factory)
    here = [item for item in request.session.items if item.path == request.path]
    selected = [getattr(item, "callspec", None) for item in here]
    wanted = [spec.params["run"] for spec in selected if spec and "run" in spec.params]
    first_of_each_suite = {suite: (variant, suite) for variant, suite in reversed(wanted)}
    for key in first_of_each_suite.values():
        started[key]
    yield started
    for run in started.values():
        run.stop()


def _failures(tests):
    return {node: test for node, test in tests.items() if test["outcome"] == "failed"}


def check_wrapped(report):
    """Raise unless optimizers were wrapped wherever they took a step."""
    ran = [test for test in report["tests"].values() if test["outcome"] == "passed"]
    unwrapped = [node for node, test in report["tests"].items() if test.get("plain_steps")]
    assert not unwrapped, f"An optimizer without gradstab took steps in {unwrapped}"
    assert sum(test["wrapped"] for test in ran) >= 1, "No optimizer was wrapped"
    assert sum(test["steps"] for test in ran) >= 1, "No wrapped optimizer took a step"


# Wrapped ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
def test_keras_tests_pass_with_wrapped_optimizers(runs, run, tmp_path):
    report = runs[run].report()
    failures = _failures(report["tests"])
    if failures:
        # Which of them are Keras' own, or the machine's?
        nodes = sorted({node.replace(PARTS, "") for node in failures})
        plain = _failures(Run(PLAIN, nodes, tmp_path).report()["tests"])
        lines = [
            f"{node}{' (also without gradstab)' if node.replace(PARTS, '') in plain else ''}\n"
            f"{test['message'][-1500:]}"
            for node, test in failures.items()
        ]
        pytest.fail("\n\n".join([f"{len(failures)} of Keras' tests fail", *lines]))
    check_wrapped(report)
    ran = [test for test in report["tests"].values() if test["outcome"] == "passed"]
    tests, steps = AT_LEAST[run[1]]
    assert len(ran) >= tests
    assert sum(test["steps"] for test in ran) >= steps


@pytest.mark.parametrize("run", RUNS)
def test_no_test_is_lost(runs, run):
    report = runs[run].report()
    tests = report["tests"]
    files = suite_files(run[1], optional=False)
    assert report["not_found"] == [], "Listed, and there no more"
    listed = {node for node in LEFT_OUT if node.split("::", 1)[0] in files}
    assert {node for node, test in tests.items() if test["outcome"] == LEFT_OUT_HERE} == listed
    skipped = {
        node: test["message"] for node, test in tests.items() if test["outcome"] == "skipped"
    }
    unknown = {
        node: why for node, why in skipped.items() if not any(known in why for known in KERAS_SKIPS)
    }
    assert unknown == {}
    # All files were there, and of each at least one test ran.
    ran = {node.split("::", 1)[0] for node, test in tests.items() if test["outcome"] == "passed"}
    assert ran == set(files)
    # What is left out of the one nesting of a MultiOptimizer runs in the other.
    with_parts = {node.removesuffix(PARTS) for node in tests if node.endswith(PARTS)}
    without = {node for node in tests if node.startswith(MULTI) and not node.endswith(PARTS)}
    assert with_parts == without


@pytest.mark.parametrize("file", sorted(NEEDS))
def test_optional_package_is_there(file):
    # Shows in the summary what did not run. What is there runs with the others.
    if not _importable(NEEDS[file]):
        pytest.skip(f"{NEEDS[file]} is not installed, which Keras' {file} needs")
    assert file in suite_files(optional=False)


def test_every_listed_file_is_there():
    files = set(suite_files())
    assert files >= {*NEEDS, MULTI, "backend/tensorflow/optimizer_distribute_test.py"}
    assert {node.split("::", 1)[0] for node in LEFT_OUT} <= files


def test_every_public_form_is_there():
    forms = {form for _, form in LEFT_OUT.values() if form is not None}
    for form in forms:
        file, test = form.split("::")
        assert f"\ndef {test}(" in (HERE / file).read_text(encoding="utf-8"), form


# Unwrapped --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_without_gradstab_is_no_proof(tmp_path):
    report = Run(PLAIN, ["optimizers/sgd_test.py"], tmp_path).report()
    assert not _failures(report["tests"])
    assert sum(test["plain_steps"] for test in report["tests"].values()) > 0
    with pytest.raises(AssertionError, match="without gradstab took steps"):
        check_wrapped(report)


@pytest.mark.slow
def test_keras_tests_pass_without_gradstab(tmp_path):
    # A failure above says so by itself; this shows it of all tests, at any time.
    report = Run(PLAIN, suite_files(optional=False), tmp_path).report()
    assert _failures(report["tests"]) == {}
    assert sum(test.get("wrapped", 0) for test in report["tests"].values()) == 0
