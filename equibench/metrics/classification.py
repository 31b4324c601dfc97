"""Scores of a classification: top-1 and mean per class, their bootstrap over test images, and what guessing reaches.

Targets are labels (N,), predictions labels (N,) or, for several seeds, (seeds, N); scores are then means over seeds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from equibench.metrics.ratio import RESAMPLES, Array, Ratio, draw_counts, mean_of, resampled


def hits(targets: ArrayLike, predictions: ArrayLike) -> Array:
    """For each image (N,) the share of seeds that say its label: 0 or 1 for a single one."""
    return np.asarray(np.atleast_2d(predictions) == np.asarray(targets)).mean(axis=0)


def top1_ratio(targets: ArrayLike, predictions: ArrayLike) -> Ratio:
    """Top-1 as a mean over images, from which its interval and paired differences are taken."""
    return mean_of(hits(targets, predictions))


def top1(targets: ArrayLike, predictions: ArrayLike) -> float:
    """Share of images whose label is predicted, in [0, 1]; nan without images."""
    return top1_ratio(targets, predictions).value


def mean_per_class(targets: ArrayLike, predictions: ArrayLike) -> float:
    """The mean, over the classes that occur in the targets, of the share of their images that are found, in [0, 1].

    This is balanced accuracy, and the metric of Pets and Aircraft (PROTOCOL 5); nan without images.
    """
    _, image, counts = np.unique(np.asarray(targets), return_inverse=True, return_counts=True)
    found = np.bincount(image, weights=hits(targets, predictions)) / counts
    return float(found.mean()) if len(found) else float("nan")


def resampled_top1(
    targets: ArrayLike, predictions: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0, cluster: int = 1
) -> Array:
    """Bootstrap distribution (resamples,) of `top1`; equal seeds and N draw equal images, for pairing.

    `cluster` images that follow each other, as the views of one object, are drawn together.
    """
    return resampled(top1_ratio(targets, predictions), resamples=resamples, seed=seed, cluster=cluster)


def resampled_mean_per_class(
    targets: ArrayLike, predictions: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0, cluster: int = 1
) -> Array:
    """Bootstrap distribution (resamples,) of `mean_per_class`; equal seeds and N draw equal images, for pairing.

    A class of which a resample holds no image is left out of that resample's mean.
    """
    truth = np.asarray(targets)
    order = np.argsort(truth, kind="stable")
    starts = np.flatnonzero(np.diff(truth[order], prepend=truth[order[:1]] - 1))
    right, parts = hits(truth, predictions)[order], []
    for drawn_counts in draw_counts(len(truth) // cluster, resamples, seed):
        counts = np.repeat(drawn_counts, cluster, axis=1)[:, order]
        drawn = np.add.reduceat(counts, starts, axis=1)
        found = np.add.reduceat(counts * right, starts, axis=1)
        parts.append((found / np.maximum(drawn, 1)).sum(axis=1) / (drawn > 0).sum(axis=1))
    return np.concatenate(parts)


def uniform_chance(classes: int) -> float:
    """What guessing every class equally often reaches in the mean: 1 / classes, of top-1 and of mean per class."""
    return 1 / classes


def majority_share(targets: ArrayLike) -> float:
    """Share of the most frequent class among targets (N,): the top-1 of the best constant answer, the floor.

    The same answer's mean per class is 1 / (number of classes that occur).
    """
    return float(np.unique(np.asarray(targets), return_counts=True)[1].max() / np.size(targets))
