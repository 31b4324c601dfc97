"""Files that are either whole or absent, whatever kills the process; and digests."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from equibench.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """`write_together` for one file: filled beside `path`, flushed to disk, moved into place."""
    write_together([path], lambda files: write(files[0]))


def write_together(paths: Sequence[Path], write: Callable[[list[Path]], object]) -> None:
    """Let `write` fill a temporary file for each path; none is moved into place before all are complete.

    A UserError is raised where a folder cannot be written.
    """
    temporaries = []
    for path in paths:
        handle, name = tempfile.mkstemp(dir=writable_folder(path.parent), prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        temporaries.append(Path(name))
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
        try:
            objects += [json.loads(line)] if line else []
        except json.JSONDecodeError as error:
            if number < len(lines):  # else no newline is after it: the writer was killed here
                problem = f"{path}, line {number} is not JSON: {error}"
                raise UserError(problem, "move the file away; what it held is computed again") from error
    return objects


def writable_folder(folder: Path) -> Path:
    """Make a folder and see that it can be written, or raise a UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        problem = f"cannot write to the folder {folder}: {error.strerror}"
        raise UserError(problem, "choose another one or change its permissions") from error


def digest_of(value: object) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
