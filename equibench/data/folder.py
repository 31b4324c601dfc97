"""A folder of images as a dataset: which layouts are understood, and the images decoded, resized and cropped once."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image, ImageOps

from equibench.data.dataset import DATASETS, SMALLEST, Dataset, ImageSet
from equibench.errors import UserError
from equibench.utils.arrays import (
    RowWriter,
    Stored,
    arrays_folder,
    decode_all,
    open_arrays,
    progress,
    store_arrays,
    writing_to_cache,
)
from equibench.utils.download import exclusive

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


EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
TEST_SHARE = 0.2  # where the data come without a test set
FEWEST = {"train": 2}  # so that one can be set apart for validation

Classes = dict[str, list[str]]
"""Paths relative to the root by class; the class is "" where there are none."""


@dataclass(frozen=True)
class Listing:
    """The images of each split, sorted by path: (path relative to the root, label)."""

    splits: dict[str, list[tuple[str, int]]]
    class_names: tuple[str, ...]  # () where there are no labels

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))


def list_images(root: Path) -> Listing:
    """The images under a folder.

    Raises:
        UserError: it cannot be read, holds no images, lacks a split or mixes layouts; a class has no training images.
    """
    try:
        folders = _split_folders(root)
        found = {split: _by_class(root, folder) for split, folder in folders.items()}
        found = found or _split(_by_class(root, root))
    except OSError as error:
        raise _unreadable_folder(error, root) from error
    for split, classes in found.items():
        count = sum(map(len, classes.values()))
        if count < FEWEST.get(split, 1):
            many = "no images" if not count else f"{count} image{'s' * (count > 1)}, too few"
            many += " to split" * (count > 0 and not folders)
            raise UserError(f"{folders.get(split, root)} holds {many}.", f"Images end in {', '.join(EXTENSIONS)}.")
    _check_classes(folders, found)
    names = sorted(found["train"])
    labels = {name: label for label, name in enumerate(names)}
    splits = {
        split: sorted((path, labels[name]) for name, paths in classes.items() for path in paths)
        for split, classes in found.items()
    }
    return Listing(splits, () if names == [""] else tuple(names))


def state_digest(root: Path, listing: Listing, key: object) -> str:
    """SHA-256 of a key and of the images' paths, labels, sizes and times of change.

    The root is part of it, since unpacked archives may give all files one time, and pictures without compression have
    one size.

    Raises:
        UserError: a file cannot be looked at.
    """
    digest = hashlib.sha256(f"{key}|".encode() + os.fsencode(root.resolve()))
    try:
        for split, images in sorted(listing.splits.items()):
            for path, label in images:
                state = os.stat(root / path)
                digest.update(f"|{split}|{label}|{state.st_size}|{state.st_mtime_ns}|".encode() + os.fsencode(path))
    except OSError as error:
        raise _unreadable_folder(error, root) from error
    return digest.hexdigest()


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits; empty where the root is not split.

    A folder called train may be a class of vehicles: it is a split where another split, or nothing, stands beside it.
    """
    inner = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    folders: dict[str, Path] = {}
    for path in inner:
        split = SPLIT_FOLDERS.get(path.name.lower())
        if split and split in folders:
            raise UserError(f"{root} holds both {folders[split].name} and {path.name}.", "Keep one of them.")
        if split:
            folders[split] = path
    if len(folders) == 1 and len(inner) > 1:
        return {}
    for split in ("train", "test"):
        if folders and split not in folders:
            have = ", ".join(path.name for path in folders.values())
            raise UserError(
                f"{root} has no folder {split}/ beside {have}.",
                "Name the splits train, val (may be missing) and test; or give a folder of classes, which is split.",
            )
    return folders


def _by_class(root: Path, folder: Path) -> Classes:
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    loose = [path for path in inside if path.name.lower().endswith(EXTENSIONS) and path.is_file()]
    classes = {}
    for path in inside:
        images = [image.relative_to(root).as_posix() for image in _walk(path)] if path.is_dir() else []
        if images:
            classes[path.name] = images
    if loose and classes:
        raise UserError(
            f"{folder} holds images ({loose[0].name}, ...) beside folders of images ({min(classes)}, ...).",
            "Put every image into a folder of its class, or all into one folder.",
        )
    return classes or ({"": [path.relative_to(root).as_posix() for path in loose]} if loose else {})


def _walk(top: Path) -> Iterator[Path]:
    """All images below a folder, through links too, each folder once: a link may lead back up."""
    seen: set[str] = set()
    for folder, inner, names in os.walk(top, followlinks=True, onerror=_raise):
        real = os.path.realpath(folder)
        inner[:] = [] if real in seen else sorted(name for name in inner if not name.startswith("."))
        if real not in seen:
            yield from (
                Path(folder, name) for name in names if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
            )
        seen.add(real)


def _check_classes(folders: Mapping[str, Path], found: Mapping[str, Classes]) -> None:
    for split, folder in folders.items():
        unknown = sorted(set(found[split]) - set(found["train"]))
        if unknown:
            what = f"images of the class {unknown[0]!r}" if unknown[0] else "images outside folders of classes"
            more = f" and of {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise UserError(
                f"{folder} holds {what}{more}, {folders['train']} does not.",
                "Every class must have training images: use the same folders of classes in every split.",
            )


def _split(classes: Mapping[str, Sequence[str]]) -> dict[str, Classes]:
    """A fifth of each class for testing: the images whose names' digest is small, whatever other images there are."""
    found: dict[str, Classes] = {"train": {}, "test": {}}
    for name, paths in classes.items():
        places = sorted((_place(path), path) for path in paths)
        # a small class may fall to one side as a whole: then its outermost image goes to the other
        most, least = len(paths) - 1, min(len(paths) - 1, 1)
        count = min(max(sum(place < TEST_SHARE for place, _ in places), least), most)
        found["train"][name] = [path for _, path in places[count:]]
        if count:
            found["test"][name] = [path for _, path in places[:count]]
    return found


def _place(path: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(os.fsencode(path)).digest()[:6]) / 2**48


def _raise(error: OSError) -> NoReturn:
    raise error


def _unreadable_folder(error: OSError, root: Path) -> UserError:
    return UserError(
        f"{error.filename or root} cannot be read: {error.strerror or error}",
        "Change its permissions; remove a link that leads nowhere.",
    )
