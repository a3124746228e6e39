"""The house: who imports whom. Read from the source, so nothing has to be imported for it."""

import ast
from pathlib import Path

import pytest

import gradstab

ROOT = Path(gradstab.__file__).parent
MODULES = {
    ".".join(("gradstab", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}

# A room imports from its own and from these. The spine runs one way:
SPINE = (
    "functional", "transforms", "optimizers", "monitoring", "recovery", "callbacks", "training",
    "cli",
)  # fmt: skip
MAY_IMPORT = {room: set(SPINE[:place]) for place, room in enumerate(SPINE)}
MAY_IMPORT |= {
    "schedules": {"functional"},
    "initializers": {"functional"},
    "regularizers": {"functional"},
    "layers": {"functional"},
    "data": {"functional"},
    "models": {"functional", "initializers", "regularizers", "layers"},
    "recipes": {"optimizers", "schedules"},
    "reports": {"monitoring.record"},
    "__main__": {"cli.main"},
}
# Replaces classes of all these by Keras' own.
MAY_IMPORT["unwrap"] = {
    "functional", "transforms", "optimizers", "schedules", "initializers", "regularizers", "layers",
    "models",
}  # fmt: skip
MAY_IMPORT["recovery"] |= {"schedules"}
MAY_IMPORT["callbacks"] |= {"reports", "layers"}
MAY_IMPORT["cli"] |= set(MAY_IMPORT)
# Anybody may use these; they use each other at most.
PRIVATE = {
    "_coefficients", "_errors", "_layers", "_lazy", "_serialization", "_substitute", "_validation",
}  # fmt: skip

KERAS_FREE = [
    name
    for name in MODULES
    if name in {"gradstab", "gradstab._lazy", "gradstab.cli", "gradstab.cli.main"}
    or name in {"gradstab.monitoring", "gradstab.monitoring.record", "gradstab.monitoring.writer"}
    or name.startswith("gradstab.reports")
]


def _tree(module):
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def _is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _statements(node, at_import):
    """All nodes below one; with `at_import`, only those that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if at_import and (function or _is_type_checking(child)):
            continue
        yield child
        yield from _statements(child, at_import)


def _imports(module, at_import=False):
    """Pairs (imported module, imported name or None)."""
    for node in _statements(_tree(module), at_import):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively: {ast.unparse(node)}"
            yield from ((node.module, alias.name) for alias in node.names)


def _room(module):
    return module.split(".")[1] if "." in module else ""


def _roots(module, at_import):
    return {imported.split(".")[0] for imported, _ in _imports(module, at_import)}


def _used_of_the_root(module):
    return {
        node.attr
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "gradstab"
    }


def test_every_room_has_its_rule():
    assert {_room(module) for module in MODULES} - {""} <= set(MAY_IMPORT) | PRIVATE


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"gradstab"}))
def test_imports_run_one_way_and_name_the_submodule(module):
    room = _room(module)
    allowed = MAY_IMPORT.get(room, set()) | PRIVATE | {room}
    for imported, name in _imports(module):
        if imported.split(".")[0] != "gradstab":
            continue
        if imported == "gradstab" and name is None:
            assert _used_of_the_root(module) <= {"__version__"}
            continue
        assert name is not None, f"`import {imported}`: import the names instead"
        target = f"{imported}.{name}" if f"{imported}.{name}" in MODULES else imported
        if target == "gradstab":
            assert name == "__version__", f"`{name}` from the root: import it from its submodule"
            continue
        inside = target.removeprefix("gradstab.")
        assert any(inside == room or inside.startswith(f"{room}.") for room in allowed), (
            f"{room} may import {sorted(allowed)}, not {target}"
        )
        assert target not in PACKAGES, f"`from {target} import {name}`: import from the submodule"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_keras_is_used_through_its_public_api(module):
    source = MODULES[module].read_text(encoding="utf-8")
    assert "keras.src" not in source
    assert "tf_keras" not in _roots(module, at_import=False)


def _uses_keras(package):
    members = [name for name in MODULES if name == package or name.startswith(f"{package}.")]
    return any({"keras", "tensorflow"} & _roots(member, at_import=True) for member in members)


@pytest.mark.parametrize(
    "package", [name for name in sorted(PACKAGES - set(KERAS_FREE)) if _uses_keras(name)]
)
def test_a_package_that_uses_keras_imports_it_first(package):
    """Else importing Keras would register the package's classes from within its own import."""
    imports = [
        ast.unparse(node)
        for node in _tree(package).body
        if isinstance(node, ast.Import | ast.ImportFrom) and "__future__" not in ast.unparse(node)
    ]
    assert imports[:1] == ["import keras"]


def _loaded_by(module, seen):
    """Everything that importing a module imports, packages on the way included."""
    if module in seen:
        return seen
    seen.add(module)
    for imported, name in _imports(module, at_import=True) if module in MODULES else ():
        for target in (imported, f"{imported}.{name}"):
            parts = target.split(".")
            for length in range(1, len(parts) + 1):
                if ".".join(parts[:length]) in MODULES or length == 1:
                    _loaded_by(".".join(parts[:length]), seen)
    return seen


@pytest.mark.parametrize("module", KERAS_FREE)
def test_what_must_start_at_once_loads_neither_keras_nor_tensorflow(module):
    heavy = {"keras", "tensorflow", "matplotlib", "sklearn", "PIL"}
    assert not heavy & _loaded_by(module, set())


def test_the_keras_free_part_is_there():
    assert "gradstab.cli.main" in KERAS_FREE
    assert "gradstab.reports.figures" in KERAS_FREE


def test_importing_the_keras_free_part_loads_neither_keras_nor_tensorflow(run_python):
    code = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
print(sorted({"keras", "tensorflow", "matplotlib"} & set(sys.modules)))
"""
    assert run_python(code, *KERAS_FREE) == "[]"
