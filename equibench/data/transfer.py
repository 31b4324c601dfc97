"""The seven data sets of linear transfer (docs/protocol.md 2.5) as memory-mapped arrays, found, checked, decoded once.

Where they lie and how their lists are read stands in `transfer_sources` and `cifar`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from PIL import Image

from equibench.data.cifar import cifar100_state, read_cifar100
from equibench.data.dataset import SMALLEST, SPLITS, Dataset, ImageSet, image_source, split_indices
from equibench.data.load import load_dataset, root_of_cifar10
from equibench.data.transfer_sources import SOURCES, PublishedData, find_source, is_generated, list_transfer
from equibench.errors import UserError
from equibench.utils.arrays import (
    RowWriter,
    Stored,
    arrays_folder,
    cache_folder,
    decode_all,
    open_arrays,
    progress,
    store_arrays,
    writing_to_cache,
)
from equibench.utils.download import Unavailable, exclusive

TRANSFER_DATASETS = tuple(SOURCES)
VERSION = 1  # raised whenever the same files would give other arrays
NO_HOST = """\
Its official host serves neither the images nor the lists any more (pytorch/vision#9348): they must come from a copy.
Mirrors that others name, not checked here: OpenDataLab's SUN397, Kaggle's sun397-50-50."""

Picture = Path | np.ndarray
"""A file, or pixels (3, H, W) uint8."""
_Pictures = dict[str, list[tuple[Picture, int]]]
"""Pictures and their labels by split."""


@dataclass(frozen=True)
class TransferData:
    """One data set: images (N, 3, size, size) uint8 and labels (N,) int64, memory-mapped and read-only."""

    name: str  # as asked for, with "rendered-" before it where a note in the folder says that the images are
    description: str  # one line for a table's header
    train: ImageSet
    val: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    sha256: str  # digest of the content: train with val at its end, and test
    metric: Literal["top1", "mean_per_class"]  # the headline's; docs/protocol.md 8.4
    bad: int  # how many images were left out


@dataclass(frozen=True)
class _Plan:
    """What is known of a data set before one of its pictures is opened."""

    title: str
    where: str
    state: str  # changes when the pictures or labels do
    read: Callable[[], tuple[_Pictures, tuple[str, ...]]]  # what it holds, and the names of its classes


def load_transfer(
    name: str, *, size: int, data_root: Path | str | None = None, skip_bad: bool = False, download: bool = False
) -> TransferData:
    """Opens a data set of linear transfer, after decoding it into the cache where this is the first time.

    Each image is made RGB, its short side resized to ``size`` (bicubic), and the middle taken (Kornblith et al. 2019,
    as in docs/protocol.md 2.5); as in torchvision, a camera's note of its orientation is not heeded, and FGVC-Aircraft
    keeps the strip with the photographer's name. Splits are the published ones; where validation images are not
    published, a stratified draw with seed 0 sets them apart from the training images.

    Args:
        name: one of `TRANSFER_DATASETS`.
        size: side of the images in pixels, 8 or more.
        data_root: the data set's folder or the one that holds it; where it is given, no other place is looked at.
            Without it that is $EQUIBENCH_DATA, then the cache.
        skip_bad: leave out images that are absent or cannot be decoded, and count them.
        download: whether what is in none of these may be downloaded into the cache.

    Raises:
        Unavailable: (a UserError) the data set is neither in $EQUIBENCH_DATA nor in the cache nor downloaded.
        UserError: the name is unknown; ``data_root`` does not hold it; a list or an image is missing, malformed, in two
            splits or not as published; an image cannot be decoded; the size is too small; the cache cannot be written.
    """
    if name not in SOURCES:
        raise UserError(f"There is no data set of linear transfer named {name!r}.", f"Known: {', '.join(SOURCES)}.")
    if size < SMALLEST:
        raise UserError(f"size={size} is too small for images.", f"Give a side of {SMALLEST} pixels or more.")
    generated = False
    if name == "cifar10":
        dataset = load_dataset(name, data_root=data_root, download=download)
        plan = _Plan("CIFAR-10", "CIFAR-10", dataset.sha256, partial(_split_arrays, dataset))
    else:
        root = _find(SOURCES[name], data_root, download)
        generated = is_generated(root)
        plan = _plan_cifar100(root) if name == "cifar100" else _plan_images(name, root, skip_bad)
    key = hashlib.sha256(f"{VERSION}|{size}|{plan.state}".encode()).hexdigest()
    place = arrays_folder(f"transfer-{name}-{key[:16]}")
    stored = open_arrays(place) or _prepare(place, plan, size, skip_bad)
    bad = stored.facts["bad"]
    if bad and not skip_bad:  # another call had asked to leave them out
        raise _unreadable(*bad[0])
    return _as_data(name, stored, generated, size)


def missing_transfer(name: str, data_root: Path | str | None = None) -> str:
    """Which folder to put where for a data set that is not there; "" where it is. Nothing is read or decoded.

    Args:
        name, data_root: as for `load_transfer`.
    """
    try:
        if name == "cifar10":
            load_dataset(name, data_root=root_of_cifar10(data_root, others=True), download=False)
        else:
            _find(SOURCES[name], data_root, download=False)
    except UserError:
        folder = "cifar-10-batches-bin" if name == "cifar10" else SOURCES[name].folder
        return f"put the folder {folder} below --data-root or $EQUIBENCH_DATA"
    return ""


def _as_data(name: str, stored: Stored, generated: bool, size: int) -> TransferData:
    source, bad = SOURCES[name], len(stored.facts["bad"])
    images, labels = stored.arrays["train_images"], stored.arrays["train_labels"]
    border = len(labels) - int(stored.facts["validation"])
    train, val = ImageSet(images[:border], labels[:border]), ImageSet(images[border:], labels[border:])
    test = ImageSet(stored.arrays["test_images"], stored.arrays["test_labels"])
    counts = " + ".join(f"{len(one.labels):,}" for one in (train, val, test))
    kind = f"images generated by equibench in the layout of {source.title}, not real" if generated else source.title
    description = f"{kind} ({counts} images, {size} px{f', {bad:,} bad ones left out' if bad else ''})"
    metric = cast(Literal["top1", "mean_per_class"], source.metric)
    name = "rendered-" * generated + name
    classes = tuple(stored.facts["class_names"])
    return TransferData(name, description, train, val, test, classes, stored.sha256, metric, bad)


# Where it is


def _find(source: PublishedData, data_root: Path | str | None, download: bool) -> Path:
    named = [data_root] if data_root is not None else [os.environ.get("EQUIBENCH_DATA") or None, cache_folder()]
    roots = [Path(root).expanduser() for root in named if root is not None]
    for root in roots:
        folder = find_source(source, root)
        if folder is not None:
            return folder
    if data_root is None and download and source.torchvision:
        return _fetch(source)
    line = (
        f"""python -c "from torchvision.datasets import {source.torchvision} as D; D('{roots[-1]}', download=True)\""""
    )
    fetch = f"It can be fetched with\n{line}\nfrom {source.url}" if source.torchvision else NO_HOST
    kind = UserError if data_root is not None else Unavailable
    where = " or ".join(map(str, roots))
    raise kind(f"{source.title} is not in {where}.", f"Expected there:\n{source.tree}\n{fetch}")


