"""Ranks against a plain loop, and scores of equivariant, invariant and random encoders."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from equibench.evaluation.retrieval import Ranks, random_baseline, ranks, retrieval_ratios

M = 50


def values(found: Ranks) -> dict[str, float]:
    return {name: ratio.value for name, ratio in retrieval_ratios(found).items()}


@pytest.mark.parametrize("cosine", [False, True])
def test_ranks_are_those_of_a_loop(cosine: bool) -> None:
    rng = np.random.default_rng(0)
    predicted, bank = rng.normal(size=(2, 6, 9, 4))
    found = ranks(predicted, bank, cosine=cosine)
    for i in range(6):
        distances = cdist(predicted[i], bank[i], "cosine" if cosine else "euclidean")
        for j in range(9):
            assert found.better[i, j] == sum(distances[j] < distances[j, j])
    assert (found.tied == 1).all()
    rank = found.better + 1
    assert values(found)["mrr"] == pytest.approx((1 / rank).mean())
    assert values(found)["hit_at_1"] == pytest.approx((rank == 1).mean())
    assert values(found)["hit_at_5"] == pytest.approx((rank <= 5).mean())


def test_random_baselines_are_the_published_ones() -> None:
    assert random_baseline(50) == pytest.approx({"mrr": 0.090, "hit_at_1": 0.02, "hit_at_5": 0.10}, abs=1e-4)
    assert random_baseline(256)["mrr"] == pytest.approx(0.024, abs=5e-4)
    assert random_baseline(3) == pytest.approx({"mrr": (1 + 1 / 2 + 1 / 3) / 3, "hit_at_1": 1 / 3, "hit_at_5": 1})


@pytest.mark.parametrize("cosine", [False, True])
def test_equivariant_encoder_finds_all(cosine: bool) -> None:
    rng = np.random.default_rng(0)
    angle = np.deg2rad(rng.uniform(-45, 45, size=(20, M)))
    bank = np.stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)], axis=2)
    predicted = bank + 1e-9 * rng.normal(size=bank.shape)
    assert values(ranks(predicted, bank, cosine=cosine)) == {"mrr": 1, "hit_at_1": 1, "hit_at_5": 1}


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("guess", ["exact", "wrong"])
def test_invariant_encoder_scores_what_guessing_does(cosine: bool, offset: float, guess: str) -> None:
    rng = np.random.default_rng(0)
    bank = np.repeat(rng.normal(size=(20, 1, 7)) + offset, M, axis=1)
    predicted = bank if guess == "exact" else bank + rng.normal(size=bank.shape)
    assert values(ranks(predicted, bank, cosine=cosine)) == pytest.approx(random_baseline(M))


def test_guess_that_ignores_the_parameter_scores_what_guessing_does() -> None:
    rng = np.random.default_rng(0)
    bank, guess = rng.normal(size=(20, M, 7)), rng.normal(size=(20, 1, 7))
    assert values(ranks(np.repeat(guess, M, axis=1), bank)) == pytest.approx(random_baseline(M))


def test_random_encoder_scores_what_guessing_does_within_sampling_error() -> None:
    rng = np.random.default_rng(0)
    found = values(ranks(*rng.normal(size=(2, 200, M, 8))))
    each = 1 / np.arange(1, M + 1)
    deviation = {"mrr": each.std(), "hit_at_1": np.sqrt(0.02 * 0.98), "hit_at_5": np.sqrt(0.1 * 0.9)}
    for name, expected in random_baseline(M).items():
        # 10 000 ranks; those of one image share their bank, which the factor of 2 is for
        assert found[name] == pytest.approx(expected, abs=3 * 2 * deviation[name] / 100)


def test_ties_share_the_ranks_that_they_occupy() -> None:
    bank = np.array([[[0.0], [1.0], [1.0], [5.0]]])
    found = ranks(np.array([[[0.0], [0.9], [0.2], [0.0]]]), bank)
    np.testing.assert_array_equal(found.better, [[0, 0, 1, 3]])
    np.testing.assert_array_equal(found.tied, [[1, 2, 2, 1]])
    scores = values(found)
    assert scores["mrr"] == pytest.approx((1 + (1 + 1 / 2) / 2 + (1 / 2 + 1 / 3) / 2 + 1 / 4) / 4)
    assert scores["hit_at_1"] == pytest.approx((1 + 1 / 2) / 4)
    assert scores["hit_at_5"] == 1


def test_cosine_forgets_lengths() -> None:
    bank = np.array([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]], dtype=np.float16)
    assert (ranks(bank, bank).tied == 1).all()
    np.testing.assert_array_equal(ranks(bank, bank, cosine=True).tied, [[2, 2, 1]])
