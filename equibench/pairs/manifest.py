"""The pair manifest: which image, which θ, which split. Drawn once, hashed; no loader draws anything.

Every number comes from a counter-based generator (Philox) whose key is a hash of the names of what is drawn,
so that sample i's θ does not depend on how many samples there are, on workers, on batches or on the machine.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from equibench.data.dataset import SPLITS, Dataset, image_source, split_indices
from equibench.errors import UserError
from equibench.task import Task
from equibench.transforms.transformation import BETWEEN, TRANSFORMATIONS
from equibench.utils.random import uniforms

_DECIMALS = 6  # θ is rounded so that a last-bit difference between maths libraries cannot change a hash
_CANDIDATES = 64
"""Draws among which the fixed transformations are looked for, as draws of the identity are left out."""

_Indices = NDArray[np.int64]
_Theta = NDArray[np.float64]


def draw_theta(name: str, count: int, size: int, *key: object) -> _Theta:
    """θ of one transformation for samples 0 to count - 1: (count, P)."""
    transformation = TRANSFORMATIONS[name]
    theta = transformation.draw(uniforms((count, transformation.uniforms), name, *key), size)
    return np.round(theta, _DECIMALS)


def _shuffled(count: int, *key: object) -> _Indices:
    """A permutation of 0 to count - 1 that the key determines."""
    return np.argsort(uniforms((count, 1), *key)[:, 0], kind="stable")


@dataclass(frozen=True)
class Pairs:
    """The pairs (I, g(I)) of one task, all splits in one array: train first, then val, then test."""

    transformation: str  # the name of g
    image: _Indices  # (N,) index into the split's own image set
    theta: _Theta  # (N, P)
    sizes: tuple[int, int, int]  # number of pairs in train, val and test
    sha256: str  # digest of everything above and below, of the data and of the task's name and version
    images_sha256: str  # digest of which images of which data: equal for tasks that share their first views
    then: _Theta | None = None  # (N, P) θ of a second step, after the first one; None where there is one step
    other: _Indices | None = None  # (N,) of the second view, where it is a picture of the data's own and not computed
    cluster: int = 1  # so many test pairs that follow each other show one object, and are resampled together
    # θ by name, in the order of application, of what every second view passes through after g (docs/protocol.md 3.2)
    nuisance: Mapping[str, _Theta] = field(default_factory=dict)

    def rows(self, split: str) -> slice:
        start = sum(self.sizes[: SPLITS.index(split)])
        return slice(start, start + self.sizes[SPLITS.index(split)])

    def steps(self, rows: _Indices, device: torch.device | None = None) -> list[dict[str, torch.Tensor]]:
        """What `transform_sequence` makes second views of these pairs with: g, its second step, the nuisances."""
        drawn = [(self.transformation, self.theta), (self.transformation, self.then), *self.nuisance.items()]
        return [{name: torch.from_numpy(theta[rows]).float().to(device)} for name, theta in drawn if theta is not None]


def draw_pairs(
    dataset: Dataset,
    transformation: str,
    sizes: tuple[int, int, int],
    *,
    task: str,
    version: int,
    repeats: int = 1,
    nuisance: Sequence[tuple[str, float]] = (),
) -> Pairs:
    """Draw the manifest of a task; a UserError if a split has fewer images than pairs are asked for.

    An image of the training and validation splits may be used `repeats` times, each time with a new θ. A test image is
    used once, so that test pairs are independent. The nuisance (`Task.nuisance`) has random streams of its own: images
    and θ are the same with and without it.
    """
    times = (repeats, repeats, 1)
    image = np.concatenate([choose_images(dataset, *one) for one in zip(SPLITS, sizes, times, strict=True)])

    def drawn(name: str, *key: object) -> _Theta:
        side, counts = dataset.train.images.shape[-1], zip(SPLITS, sizes, strict=True)
        return np.concatenate([draw_theta(name, count, side, task, version, split, *key) for split, count in counts])

    after = {name: _nearer(name, drawn(name, "nuisance"), share) for name, share in nuisance}
    theta = drawn(transformation)
    return _make_pairs(dataset, transformation, image, theta, sizes, task=task, version=version, nuisance=after)


def _make_pairs(
    dataset: Dataset,
    transformation: str,
    image: _Indices,
    theta: _Theta,
    sizes: tuple[int, int, int],
    *,
    task: str,
    version: int,
    then: _Theta | None = None,
    nuisance: Mapping[str, _Theta] | None = None,
) -> Pairs:
    """A manifest of given images and parameters, with its digests."""
    images_digest = hashlib.sha256(f"{dataset.sha256}|{sizes}".encode() + image.astype("<i8").tobytes())
    digest = images_digest.copy()
    digest.update(f"|{transformation}|{task}|{version}|".encode() + theta.astype("<f8").tobytes())
    if then is not None:
        digest.update(b"|then|" + then.astype("<f8").tobytes())
    for name, drawn in (nuisance or {}).items():
        digest.update(f"|nuisance|{name}|".encode() + drawn.astype("<f8").tobytes())
    digests = digest.hexdigest(), images_digest.hexdigest()
    return Pairs(transformation, image, theta, sizes, *digests, then, nuisance=nuisance or {})


def choose_images(dataset: Dataset, split: str, count: int, repeats: int = 1) -> _Indices:
    """The first images of a split's fixed permutation, which all tasks share; repeated in the same order if need be.

    A UserError if the split has fewer images.
    """
    indices = split_indices(dataset)[split]
    if count > len(indices) * repeats:
        have = f"{dataset.name} has {len(indices):,} images in its {split} split"
        raise UserError(f"{have}, the profile asks for {count:,} pairs", "choose a smaller profile or complete data")
    order = _shuffled(len(indices), "images", split)
    return np.resize(indices[order], count) if count else np.empty(0, dtype=np.int64)


def pretraining_epoch(
    indices: _Indices, size: int, transformations: Iterable[str], seed: int, epoch: int
) -> tuple[_Indices, dict[str, _Theta]]:
    """One epoch of pretraining pairs: the image indices in their order, and θ by transformation."""
    key = ("pretraining", seed, epoch)
    theta = {name: draw_theta(name, len(indices), size, *key) for name in transformations}
    return indices[_shuffled(len(indices), "order", *key)], theta


def composed_pairs(dataset: Dataset, task: Task, count: int) -> Pairs:
    """x and g₂g₁x, each step drawn from the half of the range that is nearer to the identity, so that two fit in."""
    image = _test_images(dataset, count)
    drawn = (_theta(dataset, task, len(image), f"composed {number}") for number in (1, 2))
    first, then = (half_way(task.transformation, theta) for theta in drawn)
    return _pairs(dataset, task, image, first, "composed", then)


def bank_pairs(dataset: Dataset, task: Task, images: int, bank: int) -> Pairs:
    """Each image with `bank` transforms of it, image by image."""
    image = np.repeat(_test_images(dataset, images), bank)
    return _pairs(dataset, task, image, _theta(dataset, task, len(image), "bank"), "bank")


def fixed_pairs(dataset: Dataset, task: Task, images: int, count: int) -> tuple[Pairs, int]:
    """At most `count` different transformations, none the identity, each of all images; and how many there are."""
    drawn = _theta(dataset, task, _CANDIDATES, "fixed")
    moving = drawn[(drawn != np.array(TRANSFORMATIONS[task.transformation].identity)).any(axis=1)]
    _, first = np.unique(moving, axis=0, return_index=True)
    fixed = moving[np.sort(first)[:count]]
    image = _test_images(dataset, images)
    theta = np.repeat(fixed, len(image), axis=0)
    return _pairs(dataset, task, np.tile(image, len(fixed)), theta, "fixed"), len(fixed)


def image_pairs(dataset: Dataset, task: Task, count: int) -> Pairs:
    """Test images with the identity."""
    image = _test_images(dataset, count)
    theta = np.tile(np.array(TRANSFORMATIONS[task.transformation].identity), (len(image), 1))
    return _pairs(dataset, task, image, theta, "identity")


def half_way(transformation: str, theta: _Theta) -> _Theta:
    """θ half way to the identity; as it is where there is nothing in between."""
    return theta if TRANSFORMATIONS[transformation].discrete else _nearer(transformation, theta, 1 / 2)


def _nearer(transformation: str, theta: _Theta, share: float) -> _Theta:
    """θ at this share of its way from the identity."""
    identity = np.array(TRANSFORMATIONS[transformation].identity)
    return np.round(identity + (theta - identity) * share, _DECIMALS)


def _test_images(dataset: Dataset, count: int) -> _Indices:
    return choose_images(dataset, "test", min(count, len(dataset.test.labels)))


def _theta(dataset: Dataset, task: Task, count: int, what: str) -> _Theta:
    side = int(dataset.train.images.shape[-1])
    return draw_theta(task.transformation, count, side, task.name, task.version, what)


def _pairs(
    dataset: Dataset, task: Task, image: _Indices, theta: _Theta, what: str, then: _Theta | None = None
) -> Pairs:
    sizes, name = (0, 0, len(image)), f"{task.name} {what}"
    return _make_pairs(dataset, task.transformation, image, theta, sizes, task=name, version=task.version, then=then)


def draw_object_pairs(
    dataset: Dataset, transformation: str, sizes: tuple[int, int, int], *, task: str, version: int
) -> Pairs:
    """Pairs of different views of one object: the same pairs for each task on the data (docs/protocol.md 3.3).

    Every object of a split has as many pairs as any other: the largest number with which no split has more pairs than
    asked for, and one where there are more objects than that; surplus objects are then left out. A UserError if the
    data have no views of objects.
    """
    if not dataset.has_objects:
        fix = "choose data in 3DIEBench's layout (`equibench data render` makes some), or another task"
        raise UserError(f"{dataset.name} has no views of objects, which {transformation!r} lies between", fix)
    parts, each = [], 1
    for split, wanted in zip(SPLITS, sizes, strict=True):
        objects = split_objects(dataset, split)
        each = max(1, wanted // len(objects))
        chosen = _shuffled(len(objects), "objects", split)[:wanted]
        parts.append(_object_pairs([objects[i] for i in chosen], each, "pairs", split))
    first, second = (np.concatenate([part[view] for part in parts]) for view in (0, 1))
    counts = tuple(len(part[0]) for part in parts)
    return between_views(dataset, transformation, first, second, counts, task=task, version=version, cluster=each)


def between_views(
    dataset: Dataset,
    transformation: str,
    first: _Indices,
    second: _Indices,
    sizes: tuple[int, ...],
    *,
    task: str,
    version: int,
    cluster: int = 1,
) -> Pairs:
    """The manifest of pairs of the data's own views, split after split, with θ from their latents."""
    train, val, test = sizes
    theta: list[_Theta] = []
    for split, rows in zip(SPLITS, np.split(np.arange(len(first)), [train, train + val]), strict=True):
        latents = image_source(dataset, split).latents
        assert latents is not None
        theta.append(BETWEEN[transformation](np.asarray(latents[first[rows]]), np.asarray(latents[second[rows]])))
    rounded: _Theta = np.round(np.concatenate(theta), _DECIMALS)  # type: ignore[assignment]
    pairs = _make_pairs(dataset, transformation, first, rounded, (train, val, test), task=task, version=version)
    digest = hashlib.sha256(pairs.sha256.encode() + second.astype("<i8").tobytes())
    return replace(pairs, other=second, cluster=cluster, sha256=digest.hexdigest())


