"""The linear probe against scikit-learn: the same optimum, the same choice of penalty, and what must not crash it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss

from equibench.errors import UserError
from equibench.probes.logistic import GRID, LinearClassifier, fit_logistic, fit_path
from equibench.utils.arrays import Gathered

Labelled = tuple[NDArray[np.float32], NDArray[np.int64]]
EXACT: dict[str, Any] = {"dtype": torch.float64, "tolerance": 1e-14}


def problem(
    count: int, features: int, classes: int, *, seed: int = 0, apart: float = 1.0, unequal: float = 2.0
) -> Labelled:
    """Gaussian classes in features with an offset and with variances over `unequal` powers of ten."""
    centres = apart * np.random.default_rng(99).normal(size=(classes, features))
    mixing = np.linalg.qr(np.random.default_rng(98).normal(size=(features, features)))[0]
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, size=count, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    x = (centres[labels] + rng.normal(size=(count, features))) * np.logspace(0, -unequal, features)
    return (x @ mixing + 3).astype(np.float32), labels


def fit_one(*parts: Labelled, penalty: float, classes: int, **options: Any) -> LinearClassifier:
    return next(fit_path(parts, [penalty], classes=classes, **options))


def reference(data: Labelled, penalty: float) -> LogisticRegression:
    """scikit-learn's optimum, by Newton's method."""
    x, y = data
    strength = (2 if len(np.unique(y)) == 2 else 1) / penalty
    model = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    return model.fit(x.astype(np.float64), y)


def centred(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Biases are defined up to a number that all classes share."""
    return weights - weights.mean(axis=0)


def objective(model: LinearClassifier, data: Labelled, penalty: float) -> float:
    """Sum of cross-entropies + penalty / 2 ||W||², written out."""
    scores = data[0].astype(np.float64) @ model.weights.T + model.bias
    log_total = np.logaddexp.reduce(scores, axis=1)
    true = scores[np.arange(len(scores)), np.searchsorted(model.labels, data[1])]
    return float((log_total - true).sum() + penalty / 2 * np.square(model.weights).sum())


@pytest.mark.parametrize("penalty", [1e-3, 1.0, 100.0])
def test_optimum_is_that_of_scikit_learn(penalty: float) -> None:
    data, new = problem(300, 8, 4), problem(400, 8, 4, seed=1)[0]
    theirs, ours = reference(data, penalty), fit_one(data, penalty=penalty, classes=4, **EXACT)
    assert ours.converged
    np.testing.assert_allclose(ours.weights, theirs.coef_, atol=1e-5 * np.abs(theirs.coef_).max())
    np.testing.assert_allclose(centred(ours.bias), centred(theirs.intercept_), atol=1e-5 * np.abs(ours.bias).max())
    np.testing.assert_array_equal(ours.predict(new), theirs.predict(new.astype(np.float64)))


@pytest.mark.parametrize("penalty", [1e-3, 1.0, 100.0])
def test_two_classes_are_those_of_scikit_learn_at_twice_its_strength(penalty: float) -> None:
    data, new = problem(200, 5, 2, apart=0.5), problem(400, 5, 2, seed=1, apart=0.5)[0]
    theirs, ours = reference(data, penalty), fit_one(data, penalty=penalty, classes=2, **EXACT)
    np.testing.assert_allclose(ours.weights[1] - ours.weights[0], theirs.coef_[0], rtol=1e-4)
    np.testing.assert_allclose(ours.bias[1] - ours.bias[0], theirs.intercept_[0], rtol=1e-4)
    np.testing.assert_array_equal(ours.predict(new), theirs.predict(new.astype(np.float64)))


@pytest.mark.filterwarnings("ignore:Line search of Newton")
@pytest.mark.parametrize(
    ("count", "features"), [(40, 60), (300, 30)]
)  # the first: separable, fewer images than features
def test_single_precision_ends_as_low(count: int, features: int) -> None:
    data = problem(count, features, 4, unequal=4)
    for penalty, ours in zip(GRID[::-4], fit_path([data], GRID[::-4], classes=4), strict=True):
        theirs = reference(data, penalty)
        best = log_loss(data[1], theirs.predict_proba(data[0].astype(np.float64)), normalize=False)
        best += penalty / 2 * np.square(theirs.coef_).sum()
        found = objective(ours, data, penalty)
        assert ours.converged
        assert best * (1 - 1e-6) <= found <= best * (1 + 3e-4), penalty


