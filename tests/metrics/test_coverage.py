"""Simulation: 95 % intervals of R² hold the true value as often as they say, and the comparison finds no false winners.

Images are drawn from a linear Gaussian model whose population R² is known, again and again. The bounds are wider than
three standard errors of the simulation, and far from what intervals of half the width give.
"""

from __future__ import annotations

import numpy as np
import pytest

from equibench.audit.compare import LEVEL, holm, paired_p
from equibench.metrics.regression import bootstrap_r2, resampled_r2

SHARE, PROBE = np.array([0.5, 0.8]), 0.1
"""By dimension, the target's variance that the features hold; and the variance of a probe seed's own error."""
TRUE_R2 = float((SHARE - PROBE).mean())
TOO_NARROW = 0.8
"""Coverage that intervals of half the width (0.67) stay below, and intervals of the right width stay above."""


def normal(rng: np.random.Generator, shape: tuple[int, ...], cluster: int, common: float) -> np.ndarray:
    """Standard normal numbers (..., N, K), of which `common` of the variance is the same in all rows of a cluster."""
    rows = shape[-2] // cluster
    shared = np.repeat(rng.normal(size=(*shape[:-2], rows, shape[-1])), cluster, axis=-2)
    return np.sqrt(common) * shared + np.sqrt(1 - common) * rng.normal(size=shape)


def sample(trial: int, count: int, cluster: int = 1, probes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Targets t = √s u + √(1 - s) e (N, K) and predictions √s u + √p v (probes, N, K), whose R² is s - p."""
    rng = np.random.default_rng([trial, count])
    common = 0.9 if cluster > 1 else 0.0
    held, rest = (normal(rng, (count, 2), cluster, common) for _ in range(2))
    own = normal(rng, (probes, count, 2), cluster, common)
    return np.sqrt(SHARE) * held + np.sqrt(1 - SHARE) * rest, np.sqrt(SHARE) * held + np.sqrt(PROBE) * own


def coverage(intervals: np.ndarray, width: float = 1) -> float:
    """How often intervals (trials, 2), widened or narrowed about their middle, hold the true R²."""
    middle, half = intervals.mean(axis=1), width * np.diff(intervals)[:, 0] / 2
    return float((np.abs(TRUE_R2 - middle) <= half).mean())


def test_the_model_has_the_r2_that_it_is_said_to_have() -> None:
    truth, predictions = sample(0, 400_000)
    r2 = 1 - np.square(truth - predictions).mean(axis=1) / truth.var(axis=0)
    assert r2.mean() == pytest.approx(TRUE_R2, abs=0.005)


def test_intervals_of_independent_images_cover_95_percent() -> None:
    intervals = np.array([bootstrap_r2(*sample(trial, 200), resamples=1000) for trial in range(1000)])
    assert 0.92 < coverage(intervals) < 0.975
    assert coverage(intervals, width=1 / 2) < TOO_NARROW


def test_intervals_of_objects_cover_95_percent_and_those_that_ignore_objects_do_not() -> None:
    trials, each = range(500), 5
    samples = [sample(trial, 120 * each, cluster=each) for trial in trials]
    clustered, ignorant = (
        np.array([bootstrap_r2(*one, resamples=1000, cluster=cluster) for one in samples]) for cluster in (each, 1)
    )
    assert 0.91 < coverage(clustered) < 0.98
    assert coverage(clustered, width=1 / 2) < TOO_NARROW
    assert coverage(ignorant) < TOO_NARROW


def test_equal_encoders_are_told_apart_five_times_in_a_hundred() -> None:
    p_values = []
    for trial in range(1000):
        truth, predictions = sample(trial, 200)  # two encoders, equally good and wrong in much the same way
        one, other = (resampled_r2(truth, own[None], resamples=1000) for own in predictions)
        p_values.append(paired_p(one - other))
    assert 0.03 < np.mean(np.array(p_values) < LEVEL) < 0.075
    # of five tasks compared at a time, Holm's correction finds a winner in any as seldom
    assert np.mean([min(holm(family)) < LEVEL for family in np.reshape(p_values, (-1, 5))]) < 0.11


def test_differences_of_half_the_width_would_find_too_many_winners() -> None:
    found = []
    for trial in range(300):
        truth, predictions = sample(trial, 200)
        one, other = (resampled_r2(truth, own[None], resamples=1000) for own in predictions)
        difference = one - other
        found.append(paired_p(difference.mean() + (difference - difference.mean()) / 2) < LEVEL)
    assert np.mean(found) > 0.2


def test_a_better_encoder_is_found() -> None:
    truth, predictions = sample(0, 1000)
    better = (predictions[0] + truth) / 2
    assert paired_p(resampled_r2(truth, better[None]) - resampled_r2(truth, predictions[1:])) < 0.01
