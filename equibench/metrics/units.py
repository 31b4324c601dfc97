"""Regression errors in the parameters' own units: degrees, turns of hue, and AUC for what happens or does not."""

from __future__ import annotations

from equibench.metrics.angles import auc, balanced_accuracy, degrees_median, degrees_ratios, hue_ratios
from equibench.metrics.ratio import Array, Ratio, interval
from equibench.metrics.scores import Targets
from equibench.records import Metric

DEGREES, TURNS = 360.0, 1.0


def in_units(targets: Targets, predictions: Array) -> dict[str, Metric]:
    """Errors by name for the parameters that have a period, or two values.

    Args:
        targets: the test targets and their transformation.
        predictions: (seeds, N, K) in the targets' coding.
    """
    transformation = targets.transformation
    theta = transformation.decode(targets.test, targets.size)
    predicted = transformation.decode(predictions, targets.size)
    found: dict[str, Metric] = {}
    for number, period in enumerate(transformation.periods):
        truth, guess = theta[:, number], predicted[:, :, number]
        if period == DEGREES:
            found |= _with_intervals(degrees_ratios(truth, guess))
            found["degrees_median"] = _plain(degrees_median(truth, guess))
        elif period == TURNS:
            found |= _with_intervals(hue_ratios(truth, guess))
    if transformation.discrete and theta.shape[1] == 1:
        found["auc"] = _plain(auc(theta[:, 0], predicted[:, :, 0]), chance=0.5)
        found["balanced_accuracy"] = _plain(balanced_accuracy(theta[:, 0], predicted[:, :, 0]), chance=0.5)
    return found


def _with_intervals(ratios: dict[str, Ratio]) -> dict[str, Metric]:
    found = {}
    for name, ratio in ratios.items():
        low, high = interval(ratio)
        found[name] = Metric(value=ratio.value, low=low, high=high)
    return found


def _plain(value: float, chance: float | None = None) -> Metric:
    """A number that is no ratio of sums, and comes without an interval."""
    return Metric(value=value, low=None, high=None, chance=chance)
