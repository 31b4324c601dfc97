"""Wahba's problem against scipy, and CARE's measures of equivariant, invariant and random encoders."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import expm, orthogonal_procrustes
from scipy.spatial.transform import Rotation
from scipy.stats import special_ortho_group

from equibench.evaluation.wahba import gamma_ratios, rotation, wahba_ratios


def values(first: np.ndarray, moved: np.ndarray, **options: int) -> dict[str, float]:
    ratios = {**wahba_ratios(first, moved, **options), **gamma_ratios(first, moved)}
    return {name: ratio.value for name, ratio in ratios.items()}


def rotated(count: int = 200, size: int = 8, transforms: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """f(x) off the origin, and f(a x) = R_a f(x) for random rotations."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(count, size)) * rng.uniform(0.5, 2, size=size) + 1
    turns = special_ortho_group(size).rvs(transforms, random_state=rng)
    return first, np.einsum("aij,nj->ani", turns, first)


def test_equivariant_encoder() -> None:
    scores = values(*rotated())
    assert scores["wahba"] == pytest.approx(0, abs=1e-6)
    assert scores["wahba_gain"] == pytest.approx(1, abs=1e-3)
    assert scores["gamma_f"] == pytest.approx(0, abs=1e-6)
    assert scores["gamma_f_pooled"] == pytest.approx(0, abs=1e-6)


def test_leading_components_of_a_rotation_in_few_of_many_dimensions() -> None:
    """More dimensions than images, in eight of which all happens: reduction keeps these and finds the rotation."""
    first, moved = rotated()
    embed = np.linalg.qr(np.random.default_rng(1).normal(size=(300, 8)))[0].T
    assert values(first @ embed, moved @ embed)["wahba"] == pytest.approx(0, abs=1e-6)


def test_invariant_encoder() -> None:
    first, _ = rotated()
    scores = values(first, np.stack([first, first]))
    assert scores["wahba"] == pytest.approx(0, abs=1e-6)
    assert scores["wahba_identity"] == 0
    assert scores["wahba_gain"] == pytest.approx(0, abs=1e-4)
    assert scores["gamma_f"] == 0
    assert np.isnan(scores["gamma_f_pooled"])


@pytest.mark.parametrize("size", [8, 400])
def test_random_encoder(size: int) -> None:
    """Without reduction, 150 images in 400 dimensions would be turned exactly; the scored half tells, at 2 = 1 + 1."""
    first, *moved = np.random.default_rng(0).normal(size=(4, 300, size))
    scores = values(first, np.stack(moved))
    assert scores["wahba"] == pytest.approx(2, abs=0.2)
    assert scores["wahba_identity"] == pytest.approx(2, abs=0.2)
    assert abs(scores["wahba_gain"]) < 0.1
    # squared distances of unit vectors are 2 - 2 c, c of variance 1 / d: E (2 c - 2 c')² / E (4 - 2 c - 2 c')²
    assert scores["gamma_f_pooled"] == pytest.approx(1 / (2 * size + 1), rel=0.25)
    assert scores["gamma_f"] == pytest.approx(1 / (2 * size), rel=0.5)


def test_fit_half_alone_decides() -> None:
    """A rotation that holds in the even rows only is no credit."""
    first, moved = rotated()
    moved[:, 1::2] = first[1::2]
    scores = values(first, moved)
    assert scores["wahba"] > 0.1
    assert len(wahba_ratios(first, moved)["wahba"].top) == 100


def test_rotation_is_scipys_in_three_dimensions() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        start, end = rng.normal(size=(2, 10, 3))
        theirs, _ = Rotation.align_vectors(end, start)
        np.testing.assert_allclose(rotation(start, end), theirs.as_matrix(), atol=1e-9)


def test_rotation_is_procrustes_where_that_is_proper_and_never_mirrors() -> None:
    rng, mirrored = np.random.default_rng(0), 0
    for _ in range(10):
        start, end = rng.normal(size=(2, 30, 6))
        ours, (theirs, _) = rotation(start, end), orthogonal_procrustes(start, end)
        assert np.linalg.det(ours) == pytest.approx(1)
        np.testing.assert_allclose(ours @ ours.T, np.eye(6), atol=1e-12)
        if np.linalg.det(theirs) > 0:
            np.testing.assert_allclose(ours, theirs.T, atol=1e-9)
        else:
            mirrored += 1
            error = np.linalg.norm(start @ ours.T - end)
            assert np.linalg.norm(start @ theirs - end) < error
            for _ in range(20):  # no rotation nearby does better
                skew = 0.05 * rng.normal(size=(6, 6))
                assert np.linalg.norm(start @ (ours @ expm(skew - skew.T)).T - end) > error
    assert mirrored


def test_gamma_is_cares_formula() -> None:
    rng = np.random.default_rng(0)
    first, moved = rng.normal(size=(6, 4)), rng.normal(size=(2, 6, 4))

    def unit(features: np.ndarray) -> np.ndarray:
        centred = features - features[::2].mean(axis=0)
        return centred / np.linalg.norm(centred, axis=1, keepdims=True)

    x, quotients = unit(first), []
    for ax in map(unit, moved):
        for i, j in zip(range(6), [1, 2, 3, 4, 5, 0], strict=True):
            top = (np.sum((ax[j] - ax[i]) ** 2) - np.sum((x[j] - x[i]) ** 2)) ** 2
            quotients.append(top / (np.sum((ax[j] - x[j]) ** 2) + np.sum((ax[i] - x[i]) ** 2)) ** 2)
    assert gamma_ratios(first, moved)["gamma_f"].value == pytest.approx(np.mean(quotients))
