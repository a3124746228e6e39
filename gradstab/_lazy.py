"""Imports what is not needed yet when it is: names of a package, and classes to be registered.

A model saved with a gradstab optimizer must load after nothing but `import gradstab`, for which
the classes have to stand in Keras' registry. But the command line, run records and reports must
start at once, and importing Keras takes seconds. So the registering modules are imported when
Keras is: at once where it is loaded already, else right after somebody imports it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

# Every module that holds a registered class. They import Keras and each other, nothing heavier.
_REGISTERING = (
    "gradstab.transforms",
    "gradstab.optimizers",
    "gradstab.schedules",
    "gradstab.initializers",
    "gradstab.regularizers",
    "gradstab.layers",
)


def names_of(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a `__getattr__` for a package that imports some of its names at their first use.

    Args:
        package: Full name of the package.
        places: Full names of the modules that hold the names.
    """

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(places[name]), name)
        vars(sys.modules[package])[name] = value
        return value

    return find


def register_when_keras_is_imported() -> None:
    """Import the registering modules now if Keras is loaded, else as soon as it is."""
    keras = sys.modules.get("keras")
    if keras is not None and not getattr(keras.__spec__, "_initializing", False):
        _register()
    elif not any(isinstance(finder, _KerasFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _KerasFinder())


def _register() -> None:
    for module in _REGISTERING:
        importlib.import_module(module)


class _KerasFinder(importlib.abc.MetaPathFinder):
    """Steps in for the one import of Keras, and out of the way after it."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("keras")
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


class _ThenRegister(importlib.abc.Loader):
    """Runs Keras' own loader, puts it back in its place, then registers gradstab's classes."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None:
            spec.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register()
