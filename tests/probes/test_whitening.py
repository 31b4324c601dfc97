"""Whitening against scikit-learn's PCA and its formula; and that no probe reads the basis in which features come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from equibench.probes import whitening
from equibench.probes.mlp import fit_mlp, literal_schedule
from equibench.probes.ridge import fit_closed_form
from equibench.probes.whitening import Split, Whitening, standardised
from equibench.profiles import Probing
from equibench.utils.arrays import Gathered

Map = Callable[[np.ndarray], np.ndarray]


def pairs(count: int = 400, width: int = 6, seed: int = 0) -> Split:
    """Views that resemble one another, with an offset, of directions with a spread of sizes that are no columns."""
    rng = np.random.default_rng(seed)
    mixing = (
        np.linalg.qr(np.random.default_rng(1).normal(size=(width, width)))[0] * np.geomspace(8, 0.2, width)[:, None]
    )
    first = rng.normal(size=(count, width)) @ mixing + 3
    second = first + 0.5 * rng.normal(size=(count, width)) @ mixing[::-1] - 1
    return Split(first.astype(np.float32), second.astype(np.float32), np.zeros((count, 1)))


def parts(split: Split) -> tuple[np.ndarray, np.ndarray]:
    first, second = split.first.astype(np.float64), split.second.astype(np.float64)
    return first + second, second - first


def seen(split: Split, shrinkage: float = 0.0) -> np.ndarray:
    return Whitening.of(split).shrunk(shrinkage)(split.read(slice(0, len(split.targets))))


def test_without_shrinkage_it_is_scikit_learns_whitening_of_the_sum_and_of_the_difference() -> None:
    split, new = pairs(), pairs(50, seed=1)
    fitted = Whitening.of(split)
    ours = fitted.shrunk(0.0)(new.read(slice(0, 50)))
    assert ours.dtype == np.float32
    for part, (train, test) in enumerate(zip(parts(split), parts(new), strict=True)):
        reference = PCA(whiten=True, svd_solver="full").fit(train)
        np.testing.assert_allclose(fitted.variances[part], reference.explained_variance_ * 399 / 400, rtol=1e-5)
        expected, found = reference.transform(test) * (400 / 399) ** 0.5, ours[:, 6 * part : 6 * part + 6]
        np.testing.assert_allclose(found * np.sign((found * expected).sum(axis=0)), expected, atol=2e-3)
    whole = seen(split)
    for part in (whole[:, :6], whole[:, 6:]):
        np.testing.assert_allclose(np.cov(part.T, ddof=0), np.eye(6), atol=1e-4)
    np.testing.assert_allclose(whole.mean(axis=0), 0, atol=1e-4)


@pytest.mark.parametrize("shrinkage", [0.01, 1.0, 100.0])
def test_shrunk_variances_follow_the_formula(shrinkage: float) -> None:
    split = pairs()
    expected = []
    for part in parts(split):
        variances = np.linalg.eigvalsh(np.cov(part.T, ddof=0))[::-1]
        expected.append(variances / (variances + shrinkage * variances.mean()))
    shrunk = np.concatenate(expected) / np.concatenate(expected).mean()  # the mean square of what is seen is 1
    found = seen(split, shrinkage)
    np.testing.assert_allclose(found.astype(np.float64).var(axis=0), shrunk, rtol=1e-3)
    assert np.square(found).mean() == pytest.approx(1, rel=1e-3)


def test_much_shrinkage_leaves_the_features_as_they_are() -> None:
    split = pairs()
    both, found = parts(split), seen(split, 1e6)
    for part, values in enumerate(both):
        centred, mine = values - values.mean(axis=0), found[:, 6 * part : 6 * part + 6]
        kept = mine @ mine.T / (centred @ centred.T).trace() * 400
        expected = centred @ centred.T / (centred @ centred.T).trace() * 400
        np.testing.assert_allclose(kept / kept.trace(), expected / expected.trace(), atol=1e-5)


def test_block_by_block_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    split = pairs()
    whole, seen_whole = Whitening.of(split), seen(split, 0.1)
    plain = standardised(split)(split.read(slice(0, 400)))
    monkeypatch.setattr(whitening, "_BLOCK_FLOATS", 2 * 6 * 70)
    assert [b.stop - b.start for b in split.blocks()] == [70] * 5 + [50]
    blocks = Whitening.of(split)
    np.testing.assert_allclose(blocks.means, whole.means, rtol=1e-6)
    for part in (0, 1):
        np.testing.assert_allclose(blocks.variances[part], whole.variances[part], rtol=1e-6)
    signs = np.sign((seen(split, 0.1) * seen_whole).sum(axis=0))
    np.testing.assert_allclose(seen(split, 0.1) * signs, seen_whole, atol=1e-4)
    found = standardised(split)(split.read(slice(0, 400)))
    np.testing.assert_allclose(found, plain, atol=1e-5)
    expected = np.concatenate(
        [StandardScaler().fit_transform(v.astype(np.float64)) for v in (split.first, split.second)], 1
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_constant_and_duplicated_columns_add_no_direction() -> None:
    split = pairs()
    plain = seen(split)
    for change in (
        lambda x: np.concatenate([x, np.full((len(x), 2), 7, np.float32)], axis=1),
        lambda x: np.concatenate([x, x[:, :3]], axis=1),
    ):
        changed = replace(split, first=change(split.first), second=change(split.second))
        found = Whitening.of(changed)
        assert [len(v) for v in found.variances] == [6, 6]
        other = seen(changed)
        # directions may be turned within what is whitened; inner products of pairs stay
        for part in (slice(0, 6), slice(6, 12)):
            np.testing.assert_allclose(other[:, part] @ other[:, part].T, plain[:, part] @ plain[:, part].T, atol=5e-3)
    shifted = seen(replace(split, first=split.first + 5, second=split.second + 5))
    np.testing.assert_allclose(np.abs(shifted), np.abs(plain), atol=5e-3)


def test_views_that_never_differ_have_a_sum_and_no_difference() -> None:
    split = pairs()
    found = Whitening.of(replace(split, second=split.first))
    assert [len(v) for v in found.variances] == [6, 0]
    assert seen(replace(split, second=split.first), 1.0).shape == (400, 6)


def test_features_that_never_vary_leave_the_training_mean() -> None:
    rng, nothing = np.random.default_rng(0), np.zeros((100, 1), np.float32)
    splits = {name: Split(nothing, nothing, rng.normal(size=(100, 2))) for name in ("train", "val", "test")}
    found, mean = Whitening.of(splits["train"]), splits["train"].targets.mean(axis=0)
    assert [len(v) for v in found.variances] == [0, 0]
    np.testing.assert_allclose(fit_closed_form(splits, found).predictions, np.tile(mean, (100, 1)))
    result = fit_mlp(splits, found.shrunk(1.0), Probing((100, 100, 100), width=8, epochs=3), seeds=[0])
    # an MLP without inputs has its biases still, which the validation pairs may prefer by a little
    np.testing.assert_allclose(result.predictions[0], np.tile(mean, (100, 1)), atol=0.3)


def test_of_wide_features_the_largest_directions_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    split = pairs(500, width=40)
    exact = Whitening.of(split)
    monkeypatch.setattr(whitening, "_MOST_COLUMNS", 39)
    monkeypatch.setattr(whitening, "_MOST_DIRECTIONS", 12)
    found = Whitening.of(split)
    for part, values in enumerate(parts(split)):
        assert found.directions[part].shape == (40, 12)
        np.testing.assert_allclose(found.variances[part], exact.variances[part][:12], rtol=0.02)
        reference = PCA(6, svd_solver="full").fit(values).components_
        overlap = np.linalg.svd(reference @ found.directions[part][:, :7])[1]
        assert overlap.min() > 0.9  # six of them lie in seven of ours
        np.testing.assert_allclose(found.directions[part].T @ found.directions[part], np.eye(12), atol=1e-4)
    few = pairs(30, width=40)  # fewer pairs than columns and directions
    monkeypatch.setattr(whitening, "_MOST_DIRECTIONS", 64)
    found = Whitening.of(few)
    assert all(25 <= len(v) <= 30 for v in found.variances)
    for part, values in enumerate(parts(few)):
        eigenvalues = np.linalg.eigvalsh(np.cov(values.T, ddof=0))[::-1]
        np.testing.assert_allclose(found.variances[part][:25], eigenvalues[:25], rtol=0.01)


def test_rows_and_columns_that_are_asked_for() -> None:
    stored = np.arange(60, dtype=np.float16).reshape(20, 3)
    row = np.random.default_rng(0).permutation(20)
    split = Split(Gathered(stored, row), Gathered(stored, row[::-1]), np.arange(20.0)[:, None], slice(1, None))
    assert split.width == 2
    block = split.read(slice(4, 9))
    assert block.dtype == np.float32
    np.testing.assert_array_equal(block[:, 0], stored[row[4:9], 1:])
    np.testing.assert_array_equal(block[:, 1], stored[row[::-1][4:9], 1:])
    head = split.head(7)
    np.testing.assert_array_equal(head.read(slice(0, 7)), split.read(slice(0, 7)))
    np.testing.assert_array_equal(head.targets[:, 0], np.arange(7))


# No probe reads the basis. Three directions hold more than 90 % of the variance and say nothing; two parameters turn
# four of the small ones on two circles, and the probes have to find the angles.

SIZES, WIDTH = (1500, 400, 1500), 24
SETTINGS = Probing(SIZES, width=64, epochs=30, patience=15)


@cache
def drawn() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng, found = np.random.default_rng(0), {}
    scale = np.concatenate([[12, 8, 5], np.geomspace(1.2, 0.3, WIDTH - 3)])
    assert np.square(scale[:3]).sum() > 0.9 * np.square(scale).sum()
    for name, count in zip(("train", "val", "test"), SIZES, strict=True):
        theta, first = rng.uniform(-1, 1, size=(count, 2)), rng.normal(size=(count, WIDTH))
        second = first + 0.3 * rng.normal(size=first.shape)
        circles = np.concatenate([np.sin(2.5 * theta), np.cos(2.5 * theta)], axis=1)
        second[:, 12:16] = first[:, 12:16] + circles + 0.2 * rng.normal(size=circles.shape)
        found[name] = (first * scale, second * scale, theta)
    return found


def splits_of(change: Map = lambda x: x) -> dict[str, Split]:
    return {
        name: Split(change(first).astype(np.float32), change(second).astype(np.float32), theta)
        for name, (first, second, theta) in drawn().items()
    }


def scores(change: Map = lambda x: x) -> dict[str, float]:
    """R² of the two probes that a row's score comes from."""
    splits = splits_of(change)
    found = Whitening.of(splits["train"])
    closed = fit_closed_form(splits, found)
    best = fit_mlp(splits, found.shrunk(closed.shrinkage), SETTINGS, seeds=[0, 1])
    truth = splits["test"].targets
    r2 = float(np.mean([r2_score(truth, predictions) for predictions in best.predictions]))
    return {"mlp": r2, "closed": r2_score(truth, closed.predictions)}


