"""The data sets of linear transfer (docs/protocol.md 2.5) as memory-mapped arrays, found, checked, decoded once.

What is published, and how the lists are read, stands in `transfer_sources`; CIFAR's files are read by `cifar`.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

import numpy as np
from PIL import Image

from equibench.data.cifar import cifar100_state, read_cifar100
from equibench.data.dataset import Dataset, ImageSet, Listing, check_size, image_sets, image_source, split_indices
from equibench.data.folder import middle
from equibench.data.load import load_dataset, root_of_cifar10
from equibench.data.pictures import read_picture, treated_words
from equibench.data.transfer_sources import SOURCES, PublishedData, find_source, is_generated, list_transfer
from equibench.errors import UserError
from equibench.utils.arrays import arrays_folder, cache_folder, prepare_images, writing_to_cache
from equibench.utils.download import Unavailable, exclusive

TRANSFER_DATASETS = tuple(SOURCES)
_VERSION = 2  # raised whenever the same files would give other arrays

_Picture = Path | np.ndarray  # a file, or pixels (3, H, W) uint8
_Held = tuple[Mapping[str, Sequence[tuple[_Picture, int]]], Mapping[str, tuple[str, ...]]]
"""Pictures and their labels by split, and the "class_names"."""


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


def load_transfer(
    name: str, *, size: int, data_root: Path | str | None = None, skip_bad: bool = False, download: bool = False
) -> TransferData:
    """Opens a data set of linear transfer, after decoding it into the cache where this is the first time.

    Each image is made RGB (see `pictures`), its short side resized to ``size`` (bicubic), and the middle taken
    (Kornblith et al. 2019, as in docs/protocol.md 2.5); as in torchvision, a camera's note of its orientation is not
    heeded, and FGVC-Aircraft keeps the strip with the photographer's name. Splits are the published ones; where
    validation images are not published, a stratified draw with seed 0 sets them apart from the training images.

    Args:
        name: one of `TRANSFER_DATASETS`.
        size: side of the images in pixels, 8 or more.
        data_root: the data set's folder or the one that holds it; without it $EQUIBENCH_DATA, then the cache.
        skip_bad: leave out images that are absent or cannot be decoded, and count them.
        download: whether what is in neither of the last two may be downloaded into the cache.

    Raises:
        Unavailable: (a UserError) the data set is neither in $EQUIBENCH_DATA nor in the cache nor downloaded.
        UserError: the name is unknown; ``data_root`` does not hold it; a list or an image is missing, malformed, in two
            splits or not as published; an image cannot be decoded; the size is too small; the cache cannot be written.
    """
    if name not in SOURCES:
        raise UserError(f"there is no data set of linear transfer named {name!r}", f"known: {', '.join(SOURCES)}")
    check_size(size)
    source, generated = SOURCES[name], False
    state: str  # changes when the pictures or labels do
    read: Callable[[], _Held]
    if name == "cifar10":
        dataset = load_dataset(name, data_root=data_root, download=download)
        state, read = dataset.sha256, partial(_split_arrays, dataset)
    else:
        root = _find(source, data_root, download)
        generated = is_generated(root)
        if name == "cifar100":
            state, read = cifar100_state(root), lambda: _split_arrays(read_cifar100(root))
        else:
            listed = list_transfer(name, root, skip_bad=skip_bad)
            state, read = listed.state, partial(_listed_files, root, listed)
    key = hashlib.sha256(f"{_VERSION}|{size}|{state}".encode()).hexdigest()
    place, treated = arrays_folder(f"transfer-{name}-{key[:32]}"), Counter[str]()
    stored = prepare_images(
        place,
        lambda: ((held := read())[0], {**held[1], "treated": treated}),
        lambda picture: _decode(picture, size, treated),
        size=size,
        title=source.title,
        skip_bad=skip_bad,
    )
    bad = len(stored.facts["bad"])
    both, test = image_sets(stored.arrays)
    border = len(both.labels) - int(stored.facts["validation"])
    train, val = (ImageSet(both.images[part], both.labels[part]) for part in (np.s_[:border], np.s_[border:]))
    counts = " + ".join(f"{len(one.labels):,}" for one in (train, val, test))
    notes = (f", {bad:,} bad ones left out" if bad else "") + treated_words(stored.facts["treated"])
    kind = f"images generated by equibench in the layout of {source.title}, not real" if generated else source.title
    return TransferData(
        name="rendered-" * generated + name,
        description=f"{kind} ({counts} images, {size} px{notes})",
        train=train,
        val=val,
        test=test,
        class_names=tuple(stored.facts["class_names"]),
        sha256=stored.sha256,
        metric=cast(Literal["top1", "mean_per_class"], source.metric),
        bad=bad,
    )


def missing_transfer(name: str, data_root: Path | str | None = None) -> str:
    """Which folder to put where for a data set that is not there; "" where it is. Arguments as for `load_transfer`."""
    try:
        if name == "cifar10":
            load_dataset(name, data_root=root_of_cifar10(data_root, others=True), download=False)
        else:
            _find(SOURCES[name], data_root, download=False)
    except UserError:
        return f"put the folder {SOURCES[name].folder} below --data-root or $EQUIBENCH_DATA"
    return ""


def _find(source: PublishedData, data_root: Path | str | None, download: bool) -> Path:
    named = [os.environ.get("EQUIBENCH_DATA") or None, cache_folder()] if data_root is None else [data_root]
    roots = [Path(root).expanduser() for root in named if root is not None]
    found = next((folder for root in roots if (folder := find_source(source, root))), None)
    if found is None and data_root is None and download and source.torchvision:
        found = _fetch(source)
    if found is None:
        fetch, line = source.by_hand, f"from torchvision.datasets import {source.torchvision} as D; "
        if source.torchvision:
            line += f"D('{roots[-1]}', download=True)"
            fetch = f'it can be fetched with\npython -c "{line}"\nfrom {source.url}'
        problem = f"{source.title} is not in {' or '.join(map(str, roots))}"
        fix = f"expected there:\n{source.tree}\n{fetch}"
        raise Unavailable(problem, fix) if data_root is None else UserError(problem, fix)
    return found


def _fetch(source: PublishedData) -> Path | None:
    """Lets torchvision download into a scratch folder, and puts the whole into the cache: complete or not there."""
    import torchvision.datasets

    folder = source.folder
    with writing_to_cache("6 GB") as cache, exclusive(cache / f".{folder}.lock"):
        if not (cache / folder).is_dir():  # another process may have fetched it while this one waited
            with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as scratch:
                try:
                    getattr(torchvision.datasets, source.torchvision)(scratch, download=True)
                except (OSError, RuntimeError) as error:
                    problem = f"{source.title} could not be downloaded: {error}"
                    fix = f"fetch it on another machine from {source.url} and put it into {cache}:\n{source.tree}"
                    raise Unavailable(problem, fix) from error
                os.rename(Path(scratch) / folder, cache / folder)
        return find_source(source, cache)


def _listed_files(root: Path, listed: Listing) -> _Held:
    pictures = {split: [(root / path, label) for path, label in rows] for split, rows in listed.splits.items()}
    return pictures, {"class_names": listed.class_names}


def _split_arrays(dataset: Dataset) -> _Held:
    pictures = {}
    for split, rows in split_indices(dataset).items():
        half = image_source(dataset, split)
        pictures[split] = [(half.images[row], int(half.labels[row])) for row in rows]
    return pictures, {"class_names": dataset.class_names}


def _decode(picture: _Picture, size: int, treated: Counter[str] | None = None) -> np.ndarray:
    if isinstance(picture, Path):
        return middle(read_picture(picture, turn=False, treated=treated), size, size)
    return middle(Image.fromarray(picture.transpose(1, 2, 0)), size, size)
