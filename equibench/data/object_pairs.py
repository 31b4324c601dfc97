"""Pairs of views that data bring along, as 3DIEBench does: which object, which two of its views, and θ from latents.

Drawn as all pairs are (see `pairs`): by counter-based generators, from names and rows alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from equibench.data.datasets import Dataset
from equibench.data.pairs import DECIMALS, SPLITS, Pairs, image_source, make_pairs, split_indices, uniforms
from equibench.errors import UserError
from equibench.transforms import BETWEEN


def draw_object_pairs(
    dataset: Dataset, transformation: str, sizes: tuple[int, int, int], *, task: str, version: int
) -> Pairs:
    """Pairs of different views of one object: the same pairs for each task on the data (PROTOCOL 1.2).

    Every object of a split has as many pairs as any other: the largest number with which no split has more pairs than
    asked for, and one where there are more objects than that; surplus objects are then left out.

    Raises:
        UserError: the data have no views of objects.
    """
    if not dataset.has_objects:
        raise UserError(
            f"{dataset.name} has no views of objects, which {transformation!r} lies between",
            "choose data in 3DIEBench's layout (`equibench data render` makes some), or another task",
        )
    parts, each = [], 1
    for split, wanted in zip(SPLITS, sizes, strict=True):
        objects = split_objects(dataset, split)
        each = max(1, wanted // len(objects))
        chosen = np.argsort(uniforms((len(objects), 1), "objects", split)[:, 0], kind="stable")[:wanted]
        parts.append(object_pairs([objects[i] for i in chosen], each, "pairs", split))
    first, second = (np.concatenate([part[view] for part in parts]) for view in (0, 1))
    counts = tuple(len(part[0]) for part in parts)
    return between_views(dataset, transformation, first, second, counts, task=task, version=version, cluster=each)


def between_views(
    dataset: Dataset,
    transformation: str,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    sizes: tuple[int, ...],
    *,
    task: str,
    version: int,
    cluster: int = 1,
) -> Pairs:
    """The manifest of pairs of the data's own views, split after split, with θ from their latents."""
    train, val, test = sizes
    theta: list[NDArray[np.float64]] = []
    start = 0
    for split, count in zip(SPLITS, sizes, strict=True):
        rows, latents = slice(start, start + count), image_source(dataset, split).latents
        assert latents is not None
        theta.append(BETWEEN[transformation](np.asarray(latents[first[rows]]), np.asarray(latents[second[rows]])))
        start += count
    rounded: NDArray[np.float64] = np.round(np.concatenate(theta), DECIMALS)  # type: ignore[assignment]
    pairs = make_pairs(dataset, transformation, first, rounded, (train, val, test), task=task, version=version)
    digest = hashlib.sha256(pairs.sha256.encode() + second.astype("<i8").tobytes())
    return replace(pairs, other=second, cluster=cluster, sha256=digest.hexdigest())


def split_objects(dataset: Dataset, split: str) -> list[NDArray[np.int64]]:
    """The rows of each object of a split, in the data's order."""
    rows, objects = split_indices(dataset)[split], image_source(dataset, split).objects
    assert objects is not None
    borders = np.flatnonzero(np.diff(np.asarray(objects)[rows])) + 1
    return np.split(rows, borders)


def object_pairs(
    objects: Sequence[NDArray[np.int64]], each: int, *key: object
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`each` pairs of different rows of every object, object by object; two (len(objects) * each,) arrays."""
    u = uniforms((len(objects), 2 * each), *key).reshape(len(objects), each, 2)
    views = np.array([len(rows) for rows in objects])[:, None]
    one = np.minimum((u[:, :, 0] * views).astype(int), views - 1)
    step = 1 + np.minimum((u[:, :, 1] * (views - 1)).astype(int), views - 2)  # never back to the same view
    other = (one + step) % views
    both = [np.concatenate([rows[c] for rows, c in zip(objects, chosen, strict=True)]) for chosen in (one, other)]
    return both[0], both[1]


def pretraining_views(
    objects: Sequence[NDArray[np.int64]], seed: int, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One epoch of pretraining pairs of data with objects: two different views of each, in the epoch's order."""
    key = ("pretraining", seed, epoch)
    order = np.argsort(uniforms((len(objects), 1), "order", *key)[:, 0], kind="stable")
    first, second = object_pairs(objects, 1, "views", *key)
    return first[order], second[order]