def split_objects(dataset: Dataset, split: str) -> list[_Indices]:
    """The rows of each object of a split, in the data's order."""
    rows, objects = split_indices(dataset)[split], image_source(dataset, split).objects
    assert objects is not None
    return np.split(rows, np.flatnonzero(np.diff(np.asarray(objects)[rows])) + 1)


def _object_pairs(objects: Sequence[_Indices], each: int, *key: object) -> tuple[_Indices, _Indices]:
    """`each` pairs of different rows of every object, object by object; two (len(objects) * each,) arrays."""
    u = uniforms((len(objects), 2 * each), *key).reshape(len(objects), each, 2)
    views = np.array([len(rows) for rows in objects])[:, None]
    one = np.minimum((u[:, :, 0] * views).astype(int), views - 1)
    step = 1 + np.minimum((u[:, :, 1] * (views - 1)).astype(int), views - 2)  # never back to the same view
    rows, starts = np.concatenate(objects), np.cumsum(views, axis=0) - views
    return rows[(starts + one).ravel()], rows[(starts + (one + step) % views).ravel()]


def pretraining_views(objects: Sequence[_Indices], seed: int, epoch: int) -> tuple[_Indices, _Indices]:
    """One epoch of pretraining pairs of data with objects: two different views of each, in the epoch's order."""
    key = ("pretraining", seed, epoch)
    order = _shuffled(len(objects), "order", *key)
    first, second = _object_pairs(objects, 1, "views", *key)
    return first[order], second[order]
