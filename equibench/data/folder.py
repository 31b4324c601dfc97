"""A folder of images as a dataset: decoded, resized and cropped once, then opened as memory-mapped arrays."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from equibench.data.contents import SKIP_BAD, file_digests
from equibench.data.dataset import DATASETS, Dataset, Listing, check_size, existing_folder, image_sets
from equibench.data.pictures import is_picture, picture_suffixes, read_picture, resized_part, treated_words
from equibench.errors import UserError
from equibench.utils.arrays import arrays_folder, prepare_images

MARGIN_FROM = 64  # larger images are cut out of ones that are 256/224 times as large
_VERSION = 2  # raised whenever the same files would give other arrays
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
TEST_SHARE = 0.2  # where the data come without a test set

_DEAD = "links that lead nowhere"

_Classes = dict[str, list[str]]
"""Paths relative to the root by class; the class is "" where there are none."""


def load_image_folder(root: Path | str, *, size: int = 224, skip_bad: bool = False) -> Dataset:
    """Opens a folder of images as a dataset, after decoding it into the cache where this is the first time.

    Each image is turned as its EXIF says, made RGB (see `pictures`) and resized (bicubic) so that its short side is
    ``size`` * 256 / 224, or ``size`` up to 64; its middle ``size`` x ``size`` pixels are taken: uint8 (N, 3, size,
    size). Images of a val folder stand at the end of `train`, counted by `Dataset.validation`. Without a test folder,
    a fifth of each class is the test set, chosen by a digest of the files' names, so that files added later leave the
    others where they are.
    Files are known by their content, all of which is read each time. What is no picture by its suffix is passed over,
    and the description counts and names it.

    Args:
        root: the folder; its name is the dataset's.
        size: side of the images in pixels, 8 or more.
        skip_bad: leave out images that cannot be decoded and links that lead nowhere; the description counts them.

    Raises:
        UserError: the folder is missing, holds no images, lacks a split or mixes layouts; a class is in the test set
            alone; an image cannot be decoded; the arrays do not fit on the disk; the size is too small.
    """
    folder = existing_folder(root, "give a folder of images: ROOT/train/CLASS/*.jpg, ROOT/CLASS/*.jpg, ...")
    check_size(size)
    try:
        listing = list_images(folder, (_VERSION, size), skip_bad=skip_bad)
    except OSError as error:
        problem = f"{error.filename or folder} cannot be read: {error.strerror or error}"
        raise UserError(problem, "change its permissions, or remove a link that leads nowhere") from error
    treated: Counter[str] = Counter()
    stored = prepare_images(
        arrays_folder(f"folder-{listing.state[:32]}"),
        lambda: (listing.splits, {"treated": treated}),
        lambda path: _decode(folder / path, size, treated),
        size=size,
        title=folder.name,
        skip_bad=skip_bad,
        root=folder,
    )
    name = folder.resolve().name or "images"
    if name in DATASETS:  # records must not take it for the data of that name
        name += "-folder"
    train, test = image_sets(stored.arrays)
    bad = len(stored.facts.get("bad", []))
    notes = f", {bad:,} that could not be decoded left out" if bad else ""
    notes += treated_words(stored.facts["treated"]) + _passed_over_words(listing.passed_over)
    description = f"{name} ({len(train.labels):,} + {len(test.labels):,} images from a folder, {size} px{notes})"
    validation = int(stored.facts.get("validation", 0))
    return Dataset(name, description, train, test, listing.class_names, stored.sha256, validation, left_out=bad)


def middle(image: Image.Image, size: int, short: int) -> np.ndarray:
    """(3, size, size) uint8: an RGB image, its short side resized to ``short`` as torchvision does, and its middle."""
    wide, high = (int(short * side / min(image.size)) for side in image.size)
    corner = (round((wide - size) / 2), round((high - size) / 2))
    return resized_part(image, (wide, high), corner, size)


def _decode(path: Path, size: int, treated: Counter[str] | None = None) -> np.ndarray:
    image = read_picture(path, turn=True, treated=treated)
    return middle(image, size, size if size <= MARGIN_FROM else round(size * 256 / 224))


def list_images(root: Path, key: object, *, skip_bad: bool = False) -> Listing:
    """The images under a folder; the listing's state covers the key, and what the files hold.

    A UserError tells that it holds no images, lacks a split or mixes layouts, a class has no training images, or
    (without ``skip_bad``) a file cannot be read.
    """
    folders, others = _split_folders(root), Counter[str]()
    found = {split: _by_class(root, folder, others) for split, folder in folders.items()}
    found = found or _split(_by_class(root, root, others))
    for split, classes in found.items():
        count = sum(map(len, classes.values()))
        if count < (2 if split == "train" else 1):  # of two, one can be set apart for validation
            many = "no images" if not count else f"{count} image{'s' * (count > 1)}, too few"
            many += " to split" * (count > 0 and not folders)
            raise UserError(f"{folders.get(split, root)} holds {many}{_passed_over_words(others)}", _known_suffixes())
    labels = {name: label for label, name in enumerate(sorted(found["train"]))}
    for split, folder in folders.items():
        unknown = sorted(set(found[split]) - set(labels))
        if unknown:
            what = f"images of the class {unknown[0]!r}" if unknown[0] else "images outside folders of classes"
            more = f" and of {len(unknown) - 1} more" if len(unknown) > 1 else ""
            fix = "use the same folders of classes in every split: every class must have training images"
            raise UserError(f"{folder} holds {what}{more}, {folders['train']} does not", fix)
    splits = {
        split: sorted((path, labels[name]) for name, paths in classes.items() for path in paths)
        for split, classes in found.items()
    }
    if others[_DEAD] and not skip_bad:
        raise UserError(f"{root} holds {others[_DEAD]:,} {_DEAD}", SKIP_BAD)
    entries = [(split, *image) for split, images in sorted(splits.items()) for image in images]
    digests = file_digests(root, [path for _, path, _ in entries], skip_bad=skip_bad)
    state = hashlib.sha256(f"{key}|".encode())
    for (split, path, label), digest in zip(entries, digests, strict=True):
        state.update(f"|{split}|{label}|{digest}|".encode() + os.fsencode(path))
    return Listing(splits, () if list(labels) == [""] else tuple(labels), state.hexdigest(), others)


def _known_suffixes() -> str:
    return f"images end in {', '.join(sorted(picture_suffixes()))}"


def _passed_over_words(others: Counter[str]) -> str:
    """How many files were no pictures by their names, by suffix; "" where none were."""
    if not others:
        return ""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common())
    return f"; passed over: {kinds}"


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits; empty where the root is not split.

    A folder called train may be a class of vehicles: it is a split where another split, or nothing, stands beside it.
    """
    inner = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    folders: dict[str, Path] = {}
    for path in (path for path in inner if path.name.lower() in SPLIT_FOLDERS):
        one = folders.setdefault(SPLIT_FOLDERS[path.name.lower()], path)
        if one != path:
            raise UserError(f"{root} holds both {one.name} and {path.name}", "keep one of them")
    if len(folders) == 1 and len(inner) > 1:
        return {}
    for split in ("train", "test"):
        if folders and split not in folders:
            have = ", ".join(path.name for path in folders.values())
            fix = "name the splits train, val (may be missing) and test; or give a folder of classes, which is split"
            raise UserError(f"{root} has no folder {split}/ beside {have}", fix)
    return folders


