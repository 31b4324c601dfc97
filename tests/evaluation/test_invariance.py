"""Invariance and consistency: bounds that invariant and random encoders reach, and plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from equibench.evaluation.invariance import consistency_ratios, invariance_ratios


def values(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    return {name: ratio.value for name, ratio in invariance_ratios(first, second).items()}


def test_invariant_encoder() -> None:
    features = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float16)
    assert values(features, features) == pytest.approx({"cosine": 1, "cosine_centred": 1, "invariance_ratio": 0})


def test_random_encoder() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 4000, 8)) + 3
    scores = values(first, second)
    assert scores["invariance_ratio"] == pytest.approx(1, abs=0.05)  # 3 sqrt(2 · 2 / (8 · 4000)) = 0.03, and the mean's
    assert scores["cosine_centred"] == pytest.approx(0, abs=3 / np.sqrt(8 * 4000))
    assert scores["cosine"] > 0.8  # all of it the common offset


def test_opposite_features() -> None:
    first = np.random.default_rng(0).normal(size=(100, 8))
    first -= first.mean(axis=0)
    scores = values(first, -first)
    assert scores["cosine"] == pytest.approx(-1)
    assert scores["invariance_ratio"] == pytest.approx(4 / 2 * 99 / 100)


def test_against_all_pairs_of_images() -> None:
    first, second = np.random.default_rng(1).normal(size=(2, 30, 5)) + 1
    moved = np.mean([np.sum((a - b) ** 2) for a, b in zip(first, second, strict=True)])
    apart = np.mean([np.sum((first[i] - first[j]) ** 2) for i in range(30) for j in range(30) if i != j])
    cosine = np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(first, second, strict=True)])
    assert values(first, second)["invariance_ratio"] == pytest.approx(moved / apart)
    assert values(first, second)["cosine"] == pytest.approx(cosine)


def test_features_of_no_length_have_no_direction() -> None:
    scores = values(np.zeros((4, 3)), np.zeros((4, 3)))
    assert scores["cosine"] == 0
    assert np.isnan(scores["invariance_ratio"])


def test_consistency_counts_agreement() -> None:
    ratios = consistency_ratios([0, 1, 2, 3], [0, 1, 1, 1], [0, 2, 2, 1])
    assert {name: ratio.value for name, ratio in ratios.items()} == {
        "consistency": 0.5,
        "accuracy_first": 0.5,
        "accuracy_second": 0.5,
    }
    np.testing.assert_array_equal(ratios["accuracy_second"].top, [1, 0, 0, 1])