def test_bias_is_free() -> None:
    data = problem(300, 6, 3)
    model = fit_one(data, penalty=1e9, classes=3, **EXACT)
    shares = np.exp(model.bias + model.weights @ data[0].mean(axis=0).astype(np.float64))
    np.testing.assert_allclose(shares / shares.sum(), np.bincount(data[1]) / 300, rtol=1e-5)


def test_offset_of_features_changes_nothing_but_the_bias() -> None:
    x, y = problem(200, 6, 3)
    x = np.round(x * 1024) / 1024  # so that adding 64 is exact
    near, far = (fit_one((data, y), penalty=0.5, classes=3, **EXACT) for data in (x, x + np.float32(64)))
    np.testing.assert_allclose(far.weights, near.weights, atol=1e-6 * np.abs(near.weights).max())


def test_warm_start_ends_where_a_cold_one_does() -> None:
    data, new = problem(200, 20, 4), problem(500, 20, 4, seed=1)[0]
    penalties = GRID[:8:-6]
    for penalty, warm in zip(penalties, fit_path([data], penalties, classes=4, **EXACT), strict=True):
        cold = fit_one(data, penalty=penalty, classes=4, **EXACT)
        np.testing.assert_allclose(warm.weights, cold.weights, atol=1e-4 * np.abs(cold.weights).max())
        np.testing.assert_array_equal(warm.predict(new), cold.predict(new))


@pytest.mark.parametrize("score", [accuracy_score, balanced_accuracy_score])
def test_choice_and_predictions_are_those_of_scikit_learn(score: Any) -> None:
    train, val, test = (problem(n, 12, 5, seed=s, apart=0.6) for s, n in enumerate((120, 80, 200)))
    grid = np.logspace(-4, 4, 9)
    scores = np.array([score(val[1], reference(train, w).predict(val[0].astype(np.float64))) for w in grid])
    assert scores.min() < scores.max()
    found = fit_logistic(train, val, test[0], classes=5, select=score, grid=grid)
    assert found.converged
    np.testing.assert_allclose(found.validation_scores, scores)
    assert found.penalty == grid[::-1][scores[::-1].argmax()]
    both = (np.concatenate([train[0], val[0]]), np.concatenate([train[1], val[1]]))
    expected = reference(both, found.penalty).predict(test[0].astype(np.float64))
    np.testing.assert_array_equal(found.predictions, expected)
    assert found.predictions.dtype == np.int64


def test_grid_is_the_protocols_and_its_order_does_not_matter() -> None:
    assert len(GRID) == 45
    np.testing.assert_allclose(GRID[[0, 4, -1]], [1e-6, 1e-5, 1e5])
    train, val, test = (problem(60, 6, 3, seed=s) for s in range(3))
    grid = np.array([1.0, 1e-3, 1e3])
    one = fit_logistic(train, val, test[0], classes=3, select=accuracy_score, grid=grid)
    other = fit_logistic(train, val, test[0], classes=3, select=accuracy_score, grid=np.sort(grid))
    np.testing.assert_array_equal(one.validation_scores[[1, 0, 2]], other.validation_scores)
    assert one.penalty == other.penalty
    constant = fit_logistic(train, val, test[0], classes=3, select=lambda y, p: 0.5, grid=grid)
    assert constant.penalty == 1e3  # the strongest of equals


def test_stored_features_and_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem(150, 10, 3)
    np.save(tmp_path / "features.npy", x.astype(np.float16))
    stored = np.load(tmp_path / "features.npy", mmap_mode="r")
    whole = fit_one((np.asarray(stored, dtype=np.float32), y), penalty=0.1, classes=3, **EXACT)
    monkeypatch.setattr("equibench.probes.logistic._READ_ROWS", 32)
    monkeypatch.setattr("equibench.probes.logistic._CPU_ROWS", 7)
    rows = np.arange(150)
    halves = [(Gathered(stored, rows[part]), y[part]) for part in (slice(0, 90), slice(90, 150))]
    for parts in ([(stored, y)], halves):
        blocks = fit_one(*parts, penalty=0.1, classes=3, **EXACT)
        np.testing.assert_allclose(blocks.weights, whole.weights, atol=1e-6 * np.abs(whole.weights).max())
        np.testing.assert_array_equal(blocks.predict(stored), whole.predict(stored))