def _fetch(source: PublishedData) -> Path:
    """Lets torchvision download into a scratch folder, and puts the whole into the cache: complete or not there."""
    import torchvision.datasets

    folder = source.folder
    with writing_to_cache("6 GB") as cache, exclusive(cache / f".{folder}.lock"):
        target = cache / folder
        if not target.is_dir():  # another process may have fetched it while this one waited
            with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as scratch:
                try:
                    getattr(torchvision.datasets, source.torchvision)(scratch, download=True)
                except (OSError, RuntimeError) as error:
                    problem = f"{source.title} could not be downloaded: {error}"
                    fix = f"Fetch it on another machine from {source.url} and put it into {cache}:\n{source.tree}"
                    raise Unavailable(problem, fix) from error
                os.rename(Path(scratch) / folder, target)
    found = find_source(source, cache)
    assert found is not None
    return found


# What it holds


def _plan_images(name: str, root: Path, skip_bad: bool) -> _Plan:
    listed = list_transfer(name, root, skip_bad=skip_bad)
    pictures: _Pictures = {s: [(root / path, label) for path, label in rows] for s, rows in listed.splits.items()}
    return _Plan(SOURCES[name].title, str(root), listed.state, lambda: (pictures, listed.class_names))


def _plan_cifar100(root: Path) -> _Plan:
    return _Plan("CIFAR-100", str(root), cifar100_state(root), lambda: _split_arrays(read_cifar100(root)))


