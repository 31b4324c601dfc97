"""The closed forms against scikit-learn's, brute force, and kernels that are computed from what they stand for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.preprocessing import KernelCenterer

from equibench.probes import ridge
from equibench.probes.ridge import KERNELS, PENALTIES, fit_closed_form, fit_linear
from equibench.probes.whitening import SHRINKAGES, Split, Whitening

NAMES = ("train", "val", "test")


def split(count: int, weights: np.ndarray, noise: float, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, count, len(weights) // 2)).astype(np.float32)
    targets = np.concatenate([first, second], axis=1) @ weights + noise * rng.normal(size=(count, weights.shape[1])) + 3
    return Split(first, second, targets)


@pytest.fixture
def weights() -> np.ndarray:
    return np.random.default_rng(9).normal(size=(12, 2))


# The linear probe


def test_a_linear_relation_is_found_exactly(weights: np.ndarray) -> None:
    splits = {name: split(400, weights, 0, seed) for seed, name in enumerate(NAMES)}
    np.testing.assert_allclose(fit_linear(splits), splits["test"].targets, atol=1e-3)


def test_only_the_columns_of_the_feature_set_are_seen(weights: np.ndarray) -> None:
    splits = {n: replace(split(2000, weights, 0.1, s), columns=slice(0, 2)) for s, n in enumerate(NAMES)}
    found = fit_linear(splits)
    train, test = (np.concatenate([splits[s].first[:, :2], splits[s].second[:, :2]], axis=1) for s in ("train", "test"))
    expected = LinearRegression().fit(train, splits["train"].targets).predict(test)
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_the_penalty_is_chosen_on_validation_pairs_and_test_targets_are_not_read(weights: np.ndarray) -> None:
    splits = {name: split(30, weights, 3.0, seed) for seed, name in enumerate(NAMES)}
    found = fit_linear(splits)
    splits["test"] = Split(splits["test"].first, splits["test"].second, np.full((30, 2), np.nan))
    np.testing.assert_array_equal(fit_linear(splits), found)

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


# The kernels


def test_the_relu_kernel_is_that_of_random_relu_features() -> None:
    rng = np.random.default_rng(0)
    x, centres = rng.normal(size=(2, 5, 4))
    draws = rng.normal(size=(1_000_000, 5))
    with_bias = [np.concatenate([v, np.full((5, 1), ridge._BIAS**0.5)], axis=1) for v in (x, centres)]
    features = [np.maximum(draws @ v.T, 0) for v in with_bias]
    expected = 2 * features[0].T @ features[1] / len(draws)
    found = ridge._kernel(*(torch.from_numpy(v) for v in (x, centres)), "relu", 2).numpy()
    np.testing.assert_allclose(found, expected, rtol=0.02)
    itself = ridge._kernel(torch.from_numpy(x), torch.from_numpy(x), "relu", 2).numpy()
    np.testing.assert_allclose(np.diag(itself), np.square(x).sum(axis=1) + ridge._BIAS)  # 2 E relu² = |x|² + bias


def test_the_products_are_all_those_of_a_coordinate_of_the_sum_and_one_of_the_difference() -> None:
    x, centres = np.random.default_rng(0).normal(size=(2, 5, 7))
    products = [np.stack([np.kron(row[:3], row[3:]) for row in v]) for v in (x, centres)]
    both = [ridge._kernel(*(torch.from_numpy(v) for v in (x, centres)), kind, 3).numpy() for kind in KERNELS]
    np.testing.assert_allclose(both[1] - both[0], ridge._PRODUCTS * products[0] @ products[1].T, atol=1e-12)


# Kernel ridge regression


def curved(count: int, seed: int, noise: float = 0.3, width: int = 4) -> Split:
    """Targets that are curved in the views' differences; a third one is a product of the sum and the difference."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, count, width)).astype(np.float32)
    d, s = second.astype(float) - first, first.astype(float) + second
    clean = np.stack([np.sin(d[:, 0]), np.abs(d[:, 1]) - s[:, 2], s[:, 0] * d[:, 1]], axis=1)
    return Split(first, second, clean + noise * rng.normal(size=clean.shape))


