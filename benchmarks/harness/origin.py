"""Where the numbers of a benchmark come from: commit, versions, machine.

Imports neither Keras nor TensorFlow before it is asked for their versions.
"""

from __future__ import annotations

import datetime
import importlib
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("gradstab", "python", "tensorflow", "keras", "numpy")


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def has_uncommitted_changes() -> bool:
    return bool(git("status", "--porcelain", "--", "gradstab"))


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    return {package: _version(package) for package in packages}


def _version(package: str) -> str:
    if package == "python":
        return platform.python_version()
    module = importlib.import_module({"scikit-learn": "sklearn"}.get(package, package))
    return str(module.__version__)


def origin(commit: str) -> dict[str, Any]:
    """Return what the results of a short benchmark begin with."""
    return {
        "commit": commit,
        "uncommitted_changes": has_uncommitted_changes(),
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
    }


def machine(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Return what the results of a benchmark of speed begin with: processor and devices too."""
    import tensorflow as tf

    try:
        commit = git("rev-parse", "HEAD")
    except subprocess.CalledProcessError:
        commit = None
    return {
        "commit": commit,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(packages),
        "machine": {
            "system": platform.platform(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "devices": [device.name for device in tf.config.list_logical_devices()],
        },
    }


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
