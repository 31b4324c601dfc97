"""Which code made a number: digests of definitions and of all that they use, read from the syntax tree.

A digest covers the text of the definitions named and, following names through the imports, of everything of this
package that they use. Comments, docstrings, import lines and the names of modules say nothing about a number, and are
not covered.
"""

import ast
import hashlib
import importlib
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

__version__ = "0.1.0"

_PACKAGE = __name__.partition(".")[0]
_ELSEWHERE = ("baselines", "tasks")  # packages that stand beside this one in the repository and install inside it
_Place = tuple[str, str]  # a definition: its module and its name

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
    return _digest(roots, tuple(transformation_files()))


@cache
def _digest(roots: tuple[object, ...], files: tuple[str, ...]) -> str:
    texts = sorted(map(_text, definitions_of(*roots)))
    return hashlib.sha256("\n".join([*texts, *files]).encode()).hexdigest()


def definitions_of(*roots: Any) -> set[_Place]:
    """The definitions that `code_digest` covers, as (module, name)."""
    seen: set[_Place] = set()
    waiting: list[_Place] = []
    for root in roots:
        text = root if isinstance(root, str) else f"{root.__module__}:{root.__qualname__}"
        module, _, name = text.partition(":")
        if (read := _read(module)) is None or name not in read.definitions:
            raise TypeError(f"{module}.{name} is not defined at the top level of a module file")
        waiting.append((module, name))
    while waiting:
        place = waiting.pop()
        if place not in seen:
            seen.add(place)
            waiting += _used(place)
    return seen


class _Module(NamedTuple):
    """The top level of a module: statements by the names that they bind or extend, and imports by local name."""

    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, _Place]


@cache
def _used(place: _Place) -> tuple[_Place, ...]:
    """The definitions that one of them names."""
    module = _read(place[0])
    assert module is not None
    found: list[_Place] = []
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


def _resolved(module: str, name: str) -> list[_Place]:
    """Where a name that is imported from a module is defined, if that is in this package."""
    if module == _PACKAGE:  # the face, which imports a name when it is first asked for
        module = f"{_PACKAGE}.{getattr(sys.modules[_PACKAGE], '_HOMES', {}).get(name, '')}"
    if (read := _read(module)) is None:
        return []
    if name in read.definitions:
        return [(module, name)]
    return _resolved(*read.imports[name]) if name in read.imports else []


@cache
def _text(place: _Place) -> str:
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

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        return None

    visit_ImportFrom = visit_Import

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if isinstance(node.value, ast.Name) and node.value.id in self.modules:
            return ast.Name(node.attr, node.ctx)
        return self.generic_visit(node)


@cache
def _read(name: str) -> _Module | None:
    """The top level of a module of this package, or of a file that was loaded into it; None for all others."""
    if (file := _file(name)) is None:
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


def _imported(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, _Place]]:
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, (node.module, alias.name)


def _file(name: str) -> Path | None:
    """A module's file, found without importing it."""
    if name.startswith(f"{_PACKAGE}_user_"):
        return Path(str(sys.modules[name].__file__))
    first, *parts = name.split(".")
    if first != _PACKAGE:
        return None
    folder = Path(__file__).parents[1]
    if parts and parts[0] in _ELSEWHERE:
        folder = Path(next(iter(importlib.import_module(f"{_PACKAGE}.{parts[0]}").__path__)))
        parts = parts[1:]
    place = folder.joinpath(*parts)
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if parts and path.is_file()), None)
