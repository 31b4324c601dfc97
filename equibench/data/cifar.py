"""Reading CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from any official version, no byte of CIFAR-10 unchecked."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equibench.data.dataset import Dataset, ImageSet
from equibench.data.transfer_sources import SOURCES, is_generated
from equibench.errors import UserError
from equibench.utils.download import download, exclusive, file_md5

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
PYTHON_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE = "cifar-10-binary.tar.gz"
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
BINARY_FOLDER, PYTHON_FOLDER = "cifar-10-batches-bin", "cifar-10-batches-py"
TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
BINARY_MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
PYTHON_FILES = (*TRAIN_BATCHES, "test_batch", "batches.meta")
IMAGE_SHAPE = (3, 32, 32)
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class CifarFiles:
    """A folder that holds the batches of one of the two official versions."""

    folder: Path
    binary: bool

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(BINARY_MD5) if self.binary else PYTHON_FILES


def find(root: Path) -> CifarFiles | None:
    """The batches under ``root``, or in it; None where there is neither folder nor a single batch."""
    for folder, binary in ((root / BINARY_FOLDER, True), (root / PYTHON_FOLDER, False)):
        if folder.is_dir():
            return CifarFiles(folder, binary)
    for binary in (True, False):
        source = CifarFiles(root, binary)
        if any((root / name).is_file() for name in source.files):
            return source
    return None


def stamp(source: CifarFiles) -> dict[str, list[int]]:
    """Size in bytes and time of change in nanoseconds of each file: while they stay, a check holds.

    Raises:
        UserError: a file is missing.
    """
    states = {}
    for name in source.files:
        path = source.folder / name
        try:
            state = path.stat()
        except OSError as error:
            expected = _expected_md5(source)[name]
            raise UserError(
                f"CIFAR-10 is incomplete: {path} is missing (expected MD5 {expected}, found no file).", _mend(source)
            ) from error
        states[name] = [state.st_size, state.st_mtime_ns]
    return states


def check(source: CifarFiles) -> None:
    """Compares every file with its published MD5.

    Raises:
        UserError: a file is damaged or cannot be read.
    """
    for name, expected in _expected_md5(source).items():
        path = source.folder / name
        try:
            found = file_md5(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}", _mend(source)) from error
        if found != expected:
            raise UserError(f"{path} is damaged: expected MD5 {expected}, found {found}.", _mend(source))


def read(source: CifarFiles) -> dict[str, np.ndarray]:
    """The arrays of a checked source.

    Returns ``train_images`` (N, 3, 32, 32) uint8 and ``train_labels`` (N,) int64, in the official order, and
    ``test_images``, ``test_labels`` likewise.
    """
    halves = (_read_binary if source.binary else _read_python)(source.folder)
    arrays = {}
    for half, (images, labels) in zip(("train", "test"), halves, strict=True):
        arrays[f"{half}_images"] = np.ascontiguousarray(images.reshape(-1, *IMAGE_SHAPE))
        arrays[f"{half}_labels"] = np.asarray(labels, np.int64)
    return arrays


def fetch(cache: Path, *, network: bool) -> CifarFiles | None:
    """The copy in the cache folder: extracted, or from an archive lying there, or (``network``) downloaded.

    The archive is deleted once it is extracted.

    Raises:
        Unavailable: the server cannot be reached.
        UserError: the archive is damaged or cannot be written.
    """
    archive = cache / ARCHIVE
    with exclusive(cache / ".download.lock"):
        source = find(cache)
        if source is None and (network or archive.exists()):
            download(URL, archive, md5=ARCHIVE_MD5)
            _extract(archive, cache / BINARY_FOLDER)
            with contextlib.suppress(OSError):
                archive.unlink()
            source = find(cache)
    return source


def _extract(archive: Path, folder: Path) -> None:
    """Unpacks beside ``folder`` and moves the whole into place, so that it is complete or not there."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".extract-") as scratch, tarfile.open(archive) as tar:
        tar.extractall(scratch, filter="data")
        # Another process may have been first; what it put there has the same checksums.
        with contextlib.suppress(OSError):
            os.rename(Path(scratch) / folder.name, folder)
    if not folder.is_dir():
        raise UserError(f"{archive} could not be unpacked to {folder}.", "Unpack it there by hand.")


def _expected_md5(source: CifarFiles) -> dict[str, str]:
    if source.binary:
        return BINARY_MD5
    # Imported here, for it takes seconds and only the first use of the python version needs it.
    from torchvision.datasets import CIFAR10

    pairs = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
    return {str(name): str(md5) for name, md5 in pairs}


