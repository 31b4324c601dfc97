"""Reading CIFAR-10 (Krizhevsky 2009) from either official version, no byte of it unchecked."""

from __future__ import annotations

import contextlib
import os
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from equibench.data.download import download, exclusive, file_md5
from equibench.errors import UserError

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
class Source:
    """A folder that holds the batches of one of the two official versions."""

    folder: Path
    binary: bool

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(BINARY_MD5) if self.binary else PYTHON_FILES


def find(root: Path) -> Source | None:
    """The batches under ``root``, or in it; None where there is neither folder nor a single batch."""
    for folder, binary in ((root / BINARY_FOLDER, True), (root / PYTHON_FOLDER, False)):
        if folder.is_dir():
            return Source(folder, binary)
    for binary in (True, False):
        source = Source(root, binary)
        if any((root / name).is_file() for name in source.files):
            return source
    return None


def stamp(source: Source) -> dict[str, list[int]]:
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
                f"CIFAR-10 is incomplete: {path} is missing (expected MD5 {expected}, found no file).",
                _mend(source),
            ) from error
        states[name] = [state.st_size, state.st_mtime_ns]
    return states


def check(source: Source) -> None:
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


def read(source: Source) -> dict[str, np.ndarray]:
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


def fetch(cache: Path, *, network: bool) -> Source | None:
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
    with (
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=".extract-") as scratch,
        tarfile.open(archive) as tar,
    ):
        tar.extractall(scratch, filter="data")
        # Another process may have been first; what it put there has the same checksums.
        with contextlib.suppress(OSError):
            os.rename(Path(scratch) / folder.name, folder)
    if not folder.is_dir():
        raise UserError(f"{archive} could not be unpacked to {folder}.", "Unpack it there by hand.")


def _expected_md5(source: Source) -> dict[str, str]:
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


def _mend(source: Source) -> str:
    url = URL if source.binary else PYTHON_URL
    return f"Replace it by the file of the official archive ({url}), or name another folder as data_root."
