"""Errors on the circle against brute force, and classification scores against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from sklearn.metrics import balanced_accuracy_score, median_absolute_error, roc_auc_score

from equibench.metrics.bootstrap import draw_counts
from equibench.metrics.regression import (
    Targets,
    auc,
    balanced_accuracy,
    circular_error,
    in_units,
    resampled_auc,
    resampled_balanced_accuracy,
    resampled_median,
)
from equibench.records import Metric
from equibench.transforms.transformation import TRANSFORMATIONS


def measured(name: str, truth: np.ndarray, predicted: np.ndarray) -> dict[str, Metric]:
    """What `in_units` says of θ (N, P) and predictions (seeds, N, P), both in the parameters' own units."""
    transformation = TRANSFORMATIONS[name]
    coded = transformation.encode(truth, 32)
    targets = Targets(transformation, 32, coded, coded.mean(axis=0), coded.std(axis=0))
    return in_units(targets, transformation.encode(predicted, 32))


def test_error_is_the_angle_between_the_rotations() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.uniform(-400, 400, size=(2, 100))
    turns = [Rotation.from_euler("z", angle[:, None], degrees=True) for angle in (one, other)]
    expected = np.rad2deg((turns[0].inv() * turns[1]).magnitude())
    np.testing.assert_allclose(circular_error(one, other, 360), expected, atol=1e-9)
    found = measured("rotation", one[:, None], other[None, :, None])
    assert found["degrees_mean"].value == pytest.approx(expected.mean())
    assert found["degrees_median"].value == pytest.approx(np.median(expected))


def test_error_goes_the_shorter_way() -> None:
    assert circular_error([170, 10, 0, 0], [-170, 370, 180, -180], 360).tolist() == [20, 0, 180, 180]
    hues = np.array([[0.45, 0.0], [-0.45, 0.25]])
    truth, predicted = (np.pad(hue[:, None], ((0, 0), (3, 0))) for hue in hues)
    assert measured("color", truth, predicted[None])["hue_mean"].value == pytest.approx((0.1 + 0.25) / 2)


def test_scores_are_means_over_seeds() -> None:
    rng = np.random.default_rng(0)
    targets = rng.uniform(-45, 45, size=51)
    predictions = targets + rng.normal(size=(3, 51))
    found = measured("rotation", targets[:, None], predictions[..., None])
    assert found["degrees_mean"].value == pytest.approx(np.abs(predictions - targets).mean())
    medians = [median_absolute_error(targets, p) for p in predictions]
    assert found["degrees_median"].value == pytest.approx(np.mean(medians))
    for name in ("degrees_mean", "degrees_median"):
        low, value, high = found[name].low, found[name].value, found[name].high
        assert low is not None
        assert value is not None
        assert high is not None
        assert low < value < high


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:y_pred contains classes")
def test_auc_counts_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, size=40)
    predictions = (targets + rng.normal(size=(2, 40))).round(1)  # rounded: ties count half
    brute = [np.mean([(a > b) + 0.5 * (a == b) for a in p[targets == 1] for b in p[targets == 0]]) for p in predictions]
    assert auc(targets, predictions) == pytest.approx(np.mean(brute))
    assert auc(targets, predictions[0]) == pytest.approx(roc_auc_score(targets, predictions[0]))
    assert auc(targets, targets[None]) == 1
    assert auc(targets, np.zeros((1, 40))) == 0.5
    assert np.isnan(auc(np.ones(4), np.zeros((1, 4))))
    found = measured("flip", targets[:, None].astype(float), predictions[..., None])
    assert found["auc"].value == pytest.approx(np.mean(brute))
    assert found["auc"].floor == found["balanced_accuracy"].floor == 0.5
    undefined = measured("flip", np.ones((4, 1)), np.zeros((1, 4, 1)))["auc"]
    assert (undefined.value, undefined.low, undefined.floor) == (None, None, 0.5)


def test_balanced_accuracy_weighs_classes_alike() -> None:
    targets = np.array([0] * 9 + [1])
    assert balanced_accuracy(targets, np.zeros((1, 10))) == 0.5
    assert balanced_accuracy(targets, targets[None] * 0.6) == 1
    predictions = np.random.default_rng(0).random((3, 10))
    expected = [balanced_accuracy_score(targets, p > 0.5) for p in predictions]
    assert balanced_accuracy(targets, predictions) == pytest.approx(np.mean(expected))


def test_resampled_scores_are_those_of_the_resampled_images() -> None:
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, size=31)
    predictions = (targets + rng.normal(size=(2, 31))).round(1)
    errors = rng.exponential(size=(2, 31))
    draws = [np.repeat(np.arange(31), c.astype(int)) for chunk in draw_counts(31, 20, 0) for c in chunk]
    for number, rows in enumerate(draws):
        truth, guesses = targets[rows], predictions[:, rows]
        found = resampled_auc(targets, predictions, resamples=20)[number]
        assert found == pytest.approx(np.mean([roc_auc_score(truth, g) for g in guesses]))
        found = resampled_balanced_accuracy(targets, predictions, resamples=20)[number]
        assert found == pytest.approx(np.mean([balanced_accuracy_score(truth, g > 0.5) for g in guesses]))
        found = resampled_median(errors, resamples=20)[number]
        assert found == pytest.approx(np.mean([np.quantile(e[rows], 0.5, method="inverted_cdf") for e in errors]))
