"""Coefficients of determination and their bootstrap intervals.

Two versions of R² circulate (PROTOCOL 1.3). `r2` is scikit-learn's, averaged over the target's dimensions; `r2_pooled`
is the field's, with one scalar mean over all dimensions, which gives a constant predictor up to 0.82.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import r2_score

from equibench.metrics.ratio import LEVEL, RESAMPLES, resampled_sums

Array = NDArray[np.float64]


def r2_per_dimension(targets: Array, predictions: Array) -> Array:
    """R² of each dimension (K,), for targets and predictions (N, K)."""
    return np.asarray(r2_score(targets, predictions, multioutput="raw_values"))


def r2_pooled(targets: Array, predictions: Array) -> float:
    """1 - sum (t - o)² / sum (t - m)² over samples and dimensions, m being the one mean of all entries of t.

    This is SIE's definition (its eval_angle_prediction script), kept for comparison with published numbers.
    """
    return float(1 - np.square(targets - predictions).sum() / np.square(targets - targets.mean()).sum())


def bootstrap_r2(
    targets: Array,
    predictions: Array,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    cluster: int = 1,
) -> tuple[float, float]:
    """Percentile interval of the seeds' mean R² under resampling of the test images.

    Args:
        targets: (N, K).
        predictions: (seeds, N, K).
        resamples: number of bootstrap samples; all seeds see the same images in each.
        cluster: so many images that follow each other are drawn together, as the pairs of one object.

    Returns:
        Lower and upper end of the interval.
    """
    draws = resampled_r2(targets, predictions, resamples=resamples, seed=seed, cluster=cluster)
    low, high = np.quantile(draws, _tails(level))
    return float(low), float(high)


def resampled_r2(
    targets: Array, predictions: Array, *, resamples: int = RESAMPLES, seed: int = 0, cluster: int = 1
) -> Array:
    """The bootstrap distribution (resamples,) behind `bootstrap_r2`; equal seeds draw equal images, for pairing."""
    count, dimensions = targets.shape
    centred = targets - targets.mean(axis=0)  # against cancellation in the sum of squares
    columns = [np.square(targets - predictions).mean(axis=0), np.square(centred), centred]
    sums = resampled_sums(np.concatenate(columns, axis=1), resamples=resamples, seed=seed, cluster=cluster)
    residual, squares, shift = np.split(sums, [dimensions, 2 * dimensions], axis=1)
    total = squares - np.square(shift) / count
    return 1 - (residual / np.where(total > 0, total, np.nan)).mean(axis=1)


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2