def plain_kernels(train: Split, others: Split, whitening: Whitening, shrinkage: float, kernel: str, landmarks: int):
    """Nyström's kernel of all pairs with the training pairs, in double precision: K_nm K_mm⁻¹ K_mn, centred."""
    seen = whitening.shrunk(shrinkage)
    x, new = (torch.from_numpy(seen(s.read(slice(0, len(s.targets))))).double() for s in (train, others))
    scale = x[:landmarks].square().sum(dim=1).mean().rsqrt()
    parts = [
        ridge._kernel(v * scale, x[:landmarks] * scale, kernel, len(whitening.variances[0])).numpy() for v in (x, new)
    ]
    inverse = np.linalg.pinv(parts[0][:landmarks], rcond=1e-10, hermitian=True)
    own, across = parts[0] @ inverse @ parts[0].T, parts[1] @ inverse @ parts[0].T
    centring = KernelCenterer().fit(own)
    return centring.transform(own), centring.transform(across), own


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("landmarks", [60, 20])
def test_predictions_are_those_of_scikit_learns_kernel_ridge(
    kernel: str, landmarks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = curved(60, 0), curved(40, 1)
    whitening, targets = Whitening.of(train), train.targets - train.targets.mean(axis=0)
    own, across, _ = plain_kernels(train, test, whitening, 0.1, kernel, landmarks)
    for penalty in (1e-3, 1e-1):
        monkeypatch.setattr(ridge, "_PENALTIES_PER_PAIR", np.array([penalty]))
        expected = KernelRidge(alpha=60 * penalty, kernel="precomputed").fit(own, targets).predict(across)
        found = ridge._fit(train, torch.from_numpy(targets).float(), whitening, 0.1, kernel, landmarks)(test).numpy()
        np.testing.assert_allclose(found, expected, atol=3e-3)
        assert expected.std() > 0.1, "all but 0, nothing is tested"


@pytest.mark.parametrize("seed", range(4))
def test_the_penalty_is_that_of_the_least_error_of_refits_without_each_pair(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = curved(40, seed, noise=1.0), curved(40, 10 + seed)
    targets = (train.targets - train.targets.mean(axis=0)) / train.targets.std(axis=0)
    whitening, penalties = Whitening.of(train), 2.0 ** np.arange(-12, 4)
    _, across, kernel = plain_kernels(train, test, whitening, 1.0, "relu", 40)
    errors = np.zeros(len(penalties))
    for left in range(40):
        kept = np.delete(np.arange(40), left)
        centring = KernelCenterer().fit(kernel[np.ix_(kept, kept)])
        own = centring.transform(kernel[np.ix_(kept, kept)].copy())
        new, mean = centring.transform(kernel[left : left + 1, kept].copy()), targets[kept].mean(axis=0)
        for number, penalty in enumerate(penalties):
            refit = KernelRidge(alpha=40 * penalty, kernel="precomputed").fit(own, targets[kept] - mean)
            errors[number] += np.square(refit.predict(new)[0] + mean - targets[left]).sum()
    best = int(errors.argmin())
    assert 0 < best < len(penalties) - 1

    def found(grid: np.ndarray) -> np.ndarray:
        monkeypatch.setattr(ridge, "_PENALTIES_PER_PAIR", grid)
        return ridge._fit(train, torch.from_numpy(targets).float(), whitening, 1.0, "relu", 40)(test).numpy()

    chosen = found(penalties)
    np.testing.assert_array_equal(chosen, found(penalties[best : best + 1]))
    for beside in (best - 1, best + 1):
        assert np.abs(chosen - found(penalties[beside : beside + 1])).max() > 1e-3, "penalties must differ"


def test_many_chunks_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {name: curved(300, seed) for seed, name in enumerate(NAMES)}
    whitening = Whitening.of(splits["train"])
    whole = fit_closed_form(splits, whitening)
    monkeypatch.setattr(ridge, "_CHUNK", 64)
    parts = fit_closed_form(splits, whitening)
    assert (parts.shrinkage, parts.kernel) == (whole.shrinkage, whole.kernel)
    np.testing.assert_allclose(parts.predictions, whole.predictions, atol=5e-3)


def test_products_are_chosen_where_they_tell_something_and_test_targets_are_not_read() -> None:
    splits = {name: curved(500, seed, noise=0.05) for seed, name in enumerate(NAMES)}
    found, chosen = {}, {}
    for what, columns in (("curved", [0]), ("product", [2])):
        mine = {n: replace(s, targets=s.targets[:, columns]) for n, s in splits.items()}
        whitening = Whitening.of(mine["train"])
        fit = fit_closed_form(mine, whitening)
        assert fit.shrinkage in SHRINKAGES
        found[what], chosen[what] = r2_score(mine["test"].targets, fit.predictions), fit.kernel
        mine["test"] = replace(mine["test"], targets=np.full_like(mine["test"].targets, np.nan))
        np.testing.assert_array_equal(fit_closed_form(mine, whitening).predictions, fit.predictions)
    assert chosen == {"curved": "relu", "product": "relu+products"}
    assert min(found.values()) > 0.8


def test_where_nothing_can_be_learned_the_training_mean_is_the_answer_by_target() -> None:
    excess, settled = [], 0
    for seed in range(4):
        splits, rng = (
            {name: curved(300, 10 * seed + n, noise=0.1) for n, name in enumerate(NAMES)},
            (np.random.default_rng(seed)),
        )
        mixed = {
            n: replace(s, targets=np.c_[s.targets[:, 1] * 50, rng.normal(size=300), np.full(300, 7.0)])
            for n, s in splits.items()
        }
        predictions = fit_closed_form(mixed, Whitening.of(mixed["train"])).predictions
        truth, mean = mixed["test"].targets, mixed["train"].targets.mean(axis=0)
        assert r2_score(truth[:, 0], predictions[:, 0]) > 0.8
        np.testing.assert_allclose(predictions[:, 2], 7)
        excess.append(r2_score(truth[:, 1], predictions[:, 1]) - r2_score(truth[:, 1], np.full(300, mean[1])))
        settled += bool(np.ptp(predictions[:, 1]) == 0)
    assert settled >= 2, "the training mean itself"
    assert np.mean(excess) == pytest.approx(0, abs=0.01)
