"""The linear probe against the closed form of ridge regression."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from equibench.probes.mlp import PENALTIES, Split, fit_linear


def split(count: int, weights: np.ndarray, noise: float, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, count, len(weights) // 2)).astype(np.float32)
    targets = np.concatenate([first, second], axis=1) @ weights + noise * rng.normal(size=(count, weights.shape[1])) + 3
    return Split(first, second, targets)


@pytest.fixture
def weights() -> np.ndarray:
    return np.random.default_rng(9).normal(size=(12, 2))


def test_a_linear_relation_is_found_exactly(weights: np.ndarray) -> None:
    splits = {name: split(400, weights, 0, seed) for seed, name in enumerate(("train", "val", "test"))}
    np.testing.assert_allclose(fit_linear(splits, slice(None)), splits["test"].targets, atol=1e-3)


def test_only_the_columns_of_the_feature_set_are_seen(weights: np.ndarray) -> None:
    splits = {name: split(2000, weights, 0.1, seed) for seed, name in enumerate(("train", "val", "test"))}
    found = fit_linear(splits, slice(0, 2))
    train, test = (np.concatenate([splits[s].first[:, :2], splits[s].second[:, :2]], axis=1) for s in ("train", "test"))
    expected = LinearRegression().fit(train, splits["train"].targets).predict(test)
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_the_penalty_is_chosen_on_validation_pairs_and_test_targets_are_not_read(weights: np.ndarray) -> None:
    splits = {name: split(30, weights, 3.0, seed) for seed, name in enumerate(("train", "val", "test"))}
    found = fit_linear(splits, slice(None))
    splits["test"] = Split(splits["test"].first, splits["test"].second, np.full((30, 2), np.nan))
    np.testing.assert_array_equal(fit_linear(splits, slice(None)), found)

    def predicted(penalty: float, name: str) -> np.ndarray:
        """Ridge by its normal equations, on inputs standardised by the training pairs'."""
        inputs = {s: np.concatenate([splits[s].first, splits[s].second], axis=1).astype(float) for s in splits}
        mean, std = inputs["train"].mean(axis=0), inputs["train"].std(axis=0)
        x, y = (inputs["train"] - mean) / std, splits["train"].targets
        solution = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (y - y.mean(axis=0)))
        return (inputs[name] - mean) / std @ solution + y.mean(axis=0)

    errors = [np.square(predicted(p, "val") - splits["val"].targets).mean() for p in PENALTIES]
    assert 0 < int(np.argmin(errors)) < len(PENALTIES) - 1, "noise asks for some penalty"
    np.testing.assert_allclose(found, predicted(PENALTIES[int(np.argmin(errors))], "test"), atol=1e-5)
