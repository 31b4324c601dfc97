"""What a data set is: images with labels, a training and a test set, and their splits (docs/protocol.md 2)."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equibench.errors import UserError

DATASETS = ("cifar10", "solids")
SPLITS = ("train", "val", "test")
_SMALLEST = 8  # side of an image in pixels
VALIDATION_SHARE = 0.1
_Rows = NDArray[np.int64]


@dataclass(frozen=True)
class ImageSet:
    """Images and their labels; the arrays are memory-mapped and read-only.

    Data in which several pictures show one object bring along what differs between these: `latents` and `objects`.
    """

    images: np.ndarray  # (N, 3, H, W) uint8
    labels: np.ndarray  # (N,) int64, an index into the dataset's class names
    latents: np.ndarray | None = None  # (N, 7) float64, see `transforms.observed`
    objects: np.ndarray | None = None  # (N,) int64, which object; the views of one stand together


def image_sets(arrays: Mapping[str, np.ndarray]) -> tuple[ImageSet, ImageSet]:
    """The training and the test set of the four arrays of any dataset (`utils.arrays.ARRAYS`)."""
    train, test = (ImageSet(arrays[f"{half}_images"], arrays[f"{half}_labels"]) for half in ("train", "test"))
    return train, test


@dataclass(frozen=True)
class Dataset:
    """A training and a test set."""

    name: str  # "cifar10", "solids", or the name of a folder of images
    description: str  # one line for a table's header
    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]  # () where the data have no labels; these are then all 0
    sha256: str  # digest of the content: dtype, shape and bytes of the four arrays
    validation: int = 0  # how many images at the end of `train` are the data's own validation set; 0 if it has none
    left_out: int = 0  # files that could not be read and were passed over

    @property
    def has_objects(self) -> bool:
        """Whether pairs of views come with the data instead of being made by a transformation."""
        return self.train.objects is not None


@dataclass(frozen=True)
class Listing:
    """The image files of each split, sorted by path: (path relative to the data set's folder, label)."""

    splits: dict[str, list[tuple[str, int]]]
    class_names: tuple[str, ...]  # () where there are no labels
    state: str  # digest of paths, labels and what the files hold
    passed_over: Counter[str] = field(default_factory=Counter)  # files that are no pictures by their names, by suffix


def split_indices(dataset: Dataset) -> dict[str, _Rows]:
    """Indices into the official training set (train, val) and the official test set (test).

    Where the data come without a validation set, a stratified tenth of the training set is for validation and is
    never pretrained on (docs/protocol.md 2.1).
    """
    rows = np.arange(len(dataset.train.labels))
    if dataset.validation and not dataset.has_objects:
        train, val = rows[: -dataset.validation], rows[-dataset.validation :]
    else:
        train, val = _parted(dataset.train, rows, VALIDATION_SHARE)
    return {"train": train, "val": val, "test": np.arange(len(dataset.test.labels))}


def known_indices(dataset: Dataset, share: float) -> _Rows:
    """The share of the training split whose transformations count as known (P1 Table 3): stratified, seed 0.

    Of data with objects, that share of the objects.
    """
    train = split_indices(dataset)["train"]
    return train if share >= 1 else _parted(dataset.train, train, share)[1]


def _parted(images: ImageSet, rows: _Rows, share: float) -> tuple[_Rows, _Rows]:
    """Rows in two parts, the second of that share of each class, or of all where a class would be missing on one side.

    Where there are objects, it is that share of the objects, and all views of one are in the same part.
    """
    labels = np.asarray(images.labels)[rows]
    first = owner = np.arange(len(rows))
    if images.objects is not None:
        _, first, owner = np.unique(np.asarray(images.objects)[rows], return_index=True, return_inverse=True)
    counts = np.bincount(labels[first])
    _, drawn = draw_rows(labels[first], share, stratified=counts[counts > 0].min() * share >= 1)
    apart = np.isin(owner, drawn)
    return rows[~apart], rows[apart]


def draw_rows(labels: ArrayLike, size: float, stratified: bool) -> tuple[_Rows, _Rows]:
    """The numbers of the labels in two parts, both ascending, the second of that share or count, drawn with seed 0."""
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(np.asarray(labels)))
    rest, part = train_test_split(rows, test_size=size, random_state=0, stratify=labels if stratified else None)
    return np.sort(rest), np.sort(part)


def image_source(dataset: Dataset, split: str) -> ImageSet:
    """The official set that a split's indices point into."""
    return dataset.test if split == "test" else dataset.train


def check_size(size: int) -> None:
    """Refuses, by a UserError, images with a side of fewer than 8 pixels."""
    if size < _SMALLEST:
        raise UserError(f"size={size} is too small for images", f"give a side of {_SMALLEST} pixels or more")


def existing_folder(root: Path | str, expected: str) -> Path:
    """The path of a folder; a UserError where there is none, with what was ``expected``."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}", expected)
    return folder


def data_roots(data_root: Path | str | None, expected: str) -> tuple[list[Path], str]:
    """Where published data are looked for: ``data_root``, then $EQUIBENCH_DATA; and the same in words.

    A UserError tells that ``data_root`` is not a folder.
    """
    roots = [Path(root).expanduser() for root in (data_root, os.environ.get("EQUIBENCH_DATA")) if root]
    if data_root and not roots[0].is_dir():
        raise UserError(f"data_root {data_root} is not a folder", expected)
    return roots, " or ".join(map(str, roots)) or "$EQUIBENCH_DATA, which is not set"
