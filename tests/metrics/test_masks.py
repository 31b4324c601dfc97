"""J and F of masks: their definition, computed from all pairs of boundary pixels, and cases that need no computing."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist
from sklearn.metrics import jaccard_score

from equibench.metrics.masks import TOLERANCE, boundary, boundary_accuracy, region_similarity


def blob(seed: int, size: tuple[int, int] = (60, 90)) -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), 6)
    return smooth > np.quantile(smooth, 0.7)


def brute_boundary(mask: np.ndarray) -> np.ndarray:
    """(K, 2) places that differ from the right, the lower or the lower right neighbour, one pixel after the other."""
    height, width = mask.shape
    found = []
    for y, x in product(range(height), range(width)):
        around = [(y + dy, x + dx) for dy, dx in ((0, 1), (1, 0), (1, 1)) if y + dy < height and x + dx < width]
        if any(mask[place] != mask[y, x] for place in around):
            found.append((y, x))
    return np.array(found)


@pytest.mark.parametrize("seed", range(4))
def test_against_all_pairs_of_boundary_pixels(seed: int) -> None:
    predicted, annotated = blob(seed), np.roll(blob(seed), (seed - 1, 2 * seed), axis=(0, 1)) ^ (blob(9) & blob(8))
    ours, theirs = brute_boundary(predicted), brute_boundary(annotated)
    assert {tuple(place) for place in ours} == set(zip(*np.nonzero(boundary(predicted)), strict=True))
    reach = math.ceil(TOLERANCE * math.hypot(60, 90))
    near = cdist(ours, theirs) <= reach
    precision, recall = near.any(axis=1).mean(), near.any(axis=0).mean()
    assert precision > 0
    assert boundary_accuracy(predicted, annotated) == pytest.approx(2 * precision * recall / (precision + recall))
    assert region_similarity(predicted, annotated) == pytest.approx(jaccard_score(annotated.ravel(), predicted.ravel()))


def test_the_tolerance_is_a_share_of_the_diagonal() -> None:
    """DAVIS's frames of 480 x 854 px allow 8 px: 0.8 % of 979.7 px, rounded up."""
    square = np.zeros((480, 854), bool)
    square[100:200, 100:200] = True
    assert boundary_accuracy(np.roll(square, 8, axis=1), square) == 1
    moved = boundary_accuracy(np.roll(square, 9, axis=1), square)
    assert 0.4 < moved < 0.6, "the two sides that run along the shift are still met"


def test_empty_masks() -> None:
    none, some = np.zeros((20, 20), bool), np.eye(20, dtype=bool)
    for of in (region_similarity, boundary_accuracy):
        assert of(none, none) == of(some, some) == 1
        assert of(none, some) == of(some, none) == 0
    whole = ~none
    assert boundary_accuracy(whole, none) == 1, "neither has a boundary inside the image"
    assert region_similarity(whole, none) == 0
