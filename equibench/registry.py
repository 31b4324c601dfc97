"""Registries: names of baselines, tasks, evaluators; found by listing modules, by entry points, or in a user's file.

    from equibench.registry import Registry
    TASKS = Registry("task", "equibench.tasks")      # imports every module of equibench.tasks when first asked
    TASKS.add("rotation", task)
    TASKS.get("rotatoin")                            # UserError: did you mean 'rotation'?

Nothing here names a row or a column.
"""

import hashlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, Generic, TypeVar

from equibench.errors import UserError, closest
from equibench.utils.digests import depend_on_transformations

T = TypeVar("T")
_kinds: dict[str, dict[str, Any]] = {}
"""Whatever a file can register: the entries of each kind."""
_registries: list["Registry[Any]"] = []


class Registry(Generic[T]):
    """Entries of one kind (what an entry is called in messages) by name, discovered on first use.

    `group` is the package whose modules register the built-in entries, and the name of the entry points.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._entries: dict[str, T] = watch(kind, {})
        self._discovered = False
        self.built_in: tuple[str, ...] = ()  # what the package itself registers; known once discovered
        _registries.append(self)

    def add(self, name: str, entry: T) -> None:
        """Register an entry; a UserError if its name is taken."""
        if name in self._entries:
            raise UserError(f"the {self.kind} {name!r} is registered twice", "choose another name")
        self._entries[name] = entry

    def discover(self) -> None:
        """Import the built-in modules and the entry points of this registry's group, once."""
        if self._discovered:
            return
        self._discovered = True
        before = set(self._entries)
        package = importlib.import_module(self.group)
        for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
            importlib.import_module(f"{self.group}.{module}")
        self.built_in = tuple(name for name in self._entries if name not in before)
        for point in importlib.metadata.entry_points(group=self.group):
            try:
                point.load()
            except Exception as error:  # a broken plug-in must not take the suite down with it
                warnings.warn(f"the plug-in {point.value!r} could not be imported: {error}", stacklevel=2)

    def names(self) -> list[str]:
        """All names, in the order in which they were registered."""
        self.discover()
        return list(self._entries)

    def entries(self) -> list[T]:
        """All entries that are registered so far; nothing is imported for it."""
        return list(self._entries.values())

    def get(self, name: str) -> T:
        """The entry of that name; a UserError that suggests the nearest name if there is none."""
        self.discover()
        if name not in self._entries:
            problem = f"unknown {self.kind} {name!r}{closest(name, self._entries)}"
            raise UserError(problem, f"`equibench list {self.kind}s` shows the known ones")
        return self._entries[name]


def watch(kind: str, entries: dict[str, Any]) -> dict[str, Any]:
    """Let files register entries of a kind in this dictionary; returns the dictionary."""
    _kinds[kind] = entries
    return entries


def load_file(path: str | Path, kind: str) -> list[str]:
    """Import a Python file once, and return the names that it registered of one kind.

    Kinds are "baseline", "task", "evaluator" and "transformation". A UserError if the file is missing, raises on
    import, or registers nothing of that kind; it then leaves nothing.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{kind} file not found: {path}", "give the path of a Python file")
    source = path.resolve()
    module_name = f"equibench_user_{source.stem}_{hashlib.sha256(str(source).encode()).hexdigest()[:8]}"
    for registry in _registries:
        registry.discover()
    before = {one: set(entries) for one, entries in _kinds.items()}
    if new := module_name not in sys.modules:
        _import_file(path, source, module_name, before)
    registered: list[str] = sys.modules[module_name].__dict__["_equibench_registered"][kind]
    if not registered:
        if new:
            _forget(module_name, before)
        raise UserError(f"{path} registers no {kind}", f"call or decorate with register_{kind}; docs/ shows how")
    return registered


def _import_file(path: Path, source: Path, module_name: str, before: dict[str, set[str]]) -> None:
    spec = importlib.util.spec_from_file_location(module_name, source)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file", "its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        _forget(module_name, before)
        if isinstance(error, UserError):
            raise UserError(f"{path}: {error.problem}", error.fix) from error
        frames = traceback.extract_tb(error.__traceback__)
        lines = [None, *(frame.lineno for frame in frames if frame.filename == str(source))]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1]
        problem = f"{path}{f', line {line}' if line else ''} raised {type(error).__name__}: {error}"
        raise UserError(problem, "mend the file and run again") from error
    added = {kind: [n for n in entries if n not in before.get(kind, ())] for kind, entries in _kinds.items()}
    module.__dict__["_equibench_registered"] = added
    if added.get("transformation"):
        depend_on_transformations([hashlib.sha256(source.read_bytes()).hexdigest()])


def _forget(module_name: str, before: dict[str, set[str]]) -> None:
    del sys.modules[module_name]
    for kind, entries in _kinds.items():
        for name in set(entries) - before.get(kind, set()):
            del entries[name]
