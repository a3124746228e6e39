"""The house: who imports whom. Read from the source, so nothing has to be imported for it."""

import ast
from pathlib import Path

import pytest

import gradstab
from gradstab.keras_hooks.required import REQUIRED

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
    "keras_hooks", "functional", "transforms", "optimizers", "monitoring", "diagnosis", "recovery",
    "callbacks", "training", "repairs", "cli",
)  # fmt: skip
MAY_IMPORT = {room: set(SPINE[:place]) for place, room in enumerate(SPINE)}
MAY_IMPORT |= {
    "schedules": {"keras_hooks", "functional"},
    "initializers": {"keras_hooks", "functional"},
    "regularizers": {"keras_hooks", "functional"},
    "layers": {"keras_hooks", "functional"},
    "data": {"keras_hooks", "functional"},
    "models": {"keras_hooks", "functional", "initializers", "regularizers", "layers"},
    "recipes": {"optimizers", "schedules"},
    "reports": {"monitoring.entries", "monitoring.record"},
    "__main__": {"cli.main"},
}
# Replaces classes of all these by Keras' own.
MAY_IMPORT["unwrap"] = {
    "keras_hooks", "functional", "transforms", "optimizers", "schedules", "initializers",
    "regularizers", "layers", "models",
}  # fmt: skip
MAY_IMPORT["recovery"] |= {"schedules"}
MAY_IMPORT["callbacks"] |= {"reports", "layers"}
MAY_IMPORT["repairs"] |= {"layers"}
MAY_IMPORT["cli"] |= set(MAY_IMPORT)
# Anybody may use these; they use each other at most.
PRIVATE = {
    "_coefficients", "_errors", "_layers", "_lazy", "_nesting", "_replicas", "_serialization",
    "_validation", "_variables",
}  # fmt: skip
# The rooms in `optimizers`: each imports from those before it. `traits` is a file at the top, and
# what users import stands on all of them but `watching`, which is about the finished optimizers.
OPTIMIZERS = (
    "compiled", "traits", "stable", "model", "telemetry", "step", "accepted", "stabilized",
    "stabilize", "watching",
)  # fmt: skip

HOOKED = {each.name: each.owner for each in REQUIRED if each.name.startswith("_")}

LOOKS_AND_RULES = ("gradstab.diagnosis.looks", "gradstab.diagnosis.rules")
KERAS_FREE = [
    name
    for name in MODULES
    if name in {"gradstab", "gradstab._lazy", "gradstab.cli", "gradstab.cli.main"}
    or name.startswith(("gradstab.monitoring.record", "gradstab.reports", *LOOKS_AND_RULES))
    or name in {"gradstab.monitoring", "gradstab.monitoring.reader", "gradstab.monitoring.writer"}
    or name in {"gradstab.diagnosis", "gradstab.diagnosis.finding", "gradstab.diagnosis.diagnosis"}
]


MODULES_IN_ORDER = {
    name for name in MODULES if name.startswith("gradstab.optimizers.") and name not in PACKAGES
}


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
    assert {name.split(".")[2] for name in MODULES_IN_ORDER} == set(OPTIMIZERS)


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
        if room == "optimizers" == inside.split(".")[0] and module in MODULES_IN_ORDER:
            own, other = (OPTIMIZERS.index(each.split(".")[2]) for each in (module, target))
            assert other <= own, f"{module} stands before {target}: {' <- '.join(OPTIMIZERS)}"
        assert any(inside == room or inside.startswith(f"{room}.") for room in allowed), (
            f"{room} may import {sorted(allowed)}, not {target}"
        )
        assert target not in PACKAGES, f"`from {target} import {name}`: import from the submodule"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_keras_is_used_through_its_public_api(module):
    """Private names of Keras and TensorFlow stand in `keras_hooks`, and nowhere else."""
    assert "tf_keras" not in _roots(module, at_import=False)
    source = MODULES[module].read_text(encoding="utf-8")
    assert "keras.src" not in source
    if _room(module) == "keras_hooks":
        return
    assert "tensorflow.python" not in source
    nodes = list(ast.walk(_tree(module)))
    own = {n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    own |= {n.target.id for n in nodes if isinstance(n, ast.AnnAssign) and _is_name(n.target)}
    own |= {n.name for n in nodes if isinstance(n, ast.FunctionDef)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            of_its_own = _is_name(node.value, "self", "cls") or node.attr in own
            is_python = node.attr.startswith("__") and node.attr != "__internal__"
            assert of_its_own or is_python, ast.unparse(node)
        if isinstance(node, ast.Constant) and node.value in HOOKED:
            raise AssertionError(f"{node.value!r} belongs to {HOOKED[node.value]}")


def _is_name(node, *names):
    return isinstance(node, ast.Name) and (not names or node.id in names)


MOST_LINES, MOST_LINES_OF_DOCSTRING = 300, 40


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_file_holds_one_idea_and_a_docstring_is_read_at_once(module):
    lines = MODULES[module].read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES, "cut it in two, each with one idea"
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ClassDef):
            length = (ast.get_docstring(node) or "").count("\n") + 1
            assert length <= MOST_LINES_OF_DOCSTRING, f"{node.name}: derivations belong to docs/"


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
