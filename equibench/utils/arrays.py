"""The cache of prepared data: four arrays in a folder, complete or absent, opened as memory maps.

A prepared dataset is a folder ``<cache>/arrays/<key>/`` of four ``.npy`` files and a ``meta.json``. It is
written under another name and renamed when complete, so that a reader never sees half of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import platformdirs
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from equibench.errors import UserError
from equibench.utils.download import exclusive

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
STALE_SECONDS = 24 * 3600  # an unfinished folder this old belongs to a process that was killed


@dataclass(frozen=True)
class Stored:
    """What a folder of the cache holds."""

    arrays: dict[str, np.ndarray]  # by the names in ARRAYS; memory-mapped and read-only
    sha256: str  # digest of the content: dtype, shape and bytes of the four arrays
    facts: dict[str, Any]  # what else was to be remembered


def cache_folder() -> Path:
    """Where downloads and prepared arrays are kept: $EQUIBENCH_CACHE, else the system's place for caches."""
    chosen = os.environ.get("EQUIBENCH_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("equibench")


def arrays_folder(key: str) -> Path:
    """The place of the arrays of that key, whether they are there or not."""
    return cache_folder() / "arrays" / key


def content_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over name, dtype, shape and bytes of the four arrays."""
    digest = hashlib.sha256()
    for name in ARRAYS:
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of the cache; empty where there is none that can be read, as after a crash."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def open_arrays(folder: Path) -> Stored | None:
    """The arrays prepared in ``folder``; None where there are none, or a file was cut or removed since."""
    meta = read_json(folder / "meta.json")
    try:
        if not meta or any((folder / f"{key}.npy").stat().st_size != meta["bytes"][key] for key in ARRAYS):
            return None
        return Stored(_map(folder), str(meta["sha256"]), dict(meta.get("facts") or {}))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store_arrays(folder: Path, write: Callable[[Path], Mapping[str, Any] | None], *, space: str = "500 MB") -> Stored:
    """Lets ``write`` fill a scratch folder with the four arrays, puts it in place as ``folder``, and opens it.

    Args:
        write: writes the ``.npy`` files and returns what else is to be remembered, or None.
        space: about how much the arrays take, for the message where they cannot be written.

    Raises:
        UserError: the cache folder cannot be written.
    """
    with writing_to_cache(space):
        with exclusive(folder.parent / ".store.lock"):
            _remove_remains(folder.parent)
        scratch = folder.parent / f".unfinished-{uuid.uuid4().hex}"
        scratch.mkdir()
        try:
            facts = write(scratch)
            sizes = {key: (scratch / f"{key}.npy").stat().st_size for key in ARRAYS}
            meta = {"sha256": content_digest(_map(scratch)), "bytes": sizes, "facts": dict(facts or {})}
            (scratch / "meta.json").write_text(json.dumps(meta))
            with exclusive(folder.parent / ".store.lock"):
                if open_arrays(folder) is None:
                    shutil.rmtree(folder, ignore_errors=True)  # what lies there is incomplete, or it would open
                # Where another process put it there first, its copy is as good.
                with contextlib.suppress(OSError):
                    os.rename(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    stored = open_arrays(folder)
    if stored is None:
        raise UserError(f"{folder} could not be written.", "Delete it, or set EQUIBENCH_CACHE to another.")
    return stored


@contextlib.contextmanager
def writing_to_cache(space: str = "500 MB") -> Iterator[Path]:
    """Makes the cache folder, and turns what goes wrong with writing into it into a UserError."""
    cache = cache_folder()
    try:
        (cache / "arrays").mkdir(parents=True, exist_ok=True)
        yield cache
    except OSError as error:
        raise UserError(
            f"The cache folder {cache} cannot be written: {error.strerror or error}",
            f"Set EQUIBENCH_CACHE to a folder that can be written and has some {space} free.",
        ) from error


class RowWriter:
    """Writes a ``.npy`` file row by row, so that an array of any length takes the memory of one row.

    Plain writes, not a memory map: a disk that fills up then raises an OSError, where a map would kill the process.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self.shape, self.dtype, self.rows = shape, np.dtype(dtype), 0
        self._file: IO[bytes] = path.open("wb")
        self._header()
        self._start = self._file.tell()

    def append(self, row: np.ndarray | int) -> None:
        """Adds one row, an array of the ``shape`` given or a number where that is ()."""
        self._file.write(np.asarray(row, self.dtype).reshape(self.shape).tobytes())
        self.rows += 1

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *error: object) -> None:
        """Writes the number of rows into the header, in which NumPy leaves room for it to grow."""
        with self._file:
            self._file.seek(0)
            self._header()
            assert self._file.tell() == self._start, "the header grew over the first row"

    def _header(self) -> None:
        shape = (self.rows, *self.shape)
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


def _map(folder: Path) -> dict[str, np.ndarray]:
    return {key: np.load(folder / f"{key}.npy", mmap_mode="r", allow_pickle=False) for key in ARRAYS}


def _remove_remains(folder: Path) -> None:
    for old in folder.glob(".unfinished-*"):
        with contextlib.suppress(OSError):  # it may be put in place or removed meanwhile
            latest = max(path.stat().st_mtime for path in (old, *old.iterdir()))
            if time.time() - latest > STALE_SECONDS:
                shutil.rmtree(old, ignore_errors=True)


MOST_THREADS = 8
AHEAD = 4  # items for each thread that are decoded before their turn: memory stays bounded

Item = TypeVar("Item")
Decoded = TypeVar("Decoded")


def decode_all(items: Iterable[Item], decode: Callable[[Item], Decoded]) -> Generator[Decoded, None, None]:
    """What ``decode`` makes of each item, in their order, a few at a time on several threads.

    What it raises is raised where the item's turn is. When the generator ends or is closed, what waits is cancelled.
    """
    count = threads()
    pool = ThreadPoolExecutor(count)  # a thread starts when there is work for it: one item takes one
    waiting: deque[Future[Decoded]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(decode, item))
            if len(waiting) >= AHEAD * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def threads() -> int:
    """On how many threads images are decoded: Pillow works outside the GIL."""
    return min(os.cpu_count() or 1, MOST_THREADS)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[..., None]]:
    """Shows a bar with the time that remains on standard error; yields what advances it, by one unless told."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        yield partial(shown.advance, shown.add_task(title, total=total))


@dataclass(frozen=True)
class Gathered:
    """Rows of an array by index, read when they are asked for: features of images that several pairs share."""

    array: NDArray[Any]
    row: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.row), *self.array.shape[1:])

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Any:
        """A range of rows stays unread; rows by index are an array."""
        return Gathered(self.array, self.row[rows]) if isinstance(rows, slice) else self.array[self.row[rows]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.array[self.row], dtype=dtype)
