"""Ratios of sums: values, and intervals against the delta method and a plain bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from equibench.metrics import bootstrap as module
from equibench.metrics.bootstrap import Ratio, draw_counts, gain, mean_of, resampled, resampled_each
from equibench.metrics.regression import resampled_r2


def sample(count: int = 400, seed: int = 0, complement: bool = False) -> Ratio:
    """Correlated tops and bottoms whose expectations have the ratio 1/4."""
    bottom = np.random.default_rng(seed).gamma(2.0, size=count)
    return Ratio(bottom * np.random.default_rng([seed, 1]).beta(1, 3, size=count), bottom, complement)


def interval(ratio: Ratio, resamples: int = 2000) -> tuple[float, float]:
    low, high = np.quantile(resampled(ratio, resamples=resamples), [0.025, 0.975])
    return low, high


def test_value_is_the_quotient_of_the_sums() -> None:
    assert Ratio(np.array([1.0, 2.0]), np.array([4.0, 8.0])).value == 0.25
    assert Ratio(np.array([1.0, 2.0]), np.array([4.0, 8.0]), complement=True).value == 0.75
    assert mean_of(np.array([True, False])).value == 0.5


@pytest.mark.parametrize("top", [0.0, 1.0])
def test_a_ratio_to_nothing_is_undefined(top: float) -> None:
    ratio = Ratio(np.full(5, top), np.zeros(5))
    assert np.isnan(ratio.value)
    assert np.isnan(resampled(ratio, resamples=3)).all()


def test_gain_is_the_share_taken_away_and_zero_where_nothing_was_left() -> None:
    one = np.ones(10)
    assert gain(0.1 * one, 0.5 * one, one).value == pytest.approx(0.8, abs=1e-3)
    assert gain(0 * one, one, one).value == pytest.approx(1, abs=1e-3)
    assert gain(0 * one, 0 * one, one).value == 0
    assert gain(1e-9 * one, 1e-12 * one, one).value == pytest.approx(0, abs=1e-4)
    assert gain(1e-12 * one, 1e-9 * one, one).value == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("kept", [True, False])
def test_chunks_are_the_rows_of_one_draw(monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    count, resamples = 150, 23
    monkeypatch.setattr(module, "_CHUNK_BYTES", 4000 if kept else 2500)  # in both cases below 4 rows of float64
    module._kept_draws.cache_clear()
    chunks = list(draw_counts(count, resamples, seed=4))
    module._kept_draws.cache_clear()
    whole = np.random.default_rng(4).multinomial(count, np.full(count, 1 / count), size=resamples)
    assert max(map(len, chunks)) <= 3
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_resampling_is_a_loop_over_drawn_images() -> None:
    ratio = sample(60, complement=True)
    rng = np.random.default_rng(3)
    naive = []
    for counts in rng.multinomial(60, np.full(60, 1 / 60), size=40):
        rows = np.repeat(np.arange(60), counts)
        naive.append(1 - ratio.top[rows].sum() / ratio.bottom[rows].sum())
    np.testing.assert_allclose(resampled(ratio, resamples=40, seed=3), naive)
    both = resampled_each({"a": ratio, "b": sample(60)}, resamples=40, seed=3)
    np.testing.assert_allclose(both["a"], naive)
    np.testing.assert_allclose(both["b"], resampled(sample(60), resamples=40, seed=3))


def test_images_are_those_of_the_r2() -> None:
    """With targets of ±1, whose squares sum to N in any draw, R² is one of ratios over the same draws."""
    rng = np.random.default_rng(0)
    targets = np.sign(rng.normal(size=(500, 1)))
    predictions = targets + rng.normal(size=(1, 500, 1))
    residual = np.square(targets - predictions[0])[:, 0]
    drawn_mean = resampled(mean_of(targets[:, 0]))
    ours = 1 - resampled(mean_of(residual)) / (1 - drawn_mean**2)
    np.testing.assert_allclose(resampled_r2(targets, predictions), ours)


@pytest.mark.parametrize("complement", [True, False])
def test_interval_is_that_of_the_delta_method(complement: bool) -> None:
    ratio = sample(complement=complement)
    quotient = ratio.top.sum() / ratio.bottom.sum()
    error = np.sqrt(np.square(ratio.top - quotient * ratio.bottom).sum()) / ratio.bottom.sum()
    low, high = interval(ratio)
    assert (low, high) == pytest.approx((ratio.value - 1.96 * error, ratio.value + 1.96 * error), abs=0.2 * error)


def test_interval_covers_the_true_value_about_as_often_as_it_says() -> None:
    intervals = [interval(sample(200, seed), resamples=300) for seed in range(200)]
    covered = np.mean([low <= 0.25 <= high for low, high in intervals])
    assert 0.88 < covered < 0.99  # 0.95 within 4.5 standard errors of 200 trials, but for the percentiles' own bias
