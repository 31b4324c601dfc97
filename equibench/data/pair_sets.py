"""Pairs for the metrics beyond regression, all on test images: two steps after one another, many transforms of the
same image, and the same transforms of all images. Drawn as the regression pairs are, by name and row alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equibench.data.datasets import Dataset
from equibench.data.pairs import Pairs, choose_images, draw_theta, make_pairs
from equibench.task import Task
from equibench.transforms import TRANSFORMATIONS

CANDIDATES = 64
"""Draws among which the fixed transformations are looked for, as draws of the identity are left out."""


def composed_pairs(dataset: Dataset, task: Task, count: int) -> Pairs:
    """x and g₂g₁x, each step drawn from the half of the range that is nearer to the identity, so that two fit in."""
    image = _test_images(dataset, count)
    steps = [
        half_way(task.transformation, _theta(dataset, task, len(image), f"composed {number}")) for number in (1, 2)
    ]
    return _pairs(dataset, task, image, steps[0], "composed", then=steps[1])


def bank_pairs(dataset: Dataset, task: Task, images: int, bank: int) -> Pairs:
    """Each image with `bank` transforms of it, image by image."""
    image = np.repeat(_test_images(dataset, images), bank)
    return _pairs(dataset, task, image, _theta(dataset, task, len(image), "bank"), "bank")


def fixed_pairs(dataset: Dataset, task: Task, images: int, count: int) -> tuple[Pairs, int]:
    """At most `count` different transformations, none the identity, each of all images; and how many there are."""
    drawn = _theta(dataset, task, CANDIDATES, "fixed")
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


def half_way(transformation: str, theta: NDArray[np.float64]) -> NDArray[np.float64]:
    """θ half way to the identity; as it is where there is nothing in between."""
    if TRANSFORMATIONS[transformation].discrete:
        return theta
    identity = np.array(TRANSFORMATIONS[transformation].identity)
    return np.round(identity + (theta - identity) / 2, 6)


def _test_images(dataset: Dataset, count: int) -> NDArray[np.int64]:
    return choose_images(dataset, "test", min(count, len(dataset.test.labels)))


def _theta(dataset: Dataset, task: Task, count: int, what: str) -> NDArray[np.float64]:
    side = int(dataset.train.images.shape[-1])
    return draw_theta(task.transformation, count, side, task.name, task.version, what)


def _pairs(
    dataset: Dataset,
    task: Task,
    image: NDArray[np.int64],
    theta: NDArray[np.float64],
    what: str,
    then: NDArray[np.float64] | None = None,
) -> Pairs:
    sizes = (0, 0, len(image))
    name = f"{task.name} {what}"
    return make_pairs(dataset, task.transformation, image, theta, sizes, task=name, version=task.version, then=then)
