"""The pair manifest: which image, which θ, which split. Drawn once, stored, hashed; no loader draws anything.

Every number comes from a counter-based generator (Philox) whose key is a hash of the names of what is drawn,
so that sample i's θ does not depend on how many samples there are, on workers, on batches or on the machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from equibench.data.datasets import Dataset, ImageSet
from equibench.errors import UserError
from equibench.transforms import TRANSFORMATIONS

SPLITS = ("train", "val", "test")
VALIDATION_SHARE = 0.1
DECIMALS = 6  # θ is rounded so that a last-bit difference between maths libraries cannot change a hash


def uniforms(shape: tuple[int, int], *key: object) -> NDArray[np.float64]:
    """Numbers in [0, 1) that depend only on the key and on the row, not on the number of rows."""
    digest = hashlib.sha256("|".join(map(str, key)).encode()).digest()
    philox = np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64))
    return np.random.Generator(philox).random(shape)


def draw_theta(name: str, count: int, size: int, *key: object) -> NDArray[np.float64]:
    """θ of one transformation for samples 0 to count - 1: (count, P)."""
    transformation = TRANSFORMATIONS[name]
    theta = transformation.draw(uniforms((count, transformation.uniforms), name, *key), size)
    return np.round(theta, DECIMALS)


def split_indices(dataset: Dataset) -> dict[str, NDArray[np.int64]]:
    """Indices into the official training set (train, val) and the official test set (test).

    Where the data come without a validation set, a stratified tenth of the training set is for validation and is
    never pretrained on (PROTOCOL 2.4 #26).
    """
    test = np.arange(len(dataset.test.labels))
    if dataset.train.objects is not None:
        return {**_split_objects(np.asarray(dataset.train.objects), np.asarray(dataset.train.labels)), "test": test}
    if dataset.validation:
        border = len(dataset.train.labels) - dataset.validation
        return {"train": np.arange(border), "val": np.arange(border, len(dataset.train.labels)), "test": test}
    train, val = _stratified(np.asarray(dataset.train.labels), VALIDATION_SHARE)
    return {"train": train, "val": val, "test": test}


def known_indices(dataset: Dataset, share: float) -> NDArray[np.int64]:
    """The share of the training split whose transformations count as known (P1 Table 3): stratified, seed 0.

    Of data with objects, that share of the objects.
    """
    train = split_indices(dataset)["train"]
    if share >= 1:
        return train
    if dataset.train.objects is None:
        return train[_stratified(np.asarray(dataset.train.labels)[train], share)[1]]
    objects = np.asarray(dataset.train.objects)[train]
    return train[_split_objects(objects, np.asarray(dataset.train.labels)[train], share)["val"]]


def _split_objects(
    objects: NDArray[np.int64], labels: NDArray[np.int64], share: float = VALIDATION_SHARE
) -> dict[str, NDArray[np.int64]]:
    """Rows of which all views of an object are on one side."""
    names, first = np.unique(objects, return_index=True)
    _, apart = _stratified(labels[first], share)
    side = np.isin(objects, names[apart])
    return {"train": np.flatnonzero(~side), "val": np.flatnonzero(side)}


def _stratified(labels: NDArray[np.int64], share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows in two parts, the second of about that share, each class in proportion where it has enough rows."""
    counts = np.bincount(labels)
    every_class = counts[counts > 0].min() * share >= 1  # else a class would be missing on one side
    rest, part = train_test_split(
        np.arange(len(labels)), test_size=share, random_state=0, stratify=labels if every_class else None
    )
    return np.sort(rest), np.sort(part)


@dataclass(frozen=True)
class Pairs:
    """The pairs (I, g(I)) of one task, all splits in one array: train first, then val, then test.

    Attributes:
        transformation: the name of g.
        image: (N,) int64 index into the split's own image set.
        theta: (N, P) float64.
        sizes: number of pairs in train, val and test.
        sha256: digest of everything above and below, of the data and of the task's name and version.
        images_sha256: digest of which images of which data: equal for tasks that share their first views.
        then: (N, P) θ of a second step, after the first one; None where there is one step.
        other: (N,) index of the second view, where it is a picture of the data's own and not computed from the first.
        cluster: so many test pairs that follow each other show one object, and are resampled together.
    """

    transformation: str
    image: NDArray[np.int64]
    theta: NDArray[np.float64]
    sizes: tuple[int, int, int]
    sha256: str
    images_sha256: str
    then: NDArray[np.float64] | None = None
    other: NDArray[np.int64] | None = None
    cluster: int = 1

    def rows(self, split: str) -> slice:
        start = sum(self.sizes[: SPLITS.index(split)])
        return slice(start, start + self.sizes[SPLITS.index(split)])


def draw_pairs(
    dataset: Dataset, transformation: str, sizes: tuple[int, int, int], *, task: str, version: int, repeats: int = 1
) -> Pairs:
    """Draw the manifest of a task.

    Args:
        repeats: how often an image of the training and validation splits may be used, each time with a new θ. A test
            image is used once, so that test pairs are independent.

    Raises:
        UserError: a split has fewer images than pairs are asked for.
    """
    image = _choose_images(dataset, sizes, repeats)
    side = dataset.train.images.shape[-1]
    theta = np.concatenate(
        [draw_theta(transformation, n, side, task, version, split) for n, split in zip(sizes, SPLITS, strict=True)]
    )
    return make_pairs(dataset, transformation, image, theta, sizes, task=task, version=version)


def make_pairs(
    dataset: Dataset,
    transformation: str,
    image: NDArray[np.int64],
    theta: NDArray[np.float64],
    sizes: tuple[int, int, int],
    *,
    task: str,
    version: int,
    then: NDArray[np.float64] | None = None,
) -> Pairs:
    """A manifest of given images and parameters, with its digests."""
    images_digest = hashlib.sha256(f"{dataset.sha256}|{sizes}".encode() + image.astype("<i8").tobytes())
    digest = images_digest.copy()
    digest.update(f"|{transformation}|{task}|{version}|".encode() + theta.astype("<f8").tobytes())
    if then is not None:
        digest.update(b"|then|" + then.astype("<f8").tobytes())
    return Pairs(transformation, image, theta, sizes, digest.hexdigest(), images_digest.hexdigest(), then)


def choose_images(dataset: Dataset, split: str, count: int, repeats: int = 1) -> NDArray[np.int64]:
    """The first images of a split's fixed permutation, which all tasks share; repeated in the same order if need be.

    Raises:
        UserError: the split has fewer images.
    """
    indices = split_indices(dataset)[split]
    if count > len(indices) * repeats:
        raise UserError(
            f"{dataset.name} has {len(indices):,} images in its {split} split, the profile asks for {count:,} pairs",
            "choose a smaller profile or complete data",
        )
    order = np.argsort(uniforms((len(indices), 1), "images", split)[:, 0], kind="stable")
    return np.resize(indices[order], count) if count else np.empty(0, dtype=np.int64)


def _choose_images(dataset: Dataset, sizes: tuple[int, int, int], repeats: int) -> NDArray[np.int64]:
    each = (repeats, repeats, 1)
    return np.concatenate([choose_images(dataset, s, n, r) for s, n, r in zip(SPLITS, sizes, each, strict=True)])


def image_source(dataset: Dataset, split: str) -> ImageSet:
    """The official set that a split's indices point into."""
    return dataset.test if split == "test" else dataset.train


def pretraining_epoch(
    indices: NDArray[np.int64], size: int, transformations: Iterable[str], seed: int, epoch: int
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """One epoch of pretraining pairs: the image indices in their order, and θ by transformation."""
    key = ("pretraining", seed, epoch)
    order = np.argsort(uniforms((len(indices), 1), "order", *key)[:, 0], kind="stable")
    theta = {name: draw_theta(name, len(indices), size, *key) for name in transformations}
    return indices[order], theta
