"""Which images a folder holds, of which class and split: the same list whatever order the file system tells them in.

Three layouts are understood: ``ROOT/{train,val,test}/CLASS/...`` (val may be missing or be called valid or validation),
``ROOT/CLASS/...`` and ``ROOT/*.jpg`` without labels. A class is a folder directly under the root or the split, whatever
lies deeper in it. Hidden files and folders are passed over, and so are folders of classes without images.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from equibench.errors import UserError

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
        raise _unreadable(error, root) from error
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
        raise _unreadable(error, root) from error
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


def _unreadable(error: OSError, root: Path) -> UserError:
    return UserError(
        f"{error.filename or root} cannot be read: {error.strerror or error}",
        "Change its permissions; remove a link that leads nowhere.",
    )
