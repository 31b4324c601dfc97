"""Reading CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from either official version, against their published checksums."""

import contextlib
import hashlib
import io
import os
import pickle
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from equibench.data.contents import file_digests
from equibench.data.dataset import Dataset, ImageSet
from equibench.data.transfer_sources import SOURCES, is_generated
from equibench.errors import UserError
from equibench.utils.download import download, exclusive, file_md5

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
PYTHON_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE = "cifar-10-binary.tar.gz"
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
BINARY_FOLDER, PYTHON_FOLDER = "cifar-10-batches-bin", "cifar-10-batches-py"
BINARY_MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
PYTHON_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
CIFAR100_MD5 = {
    "meta": "7973b15100ade9c7d40fb424638fde48",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
}
CIFAR100_BINARY = dict.fromkeys(("fine_label_names.txt", "train.bin", "test.bin"), "")
IMAGE_SHAPE = (3, 32, 32)
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class CifarFiles:
    """A folder that holds the files of one of the two official versions of a data set."""

    title: str
    folder: Path
    md5: Mapping[str, str]  # by the files' names; "" where the checksum is not known
    url: str  # of the official archive

    def stamp(self) -> dict[str, list[int]]:
        """Bytes and time of change (ns) of each file: while they stay, a check holds. A UserError if one is missing."""
        states = {}
        for name, md5 in self.md5.items():
            path = self.folder / name
            try:
                states[name] = [path.stat().st_size, path.stat().st_mtime_ns]
            except OSError as error:
                wanted = f" (expected MD5 {md5})" if md5 else ""
                raise self._error(f"{self.title} is incomplete: {path} is missing{wanted}") from error
        return states

    def check(self) -> None:
        """Compares every file with its checksum; a UserError names one that is damaged or cannot be read."""
        for name, md5 in self.md5.items():
            try:
                found = file_md5(self.folder / name) if md5 else ""
            except OSError as error:
                found = error.strerror or str(error)
            if found != md5:
                raise self._error(f"{self.folder / name} is damaged: expected MD5 {md5}, found {found}")

    def batch(self, name: str) -> ImageSet:
        """The images (N, 3, 32, 32) and labels of one file; of CIFAR-100's two labels the fine one."""
        path, fine = self.folder / name, int(self.title == "CIFAR-100")
        try:
            if path.suffix == ".bin":  # the labels, then the red, the green and the blue plane
                rows = np.fromfile(path, np.uint8).reshape(-1, 1 + fine + int(np.prod(IMAGE_SHAPE)))
                labels, pixels = rows[:, fine].astype(np.int64), rows[:, 1 + fine :]
            else:
                held = _unpickle(path)
                labels, pixels = (
                    np.asarray(held["fine_labels" if fine else "labels"], np.int64),
                    np.asarray(held["data"]),
                )
            images = pixels.reshape(-1, *IMAGE_SHAPE)
            if images.dtype != np.uint8 or labels.shape != images.shape[:1]:
                raise ValueError(f"{len(images):,} images of {images.dtype}, labels {labels.shape}")
        except _UNREADABLE as error:
            raise self.not_published(name, error) from error
        return ImageSet(images, labels)

    def not_published(self, name: str, reason: object) -> UserError:
        return self._error(f"{self.folder / name} is not as published: {reason}")

    def _error(self, problem: str) -> UserError:
        fix = f"replace it by the file of the official archive ({self.url}), or give another folder: --data-root"
        return UserError(problem, fix)


def find_cifar10(root: Path) -> CifarFiles | None:
    """The batches under ``root``, or in it; None where there is neither folder nor a single batch."""
    binary = CifarFiles("CIFAR-10", root / BINARY_FOLDER, BINARY_MD5, URL)
    versions = (binary, CifarFiles("CIFAR-10", root / PYTHON_FOLDER, PYTHON_MD5, PYTHON_URL))
    under = [version for version in versions if version.folder.is_dir()]
    within = [replace(version, folder=root) for version in versions if any((root / n).is_file() for n in version.md5)]
    return next(iter(under + within), None)


def read_cifar10(files: CifarFiles) -> dict[str, np.ndarray]:
    """``train_images`` (N, 3, 32, 32) uint8, ``train_labels`` (N,) int64 in the official order, and those of test."""
    arrays = {}
    for half, prefix in (("train", "data_batch"), ("test", "test_batch")):
        batches = [files.batch(name) for name in files.md5 if name.startswith(prefix)]
        arrays[f"{half}_images"] = np.concatenate([batch.images for batch in batches])
        arrays[f"{half}_labels"] = np.concatenate([batch.labels for batch in batches])
    return arrays


def fetch_cifar10(cache: Path, *, network: bool) -> CifarFiles | None:
    """The copy in the cache folder: extracted, or from an archive lying there, or (``network``) downloaded.

    Raises Unavailable where the server cannot be reached, a UserError where the archive is damaged or not written.
    """
    archive, folder = cache / ARCHIVE, cache / BINARY_FOLDER
    with exclusive(cache / ".download.lock"):
        files = find_cifar10(cache)
        if files or not (network or archive.exists()):
            return files
        download(URL, archive, md5=ARCHIVE_MD5)
        # unpacked beside the folder and moved as a whole, so that it is complete or not there
        with tempfile.TemporaryDirectory(dir=cache, prefix=".extract-") as scratch, tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
            with contextlib.suppress(OSError):  # another process may have been first, with the same files
                os.rename(Path(scratch) / folder.name, folder)
        if not folder.is_dir():
            raise UserError(f"{archive} could not be unpacked to {folder}", "unpack it there by hand")
        with contextlib.suppress(OSError):
            archive.unlink()
        return find_cifar10(cache)


def _cifar100(root: Path) -> CifarFiles:
    md5 = CIFAR100_BINARY if (root / "train.bin").exists() else CIFAR100_MD5
    return CifarFiles("CIFAR-100", root, dict.fromkeys(md5, "") if is_generated(root) else md5, SOURCES["cifar100"].url)


def cifar100_state(root: Path) -> str:
    """SHA-256 of what its files hold; a UserError names one that is missing."""
    files = _cifar100(root)
    names = list(files.stamp())
    return hashlib.sha256("|".join([*names, *file_digests(root, names)]).encode()).hexdigest()


def read_cifar100(root: Path) -> Dataset:
    """Both halves, images (N, 3, 32, 32), from either official version; of the Python version every byte is checked.

    A UserError names a file that is absent, damaged or not the published one.
    """
    files = _cifar100(root)
    files.check()
    first, *batches = files.md5
    try:
        text = first.endswith(".txt")
        listed = (root / first).read_text().split() if text else _unpickle(root / first)["fine_label_names"]
        names = tuple(map(str, listed))
    except _UNREADABLE as error:
        raise files.not_published(first, error) from error
    halves = []
    for name in batches:
        half, count = files.batch(name), SOURCES["cifar100"].counts[Path(name).stem]
        if len(half.labels) != count and not is_generated(root):
            raise files.not_published(name, f"it holds {len(half.labels):,} images, the published file {count:,}")
        wrong = half.labels[(half.labels < 0) | (half.labels >= len(names))]
        if len(wrong):
            raise files.not_published(name, f"label {wrong[0]} is out of range: there are {len(names)} classes")
        halves.append(half)
    return Dataset("cifar100", "", halves[0], halves[1], names, "")


_UNREADABLE = (OSError, ValueError, TypeError, LookupError, EOFError, AttributeError, pickle.UnpicklingError)


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
