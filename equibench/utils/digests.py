"""Which code made a number: digests of definitions and of all that they use, read from the syntax tree.

A digest covers the text of the definitions named and, following names through the imports, of everything of this
package that they use. Comments, docstrings, import lines and the names of modules say nothing about a number, and are
not covered.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

PACKAGE = __name__.partition(".")[0]
ELSEWHERE = ("baselines", "tasks")
"""Packages that stand beside this one in the repository and install inside it."""
Place = tuple[str, str]
"""A definition: its module and its name."""

_transformation_files: set[str] = set()


def depend_on_transformations(digests: Iterable[str]) -> None:
    """From now on, every digest depends on these files too, which register transformations.

    Views and scores that were made before such a file was changed are then not taken for those that it makes now.
    """
    _transformation_files.update(digests)


def transformation_files() -> list[str]:
    """Digests of the files that `depend_on_transformations` was told of, for another process to be told."""
    return sorted(_transformation_files)


def code_digest(*roots: object) -> str:
    """Digest of classes and functions together with everything of this package that they use.

    Args:
        roots: classes and functions defined at the top level of a module, or their names as "module:name".

    Raises:
        TypeError: one that is defined inside another, or typed into a prompt, and so has no text to be found.
    """
    return _digest(tuple(_places(roots)), tuple(transformation_files()))


@cache
def _digest(places: tuple[Place, ...], files: tuple[str, ...]) -> str:
    texts = sorted(_text(place) for place in _closure(places))
    return hashlib.sha256("\n".join([*texts, *files]).encode()).hexdigest()


def definitions_of(*roots: object) -> set[Place]:
    """The definitions that `code_digest` covers, as (module, name)."""
    return _closure(_places(roots))


def _places(roots: Iterable[Any]) -> list[Place]:
    texts = (root if isinstance(root, str) else f"{root.__module__}:{root.__qualname__}" for root in roots)
    return [(text.partition(":")[0], text.partition(":")[2]) for text in texts]


@dataclass(frozen=True)
class _Module:
    """The top level of a module: statements by the names that they bind or extend, and imports by local name."""

    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, Place]


def _closure(roots: Sequence[Place]) -> set[Place]:
    seen: set[Place] = set()
    waiting = list(roots)
    for module, name in roots:
        if (read := _read(module)) is None or name not in read.definitions:
            raise TypeError(f"{module}.{name} is not defined at the top level of a module file")
    while waiting:
        place = waiting.pop()
        if place not in seen:
            seen.add(place)
            waiting += _used(place)
    return seen


@cache
def _used(place: Place) -> tuple[Place, ...]:
    """The definitions that one of them names."""
    module = _read(place[0])
    assert module is not None
    found: list[Place] = []
    for statement in module.definitions[place[1]]:
        local = dict(_imported(ast.walk(statement)))
        for node in ast.walk(statement):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                target = local.get(node.value.id) or module.imports.get(node.value.id)
                found += _resolved(".".join(target), node.attr) if target else []
            elif isinstance(node, ast.Name):
                if node.id in module.definitions:
                    found.append((place[0], node.id))
                elif target := local.get(node.id) or module.imports.get(node.id):
                    found += _resolved(*target)
    return tuple(found)


def _resolved(module: str, name: str) -> list[Place]:
    """Where a name that is imported from a module is defined, if that is in this package."""
    if module == PACKAGE:  # the face, which imports a name when it is first asked for
        module = f"{PACKAGE}.{getattr(sys.modules[PACKAGE], '_HOMES', {}).get(name, '')}"
    read = _read(module)
    if read is None:
        return []
    if name in read.definitions:
        return [(module, name)]
    return _resolved(*read.imports[name]) if name in read.imports else []


@cache
def _text(place: Place) -> str:
    module = _read(place[0])
    assert module is not None
    plain = _Plain({name for name, target in module.imports.items() if _read(".".join(target)) is not None})
    statements = [plain.visit(ast.parse(ast.unparse(statement))) for statement in module.definitions[place[1]]]
    for node in (node for statement in statements for node in ast.walk(statement)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.If | ast.With | ast.For) and not node.body:
            node.body = [ast.Pass()]  # nothing but a docstring or an import was there
    return hashlib.sha256("\n".join(map(ast.unparse, statements)).encode()).hexdigest()


class _Plain(ast.NodeTransformer):
    """Takes out docstrings and imports, and the names of modules before what is taken from them."""

    def __init__(self, modules: set[str]) -> None:
        self.modules = modules

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if isinstance(node.value, ast.Name) and node.value.id in self.modules:
            return ast.Name(node.attr, node.ctx)
        return self.generic_visit(node)


@cache
def _read(name: str) -> _Module | None:
    """The top level of a module of this package, or of a file that was loaded into it; None for all others."""
    file = _file(name)
    if file is None:
        return None
    tree = ast.parse(file.read_text(encoding="utf-8"))
    definitions: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        for bound in dict.fromkeys(_bound(statement)):
            definitions.setdefault(bound, []).append(statement)
    return _Module(definitions, dict(_imported(tree.body)))


def _bound(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement at the top level binds, or of whose objects it sets a part."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            yield node.value.id


def _imported(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, Place]]:
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, (node.module, alias.name)


def _file(name: str) -> Path | None:
    """A module's file, found without importing it."""
    if name.startswith(f"{PACKAGE}_user_"):
        return Path(str(sys.modules[name].__file__))
    first, *parts = name.split(".")
    if first != PACKAGE:
        return None
    folder = Path(__file__).parents[1]
    if parts and parts[0] in ELSEWHERE:
        folder = Path(next(iter(importlib.import_module(f"{PACKAGE}.{parts[0]}").__path__)))
        parts = parts[1:]
    place = folder.joinpath(*parts)
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if parts and path.is_file()), None)