def _split_arrays(dataset: Dataset) -> tuple[_Pictures, tuple[str, ...]]:
    pictures: _Pictures = {}
    for split, rows in split_indices(dataset).items():
        half = image_source(dataset, split)
        pictures[split] = [(half.images[row], int(half.labels[row])) for row in rows]
    return pictures, dataset.class_names


# From pictures to arrays


def _prepare(place: Path, plan: _Plan, size: int, skip_bad: bool) -> Stored:
    with writing_to_cache() as cache, exclusive(place.parent / f".{place.name}.lock"):
        stored = open_arrays(place)  # another process may have decoded them while this one waited
        if stored is not None:
            return stored
        pictures, class_names = plan.read()
        needed = sum(map(len, pictures.values())) * 3 * size**2
        space, free = f"{max(needed / 1e9, 0.1):,.1f} GB", shutil.disk_usage(cache).free
        if needed * 1.01 > free:
            raise UserError(
                f"{plan.title} at {size} px takes {space}; the cache {cache} has {free / 1e9:,.1f} GB free.",
                "Set EQUIBENCH_CACHE to a folder on a larger disk, or choose a smaller size.",
            )
        write = partial(_write, plan=plan, pictures=pictures, size=size, skip_bad=skip_bad)
        return store_arrays(place, lambda scratch: {**write(scratch), "class_names": class_names}, space=space)


def _write(scratch: Path, *, plan: _Plan, pictures: _Pictures, size: int, skip_bad: bool) -> dict[str, Any]:
    """Decodes all pictures into the four arrays; returns how many are for validation, and what was left out and why."""
    bad: list[tuple[str, str]] = []
    kept = dict.fromkeys(SPLITS, 0)
    with ExitStack() as stack:
        advance = stack.enter_context(progress(f"reading {plan.title}", sum(map(len, pictures.values()))))
        writers = {
            half: (
                stack.enter_context(RowWriter(scratch / f"{half}_images.npy", (3, size, size), np.uint8)),
                stack.enter_context(RowWriter(scratch / f"{half}_labels.npy", (), np.int64)),
            )
            for half in ("train", "test")
        }
        for split in SPLITS:
            images, labels = writers["test" if split == "test" else "train"]
            files = (picture for picture, _ in pictures[split])
            decoded = stack.enter_context(closing(decode_all(files, partial(_decode, size=size))))
            for (picture, label), image in zip(pictures[split], decoded, strict=True):
                advance()
                if isinstance(image, str):
                    if not skip_bad:
                        raise _unreadable(str(picture), image)
                    bad.append((str(picture), image))
                    continue
                images.append(image)
                labels.append(label)
                kept[split] += 1
    for split in SPLITS:
        if not kept[split]:
            reason = f"The first: {bad[0][0]}: {bad[0][1]}" if bad else ""
            raise UserError(f"No {split} image of {plan.where} can be decoded.", reason)
    return {"validation": kept["val"], "bad": bad}


def _decode(picture: Picture, size: int) -> np.ndarray | str:
    """One picture as (3, size, size) uint8, or why it cannot be had."""
    try:
        opened = Image.open(picture) if isinstance(picture, Path) else Image.fromarray(picture.transpose(1, 2, 0))
        with opened:
            image = opened.convert("RGB")
        wide, high = (int(size * side / min(image.size)) for side in image.size)
        left, top = round((wide - size) / 2), round((high - size) / 2)
        image = image.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        return f"{type(error).__name__}: {error}"
    return np.asarray(image).transpose(2, 0, 1)


def _unreadable(path: str, reason: str) -> UserError:
    return UserError(
        f"{path} cannot be decoded: {reason}", "Replace the file, or leave out such files with skip_bad=True."
    )
