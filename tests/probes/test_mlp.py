"""The fused probes against plain MLPs trained one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler
from torch import nn

from equibench.probes.mlp import FusedProbes, Split, _standardisation, fit_probes
from equibench.profiles import Probing

SETTINGS = Probing(pairs=(96, 40, 30), width=16, epochs=4, batch=32, lr=3e-3)
COLUMNS = {"full": slice(None), "invariant": slice(0, 4), "equivariant": slice(4, None)}
SEEDS = (0, 1, 5)


def data(*, noise: float = 0.1, features: int = 8, sizes: tuple[int, ...] = SETTINGS.pairs) -> dict[str, Split]:
    """Targets in units of their own: a map of both views' features, linear but for the noise."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2 * features, 2))
    splits = {}
    for name, count in zip(("train", "val", "test"), sizes, strict=True):
        first, second = rng.normal(size=(2, count, features)) * np.linspace(0.5, 20, features) + 3
        clean = (np.concatenate([first, second], axis=1) - 3) / np.tile(np.linspace(0.5, 20, features), 2) @ weights
        targets = (clean + noise * rng.normal(size=clean.shape)) * [100, 0.01] + [500, -7]
        splits[name] = Split(first.astype(np.float32), second.astype(np.float32), targets)
    return splits


def plain_probe(
    splits: dict[str, Split], columns: slice, seed: int, settings: Probing
) -> tuple[np.ndarray, list[float]]:
    """Predictions of the best epoch for test, and the validation error after each epoch: one MLP, one optimiser."""

    def features(split: Split) -> np.ndarray:
        return np.concatenate([split.first[:, columns], split.second[:, columns]], axis=1)

    scaler, target_scaler = StandardScaler(), StandardScaler()
    x = {"train": torch.from_numpy(scaler.fit_transform(features(splits["train"]).astype(np.float64))).float()}
    y = {"train": torch.from_numpy(target_scaler.fit_transform(splits["train"].targets)).float()}
    for name in ("val", "test"):
        x[name] = torch.from_numpy(scaler.transform(features(splits[name]).astype(np.float64))).float()
    y["val"] = torch.from_numpy(target_scaler.transform(splits["val"].targets)).float()

    inputs, outputs, width = x["train"].shape[1], y["train"].shape[1], settings.width
    mlp = nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )
    # the same starting point: that of a fused probe of this set and seed alone
    start = FusedProbes({"x": slice(None)}, inputs // 2, outputs, width, [seed])
    weights = [start.first[0][0][:, 0], start.hidden[0], start.out[0]]
    biases = [start.first[0][1][0], start.hidden_bias[0, 0], start.out_bias[0, 0]]
    with torch.no_grad():
        for layer, weight, bias in zip(mlp[::2], weights, biases, strict=True):
            layer.weight.copy_(weight.T)
            layer.bias.copy_(bias)

    optimizer, order = torch.optim.Adam(mlp.parameters(), lr=settings.lr), torch.Generator().manual_seed(0)
    best, errors = None, []
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(x["train"]), generator=order).split(settings.batch):
            loss = nn.functional.mse_loss(mlp(x["train"][rows]), y["train"][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            errors.append(nn.functional.mse_loss(mlp(x["val"]), y["val"]).item())
            if errors[-1] == min(errors):
                best = target_scaler.inverse_transform(mlp(x["test"]).double().numpy())
    assert best is not None
    return best, errors


def test_fused_probes_are_plain_mlps_trained_separately() -> None:
    splits = data()
    results = fit_probes(splits, COLUMNS, SETTINGS, seeds=SEEDS)
    assert list(results) == list(COLUMNS)
    spread = splits["train"].targets.std(axis=0)
    for name, columns in COLUMNS.items():
        for number, seed in enumerate(SEEDS):
            expected, errors = plain_probe(splits, columns, seed, SETTINGS)
            ours = results[name].predictions[number]
            np.testing.assert_allclose(ours / spread, expected / spread, atol=2e-4)
            assert results[name].validation_mse[number] == pytest.approx(min(errors), rel=1e-3)
        different = results[name].predictions[0] - results[name].predictions[1]
        assert np.abs(different / spread).max() > 0.05, "seeds must differ by more than the tolerance"


def test_a_probe_does_not_depend_on_those_beside_it() -> None:
    splits = data()
    together = fit_probes(splits, COLUMNS, SETTINGS, seeds=SEEDS)["equivariant"]
    alone = fit_probes(splits, {"x": COLUMNS["equivariant"]}, SETTINGS, seeds=[5])["x"]
    spread = splits["train"].targets.std(axis=0)
    np.testing.assert_allclose(alone.predictions[0] / spread, together.predictions[2] / spread, atol=1e-4)
    assert alone.best_epoch == together.best_epoch[2:]


def test_initial_weights_are_those_of_linear_layers() -> None:
    probes = FusedProbes({"a": slice(None)}, 32, 3, 64, [0])
    torch.manual_seed(0)
    for ours, reference in (
        (probes.first[0][0], nn.Linear(64, 64).weight),
        (probes.hidden, nn.Linear(64, 64).weight),
        (probes.first[0][1], nn.Linear(64, 64).bias),
    ):
        pair = (tensor.detach().flatten().numpy() for tensor in (ours, reference))
        assert stats.ks_2samp(*pair).pvalue > 0.01


def test_epoch_is_the_best_on_validation_and_its_weights_predict() -> None:
    # few samples and pure noise: the training set is learnt by heart and validation gets worse
    rng, settings = np.random.default_rng(1), Probing((32, 64, 16), width=32, epochs=30, batch=16, lr=1e-2)
    splits = {
        name: Split(*rng.normal(size=(2, count, 6)).astype(np.float32), rng.normal(size=(count, 1)))
        for name, count in zip(("train", "val", "test"), settings.pairs, strict=True)
    }
    result = fit_probes(splits, {"full": slice(None)}, settings, seeds=SEEDS)["full"]
    for number, seed in enumerate(SEEDS):
        expected, errors = plain_probe(splits, slice(None), seed, settings)
        assert errors[-1] > 1.2 * min(errors), "no overfitting, nothing is tested"
        assert result.best_epoch[number] == 1 + int(np.argmin(errors))
        np.testing.assert_allclose(result.predictions[number], expected, atol=1e-3)
    assert max(result.best_epoch) < settings.epochs


def test_test_targets_are_never_read() -> None:
    splits = data()
    expected = fit_probes(splits, COLUMNS, SETTINGS, seeds=[0])
    test = splits["test"]
    splits["test"] = Split(test.first, test.second, np.full_like(test.targets, np.nan))
    blind = fit_probes(splits, COLUMNS, SETTINGS, seeds=[0])
    for name in COLUMNS:
        np.testing.assert_array_equal(blind[name].predictions, expected[name].predictions)


@pytest.mark.parametrize("bf16", [False, True])
def test_linear_data_are_solved_in_the_targets_units(bf16: bool) -> None:
    settings = Probing((512, 100, 200), width=32, epochs=20, batch=64, lr=3e-3)
    splits = data(noise=0.0, features=3, sizes=settings.pairs)
    result = fit_probes(splits, {"full": slice(None)}, settings, seeds=[0, 1], bf16=bf16)["full"]
    assert result.predictions.shape == (2, 200, 2)
    for predictions in result.predictions:
        assert min(r2_score(splits["test"].targets, predictions, multioutput="raw_values")) > 0.97


def test_features_that_hardly_vary_do_no_harm() -> None:
    splits = data()
    constant = {
        name: Split(np.concatenate([s.first, np.full_like(s.first, 2)], axis=1), np.repeat(s.second, 2, 1), s.targets)
        for name, s in splits.items()
    }
    result = fit_probes(constant, {"full": slice(None)}, SETTINGS, seeds=[0])["full"]
    assert np.isfinite(result.predictions).all()
    # a test value beside the constant must not be blown up to millions of deviations
    constant["test"].first[:, 8:] += 1e-3
    moved = fit_probes(constant, {"full": slice(None)}, SETTINGS, seeds=[0])["full"]
    spread = splits["train"].targets.std(axis=0)
    assert np.abs((moved.predictions - result.predictions) / spread).max() < 10


class OnDisk:
    """An array that counts the largest range read at once."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.most = array, array.shape, 0

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.most = max(self.most, rows.stop - rows.start)
        return self.array[rows]


def test_large_splits_are_read_in_blocks_and_taught_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = data(sizes=(1000, 200, 200))
    settings = Probing(pairs=(1000, 200, 200), width=32, epochs=15, batch=32, lr=3e-3)
    whole = fit_probes(splits, COLUMNS, settings, seeds=SEEDS)["full"].predictions
    monkeypatch.setattr("equibench.probes.mlp._BLOCK_FLOATS", 2 * 8 * 300)
    watched = {n: Split(OnDisk(s.first), OnDisk(s.second), s.targets) for n, s in splits.items()}  # type: ignore[arg-type]
    parts = fit_probes(watched, COLUMNS, settings, seeds=SEEDS)["full"].predictions
    assert watched["train"].first.most == 300  # type: ignore[union-attr]
    truth = splits["test"].targets
    scores = [np.mean([r2_score(truth, p) for p in predictions]) for predictions in (whole, parts)]
    assert scores[0] > 0.9
    assert scores[1] == pytest.approx(scores[0], abs=0.03)
    again = fit_probes(watched, COLUMNS, settings, seeds=SEEDS)["full"].predictions
    np.testing.assert_array_equal(again, parts)


def test_columns_are_standardised_by_the_training_pairs_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = data(sizes=(1000, 40, 40))
    monkeypatch.setattr("equibench.probes.mlp._BLOCK_FLOATS", 2 * 8 * 70)
    mean, std = _standardisation(splits["train"])
    for view, features in enumerate((splits["train"].first, splits["train"].second)):
        scaler = StandardScaler().fit(features.astype(np.float64))
        np.testing.assert_allclose(mean[view], scaler.mean_, rtol=1e-5)
        np.testing.assert_allclose(std[view], scaler.scale_, rtol=1e-5)
