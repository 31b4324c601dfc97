"""Errors in natural units: degrees, turns of hue, and the area under the curve for a yes or no.

A probe's predictions come for several seeds, (seeds, N), one parameter at a time; all scores are means over the seeds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from equibench.metrics.ratio import RESAMPLES, Array, Ratio, as_float, draw_counts, mean_of


def circular_error(targets: ArrayLike, predictions: ArrayLike, period: float) -> Array:
    """The shorter way round between angles, in [0, period / 2]; the geodesic distance on the circle."""
    half = period / 2
    return np.abs((as_float(predictions) - as_float(targets) + half) % period - half)


def degrees_ratios(targets: ArrayLike, predictions: ArrayLike) -> dict[str, Ratio]:
    """`degrees_mean`: the mean geodesic error in degrees, in [0, 180]; lower is better.

    Args:
        targets: (N,) in degrees.
        predictions: (seeds, N) in degrees.
    """
    return {"degrees_mean": mean_of(circular_error(targets, predictions, 360).mean(axis=0))}


def degrees_median(targets: ArrayLike, predictions: ArrayLike) -> float:
    """Median geodesic error in degrees over images, the mean over seeds; arguments as for `degrees_ratios`."""
    return float(np.median(circular_error(targets, predictions, 360), axis=1).mean())


def hue_ratios(targets: ArrayLike, predictions: ArrayLike) -> dict[str, Ratio]:
    """`hue_mean`: the mean error round the colour circle in turns, in [0, 1/2]; lower is better.

    Args:
        targets: (N,) in turns.
        predictions: (seeds, N) in turns.
    """
    return {"hue_mean": mean_of(circular_error(targets, predictions, 1).mean(axis=0))}


def auc(targets: ArrayLike, predictions: ArrayLike) -> float:
    """Area under the ROC curve: how often a predicted yes (N of {0, 1}) is above a no; 1 is best, 1/2 is chance.

    nan where only one class occurs.
    """
    truth = np.asarray(targets) > 0.5
    if truth.all() or not truth.any():
        return float("nan")
    return float(np.mean([roc_auc_score(truth, p) for p in np.atleast_2d(as_float(predictions))]))


def balanced_accuracy(targets: ArrayLike, predictions: ArrayLike, threshold: float = 0.5) -> float:
    """Mean over the two classes of the share found, a prediction (seeds, N) above the threshold being a yes.

    1 is best, 1/2 is chance.
    """
    truth = np.asarray(targets) > 0.5
    return float(np.mean([balanced_accuracy_score(truth, p > threshold) for p in np.atleast_2d(as_float(predictions))]))


def resampled_median(errors: Array, *, resamples: int = RESAMPLES, seed: int = 0, cluster: int = 1) -> Array:
    """Bootstrap distribution (resamples,) of the median over images of errors (seeds, N), the mean over seeds.

    The lower median: half of the draws, or the first beyond, lie at or below it.
    """
    count, medians = errors.shape[1], np.zeros(resamples)
    for values in errors:
        order = np.argsort(values, kind="stable")
        draws = (np.repeat(c, cluster, axis=1) for c in draw_counts(count // cluster, resamples, seed))
        half = [(c[:, order].cumsum(axis=1) >= count / 2).argmax(axis=1) for c in draws]
        medians += values[order][np.concatenate(half)] / len(errors)
    return medians


def resampled_auc(targets: ArrayLike, predictions: Array, *, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Bootstrap distribution (resamples,) of `auc`; ties between predictions (seeds, N) count half."""
    truth, found = np.asarray(targets) > 0.5, np.zeros(resamples)
    for values in predictions:
        _, tied = np.unique(values, return_inverse=True)
        order = np.argsort(tied, kind="stable")
        starts = np.flatnonzero(np.diff(tied[order], prepend=-1))
        parts = []
        for counts in draw_counts(len(truth), resamples, seed):
            # sums over equal predictions, in ascending order
            yes, no = (np.add.reduceat((counts * group)[:, order], starts, axis=1) for group in (truth, ~truth))
            below = no.cumsum(axis=1) - no / 2
            parts.append((yes * below).sum(axis=1) / (yes.sum(axis=1) * no.sum(axis=1)))
        found += np.concatenate(parts) / len(predictions)
    return found


def resampled_balanced_accuracy(
    targets: ArrayLike, predictions: Array, threshold: float = 0.5, *, resamples: int = RESAMPLES, seed: int = 0
) -> Array:
    """Bootstrap distribution (resamples,) of `balanced_accuracy`."""
    truth = np.asarray(targets) > 0.5
    hits = ((predictions > threshold) == truth).mean(axis=0)
    shares = []
    for group in (truth, ~truth):
        sums = [(c @ (hits * group)) / (c @ group.astype(float)) for c in draw_counts(len(truth), resamples, seed)]
        shares.append(np.concatenate(sums))
    return (shares[0] + shares[1]) / 2
