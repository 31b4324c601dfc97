"""A folder of images as a dataset: decoded, resized and cropped once, then opened as memory-mapped arrays.

Which layouts are understood stands in `folder_layout`.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from equibench.data.array_cache import RowWriter, Stored, arrays_folder, open_arrays, store_arrays, writing_to_cache
from equibench.data.datasets import DATASETS, Dataset, ImageSet
from equibench.data.decoding import decode_all, progress
from equibench.data.download import exclusive
from equibench.data.folder_layout import Listing, list_images, state_digest
from equibench.errors import UserError

SMALLEST = 8
MARGIN_FROM = 64  # larger images are cut out of ones that are 256/224 times as large
VERSION = 1  # raised whenever the same files would give other arrays


def load_image_folder(root: Path | str, *, size: int = 224, skip_bad: bool = False) -> Dataset:
    """Opens a folder of images as a dataset, after decoding it into the cache where this is the first time.

    Each image is turned as its EXIF says, made RGB, resized (bicubic) so that its short side is ``size`` * 256 / 224,
    or ``size`` up to 64, and its middle ``size`` x ``size`` pixels are taken: uint8 (N, 3, size, size). Images of a val
    folder stand at the end of `train`, counted by `Dataset.validation`. Without a test folder, a fifth of each class is
    the test set, chosen by a digest of the files' names, so that files added later leave the others where they are.

    Args:
        root: the folder; its name is the dataset's.
        size: side of the images in pixels, 8 or more.
        skip_bad: leave out images that cannot be decoded; the description then counts them.

    Raises:
        UserError: the folder is missing, holds no images, lacks a split or mixes layouts; a class is in the test set
            alone; an image cannot be decoded; the arrays do not fit on the disk; the size is too small.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {state}.", "Give a folder of images: ROOT/train/CLASS/*.jpg, ROOT/CLASS/*.jpg, ...")
    if size < SMALLEST:
        raise UserError(f"size={size} is too small for images.", f"Give a side of {SMALLEST} pixels or more.")
    listing = list_images(folder)
    place = arrays_folder(f"folder-{state_digest(folder, listing, (VERSION, size))[:16]}")
    stored = open_arrays(place)
    if stored is None:
        stored = _prepare(place, folder, listing, size, skip_bad)
    bad = stored.facts.get("bad", [])
    if bad and not skip_bad:  # another call had asked to leave them out
        raise _unreadable(folder, *bad[0])
    return _as_dataset(stored, folder, listing, size)


def _as_dataset(stored: Stored, folder: Path, listing: Listing, size: int) -> Dataset:
    name = folder.resolve().name or "images"
    if name in DATASETS:  # records must not take it for the data of that name
        name += "-folder"
    train = ImageSet(stored.arrays["train_images"], stored.arrays["train_labels"])
    test = ImageSet(stored.arrays["test_images"], stored.arrays["test_labels"])
    bad = len(stored.facts.get("bad", []))
    left_out = f", {bad:,} that could not be decoded left out" if bad else ""
    description = f"{name} ({len(train.labels):,} + {len(test.labels):,} images from a folder, {size} px{left_out})"
    validation = int(stored.facts.get("validation", 0))
    return Dataset(name, description, train, test, listing.class_names, stored.sha256, validation, left_out=bad)


# From files to arrays


def _prepare(place: Path, folder: Path, listing: Listing, size: int, skip_bad: bool) -> Stored:
    needed = len(listing) * 3 * size**2
    space = f"{max(needed / 1e9, 0.1):,.1f} GB"
    with writing_to_cache(space) as cache:
        free = shutil.disk_usage(cache).free
        if needed * 1.01 > free:
            raise UserError(
                f"{len(listing):,} images of {size} px take {space}; the cache {cache} has {free / 1e9:,.1f} GB free.",
                "Set EQUIBENCH_CACHE to a folder on a larger disk, or choose a smaller size.",
            )
        with exclusive(place.parent / f".{place.name}.lock"):
            stored = open_arrays(place)  # another process may have decoded them while this one waited
            write = partial(_write, folder=folder, listing=listing, size=size, skip_bad=skip_bad)
            return stored or store_arrays(place, write, space=space)


def _write(scratch: Path, *, folder: Path, listing: Listing, size: int, skip_bad: bool) -> dict[str, Any]:
    """Decodes all images into the four arrays; returns how many are for validation, and what was left out and why."""
    bad: list[tuple[str, str]] = []
    kept = dict.fromkeys(("train", "val", "test"), 0)
    with progress(f"reading {folder.name}", len(listing)) as advance:
        for half, splits in (("train", ("train", "val")), ("test", ("test",))):
            entries = [(split, *entry) for split in splits for entry in listing.splits.get(split, ())]
            with ExitStack() as stack:
                images = stack.enter_context(RowWriter(scratch / f"{half}_images.npy", (3, size, size), np.uint8))
                labels = stack.enter_context(RowWriter(scratch / f"{half}_labels.npy", (), np.int64))
                files = (folder / path for _, path, _ in entries)
                decoded = stack.enter_context(closing(decode_all(files, partial(_decode, size=size))))
                for (split, path, label), image in zip(entries, decoded, strict=True):
                    advance()
                    if isinstance(image, str) and not skip_bad:
                        raise _unreadable(folder, path, image)
                    if isinstance(image, str):
                        bad.append((path, image))
                        continue
                    images.append(image)
                    labels.append(label)
                    kept[split] += 1
    for split in ("train", "test"):
        if not kept[split]:
            raise UserError(f"No {split} image of {folder} can be decoded.", f"The first: {bad[0][0]}: {bad[0][1]}")
    return {"validation": kept["val"], "bad": bad}


def _decode(path: Path, size: int) -> np.ndarray | str:
    """One image as (3, size, size) uint8, or why it cannot be had."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16 bits: Pillow would cut all above 255
            image = Image.fromarray((np.asarray(image).clip(0, 2**16 - 1) >> 8).astype(np.uint8))
        image = image.convert("RGB")
        short = size if size <= MARGIN_FROM else round(size * 256 / 224)
        width, height = image.size
        wide, high = (int(short * side / min(width, height)) for side in (width, height))
        left, top = round((wide - size) / 2), round((high - size) / 2)
        image = image.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        return f"{type(error).__name__}: {error}"
    return np.asarray(image).transpose(2, 0, 1)


def _unreadable(folder: Path, path: str, reason: str) -> UserError:
    return UserError(
        f"{folder / path} cannot be decoded: {reason}",
        "Replace or remove the file, or leave out such files with skip_bad=True.",
    )