@cache
def unchanged() -> dict[str, float]:
    return scores()


def literal(change: Map = lambda x: x) -> float:
    """R² of P1's literal probe."""
    splits = splits_of(change)
    found = fit_mlp(splits, standardised(splits["train"]), literal_schedule(SETTINGS), seeds=[0, 1])
    return float(np.mean([r2_score(splits["test"].targets, predictions) for predictions in found.predictions]))


def turned(seed: int, condition: float = 1.0, scale: float = 1.0) -> Map:
    """A random linear map with singular values from `scale` to `scale` times the condition number."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0] for _ in range(2))
    matrix = left * (scale * np.geomspace(1, condition, WIDTH)) @ right
    return lambda x: x @ matrix


def with_noise(x: np.ndarray) -> np.ndarray:
    """A tenth more columns, which are drawn for each view and are as large as those that tell something."""
    rng = np.random.default_rng(int(1e6 * abs(x[0, 0])))
    return np.concatenate([x, rng.normal(size=(len(x), WIDTH // 10 + 1))], axis=1)


CHANGES: dict[str, tuple[Map, float]] = {
    "rotated and large": (turned(1, scale=300), 0.02),
    "rotated and small": (turned(2, scale=0.003), 0.02),
    "condition number 3": (turned(3, condition=3), 0.03),
    "condition number 10": (turned(4, condition=10), 0.03),
    "condition number 10, another": (turned(5, condition=10), 0.03),
    "constant columns": (lambda x: np.concatenate([x, np.full((len(x), 3), 2.5)], axis=1), 0.02),
    "duplicated columns": (lambda x: np.concatenate([x, x[:, ::2]], axis=1), 0.02),
    "noise columns": (with_noise, 0.02),
}


@pytest.mark.parametrize("name", CHANGES)
def test_no_probe_reads_the_basis(name: str) -> None:
    change, tolerance = CHANGES[name]
    found = scores(change)
    for probe, before in unchanged().items():
        assert before > 0.8, "the probe has learned little, nothing is tested"
        assert found[probe] == pytest.approx(before, abs=tolerance), probe


def test_the_literal_probe_does() -> None:
    before = literal()
    assert before > 0.3
    for change in (turned(1), turned(4, condition=10)):
        assert literal(change) < before - 0.1
