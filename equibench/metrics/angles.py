"""Errors in natural units: degrees, turns of hue, and the area under the curve for a yes or no.

A probe's predictions come for several seeds, (seeds, N), one parameter at a time; all scores are means over the seeds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from equibench.metrics.ratio import Array, Ratio, as_float, mean_of


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

    No ratio of sums over images, and so without an interval of the common kind. nan where only one class occurs.
    """
    truth = np.asarray(targets) > 0.5
    if truth.all() or not truth.any():
        return float("nan")
    return float(np.mean([roc_auc_score(truth, p) for p in np.atleast_2d(as_float(predictions))]))


def balanced_accuracy(targets: ArrayLike, predictions: ArrayLike, threshold: float = 0.5) -> float:
    """Mean over the two classes of the share found, a prediction (seeds, N) above the threshold being a yes.

    1 is best, 1/2 is chance; no ratio of sums either, but the mean of two.
    """
    truth = np.asarray(targets) > 0.5
    return float(np.mean([balanced_accuracy_score(truth, p > threshold) for p in np.atleast_2d(as_float(predictions))]))
