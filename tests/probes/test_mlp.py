"""The probes of several seeds against plain MLPs that are trained one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.optim.swa_utils import AveragedModel

from equibench.probes.mlp import SeedProbes, fit_mlp, literal_schedule
from equibench.probes.whitening import Split, Whitening, standardised
from equibench.profiles import Probing

SETTINGS = Probing((96, 40, 30), width=16, epochs=4, batch=32, lr=3e-3, patience=4, dropout=0.0, averaging=0.0)
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


def fitted(splits: dict[str, Split], settings: Probing = SETTINGS, seeds: tuple[int, ...] = SEEDS, **options: bool):
    return fit_mlp(splits, standardised(splits["train"]), settings, seeds=seeds, **options)


def noise(seed: int, sizes: tuple[int, ...], targets: int = 2) -> dict[str, Split]:
    """Features and targets that have nothing to do with one another."""
    rng = np.random.default_rng(seed)
    return {
        name: Split(*rng.normal(size=(2, count, 6)).astype(np.float32), rng.normal(size=(count, targets)))
        for name, count in zip(("train", "val", "test"), sizes, strict=True)
    }


def plain_probe(splits: dict[str, Split], seed: int, settings: Probing) -> tuple[np.ndarray, list[float]]:
    """Predictions of the best epoch for test, and the validation error after each epoch: one MLP, one optimiser."""

    def features(split: Split) -> np.ndarray:
        return np.concatenate([split.first[:, split.columns], split.second[:, split.columns]], axis=1)

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
    start = SeedProbes(inputs, outputs, settings, [seed])  # the same starting point
    with torch.no_grad():
        for layer, name in zip(mlp[::2], ("first", "hidden", "out"), strict=True):
            layer.weight.copy_(getattr(start, name)[0].T)
            layer.bias.copy_(getattr(start, f"{name}_bias")[0, 0])

    def average(kept: torch.Tensor, new: torch.Tensor, steps: torch.Tensor | int) -> torch.Tensor:
        share = min(settings.averaging, int(steps) / (int(steps) + 10))
        return share * kept + (1 - share) * new

    averaged = AveragedModel(mlp, avg_fn=average)
    averaged.update_parameters(mlp)  # the initial weights are the first of the average
    optimizer, order = torch.optim.Adam(mlp.parameters(), lr=settings.lr), torch.Generator().manual_seed(0)
    best, errors = None, []
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(x["train"]), generator=order).split(settings.batch):
            loss = nn.functional.mse_loss(mlp(x["train"][rows]), y["train"][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            averaged.update_parameters(mlp)
        with torch.no_grad():
            errors.append(nn.functional.mse_loss(averaged(x["val"]), y["val"]).item())
            if errors[-1] == min(errors):
                best = target_scaler.inverse_transform(averaged(x["test"]).double().numpy())
    assert best is not None
    return best, errors


def counted_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with each step of Adam."""
    taken, step = [], torch.optim.Adam.step

    def counting(self: torch.optim.Adam, closure: None = None) -> None:
        taken.append(1)
        step(self, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", counting)
    return taken


@pytest.mark.parametrize("averaging", [0.0, 0.8])
def test_seeds_are_plain_mlps_trained_separately(averaging: float) -> None:
    splits, settings = data(), replace(SETTINGS, epochs=10, lr=1e-2, averaging=averaging)
    result = fitted(splits, settings)
    spread = splits["train"].targets.std(axis=0)
    for number, seed in enumerate(SEEDS):
        expected, errors = plain_probe(splits, seed, settings)
        np.testing.assert_allclose(result.predictions[number] / spread, expected / spread, atol=2e-4)
        assert result.validation_mse[number] == pytest.approx(min(errors), rel=1e-3)
    different = result.predictions[0] - result.predictions[1]
    assert np.abs(different / spread).max() > 0.05, "seeds must differ by more than the tolerance"
    other = fitted(splits, replace(settings, averaging=0.4))
    assert np.abs((other.predictions - result.predictions) / spread).max() > 0.05, "and so must averages"


def test_batches_are_made_smaller_where_pairs_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {}
    for pairs in (100, 640, 5000):
        with monkeypatch.context() as patch:
            taken = counted_steps(patch)
            fitted(noise(0, (pairs, 20, 20)), replace(SETTINGS, epochs=1, batch=256))
            steps[pairs] = len(taken)
    assert steps == {100: 4, 640: 16, 5000: 20}  # batches of 32, 40 and 256


def test_a_probe_does_not_depend_on_those_beside_it() -> None:
    splits = data()
    together, alone = fitted(splits), fitted(splits, seeds=(5,))
    spread = splits["train"].targets.std(axis=0)
    np.testing.assert_allclose(alone.predictions[0] / spread, together.predictions[2] / spread, atol=1e-4)
    assert alone.best_epochs == together.best_epochs[2:]


def test_only_the_columns_of_the_feature_set_are_seen() -> None:
    splits = data()
    half = {n: Split(s.first, s.second, s.targets, slice(4, None)) for n, s in splits.items()}
    cut = {n: Split(s.first[:, 4:], s.second[:, 4:], s.targets) for n, s in splits.items()}
    np.testing.assert_array_equal(fitted(half).predictions, fitted(cut).predictions)


def test_initial_weights_are_those_of_linear_layers() -> None:
    probes = SeedProbes(64, 3, replace(SETTINGS, width=64), [0])
    torch.manual_seed(0)
    for ours, reference in (
        (probes.first, nn.Linear(64, 64).weight),
        (probes.hidden, nn.Linear(64, 64).weight),
        (probes.first_bias, nn.Linear(64, 64).bias),
    ):
        pair = (tensor.detach().flatten().numpy() for tensor in (ours, reference))
        assert stats.ks_2samp(*pair).pvalue > 0.01


def test_dropout_keeps_the_mean_and_is_off_when_the_probe_predicts() -> None:
    probes = SeedProbes(6, 1, replace(SETTINGS, dropout=0.5), [0])
    with torch.no_grad():
        for parameter in probes.parameters():
            parameter.abs_()  # so that each ReLU lets through, and the mean over masks is the output without any
    x = torch.rand(1, 6, generator=torch.Generator().manual_seed(0)).expand(8000, 6)
    torch.manual_seed(0)
    dropped, whole = probes.train()(x)[0, :, 0], probes.eval()(x[:2])[0, :, 0]
    assert whole[0] == whole[1]
    error = (dropped.mean() - whole[0]).abs() / (dropped.std() / 8000**0.5)
    assert error < 4
    # two layers of 16 units, half of them dropped: the output varies by some tenths of itself
    assert 0.2 < float(dropped.detach().std() / whole[0].detach()) < 0.6


def test_dropout_is_drawn_anew_by_each_fit_and_nobody_elses_draws_move() -> None:
    splits, settings = data(), replace(SETTINGS, dropout=0.5)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    one = fitted(splits, settings).predictions
    assert torch.equal(torch.rand(4), expected)
    np.testing.assert_array_equal(fitted(splits, settings).predictions, one)
    assert np.abs(one - fitted(splits).predictions).max() > 1


def overfitting() -> tuple[dict[str, Split], Probing]:
    """Few pairs with much noise: the training set is learnt by heart, and validation gets worse."""
    sizes = (32, 64, 16)
    splits, rng = noise(1, sizes, targets=1), np.random.default_rng(2)
    for name, split in splits.items():
        signal = split.first[:, :1].astype(np.float64) - split.second[:, :1]
        splits[name] = Split(split.first, split.second, signal + rng.normal(size=signal.shape))
    return splits, replace(SETTINGS, pairs=sizes, width=32, epochs=50, batch=32, lr=2e-2, patience=50)


def test_epoch_is_the_best_on_validation_and_its_weights_predict() -> None:
    splits, settings = overfitting()
    result = fitted(splits, settings)
    for number, seed in enumerate(SEEDS):
        expected, errors = plain_probe(splits, seed, settings)
        assert errors[-1] > 1.05 * min(errors), "no overfitting, nothing is tested"
        assert min(errors) < 0.9, "nothing learnt, nothing is tested"
        assert result.best_epochs[number] == 1 + int(np.argmin(errors))
        np.testing.assert_allclose(result.predictions[number], expected, atol=2e-3)
    assert max(result.best_epochs) < settings.epochs


def test_training_ends_when_no_probe_has_become_better_for_some_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    splits, settings = overfitting()
    curves, patience = [plain_probe(splits, seed, settings)[1] for seed in SEEDS], 3
    best = [[1 + int(np.argmin(curve[:end])) for curve in curves] for end in range(1, settings.epochs + 1)]
    end = next(end for end, found in enumerate(best, 1) if end - max(found) >= patience)
    assert end + 10 < settings.epochs, "it would have ended anyway"
    taken = counted_steps(monkeypatch)
    result = fitted(splits, replace(settings, patience=patience))
    assert len(taken) == end, "one step is an epoch here"
    assert result.best_epochs == best[end - 1]


def test_test_targets_are_never_read() -> None:
    splits = data()
    expected = fitted(splits)
    splits["test"] = replace(splits["test"], targets=np.full_like(splits["test"].targets, np.nan))
    np.testing.assert_array_equal(fitted(splits).predictions, expected.predictions)


@pytest.mark.parametrize("bf16", [False, True])
def test_linear_data_are_solved_in_the_targets_units(bf16: bool) -> None:
    settings = Probing((512, 100, 200), width=32, epochs=20, batch=64, dropout=0.0)
    splits = data(noise=0.0, features=3, sizes=settings.pairs)
    for conditioning in (standardised(splits["train"]), Whitening.of(splits["train"]).shrunk(0.1)):
        result = fit_mlp(splits, conditioning, settings, seeds=[0, 1], bf16=bf16)
        assert result.predictions.shape == (2, 200, 2)
        for predictions in result.predictions:
            assert min(r2_score(splits["test"].targets, predictions, multioutput="raw_values")) > 0.97


def test_where_nothing_can_be_learned_r2_is_that_of_the_training_mean_but_for_sampling() -> None:
    sizes = (300, 400, 400)
    settings, found, mean = Probing(sizes, width=32, epochs=15, patience=5), [], []
    for seed in range(12):
        splits = noise(10 + seed, sizes)
        truth, average = splits["test"].targets, splits["train"].targets.mean(axis=0)
        result = fit_mlp(splits, Whitening.of(splits["train"]).shrunk(1.0), settings, seeds=(0, 1))
        found += [r2_score(truth, predictions) for predictions in result.predictions]
        mean += [r2_score(truth, np.broadcast_to(average, truth.shape))] * 2
    assert np.mean(found) > -0.01
    assert np.mean(np.subtract(found, mean)) == pytest.approx(0, abs=0.005)
    assert np.min(np.subtract(found, mean)) > -0.03
    # what the validation pairs do not keep back: a probe that reads the noise
    splits = noise(10, sizes)
    unchecked = {**splits, "val": splits["train"]}
    learnt = fit_mlp(unchecked, Whitening.of(splits["train"]).shrunk(1.0), settings, seeds=[0]).predictions[0]
    assert r2_score(splits["test"].targets, learnt) < -0.05


def test_the_training_mean_is_the_answer_by_target() -> None:
    splits, rng = data(noise=0.0, features=3, sizes=(512, 200, 100)), np.random.default_rng(1)
    mixed = {
        n: replace(s, targets=np.c_[s.targets[:, 0], 5 + rng.normal(size=len(s.targets)), np.full(len(s.targets), 7)])
        for n, s in splits.items()
    }
    predictions = fitted(mixed, replace(SETTINGS, epochs=20, width=32, lr=1e-2)).predictions
    for of_seed in predictions:
        assert r2_score(mixed["test"].targets[:, 0], of_seed[:, 0]) > 0.97
        np.testing.assert_allclose(of_seed[:, 1], mixed["train"].targets[:, 1].mean(), rtol=1e-12)
        np.testing.assert_allclose(of_seed[:, 2], 7, rtol=1e-12)


def test_features_that_hardly_vary_do_no_harm() -> None:
    splits = data()
    constant = {
        name: Split(np.concatenate([s.first, np.full_like(s.first, 2)], axis=1), np.repeat(s.second, 2, 1), s.targets)
        for name, s in splits.items()
    }
    spread = splits["train"].targets.std(axis=0)
    conditionings = standardised(constant["train"]), Whitening.of(constant["train"]).shrunk(0.01)
    before = [fit_mlp(constant, seen, SETTINGS, seeds=[0]).predictions for seen in conditionings]
    # a test value beside the constant must not be blown up to millions of deviations
    constant["test"].first[:, 8:] += 1e-3
    after = [fit_mlp(constant, seen, SETTINGS, seeds=[0]).predictions for seen in conditionings]
    assert np.isfinite(before).all()
    assert np.abs((after[0] - before[0]) / spread).max() < 10
    assert np.abs((after[1] - before[1]) / spread).max() < 0.05


class OnDisk:
    """An array that remembers the largest range read at once."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.most = array, array.shape, 0

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.most = max(self.most, rows.stop - rows.start)
        return self.array[rows]


def test_large_splits_are_read_in_blocks_and_taught_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = data(sizes=(1000, 200, 200))
    settings = replace(SETTINGS, width=32, epochs=15, patience=15)
    whole = fitted(splits, settings).predictions
    monkeypatch.setattr("equibench.probes.whitening._BLOCK_FLOATS", 2 * 8 * 300)
    watched = {n: Split(OnDisk(s.first), OnDisk(s.second), s.targets) for n, s in splits.items()}  # type: ignore[arg-type]
    parts = fitted(watched, settings).predictions
    assert watched["train"].first.most == 300  # type: ignore[union-attr]
    truth = splits["test"].targets
    scores = [np.mean([r2_score(truth, p) for p in predictions]) for predictions in (whole, parts)]
    assert scores[0] > 0.9
    assert scores[1] == pytest.approx(scores[0], abs=0.03)
    np.testing.assert_array_equal(fitted(watched, settings).predictions, parts)


def test_the_published_schedule_has_neither_dropout_nor_averages_and_tries_each_epoch() -> None:
    short = literal_schedule(Probing((1, 1, 1), width=8, unwhitened_epochs=7, unwhitened_lr=0.5))
    assert (short.epochs, short.patience, short.lr, short.dropout, short.averaging) == (7, 7, 0.5, 0, 0)
