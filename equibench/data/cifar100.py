"""The official files of CIFAR-100, in either version, read into memory."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from equibench.data.cifar10 import IMAGE_SHAPE
from equibench.data.datasets import Dataset, ImageSet
from equibench.data.download import file_md5
from equibench.data.transfer_sources import SOURCES, is_generated
from equibench.errors import UserError

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
