"""The cache of prepared data: arrays in a folder, complete or absent, opened as memory maps; and how they are filled.

Prepared data are a folder ``<cache>/arrays/<key>/`` of ``.npy`` files and a ``meta.json``. It is written under another
name and renamed when complete, so that a reader never sees half of it.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import platformdirs
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from equibench.errors import UserError
from equibench.utils.download import exclusive

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
MOST_THREADS = 8
AHEAD = 4  # items for each thread that are decoded before their turn: memory stays bounded
_STALE_SECONDS = 24 * 3600  # an unfinished folder this old belongs to a process that was killed

_Item = TypeVar("_Item")
_Decoded = TypeVar("_Decoded")


@dataclass(frozen=True)
class StoredArrays:
    """What a folder of the cache holds."""

    arrays: dict[str, np.ndarray]  # those of ARRAYS, and any others by their files' names; memory-mapped, read-only
    sha256: str  # digest of the content: dtype, shape and bytes of those of ARRAYS
    facts: dict[str, Any]  # what else was to be remembered


def cache_folder() -> Path:
    """Where downloads and prepared arrays are kept: $EQUIBENCH_CACHE, else the system's place for caches."""
    chosen = os.environ.get("EQUIBENCH_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("equibench")


def arrays_folder(key: str) -> Path:
    """The place of the arrays of that key, whether they are there or not."""
    return cache_folder() / "arrays" / key


def content_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over name, dtype, shape and bytes of those of ARRAYS."""
    digest = hashlib.sha256()
    for name in ARRAYS:
        update_digest(digest, name, arrays[name])
    return digest.hexdigest()


def update_digest(digest: Any, name: str, array: np.ndarray) -> None:
    """Feeds name, dtype, shape and bytes of an array to a hash."""
    digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
    digest.update(np.ascontiguousarray(array).data)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of the cache; empty where there is none that can be read, as after a crash."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text())
        return content if isinstance(content, dict) else {}
    return {}


def open_arrays(folder: Path) -> StoredArrays | None:
    """The arrays prepared in ``folder``; None where there are none, or a file was cut or removed since."""
    meta = read_json(folder / "meta.json")
    try:
        facts = dict(meta.get("facts") or {})
        sizes = meta["bytes"] | facts.get("bytes", {})
        if any((folder / f"{key}.npy").stat().st_size != size for key, size in sizes.items()):
            return None
        return StoredArrays(_map(folder, sizes), str(meta["sha256"]), facts)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def prepare_arrays(folder: Path, write: Callable[[Path], Mapping[str, Any]], *, needed: int, what: str) -> StoredArrays:
    """The arrays of ``folder``, which ``write`` makes where they are not there, in one process at a time.

    Args:
        write: fills a scratch folder with ``.npy`` files, those of ARRAYS among them, and returns what else is to be
            remembered; the key "bytes" is taken.
        needed: how many bytes the arrays take; where the disk lacks these, a UserError names the arrays as ``what``.
    """
    if stored := open_arrays(folder):
        return stored
    space = f"{max(needed / 1e9, 0.1):,.1f} GB"
    with writing_to_cache(space) as cache, exclusive(folder.parent / f".{folder.name}.lock"):
        if stored := open_arrays(folder):  # another process made them while this one waited
            return stored
        free = shutil.disk_usage(cache).free
        if needed * 1.01 > free:
            problem = f"{what} take {space}, and the cache {cache} has {free / 1e9:,.1f} GB free"
            raise UserError(problem, "set EQUIBENCH_CACHE to a folder on a larger disk, or choose a smaller size")
        _store(folder, write)
    if stored := open_arrays(folder):
        return stored
    raise UserError(f"{folder} could not be written", "delete it, or set EQUIBENCH_CACHE to another folder")


def _store(folder: Path, write: Callable[[Path], Mapping[str, Any]]) -> None:
    for old in folder.parent.glob(".unfinished-*"):
        with contextlib.suppress(OSError):  # it may be put in place or removed meanwhile
            if time.time() - max(path.stat().st_mtime for path in (old, *old.iterdir())) > _STALE_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
    scratch = folder.parent / f".unfinished-{uuid.uuid4().hex}"
    scratch.mkdir()
    try:
        facts = dict(write(scratch))
        sizes = {path.stem: path.stat().st_size for path in sorted(scratch.glob("*.npy"))}
        if others := {key: size for key, size in sizes.items() if key not in ARRAYS}:
            facts["bytes"] = others
        four = {key: sizes[key] for key in ARRAYS}
        meta = {"sha256": content_digest(_map(scratch, ARRAYS)), "bytes": four, "facts": facts}
        (scratch / "meta.json").write_text(json.dumps(meta))
        if open_arrays(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)  # what lies there is incomplete, or it would open
        # Where another process put it there first, its copy is as good.
        with contextlib.suppress(OSError):
            os.rename(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def writing_to_cache(space: str = "500 MB") -> Iterator[Path]:
    """Makes the cache folder, and turns what goes wrong with writing into it into a UserError."""
    cache = cache_folder()
    try:
        (cache / "arrays").mkdir(parents=True, exist_ok=True)
        yield cache
    except OSError as error:
        problem = f"the cache folder {cache} cannot be written: {error.strerror or error}"
        fix = f"set EQUIBENCH_CACHE to a folder that can be written and has some {space} free"
        raise UserError(problem, fix) from error


@contextlib.contextmanager
def row_writer(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> Iterator[Callable[[Any], None]]:
    """Yields what adds a row of that shape to a ``.npy`` file, so that an array of any length takes the memory of one.

    Plain writes, not a memory map: a disk that fills up then raises an OSError, where a map would kill the process.
    """
    rows, facts = 0, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}

    def header() -> int:
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {**facts, "shape": (rows, *shape)})
        return file.tell()

    def append(row: Any) -> None:
        nonlocal rows
        file.write(np.asarray(row, dtype).reshape(shape).tobytes())
        rows += 1

    with path.open("wb") as file:
        start = header()
        yield append
        assert header() == start, "the header, in which NumPy leaves room for the number of rows, grew over the first"


def _map(folder: Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
    return {key: np.load(folder / f"{key}.npy", mmap_mode="r", allow_pickle=False) for key in keys}


# Images that are decoded into the cache


def prepare_images(
    folder: Path, read: Callable[[], tuple[Mapping[str, Sequence[tuple[_Item, int]]], Mapping[str, Any]]],
    decode: Callable[[_Item], np.ndarray], *, size: int, title: str, skip_bad: bool, root: Path = Path(),
) -> StoredArrays:  # fmt: skip
    """The arrays of ``folder``, decoded from images where they are not there; those of val end the training arrays.

    The facts tell under "validation" how many these are, and under "bad" what was left out and why.

    Args:
        read: gives (image, label) for train, val (which may be missing) and test, and further facts.
        decode: one image as (3, size, size) uint8; whatever it raises makes the image a bad one.
        skip_bad: leave bad images out; without it, and where all of a split are bad, a UserError is raised.
        root: what the images, as text, are relative to.
    """

    def refuse(image: str, reason: str) -> None:
        if not skip_bad:
            fix = "replace or remove the file, or leave such files out with --skip-bad (skip_bad=True)"
            raise UserError(f"{root / image} cannot be decoded: {reason}", fix)

    stored = open_arrays(folder)
    if stored is None:
        splits, facts = read()
        count = sum(map(len, splits.values()))

        def write(scratch: Path) -> dict[str, Any]:
            return {**_write_images(scratch, title, splits, decode, size, refuse), **facts}

        what = f"{count:,} images of {size} px from {title}"
        stored = prepare_arrays(folder, write, needed=count * 3 * size**2, what=what)
    if bad := stored.facts.get("bad"):  # another call had asked to leave them out
        refuse(*bad[0])
    return stored


def _write_images(
    scratch: Path, title: str, splits: Mapping[str, Sequence[tuple[_Item, int]]],
    decode: Callable[[_Item], np.ndarray], size: int, refuse: Callable[[str, str], None],
) -> dict[str, Any]:  # fmt: skip
    """Fills the four arrays, without the bad images that ``refuse`` does not raise an error for."""
    bad: list[tuple[str, str]] = []
    kept: Counter[str] = Counter()

    def decode_or_reason(image: _Item) -> np.ndarray | str:
        try:
            return decode(image)
        except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
            return f"{type(error).__name__}: {error}"

    for half, names in (("train", ("train", "val")), ("test", ("test",))):
        entries = [(split, *entry) for split in names for entry in splits.get(split, ())]
        with (
            progress(f"reading {title}", len(entries)) as advance,
            row_writer(scratch / f"{half}_images.npy", (3, size, size), np.uint8) as add_image,
            row_writer(scratch / f"{half}_labels.npy", (), np.int64) as add_label,
            contextlib.closing(decode_all((image for _, image, _ in entries), decode_or_reason)) as decoded,
        ):
            for (split, image, label), found in zip(entries, decoded, strict=True):
                advance()
                if isinstance(found, str):
                    refuse(str(image), found)
                    bad.append((str(image), found))
                else:
                    add_image(found)
                    add_label(label)
                    kept[split] += 1
    for split in splits:
        if not kept[split]:
            reason = f"the first: {bad[0][0]}: {bad[0][1]}" if bad else ""
            raise UserError(f"no {split} image of {title} can be decoded", reason)
    return {"validation": kept["val"], "bad": bad}


def decode_all(items: Iterable[_Item], decode: Callable[[_Item], _Decoded]) -> Generator[_Decoded, None, None]:
    """What ``decode`` makes of each item, in their order, a few at a time on several threads.

    Threads help, since Pillow works outside the GIL. What ``decode`` raises is raised where the item's turn is. When
    the generator ends or is closed, what waits is cancelled.
    """
    count = min(os.cpu_count() or 1, MOST_THREADS)
    pool = ThreadPoolExecutor(count)  # a thread starts when there is work for it: one item takes one
    waiting: deque[Future[_Decoded]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(decode, item))
            if len(waiting) >= AHEAD * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[..., None]]:
    """Shows a bar with the time that remains on standard error; yields what advances it, by one unless told."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
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
