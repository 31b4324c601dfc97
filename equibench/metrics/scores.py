"""All scores of one set of predictions: the headline, its interval, the published version, and the floors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equibench.metrics.regression import bootstrap_r2, r2_per_dimension, r2_pooled
from equibench.transforms import Transformation

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Targets:
    """Coded test targets (N, K), and mean and standard deviation (K,) of the training targets.

    `cluster` test pairs that follow each other show one object, and are resampled together.
    """

    transformation: Transformation
    size: int
    test: Array
    mean: Array
    std: Array
    cluster: int = 1

    def standardise(self, coded: Array) -> Array:
        """Coded values (..., N, K) in units of the training targets' standard deviation."""
        return (coded - self.mean) / self.std

    def publish(self, coded: Array) -> Array:
        """Coded values (N, K) in the coding in which the field takes its pooled R²."""
        return self.transformation.publish(self.transformation.decode(coded, self.size), self.size)


@dataclass(frozen=True)
class Scores:
    """Scores of one feature set; the names are those of the record's keys."""

    r2: float
    r2_low: float
    r2_high: float
    r2_std_probe: float
    r2_pooled: float
    per_dimension: list[float]


def score(targets: Targets, predictions: Array) -> Scores:
    """Scores of predictions (seeds, N, K) in the targets' coding, each the mean over the probe seeds."""
    truth, predicted = targets.standardise(targets.test), targets.standardise(predictions)
    per_seed = np.array([r2_per_dimension(truth, p) for p in predicted])
    low, high = bootstrap_r2(truth, predicted, cluster=targets.cluster)
    published = targets.publish(targets.test)
    return Scores(
        r2=float(per_seed.mean()),
        r2_low=low,
        r2_high=high,
        r2_std_probe=float(per_seed.mean(axis=1).std()),
        r2_pooled=float(np.mean([r2_pooled(published, targets.publish(p)) for p in predictions])),
        per_dimension=per_seed.mean(axis=0).tolist(),
    )


def floors(targets: Targets) -> tuple[float, float]:
    """R² and pooled R² of the constant predictor, which says the training mean whatever the image."""
    constant = np.broadcast_to(targets.mean, targets.test.shape)
    r2 = float(r2_per_dimension(targets.test, constant).mean())
    return r2, r2_pooled(targets.publish(targets.test), targets.publish(constant))
