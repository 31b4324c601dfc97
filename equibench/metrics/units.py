"""Regression errors in the parameters' own units: degrees, turns of hue, and AUC for what happens or does not."""

from __future__ import annotations

import numpy as np

from equibench.metrics.angles import (
    auc,
    balanced_accuracy,
    circular_error,
    degrees_median,
    degrees_ratios,
    hue_ratios,
    resampled_auc,
    resampled_balanced_accuracy,
    resampled_median,
)
from equibench.metrics.pose import geodesic_degrees, hue_difference_ratios, pose_median, pose_ratios
from equibench.metrics.ratio import Array, Ratio, resampled
from equibench.metrics.scores import Targets
from equibench.records import Metric
from equibench.transforms.observed import SO3

DEGREES, TURNS = 360.0, 1.0


def in_units(targets: Targets, predictions: Array) -> dict[str, Metric]:
    """Errors by name for the parameters that have a period, or two values, and for rotations in space.

    Args:
        targets: the test targets and their transformation.
        predictions: (seeds, N, K) in the targets' coding.
    """
    transformation = targets.transformation
    theta = transformation.decode(targets.test, targets.size)
    predicted = transformation.decode(predictions, targets.size)
    found: dict[str, Metric] = {}
    if transformation.group == SO3:
        found |= _of_ratios(pose_ratios(theta, predicted), targets.cluster)
        draws = resampled_median(geodesic_degrees(theta, predicted), cluster=targets.cluster)
        return found | {"degrees_median": _metric(pose_median(theta, predicted), draws)}
    if transformation.name == "hues":
        return _of_ratios(hue_difference_ratios(theta, predicted), targets.cluster)
    for number, period in enumerate(transformation.periods):
        truth, guess = theta[:, number], predicted[:, :, number]
        if period == DEGREES:
            found |= _of_ratios(degrees_ratios(truth, guess))
            draws = resampled_median(circular_error(truth, guess, DEGREES))
            found["degrees_median"] = _metric(degrees_median(truth, guess), draws)
        elif period == TURNS:
            found |= _of_ratios(hue_ratios(truth, guess))
    if transformation.discrete and theta.shape[1] == 1:
        yes, guess = theta[:, 0], predicted[:, :, 0]
        found["auc"] = _metric(auc(yes, guess), resampled_auc(yes, guess), chance=0.5)
        draws = resampled_balanced_accuracy(yes, guess)
        found["balanced_accuracy"] = _metric(balanced_accuracy(yes, guess), draws, chance=0.5)
    return found


def _of_ratios(ratios: dict[str, Ratio], cluster: int = 1) -> dict[str, Metric]:
    return {name: _metric(ratio.value, resampled(ratio, cluster=cluster)) for name, ratio in ratios.items()}


def _metric(value: float, draws: Array, chance: float | None = None) -> Metric:
    """A number with its 95 % interval; null where it is not defined, as the AUC of one class."""
    if np.isnan(value):
        return Metric(value=None, low=None, high=None, chance=chance)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Metric(value=value, low=float(low), high=float(high), chance=chance)