def _read_binary(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    record = 1 + int(np.prod(IMAGE_SHAPE))  # the label, then the red, the green and the blue plane
    halves = []
    for batches in (TRAIN_BATCHES, ("test_batch",)):
        raw = [np.fromfile(folder / f"{batch}.bin", np.uint8).reshape(-1, record) for batch in batches]
        rows = np.concatenate(raw)
        halves.append((rows[:, 1:], rows[:, 0]))
    return halves


def _read_python(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Through torchvision, which compares the MD5 once more before it unpickles."""
    from torchvision.datasets import CIFAR10

    class Here(CIFAR10):
        base_folder = folder.name  # the folder may have been renamed

    halves = []
    for train in (True, False):
        part = Here(folder.parent, train=train)
        halves.append((np.asarray(part.data).transpose(0, 3, 1, 2), np.asarray(part.targets)))
    return halves


def _mend(source: CifarFiles) -> str:
    url = URL if source.binary else PYTHON_URL
    return f"Replace it by the file of the official archive ({url}), or name another folder as data_root."


MD5 = {
    "meta": "7973b15100ade9c7d40fb424638fde48",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
}
BINARY = ("fine_label_names.txt", "train.bin", "test.bin")


def cifar100_state(root: Path) -> str:
    """SHA-256 of the folder and of its files' sizes and times of change.

    Raises:
        UserError: a file is missing.
    """
    names = BINARY if (root / BINARY[1]).exists() else tuple(MD5)
    digest = hashlib.sha256(os.fsencode(root.resolve()))
    for name in names:
        try:
            state = (root / name).stat()
        except OSError as error:
            problem = f"CIFAR-100 is incomplete: {root / name} cannot be read: {error.strerror or error}"
            raise UserError(problem, f"Expected:\n{SOURCES['cifar100'].tree}") from error
        digest.update(f"|{name}|{state.st_size}|{state.st_mtime_ns}".encode())
    return digest.hexdigest()


def read_cifar100(root: Path) -> Dataset:
    """Both halves, images (N, 3, 32, 32), from either official version.

    The Python version's files must be the published ones, byte by byte.

    Raises:
        UserError: a file is absent, damaged or not the published one.
    """
    binary, generated = (root / BINARY[1]).exists(), is_generated(root)
    meta, *batches = (root / name for name in (BINARY if binary else MD5))
    halves, file = [], meta
    try:
        for file in (meta, *batches):
            expected = MD5.get(file.name)
            if expected and not generated and (found := file_md5(file)) != expected:
                raise ValueError(f"expected MD5 {expected}, found {found}")
        file = meta
        names = meta.read_text().split() if binary else _unpickle(meta)["fine_label_names"]
        for file in batches:
            if binary:
                rows = np.fromfile(file, np.uint8).reshape(-1, 2 + int(np.prod(IMAGE_SHAPE)))
                labels, pixels = rows[:, 1].astype(np.int64), rows[:, 2:]  # the first byte is the coarse label
            else:
                batch = _unpickle(file)
                labels, pixels = np.asarray(batch["fine_labels"], np.int64), np.asarray(batch["data"])
            halves.append(ImageSet(pixels.reshape(-1, *IMAGE_SHAPE), labels))
            _check(halves[-1], len(names), None if generated else SOURCES["cifar100"].counts[file.stem])
    except (OSError, ValueError, TypeError, LookupError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        raise UserError(f"{file} is not as published: {error}", "Replace it by the published file.") from error
    return Dataset("cifar100", "", halves[0], halves[1], tuple(map(str, names)), "")


def _check(half: ImageSet, classes: int, count: int | None) -> None:
    if half.images.dtype != np.uint8 or half.labels.shape != half.images.shape[:1]:
        raise ValueError(f"{len(half.images):,} images of {half.images.dtype}, labels {half.labels.shape}")
    if count is not None and len(half.labels) != count:
        raise ValueError(f"it holds {len(half.labels):,} images, the published file {count:,}")
    wrong = half.labels[(half.labels < 0) | (half.labels >= classes)]
    if len(wrong):
        raise ValueError(f"label {wrong[0]} is out of range: there are {classes} classes")


class _ArraysOnly(pickle.Unpickler):
    """Builds containers, strings, numbers and NumPy arrays; all else that a pickle may call for is refused."""

    MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")  # before NumPy 2 and since
    ALLOWED = {"ndarray": np.ndarray, "dtype": np.dtype, "_reconstruct": np.empty(0).__reduce__()[0]}

    def find_class(self, module: str, name: str) -> Any:
        if module not in self.MODULES or name not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}")
        return self.ALLOWED[name]


def _unpickle(file: Path) -> Any:
    return _ArraysOnly(io.BytesIO(file.read_bytes()), encoding="latin1").load()
