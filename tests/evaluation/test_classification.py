"""Classification scores against scikit-learn, and their bootstrap against resampling by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from equibench.evaluation.classification import hits, mean_per_class, resampled_mean_per_class, resampled_top1, top1
from equibench.metrics.bootstrap import draw_counts


def labels(count: int = 60, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Unequally frequent classes, of which 3 does not occur, and the predictions of three seeds."""
    rng = np.random.default_rng(0)
    targets = rng.choice([c for c in range(classes) if c != 3], size=count, p=[0.6, 0.2, 0.15, 0.05])
    wrong = rng.random((3, count)) < 0.4
    return targets, np.where(wrong, rng.integers(0, classes, size=(3, count)), targets)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_scores_are_those_of_scikit_learn() -> None:
    targets, predictions = labels()
    assert 3 in predictions
    for one in predictions:
        assert top1(targets, one) == pytest.approx(accuracy_score(targets, one))
        assert mean_per_class(targets, one) == pytest.approx(balanced_accuracy_score(targets, one))
    assert top1(targets, predictions) == pytest.approx(np.mean([accuracy_score(targets, p) for p in predictions]))
    expected = np.mean([balanced_accuracy_score(targets, p) for p in predictions])
    assert mean_per_class(targets, predictions) == pytest.approx(expected)
    assert top1(targets, predictions) != pytest.approx(expected)
    assert top1(targets, targets) == mean_per_class(targets, targets) == 1
    assert mean_per_class(targets, targets + 10) == 0


def test_each_image_has_its_share_of_seeds() -> None:
    np.testing.assert_allclose(hits([1, 2, 3], [[1, 2, 0], [1, 0, 0]]), [1, 0.5, 0])
    np.testing.assert_array_equal(hits([1, 2, 3], [1, 2, 0]), [1, 1, 0])


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_resampled_scores_are_those_of_the_resampled_images() -> None:
    targets, predictions = labels(31)
    draws = [np.repeat(np.arange(31), c.astype(int)) for chunk in draw_counts(31, 50, 0) for c in chunk]
    assert any(len(np.unique(targets[rows])) < len(np.unique(targets)) for rows in draws)  # a class is not drawn
    first, second = (f(targets, predictions, resamples=50) for f in (resampled_top1, resampled_mean_per_class))
    for number, rows in enumerate(draws):
        truth, guesses = targets[rows], predictions[:, rows]
        assert first[number] == pytest.approx(np.mean([accuracy_score(truth, g) for g in guesses]))
        assert second[number] == pytest.approx(np.mean([balanced_accuracy_score(truth, g) for g in guesses]))


def test_distribution_is_the_same_each_time_and_differs_by_seed() -> None:
    targets, predictions = labels()
    for resampled in (resampled_top1, resampled_mean_per_class):
        one = resampled(targets, predictions)
        assert one.shape == (2000,)
        np.testing.assert_array_equal(one, resampled(targets, predictions))
        assert not np.array_equal(one, resampled(targets, predictions, seed=1))
    spread = resampled_top1(targets, predictions[0]).std()
    share = top1(targets, predictions[0])
    assert spread == pytest.approx(np.sqrt(share * (1 - share) / len(targets)), rel=0.1)  # the binomial's


def test_chance_levels_are_those_of_constant_and_random_answers() -> None:
    targets, _ = labels()
    constant = DummyClassifier(strategy="most_frequent").fit(targets[:, None], targets)
    answers = constant.predict(targets[:, None])
    assert mean_per_class(targets, answers) == pytest.approx(1 / len(np.unique(targets)))
    guesses = np.random.default_rng(0).integers(0, 5, size=(4000, len(targets)))
    assert top1(targets, guesses) == pytest.approx(1 / 5, abs=0.005)
    assert mean_per_class(targets, guesses) == pytest.approx(1 / 5, abs=0.005)


def test_without_images_there_is_no_score() -> None:
    assert np.isnan(top1([], []))
    assert np.isnan(mean_per_class([], []))