def test_same_result_twice() -> None:
    train, val, test = (problem(80, 10, 3, seed=s) for s in range(3))
    one, other = (fit_logistic(train, val, test[0], classes=3, select=accuracy_score, grid=GRID[::9]) for _ in range(2))
    np.testing.assert_array_equal(one.validation_scores, other.validation_scores)
    np.testing.assert_array_equal(one.predictions, other.predictions)
    assert (one.penalty, one.iterations) == (other.penalty, other.iterations)


def test_fit_that_is_cut_short_says_so() -> None:
    data = problem(80, 10, 3)
    model = fit_one(data, penalty=1e-3, classes=3, max_iterations=2)
    assert (model.iterations, model.converged) == (2, False)


def test_class_that_is_missing_in_training_is_not_predicted() -> None:
    train, val, test = (problem(100, 6, 4, seed=s) for s in range(3))
    kept = train[1] != 1
    found = fit_logistic(
        (train[0][kept], train[1][kept]), val, test[0], classes=6, select=accuracy_score, grid=GRID[::11]
    )
    assert found.converged
    assert set(found.predictions) == {0, 1, 2, 3}  # the final fit has val's images of class 1
    assert 1 not in fit_one((train[0][kept], train[1][kept]), penalty=1.0, classes=6).predict(test[0])


@pytest.mark.parametrize(
    "case", ["one image a class", "constant", "one class", "one image", "duplicates", "tiny", "huge"]
)
def test_degenerate_data(case: str) -> None:
    x, y = problem(60, 8, 3)
    if case == "one image a class":
        x, y = x[[list(y).index(c) for c in range(3)]], np.arange(3)
    elif case == "constant":
        x = np.full_like(x, 0.1)
    elif case == "one class":
        y = np.full_like(y, 2)
    elif case == "one image":
        x, y = x[:1], y[:1]
    elif case == "duplicates":
        x = np.repeat(x[:1], len(x), axis=0)
    else:
        x = x * np.float32({"tiny": 1e-6, "huge": 1e6}[case])
    found = fit_logistic((x, y), (x, y), x, classes=3, select=accuracy_score, grid=GRID[::4])
    assert found.converged
    majority = np.bincount(y).max() / len(y)
    accuracy = np.mean(found.predictions == y)
    if case in ("constant", "duplicates"):
        assert accuracy == majority
    elif case == "tiny":
        assert accuracy >= majority
    else:
        assert accuracy > 0.9
    assert found.validation_scores.max() >= majority


def test_mistakes_are_named() -> None:
    x, y = problem(30, 4, 3)
    bad = x.copy()
    bad[17, 2] = np.nan
    calls: list[tuple[str, Labelled, Labelled, NDArray[np.float32], dict[str, Any]]] = [
        ("the training features are not finite: image 17, feature 2", (bad, y), (x, y), x, {}),
        ("the features to predict from are not finite: image 17", (x, y), (x, y), bad, {}),
        ("not finite: image 0", (np.full(x.shape, 1e39), y), (x, y), x, {}),
        ("30 rows of features for 29 labels", (x, y[:-1]), (x, y), x, {}),
        ("30 rows of features for 29 labels", (x, y), (x, y[:-1]), x, {}),
        ("0 rows of features", (x[:0], y[:0]), (x, y), x, {}),
        ("labels from 0 to 2 for 2 classes", (x, y), (x, y), x, {"classes": 2}),
        ("labels from -1 to 1", (x, y - 1), (x, y), x, {}),
        (r"features of shape \(30, 3\) beside features of 4 columns", (x, y), (x, y), x[:, :3], {}),
        (r"features of shape \(30, 3\)", (x, y), (x[:, :3], y), x[:, :3], {}),
        (r"features of shape \(30,\)", (x[:, 0], y), (x, y), x, {}),
        ("not a positive number", (x, y), (x, y), x, {"grid": np.array([1.0, 0.0])}),
    ]
    for message, train, val, test, changes in calls:
        options: dict[str, Any] = {"classes": 3, "select": accuracy_score, "grid": np.array([1.0]), **changes}
        with pytest.raises(UserError, match=message):
            fit_logistic(train, val, test, **options)
