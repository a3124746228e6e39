"""Reference from the docstrings: every public name is on a page, and has a docstring."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

from sphinx.util import logging

import gradstab

PACKAGES = ["gradstab", *(f"gradstab.{name}" for name in gradstab._SUBPACKAGES)]
logger = logging.getLogger(__name__)


def public_objects() -> dict[str, Any]:
    """Return what `__all__` of the packages name, by public name, without what is Keras' own."""
    found = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            owner = getattr(value, "__module__", package)
            if not inspect.ismodule(value) and owner.startswith("gradstab"):
                found[f"{package}.{name}"] = value
    return found


def _leave_out_foreign(app: Any, kind: str, name: str, value: Any, skip: bool, options: Any) -> Any:
    """Leave out modules, which have pages of their own, and Keras' initializers."""
    if inspect.ismodule(value) or name == "__version__":
        return True
    owner = getattr(value, "__module__", None) or "gradstab"
    return None if owner.startswith("gradstab") else True


def _markdown(app: Any, kind: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Turn what docstrings have of Markdown into what Sphinx reads: code, formulas, tables."""
    text = "\n".join(_with_bars(lines))
    text = re.sub(r"^( *)```(\w*)\n(.*?)\n *```$", _code, text, flags=re.M | re.S)
    text = re.sub(r"^( *)\$\$(.*?)\$\$", _formula, text, flags=re.M | re.S)
    text = re.sub(r"^( *)\|.*\|\n *\|[-|: ]+\|\n(?: *\|.*(?:\n|\Z))+", _table, text, flags=re.M)
    text = re.sub(r"(?<![`\\$])\$([^$`]+?)\$", r":math:`\1`", text)
    lines[:] = text.split("\n")


def _with_bars(lines: list[str]) -> list[str]:
    """Escape the bars of |x|, which are substitutions to Sphinx, outside code, tables, formulas."""
    found, is_code, is_session = [], False, False
    for line in lines:
        is_code ^= line.strip().startswith("```")
        is_session = bool(line.strip()) and (is_session or line.strip().startswith(">>>"))
        if not (is_code or is_session or line.strip().startswith("|") or "$" in line):
            parts = line.split("`")
            parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
            line = "`".join(parts)
        found.append(line)
    return found


def _code(match: re.Match[str]) -> str:
    indent, language, body = match.groups()
    return f"\n{indent}.. code-block:: {language or 'text'}\n\n{_indented(body, '   ')}\n"


def _formula(match: re.Match[str]) -> str:
    indent, body = match.groups()
    body = "\n".join(f"{indent}   {line.strip()}" for line in body.strip().split("\n"))
    return f"{indent}.. math::\n\n{body}\n"


def _table(match: re.Match[str]) -> str:
    indent = match[1]
    head, _, *rows = match[0].strip("\n").split("\n")
    text = f"{indent}.. list-table::\n{indent}   :header-rows: 1\n\n"
    for row in [head, *rows]:
        first, *rest = [cell.strip() for cell in row.strip().strip("|").split("|")]
        text += f"{indent}   * - {first}\n"
        text += "".join(f"{indent}     - {cell}\n" for cell in rest)
    return text


def _indented(text: str, by: str) -> str:
    return "\n".join(by + line for line in text.split("\n"))


def _at_its_public_place(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Lead `gradstab.transforms.base.Context` to `gradstab.transforms.Context`."""
    public = env.gradstab_public.get(node.get("reftarget"))
    if node.get("refdomain") != "py" or public is None:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, content)


def _begin(app: Any, env: Any, names: Any) -> None:
    env.gradstab_public = {
        f"{value.__module__}.{value.__qualname__}": name
        for name, value in public_objects().items()
        if hasattr(value, "__qualname__")
    }


def _check(app: Any, env: Any) -> None:
    """Warn of public names that no page has, or that have no docstring."""
    on_pages = env.get_domain("py").objects
    same = {id(value): name for name, value in public_objects().items() if name in on_pages}
    for name, value in public_objects().items():
        if not inspect.getdoc(value):
            logger.warning("%s has no docstring", name)
        elif name not in on_pages and id(value) not in same and not isinstance(value, str):
            logger.warning("%s is public, and on no page of docs/api", name)


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("autodoc-skip-member", _leave_out_foreign)
    app.connect("autodoc-process-docstring", _markdown, priority=400)  # before Napoleon
    app.connect("env-before-read-docs", _begin)
    app.connect("missing-reference", _at_its_public_place)
    app.connect("env-check-consistency", _check)
    return {"parallel_read_safe": True}
