"""Small trees in the layouts of the transfer data sets, to be read and to be spoilt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transfer_stand_ins import write_stand_in


def tree(name: str, root: Path, **options: Any) -> Path:
    return write_stand_in(name, root, **{"classes": 6, "per_class": (6, 2), "size": 16, **options})


def edit(file: Path, change: Callable[[str], str]) -> None:
    file.write_text(change(file.read_text()))
