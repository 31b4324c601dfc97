"""Names of baselines and tasks: register, get, list, and load a user's file that registers more.

`tasks/` and `baselines/` are found by listing the modules of `equibench.tasks` and `equibench.baselines`, other
installed packages by the entry points of the same names. Nothing here names a row or a column.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pkgutil
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from equibench.errors import UserError, closest
from equibench.utils.digests import depend_on_transformations

if TYPE_CHECKING:
    from equibench.pretrain.method import BaselineEntry
    from equibench.task import Task


T = TypeVar("T")


class Registry(Generic[T]):
    """Entries of one kind by name, discovered on first use."""

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._entries: dict[str, T] = {}
        self._discovered = False
        self.built_in: tuple[str, ...] = ()  # what the package itself registers; known once discovered

    def add(self, name: str, entry: T) -> None:
        """Register an entry.

        Raises:
            UserError: the name is taken.
        """
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
        self.discover()
        return list(self._entries)

    def get(self, name: str) -> T:
        """The entry of that name.

        Raises:
            UserError: no such entry; the message suggests the nearest name.
        """
        self.discover()
        if name not in self._entries:
            raise UserError(
                f"unknown {self.kind} {name!r}{closest(name, self._entries)}",
                f"`equibench list {self.kind}s` shows the known ones",
            )
        return self._entries[name]


BASELINES: Registry[BaselineEntry] = Registry("baseline", "equibench.baselines")
TASKS: Registry[Task] = Registry("task", "equibench.tasks")


def load_baseline_file(path: str | Path) -> list[str]:
    """Import a Python file and return the names of the baselines that it registered.

    Raises:
        UserError: the file is missing, raises on import, or registers no baseline.
    """
    return _load_file(BASELINES, Path(path), 'decorate a class with @register_baseline("name")')


def load_task_file(path: str | Path) -> list[str]:
    """Import a Python file and return the names of the tasks that it registered.

    Raises:
        UserError: the file is missing, raises on import, or registers no task.
    """
    return _load_file(TASKS, Path(path), "call register_task(Task(...)), as examples/my_task.py does")


def _load_file(registry: Registry[Any], path: Path, example: str) -> list[str]:
    """Import a file once, and tell what it registered in one registry; one that fails leaves nothing behind."""
    if not path.is_file():
        raise UserError(f"{registry.kind} file not found: {path}", "give the path of a Python file")
    source = path.resolve()
    module_name = f"equibench_user_{source.stem}_{hashlib.sha256(str(source).encode()).hexdigest()[:8]}"
    before = {kind: set(entries) for kind, entries in _everything_registered().items()}
    new = module_name not in sys.modules
    if new:
        _import_file(path, source, module_name, before)
    registered: dict[str, list[str]] = sys.modules[module_name].__dict__["_equibench_registered"]
    if not registered[registry.kind]:
        if new:
            _forget(module_name, before)
        raise UserError(f"{path} registers no {registry.kind}", example)
    return registered[registry.kind]


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
        raise _import_failure(path, source, error) from error
    added = {
        kind: [name for name in entries if name not in before[kind]]
        for kind, entries in _everything_registered().items()
    }
    module.__dict__["_equibench_registered"] = added
    if added["transformation"]:
        depend_on_transformations([hashlib.sha256(source.read_bytes()).hexdigest()])


def _everything_registered() -> dict[str, dict[str, Any]]:
    """Whatever a file can register, by kind: the dictionaries themselves."""
    from equibench.transforms.transformation import TRANSFORMATIONS

    for registry in (BASELINES, TASKS):
        registry.discover()
    return {"baseline": BASELINES._entries, "task": TASKS._entries, "transformation": TRANSFORMATIONS}


def _forget(module_name: str, before: dict[str, set[str]]) -> None:
    del sys.modules[module_name]
    for kind, entries in _everything_registered().items():
        for name in set(entries) - before[kind]:
            del entries[name]


def _import_failure(path: Path, source: Path, error: BaseException) -> UserError:
    if isinstance(error, UserError):
        return UserError(f"{path}: {error.problem}", error.fix)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename == str(source)]
    where = f", line {lines[-1]}" if lines else ""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    where = f", line {line}" if line else where
    return UserError(f"{path}{where} raised {type(error).__name__}: {error}", "mend the file and run again")


def register(registry: Registry[T], name: str) -> Callable[[T], T]:
    """Decorator form of `registry.add`."""

    def keep(entry: T) -> T:
        registry.add(name, entry)
        return entry

    return keep
