"""Hashes of code by its contents: a copied or touched file changes nothing, a changed line does."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def of_modules(names: Iterable[str], *more: str) -> str:
    """Hash of modules of mtvlib, of all modules of mtvlib that they import, directly or not, and of `more` texts."""
    modules = set().union(*(closure(name) for name in names))
    sources = [*more, *(_source(name) for name in sorted(modules))]
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:16]


def of_notebook(path: Path) -> str:
    """Hash of a notebook's cells and of every module of mtvlib that they import, in turn."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    code = "\n".join(source for cell, source in zip(cells, sources, strict=True) if cell["cell_type"] == "code")
    return of_modules(_imports(code), *sources)


@cache
def closure(name: str) -> frozenset[str]:
    found, waiting = {name}, [name]
    while waiting:
        for other in _imports(_source(waiting.pop())) - found:
            found.add(other)
            waiting.append(other)
    return frozenset(found)


def _imports(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("mtvlib") and _source(name)}


@cache
def _source(module: str) -> str:
    """A module's text; empty for what is not a module of mtvlib, such as a function's name."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file.read_text(encoding="utf-8") if file.exists() else ""
