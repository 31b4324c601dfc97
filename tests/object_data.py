"""Data with several views of each object, made of the solids: random latents, objects of four pictures each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from equibench.data.dataset import Dataset, ImageSet

VIEWS = 4
LOW = np.array([-np.pi / 2] * 3 + [0.0] * 4)
HIGH = np.array([np.pi / 2] * 3 + [1, np.pi / 4, 2 * np.pi, 1])


def with_objects(dataset: Dataset) -> Dataset:
    """The same pictures, every four of which count as views of one object; labels are the first view's."""

    def grouped(images: ImageSet, seed: int) -> ImageSet:
        count = len(images.labels) // VIEWS * VIEWS
        latents = np.random.default_rng(seed).uniform(LOW, HIGH, (count, 7))
        objects = np.arange(count) // VIEWS
        labels = np.asarray(images.labels)[:count:VIEWS].repeat(VIEWS)
        return ImageSet(images.images[:count], labels, latents, objects)

    return replace(
        dataset, name="objects", train=grouped(dataset.train, 0), test=grouped(dataset.test, 1), sha256="objects"
    )
