"""Which code made a number: the package's version, and digests of the parts that a result depends on."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parent


_transformation_files: set[str] = set()


def depend_on_transformations(digests: Iterable[str]) -> None:
    """From now on, what depends on "transforms" depends on these files too, which register transformations.

    Views and scores that were made before such a file was changed are then not taken for those that it makes now.
    """
    _transformation_files.update(digests)
    code_sha256.cache_clear()


def transformation_files() -> list[str]:
    """Digests of the files that `depend_on_transformations` was told of, for another process to be told."""
    return sorted(_transformation_files)


@lru_cache
def code_sha256(*parts: str) -> str:
    """Digest of the named files and folders of the package, without their comments and docstrings.

    Args:
        parts: paths relative to the package, such as "transforms" or "data/pairs.py".
    """
    digest = hashlib.sha256()
    for part in sorted(parts):
        path = ROOT / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(ROOT).as_posix()}|{_logic(file)}|".encode())
    if "transforms" in parts:
        digest.update("".join(transformation_files()).encode())
    return digest.hexdigest()


def _logic(file: Path) -> str:
    """The file's syntax tree with docstrings emptied, so that better words do not make old numbers stale."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = ""
    return ast.dump(tree)
