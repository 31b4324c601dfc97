"""A folder of images as a dataset: decoded, resized and cropped once, then opened as memory-mapped arrays."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, ImageOps

from equibench.data.dataset import DATASETS, Dataset, ImageSet, Listing, check_size, existing_folder
from equibench.errors import UserError
from equibench.utils.arrays import arrays_folder, prepare_images

MARGIN_FROM = 64  # larger images are cut out of ones that are 256/224 times as large
VERSION = 1  # raised whenever the same files would give other arrays
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
TEST_SHARE = 0.2  # where the data come without a test set
FEWEST = {"train": 2}  # so that one can be set apart for validation

_Classes = dict[str, list[str]]
"""Paths relative to the root by class; the class is "" where there are none."""


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
    folder = existing_folder(root, "give a folder of images: ROOT/train/CLASS/*.jpg, ROOT/CLASS/*.jpg, ...")
    check_size(size)
    listing = list_images(folder, (VERSION, size))
    stored = prepare_images(
        arrays_folder(f"folder-{listing.state[:16]}"),
        lambda: (listing.splits, {}),
        partial(_decode, folder, size),
        size=size,
        title=folder.name,
        skip_bad=skip_bad,
        root=folder,
    )
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


def middle(image: Image.Image, size: int, short: int) -> np.ndarray:
    """(3, size, size) uint8: an RGB image, its short side resized to ``short`` as torchvision does, and its middle."""
    wide, high = (int(short * side / min(image.size)) for side in image.size)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    resized = image.resize((wide, high), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


def _decode(root: Path, size: int, path: str) -> np.ndarray:
    with Image.open(root / path) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):  # 16 bits: Pillow would cut all above 255
        image = Image.fromarray((np.asarray(image).clip(0, 2**16 - 1) >> 8).astype(np.uint8))
    return middle(image.convert("RGB"), size, size if size <= MARGIN_FROM else round(size * 256 / 224))


# Which images a folder holds


def list_images(root: Path, key: object) -> Listing:
    """The images under a folder; the listing's state covers the key and the root too.

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
            raise UserError(f"{folders.get(split, root)} holds {many}", f"images end in {', '.join(EXTENSIONS)}")
    _check_classes(folders, found)
    names = sorted(found["train"])
    labels = {name: label for label, name in enumerate(names)}
    splits = {
        split: sorted((path, labels[name]) for name, paths in classes.items() for path in paths)
        for split, classes in found.items()
    }
    # With the root: unpacked archives may give all files one time, and pictures without compression have one size.
    digest = hashlib.sha256(f"{key}|".encode() + os.fsencode(root.resolve()))
    for split, images in sorted(splits.items()):
        for path, label in images:
            try:
                state = os.stat(root / path)
            except OSError as error:
                raise _unreadable_folder(error, root) from error
            digest.update(f"|{split}|{label}|{state.st_size}|{state.st_mtime_ns}|".encode() + os.fsencode(path))
    return Listing(splits, () if names == [""] else tuple(names), digest.hexdigest())


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits; empty where the root is not split.

    A folder called train may be a class of vehicles: it is a split where another split, or nothing, stands beside it.
    """
    inner = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    folders: dict[str, Path] = {}
    for path in inner:
        split = SPLIT_FOLDERS.get(path.name.lower())
        if split and split in folders:
            raise UserError(f"{root} holds both {folders[split].name} and {path.name}", "keep one of them")
        if split:
            folders[split] = path
    if len(folders) == 1 and len(inner) > 1:
        return {}
    for split in ("train", "test"):
        if folders and split not in folders:
            have = ", ".join(path.name for path in folders.values())
            raise UserError(
                f"{root} has no folder {split}/ beside {have}",
                "name the splits train, val (may be missing) and test; or give a folder of classes, which is split",
            )
    return folders


def _by_class(root: Path, folder: Path) -> _Classes:
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    loose = [path for path in inside if path.name.lower().endswith(EXTENSIONS) and path.is_file()]
    classes = {}
    for path in inside:
        images = [image.relative_to(root).as_posix() for image in _walk(path)] if path.is_dir() else []
        if images:
            classes[path.name] = images
    if loose and classes:
        raise UserError(
            f"{folder} holds images ({loose[0].name}, ...) beside folders of images ({min(classes)}, ...)",
            "put every image into a folder of its class, or all into one folder",
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


def _check_classes(folders: Mapping[str, Path], found: Mapping[str, _Classes]) -> None:
    for split, folder in folders.items():
        unknown = sorted(set(found[split]) - set(found["train"]))
        if unknown:
            what = f"images of the class {unknown[0]!r}" if unknown[0] else "images outside folders of classes"
            more = f" and of {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise UserError(
                f"{folder} holds {what}{more}, {folders['train']} does not",
                "use the same folders of classes in every split: every class must have training images",
            )


def _split(classes: Mapping[str, Sequence[str]]) -> dict[str, _Classes]:
    """A fifth of each class for testing: the images whose names' digest is small, whatever other images there are."""
    found: dict[str, _Classes] = {"train": {}, "test": {}}
    for name, paths in classes.items():
        digests = [hashlib.sha256(os.fsencode(path)).digest() for path in paths]
        places = sorted((int.from_bytes(one[:6]) / 2**48, path) for one, path in zip(digests, paths, strict=True))
        # a small class may fall to one side as a whole: then its outermost image goes to the other
        most, least = len(paths) - 1, min(len(paths) - 1, 1)
        count = min(max(sum(place < TEST_SHARE for place, _ in places), least), most)
        found["train"][name] = [path for _, path in places[count:]]
        if count:
            found["test"][name] = [path for _, path in places[:count]]
    return found


def _raise(error: OSError) -> NoReturn:
    raise error  # os.walk would pass it over


def _unreadable_folder(error: OSError, root: Path) -> UserError:
    return UserError(
        f"{error.filename or root} cannot be read: {error.strerror or error}",
        "change its permissions, or remove a link that leads nowhere",
    )
