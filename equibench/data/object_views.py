"""One view of an object: its image, decoded now or when it is asked for, and its latents (PROTOCOL 1.1)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from equibench.data.decoding import decode_all
from equibench.errors import UserError

LATENTS = ("yaw", "pitch", "roll", "floor_hue", "spot_theta", "spot_phi", "spot_hue")
LOWEST = np.array([-np.pi / 2, -np.pi / 2, -np.pi / 2, 0, 0, 0, 0])
HIGHEST = np.array([np.pi / 2, np.pi / 2, np.pi / 2, 1, np.pi / 4, 2 * np.pi, 1])
_ONE_HEADER = Lock()  # Python 3.11 parses no two at once: now and then it fails on a good file ("AST constructor ...")
TOLERANCE = 1e-6  # of the ranges, for files that were written in another precision


class Fault(NamedTuple):
    """What cannot be used, a file or a whole object: its path relative to the root, and why."""

    path: str
    reason: str

    @property
    def is_object(self) -> bool:
        return self.path.count("/") == 1

    def error(self, root: Path) -> UserError:
        fix = "Unpack it again or remove it, or leave out what cannot be used with skip_bad=True."
        return UserError(f"{root / self.path} {self.reason}.", fix)


class LazyImages:
    """Images (N, 3, S, S) uint8 that are decoded when they are asked for, on several threads.

    Indexed by a number, a slice, or an array of numbers or of truths (N,), it gives an array, in the order asked for.
    A file that has become unreadable raises a UserError that names it.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self, root: Path, objects: tuple[str, ...], object_index: NDArray[np.int64], views: NDArray[np.int64], size: int
    ) -> None:
        self.root, self.objects, self.object_index, self.views = root, objects, object_index, views
        self.shape = (len(views), 3, size, size)

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        which, views = np.asarray(self.object_index[rows]), np.asarray(self.views[rows])
        names = [f"{self.objects[o]}/image_{k}.jpg" for o, k in zip(which.flat, views.flat, strict=True)]
        images = np.empty((len(names), *self.shape[1:]), np.uint8)
        for row, image in enumerate(decode_all(names, partial(_decode_or_raise, self.root, size=self.shape[-1]))):
            images[row] = image
        return images.reshape(*which.shape, *self.shape[1:])


def read_latent(path: Path) -> NDArray[np.float64]:
    """One view's latents (7,), in the order of LATENTS: angles and directions in radians, hues in turns.

    Raises:
        ValueError: why they cannot be used, to be read after the file's name.
    """
    try:
        latent = read_array(path)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from error
    if latent.dtype.kind not in "fiu":
        raise ValueError("does not hold real numbers")
    if latent.shape != (len(LATENTS),):
        told = " (3DIEBench's readme says nine values, its files hold seven)" if latent.size == 9 else ""
        raise ValueError(f"has the shape {latent.shape}, expected the 7 values {', '.join(LATENTS)}{told}")
    latent = latent.astype(np.float64)
    inside = (latent >= LOWEST - TOLERANCE) & (latent <= HIGHEST + TOLERANCE)  # false for nan
    if not inside.all():
        which = int(np.argmin(inside))
        span = f"{LOWEST[which]:.4f} to {HIGHEST[which]:.4f}"
        raise ValueError(f"has {LATENTS[which]} = {latent[which]}, expected {span}")
    return latent


def read_array(path: Path) -> np.ndarray:
    """What an ``.npy`` file holds; pickled objects are refused, since unpickling runs code.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else, to be read after the file's name.
    """
    with path.open("rb") as file, _ONE_HEADER:
        try:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
        except Exception as error:  # NumPy's parser raises more than ValueError on a damaged header
            raise ValueError(f"cannot be read: {error}") from error


def _decode_or_raise(root: Path, file: str, *, size: int) -> NDArray[np.uint8]:
    try:
        return decode_image(root / file, size)
    except ValueError as error:
        raise Fault(file, str(error)).error(root) from error


def decode_image(path: Path, size: int) -> NDArray[np.uint8]:
    """One image as (3, size, size).

    Raises:
        ValueError: why it cannot be had, to be read after the file's name.
    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        width, height = image.size
        wide, high = (max(size, round(size * side / min(width, height))) for side in (width, height))
        left, top = (wide - size) // 2, (high - size) // 2
        image = image.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        raise ValueError(f"cannot be decoded: {type(error).__name__}: {error}") from error
    return np.asarray(image).transpose(2, 0, 1)
