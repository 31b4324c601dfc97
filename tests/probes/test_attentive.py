"""Attentive pooling: what it finds where a mean cannot, and what its numbers are by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from equibench.probes.attentive import QUERIES, AttentiveProbe, fit_attentive
from equibench.probes.ridge import fit_closed_form
from equibench.probes.whitening import Split, Whitening
from equibench.profiles import Probing

SIDE, WIDTH = 4, 6
PLACES = SIDE**2
SIZES = (800, 200, 300)
SETTINGS = Probing(SIZES, width=64, epochs=40, patience=40, lr=1e-2, averaging=0.95)


def marked(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (2, N, P, k) of noise with one that is marked in each view, and by how much it moved (N, 2)."""
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(2, count, PLACES, WIDTH))
    tokens[..., 0] *= 0.3
    at = rng.integers(PLACES, size=(2, count))
    for view in (0, 1):
        tokens[view, np.arange(count), at[view], 0] += 4
    row, column = np.divmod(at, SIDE)
    return tokens, np.stack([row[1] - row[0], column[1] - column[0]], axis=1) / (SIDE - 1)


def as_split(tokens: np.ndarray, targets: np.ndarray) -> Split:
    return Split(*tokens.reshape(2, len(targets), -1).astype(np.float16), targets.astype(np.float64))


def splits_of(sizes: tuple[int, int, int] = SIZES) -> dict[str, Split]:
    names = ("train", "val", "test")
    return {name: as_split(*marked(count, seed)) for seed, (name, count) in enumerate(zip(names, sizes, strict=True))}


def test_where_a_marked_token_stands_is_read_and_the_mean_cannot_tell() -> None:
    splits = splits_of()
    found = fit_attentive(splits, PLACES, SETTINGS, seeds=[0])
    assert found.predictions.shape == (1, 300, 2)
    assert min(r2_score(splits["test"].targets, found.predictions[0], multioutput="raw_values")) > 0.8
    means = {
        n: Split(*(np.asarray(v, np.float32).reshape(-1, PLACES, WIDTH).mean(axis=1) for v in (s.first, s.second)),
                 s.targets) for n, s in splits.items()
    }  # fmt: skip
    closed = fit_closed_form(means, Whitening.of(means["train"]))
    assert r2_score(splits["test"].targets, closed.predictions) < 0.05


def test_predictions_are_those_of_cross_attention_by_hand() -> None:
    probe = AttentiveProbe(PLACES, WIDTH, 3, SETTINGS, seed=0).eval()
    tokens = np.random.default_rng(0).normal(size=(5, 2, PLACES, WIDTH)).astype(np.float32)
    with torch.no_grad():
        found = probe(torch.from_numpy(tokens).flatten(1))
        views = []
        for view in (0, 1):
            placed = torch.from_numpy(tokens[:, view]) + probe.places[0]
            query = (probe.queries[0] * 4 * WIDTH**0.5).expand(5, -1, -1)  # which PyTorch divides by sqrt(k) again
            values = placed @ probe.values[0]
            views.append(torch.nn.functional.scaled_dot_product_attention(query, placed, values).flatten(1))
        assert views[0].shape == (5, QUERIES * 16)
        expected = probe.head(torch.cat([views[0] + views[1], views[1] - views[0]], dim=1))
    assert found.shape == (1, 5, 3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    swapped = probe(torch.from_numpy(tokens[:, ::-1].copy()).flatten(1))
    assert (swapped - found).abs().max() > 1e-3, "which view is the second matters"


def test_seeds_differ_do_not_depend_on_each_other_and_never_see_test_targets() -> None:
    splits, short = splits_of((200, 50, 40)), Probing((200, 50, 40), width=16, epochs=3)
    both = fit_attentive(splits, PLACES, short, seeds=[0, 3])
    splits["test"] = Split(splits["test"].first, splits["test"].second, np.full((40, 2), np.nan))
    np.testing.assert_array_equal(fit_attentive(splits, PLACES, short, seeds=[3]).predictions[0], both.predictions[1])
    assert np.abs(both.predictions[0] - both.predictions[1]).max() > 1e-3
    assert len(both.best_epochs) == len(both.validation_mse) == 2


def test_tokens_that_say_nothing_give_the_training_mean() -> None:
    splits, rng = splits_of((200, 400, 50)), np.random.default_rng(0)
    for name, split in splits.items():
        splits[name] = Split(split.first, split.second, 5 + rng.normal(size=split.targets.shape))
    found = fit_attentive(splits, PLACES, Probing((200, 400, 50), width=32, epochs=4), seeds=[0]).predictions[0]
    mean = splits["train"].targets.mean(axis=0)
    assert r2_score(np.broadcast_to(5, found.shape) + rng.normal(size=found.shape), found) > -0.1
    assert (np.abs(found - mean) < 1e-9).all(axis=0).any(), "of one target at least the mean is the better guess"


def test_splits_that_are_too_large_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = splits_of((600, 100, 100))
    monkeypatch.setattr("equibench.probes.whitening._BLOCK_FLOATS", 2 * PLACES * WIDTH * 150)
    assert len(splits["train"].blocks()) == 4
    found = fit_attentive(splits, PLACES, SETTINGS, seeds=[0]).predictions[0]
    assert r2_score(splits["test"].targets, found) > 0.5
