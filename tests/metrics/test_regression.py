"""Scores against scikit-learn, against SIE's formula and its known floors, and against a plain bootstrap."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import r2_score

from equibench.metrics import regression
from equibench.metrics.regression import bootstrap_r2, r2_per_dimension, r2_pooled, resampled_r2
from equibench.transforms.transformation import TRANSFORMATIONS


def sample(
    count: int = 200, dimensions: int = 3, seeds: int = 2, noise: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Targets (N, K) and predictions (seeds, N, K), with another scale and offset in each dimension."""
    rng = np.random.default_rng(seed)
    scale = np.array([1.0, 100.0, 0.01])[:dimensions]
    targets = rng.normal(size=(count, dimensions))
    predictions = targets + noise * rng.normal(size=(seeds, count, dimensions))
    return targets * scale + 5 * scale, predictions * scale + 5 * scale


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(regression) == (0, 3)


def test_per_dimension_is_one_minus_residual_over_total() -> None:
    targets, (predictions, _) = sample()
    ours = r2_per_dimension(targets, predictions)
    for column in range(3):
        t, p = targets[:, column], predictions[:, column]
        assert ours[column] == pytest.approx(1 - ((t - p) ** 2).sum() / ((t - t.mean()) ** 2).sum())
        assert ours[column] == pytest.approx(r2_score(t, p))


@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_constant_predictor_of_a_small_target_scores_zero(offset: float) -> None:
    targets = offset + 1e-6 * np.random.default_rng(0).normal(size=(1000, 2))
    constant = np.broadcast_to(targets.mean(axis=0), targets.shape)
    np.testing.assert_allclose(r2_per_dimension(targets, constant), 0, atol=1e-6)
    assert np.abs(resampled_r2(targets, constant[None], resamples=50)).max() < 0.05


def test_pooled_is_sies_formula() -> None:
    targets, (predictions, _) = sample(50)
    mean = sum(targets.ravel()) / targets.size
    residual = sum((t - p) ** 2 for t, p in zip(targets.ravel(), predictions.ravel(), strict=True))
    total = sum((t - mean) ** 2 for t in targets.ravel())
    assert r2_pooled(targets, predictions) == pytest.approx(1 - residual / total)


def test_pooled_floor_of_raw_colour_factors() -> None:
    colour = TRANSFORMATIONS["color"]
    theta = colour.draw(np.random.default_rng(0).random((100_000, 4)), 32)
    raw = colour.publish(theta, 32)
    constant = np.broadcast_to(raw.mean(axis=0), raw.shape)
    assert r2_pooled(raw, constant) == pytest.approx(0.821, abs=0.002)
    assert r2_per_dimension(raw, constant) == pytest.approx(0, abs=1e-9)
    centred = np.broadcast_to(theta.mean(axis=0), theta.shape)
    assert r2_pooled(theta, centred) == pytest.approx(0, abs=1e-3)


def test_pooled_floor_of_crops() -> None:
    crop = TRANSFORMATIONS["crop"]
    theta = crop.draw(np.random.default_rng(0).random((100_000, crop.uniforms)), 32)
    raw = crop.publish(theta, 32)
    assert r2_pooled(raw, np.broadcast_to(raw.mean(axis=0), raw.shape)) == pytest.approx(0.69, abs=0.01)


def test_pooled_floor_of_pose_quaternions() -> None:
    mean, variance = np.array([0, 0, 0, 0.533]), np.array([0.209, 0.209, 0.209, 0.090])
    draws = np.random.default_rng(0).normal(size=(100_000, 4))
    draws = (draws - draws.mean(axis=0)) / draws.std(axis=0)
    floor = r2_pooled(mean + draws * np.sqrt(variance), np.broadcast_to(mean, draws.shape))
    between = (mean**2).sum() - mean.sum() ** 2 / 4
    assert floor == pytest.approx(between / (between + variance.sum()))
    assert floor == pytest.approx(0.229, abs=5e-4)


def test_bootstrap_is_a_loop_over_resampled_images() -> None:
    targets, predictions = sample(60)
    rng = np.random.default_rng(3)
    naive = []
    for counts in rng.multinomial(60, np.full(60, 1 / 60), size=40):
        rows = np.repeat(np.arange(60), counts)
        naive.append(np.mean([r2_score(targets[rows], p[rows]) for p in predictions]))
    np.testing.assert_allclose(resampled_r2(targets, predictions, resamples=40, seed=3), naive, rtol=1e-9)
    low, high = bootstrap_r2(targets, predictions, resamples=40, seed=3, level=0.8)
    np.testing.assert_allclose([low, high], np.quantile(naive, [0.1, 0.9]))


def test_interval_is_scipys() -> None:
    targets, predictions = sample(150, dimensions=1, seeds=1)

    def r2(t: np.ndarray, p: np.ndarray) -> float:
        return float(1 - ((t - p) ** 2).sum() / ((t - t.mean()) ** 2).sum())

    theirs = stats.bootstrap(
        (targets[:, 0], predictions[0, :, 0]), r2, paired=True, vectorized=False, n_resamples=2000,
        method="percentile", random_state=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    low, high = bootstrap_r2(targets, predictions)
    assert high - low == pytest.approx(theirs.high - theirs.low, rel=0.1)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_interval_covers_the_true_value_about_as_often_as_it_says() -> None:
    noise, covered = 0.5, 0
    for seed in range(200):
        low, high = bootstrap_r2(*sample(200, 1, 1, noise, seed=seed), resamples=200)
        covered += low <= 1 - noise**2 <= high
    assert 0.88 < covered / 200 < 0.99


def test_equal_seeds_draw_equal_images() -> None:
    targets, predictions = sample()
    one, other = resampled_r2(targets, predictions[:1]), resampled_r2(targets, predictions[1:])
    np.testing.assert_array_equal(one, resampled_r2(targets, predictions[:1]))
    assert not np.array_equal(one, resampled_r2(targets, predictions[:1], seed=1))
    # a small change of the same predictions: paired, the difference is far surer than either score
    close = predictions[:1] + 0.02 * (predictions[1:] - predictions[:1])
    paired = resampled_r2(targets, close) - one
    unpaired = resampled_r2(targets, close, seed=1) - one
    assert paired.std() < 0.2 * unpaired.std()
    assert np.corrcoef(one, other)[0, 1] > 0.1
