"""Generated pictures in ADE20K's layout, for want of ADE20K: solids before textured grounds, every pixel's class known.

They are called "ade20k-generated" wherever they are named, and are no measure of what an encoder does on photographs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from equibench.data import solids
from equibench.data.array_cache import cache_folder, writing_to_cache
from equibench.data.download import exclusive
from equibench.data.pairs import uniforms
from equibench.errors import UserError
from equibench.segmentation.tree import NAME as TREE
from equibench.segmentation.tree import SPLITS

NAME = "ade20k-generated"
GROUNDS = ("clouds", "stripes")
CLASS_NAMES = (*solids.CLASS_NAMES, *GROUNDS)
"""Of labels 1 to 12. ADE20K's own names for these labels (wall, building, ...) do not fit."""

GENERATOR = (
    ("equibench.data", "solids.py"),
    ("equibench.data", "solid_shapes.py"),
    ("equibench.segmentation", "stand_in.py"),
)
SMALLEST = 32
DRAWS, CELLS = 40, 8  # numbers that a picture takes, and cells of the coarse noise along each side
QUALITY = 95


def stand_in_folder(images: tuple[int, int] = (200, 50), size: int = 96, seed: int = 0) -> Path:
    """The generated tree in the cache, made where it is not there; arguments as for `write_stand_in`.

    Raises:
        UserError: a number is out of range, or the cache folder cannot be written.
    """
    # named by the text of the generator, so that pictures of another version are not taken for its
    text = b"".join(files(package).joinpath(name).read_bytes() for package, name in GENERATOR)
    key = f"{hashlib.sha256(text).hexdigest()[:12]}-{images[0]}-{images[1]}-{size}-{seed}"
    folder = cache_folder() / NAME / key
    if folder.is_dir():
        return folder
    with writing_to_cache():
        folder.parent.mkdir(exist_ok=True)
        with exclusive(folder.parent / ".render.lock"):
            if not folder.is_dir():  # another process may have made it while this one waited
                write_stand_in(folder, images=images, size=size, seed=seed)
    return folder


def write_stand_in(root: Path | str, *, images: tuple[int, int] = (200, 50), size: int = 96, seed: int = 0) -> Path:
    """Write a tree in ADE20K's layout, all or nothing.

    A picture shows two to four solids before a ground that is divided in two, of clouds or stripes. Its label is 1 to
    10 for the solids (in the order of their names), 11 and 12 for the grounds, and 0, "other", on the rim of a solid,
    where both mix. Picture n of a split depends on nothing but (seed, split, n, size).

    Args:
        root: the folder to make; ROOT/ADEChallengeData2016/{images,annotations}/{training,validation}/NNNNNN.{jpg,png}.
        images: how many for training and for validation, at least 1 each.
        size: height in pixels, at least 32; every other picture is a quarter wider than high.
        seed: which stream.

    Returns:
        The root.

    Raises:
        UserError: a number is out of range, the folder exists and is not empty, or cannot be written.
    """
    root = Path(root).expanduser()
    if len(images) != 2 or min(images) < 1 or size < SMALLEST:
        raise UserError(
            f"images={images} of size={size} cannot be generated",
            f"give two numbers of at least 1 (training, validation) and {SMALLEST} px or more",
        )
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} exists and is not an empty folder", "choose another folder")
    scratch = root.parent / f".unfinished-{uuid.uuid4().hex}"
    try:
        _write(scratch, images, size, seed)
        os.replace(scratch, root)  # over an empty folder, or none
    except OSError as error:
        raise UserError(
            f"{root} cannot be written: {error.strerror or error}", "free some space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return root


def picture(split: str, number: int, size: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One picture (H, W, 3) and its labels (H, W)."""
    u = uniforms((1, DRAWS + 2 * CELLS * CELLS), NAME, seed, split, number)[0]
    width = size if number % 2 == 0 else size * 5 // 4
    image, label = _ground(u, size, width)
    count = 2 + int(3 * u[20])
    # ten solids in a row show each kind once, so a stream of all pictures' solids shows all kinds alike often
    stream = 2 * seed + SPLITS.index(split)
    for place in range(count):
        share, across, down = u[21 + 3 * place : 24 + 3 * place]
        side = int(size * (0.45 + 0.3 * share))
        one = solids.render(1, size=side, seed=stream, start=4 * number + place)
        left, top = int(across * (width - side)), int(down * (size - side))
        _paste(image, label, one, left, top)
    return image, label


def _write(folder: Path, images: tuple[int, int], size: int, seed: int) -> None:
    entries = [(split, number) for split, count in zip(SPLITS, images, strict=True) for number in range(count)]
    for kind in ("images", "annotations"):
        for split in SPLITS:
            (folder / TREE / kind / split).mkdir(parents=True)
    for split, number in track(entries, f"rendering {NAME}", console=Console(stderr=True), transient=True):
        image, label = picture(split, number, size, seed)
        name = f"{number + 1:06d}"
        Image.fromarray(image).save(folder / TREE / "images" / split / f"{name}.jpg", quality=QUALITY)
        Image.fromarray(label).save(folder / TREE / "annotations" / split / f"{name}.png")


def _ground(u: NDArray[np.float64], height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The picture without solids: two grounds, divided by a straight line through its middle half."""
    y, x = np.mgrid[0:height, 0:width] / height
    angle, offset = 2 * np.pi * u[0], 0.5 * (u[1] - 0.5)
    first = (x - width / height / 2) * np.cos(angle) + (y - 0.5) * np.sin(angle) > offset
    kinds = [int(2 * u[2]), int(2 * u[3])]
    image, label = np.empty((height, width, 3), np.uint8), np.empty((height, width), np.uint8)
    for part, (where, kind) in enumerate(zip((first, ~first), kinds, strict=True)):
        draws = u[4 + 8 * part : 12 + 8 * part]
        noise = u[DRAWS + part * CELLS * CELLS :][: CELLS * CELLS].reshape(CELLS, CELLS)
        shade = _clouds(noise, height, width) if kind == 0 else _stripes(draws, x, y)
        dark, bright = 40 + 80 * draws[2:5], 140 + 100 * draws[5:8]
        image[where] = (dark + shade[..., None] * (bright - dark))[where].astype(np.uint8)
        label[where] = len(solids.CLASS_NAMES) + 1 + kind
    return image, label


def _clouds(noise: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Coarse noise, made smooth: (height, width) in [0, 1]."""
    coarse = Image.fromarray((255 * noise).astype(np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 255


def _stripes(draws: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Waves of 6 to 12 to the picture's height: (height, width) in [0, 1]."""
    along = x * np.cos(np.pi * draws[0]) + y * np.sin(np.pi * draws[0])
    return 0.5 + 0.5 * np.sin(2 * np.pi * (6 + 6 * draws[1]) * along)


def _paste(image: NDArray[np.uint8], label: NDArray[np.uint8], one: solids.Solids, left: int, top: int) -> None:
    """Put a solid before the ground and before earlier solids."""
    mask = one.masks[0]
    window = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
    padded = np.pad(mask, 1)
    inner = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    image[window][mask] = one.images[0].transpose(1, 2, 0)[mask]
    label[window][mask] = 0
    label[window][inner] = int(one.labels[0]) + 1
