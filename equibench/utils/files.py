"""Files that are either whole or absent, whatever kills the process; and digests."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from equibench.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, and move it into place.

    Raises:
        UserError: the folder cannot be written.
    """
    write_together([path], lambda files: write(files[0]))


def write_together(paths: Sequence[Path], write: Callable[[list[Path]], object]) -> None:
    """Let `write` fill a temporary file for each path; none is moved into place before all are complete.

    Raises:
        UserError: a folder cannot be written.
    """
    temporaries = [_temporary(path) for path in paths]
    try:
        write(temporaries)
        for temporary, path in zip(temporaries, paths, strict=True):
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            os.replace(temporary, path)
    except OSError as error:
        names = ", ".join(map(str, paths))
        raise UserError(f"could not write {names}: {error}", "free some space or choose another folder") from error
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    writable_folder(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    return Path(name)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def append_line(path: Path, line: str) -> None:
    """Append one line and flush it to disk, so that a line is either whole or can be seen to be cut."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def cut_torn_line(path: Path) -> None:
    """Remove a last line that a kill left unfinished, so that the next one does not run on from it."""
    if path.exists() and (text := path.read_text(encoding="utf-8")) and not text.endswith("\n"):
        write_text(path, text[: text.rfind("\n") + 1])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a JSON-lines file; a last line that a kill cut short is dropped."""
    if not path.exists():
        return []
    objects = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            objects.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):  # no newline after it: the writer was killed here
                break
            raise UserError(
                f"{path}, line {number} is not JSON: {error}", "move the file away; what it held is computed again"
            ) from error
    return objects


def writable_folder(folder: Path) -> Path:
    """Make a folder and see that it can be written.

    Raises:
        UserError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write to the folder {folder}: {error.strerror}", "choose another one or change its permissions"
        ) from error
    return folder


def digest_of(value: object) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
