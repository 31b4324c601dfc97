"""Scores of a segmentation from areas, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, jaccard_score, recall_score

from equibench.metrics.segmentation import Areas, constant_areas, resampled_scores, scores_from_areas


def count_areas(predicted: np.ndarray, label: np.ndarray, classes: int) -> Areas:
    """The areas of one image, (1, C) each; pixels that are annotated with 255 do not count."""
    predicted, label = predicted[label != 255], label[label != 255]
    found = [np.bincount(of, minlength=classes)[None] for of in (predicted[predicted == label], predicted, label)]
    return Areas(found[0], found[1] + found[2] - found[0], found[1], found[2])


def together(parts: list[Areas]) -> Areas:
    return Areas(**{name: np.concatenate([p.arrays()[name] for p in parts]) for name in parts[0].arrays()})


@pytest.fixture
def maps() -> tuple[np.ndarray, np.ndarray]:
    """Predictions and annotations of 6 images; of 7 classes, 5 is only predicted, 6 is nowhere."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, 5, size=(6, 9, 11))
    predicted = np.where(generator.random(label.shape) < 0.5, label, generator.integers(0, 6, size=label.shape))
    return predicted, np.where(generator.random(label.shape) < 0.1, 255, label)


def test_scores_are_those_of_scikit_learn(maps: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, label = maps
    areas = together([count_areas(p, t, classes=7) for p, t in zip(predicted, label, strict=True)])
    valid = label != 255
    truth, guess = label[valid], predicted[valid]
    scores = scores_from_areas(areas)
    assert scores.miou == pytest.approx(jaccard_score(truth, guess, labels=range(6), average="macro"), abs=1e-12)
    assert scores.macc == pytest.approx(recall_score(truth, guess, labels=range(5), average="macro"), abs=1e-12)
    assert scores.aacc == pytest.approx(accuracy_score(truth, guess), abs=1e-12)
    assert scores.iou[5] == 0
    assert np.isnan(scores.iou[6])


def test_the_interval_is_that_of_images_drawn_again(maps: tuple[np.ndarray, np.ndarray]) -> None:
    areas = together([count_areas(p, t, classes=7) for p, t in zip(*maps, strict=True)])
    draws = np.random.default_rng(3).multinomial(6, np.full(6, 1 / 6), size=20)
    found = resampled_scores(areas, resamples=20, seed=3)
    for draw, counts in enumerate(draws):
        rows = np.repeat(np.arange(6), counts)
        scores = scores_from_areas(Areas(**{name: array[rows] for name, array in areas.arrays().items()}))
        expected = (scores.miou, scores.macc, scores.aacc)
        np.testing.assert_allclose([found[name][draw] for name in ("mIoU", "mAcc", "aAcc")], expected, rtol=1e-12)


def test_the_floor_is_that_of_a_constant_map(maps: tuple[np.ndarray, np.ndarray]) -> None:
    _, label = maps
    truth = together([count_areas(np.zeros_like(t), t, classes=7) for t in label])
    expected = together([count_areas(np.full_like(t, 3), t, classes=7) for t in label])
    floor = constant_areas(truth.label, 3)
    for name, array in expected.arrays().items():
        np.testing.assert_array_equal(floor.arrays()[name], array)


def test_pixels_are_added_exactly_beyond_what_float32_holds() -> None:
    many = np.full((3, 2), 2**24, dtype=np.int64)
    many[1:] = 1  # float32 loses both ones
    scores = scores_from_areas(Areas(many, many + 1, many, many + 1))
    assert scores.iou[0] == (2**24 + 2) / (2**24 + 5)


def test_nothing_annotated_is_no_score() -> None:
    nothing = np.zeros((2, 3), dtype=np.int64)
    scores = scores_from_areas(Areas(nothing, nothing, nothing, nothing))
    assert np.isnan([scores.miou, scores.macc, scores.aacc]).all()