def _by_class(root: Path, folder: Path, others: Counter[str]) -> _Classes:
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    loose = [path for path in inside if not path.is_dir() and _counts(path, others)]
    classes = {path.name: list(_walk(path, others)) for path in inside if path.is_dir()} | {"": loose}
    classes = {name: images for name, images in classes.items() if images}
    if loose and len(classes) > 1:
        inner = min(filter(None, classes))
        problem = f"{folder} holds images ({loose[0].name}, ...) beside folders of images ({inner}, ...)"
        raise UserError(problem, "put every image into a folder of its class, or all into one folder")
    return {name: [path.relative_to(root).as_posix() for path in images] for name, images in classes.items()}


def _walk(top: Path, others: Counter[str]) -> Iterator[Path]:
    """All images below a folder, through links too, each folder once: a link may lead back up."""
    seen: set[str] = set()
    for folder, inner, names in os.walk(top, followlinks=True, onerror=_raise):
        real = os.path.realpath(folder)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (path for name in names if not name.startswith(".") and _counts(path := Path(folder, name), others))


def _counts(path: Path, others: Counter[str]) -> bool:
    """Whether a file is a picture by its name; all else is counted by its suffix."""
    if is_picture(path.name):
        return True
    others[_DEAD if not path.exists() else path.suffix.lower() or "without a suffix"] += 1
    return False


def _split(classes: _Classes) -> dict[str, _Classes]:
    """A fifth of each class for testing: the images whose names' digest is small, whatever other images there are."""
    found: dict[str, _Classes] = {"train": {}, "test": {}}
    for name, paths in classes.items():
        places = sorted(
            (int.from_bytes(hashlib.sha256(os.fsencode(path)).digest()[:6]) / 2**48, path) for path in paths
        )
        # a small class may fall to one side as a whole: then its outermost image goes to the other
        most, least = len(paths) - 1, min(len(paths) - 1, 1)
        count = min(max(sum(place < TEST_SHARE for place, _ in places), least), most)
        found["train"][name] = [path for _, path in places[count:]]
        if count:
            found["test"][name] = [path for _, path in places[:count]]
    return found


def _raise(error: OSError) -> NoReturn:
    raise error  # os.walk would pass it over
