"""Pages of the documentation, run as a reader would: code, commands, and what they print."""

import contextlib
import doctest
import functools
import io
import re
import shlex
import warnings
from pathlib import Path

import tensorflow as tf

from gradstab.cli import main as cli

BLOCK = re.compile(r"^```(python|bash|text)\n(.*?)^```", re.M | re.S)
MATCHING = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def run_page(text, name):
    """Run the blocks of a page in one namespace.

    `python` is executed. Of `bash` the lines run that begin with `gradstab`. `text` is what the
    block before it prints, warnings and the error that ends it included; `...` stands for anything.
    """
    names = {"__name__": "__main__"}
    printed, failed = "", None
    for match in BLOCK.finditer(text):
        kind, code = match.groups()
        place = f"{name}:{text.count(chr(10), 0, match.start()) + 1}"
        if kind == "text":
            if not doctest.OutputChecker().check_output(code, printed, MATCHING):
                raise AssertionError(f"{place} promises\n{code}\nand got\n{printed}") from failed
            failed = None
            continue
        if failed is not None:
            raise AssertionError(f"{place}: the block before it failed") from failed
        printed, failed = _run(kind, code, place, names)
    if failed is not None:
        raise AssertionError(f"{name}: the last block failed\n{printed}") from failed


def main(path):
    """Run a page on a reader's machine of two devices."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    tf.distribute.MirroredStrategy = functools.partial(
        tf.distribute.MirroredStrategy, ["/cpu:0", "/cpu:1"]
    )
    page = Path(path)
    run_page(page.read_text("utf-8"), page.name)


def _run(kind, code, place, names):
    out, failed = io.StringIO(), None
    with contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, category, *_: print(
            f"{category.__name__}: {message}"
        )
        try:
            if kind == "python":
                exec(compile(code, place, "exec"), names)
            else:
                for line in code.splitlines():
                    if line.startswith("gradstab "):
                        cli.main(shlex.split(line, comments=True)[1:])
        except Exception as error:
            failed = error
            print(f"{type(error).__name__}: {error}")
    return out.getvalue(), failed
