"""The MLP's say in its shrinkage, against ridge regression on scikit-learn's components and held-out pairs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV

from equibench.probes import mlp
from equibench.probes.mlp import choose_shrinkage
from equibench.probes.whitening import SHRINKAGES, Split, Whitening
from equibench.profiles import Probing

LARGE, SMALL = 4, 36
STRONG, WEAK = 100.0, 1e-4
PAIRS = {"large": (200, 150, 10), "small": (800, 150, 10)}
KINDS = tuple(PAIRS)


@cache
def splits_of(kind: str) -> dict[str, Split]:
    """Pairs whose differences have a few large directions and many small ones, either of which alone hold the target.

    Where the large ones do, and pairs are few, all that whitening does is to let the small ones' noise in. Where the
    small ones do, a probe that sees directions in their sizes hardly sees them.
    """
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(LARGE + SMALL, LARGE + SMALL)))[0]
    sizes = np.repeat([10.0, 0.2], [LARGE, SMALL])
    weights = np.zeros((LARGE + SMALL, 2))
    told = slice(0, LARGE) if kind == "large" else slice(LARGE, LARGE + 6)
    weights[told] = rng.normal(size=weights[told].shape)
    found = {}
    for name, count in zip(("train", "val", "test"), PAIRS[kind], strict=True):
        first, moved = rng.normal(size=(2, count, LARGE + SMALL))
        targets = moved @ weights + (0.5 if kind == "large" else 0.05) * rng.normal(size=(count, 2))
        found[name] = Split(first * sizes @ basis, (first + moved) * sizes @ basis, targets)
    return found


def settings_for(kind: str) -> Probing:
    return Probing(PAIRS[kind], width=32, epochs=24, patience=24, lr=3e-3)


def chosen(kind: str, proposed: float, **options: Any) -> float:
    splits = splits_of(kind)
    return choose_shrinkage(splits, Whitening.of(splits["train"]), proposed, settings_for(kind), **options)


@cache
def held_out_error(kind: str, shrinkage: float) -> float:
    """Of ridge regression, its penalty by leave-one-out, on sum and difference with directions divided by hand."""
    splits, seen = splits_of(kind), {}
    for name in ("train", "val"):
        first, second = (np.asarray(view, dtype=float) for view in (splits[name].first, splits[name].second))
        seen[name] = (first + second, second - first)
    columns: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    for part in (0, 1):
        pca = PCA(svd_solver="full").fit(seen["train"][part])
        variances = pca.explained_variance_
        for name in columns:
            columns[name].append(pca.transform(seen[name][part]) / np.sqrt(variances + shrinkage * variances.mean()))
    inputs = {name: np.concatenate(parts, axis=1) for name, parts in columns.items()}
    size = np.sqrt(np.square(inputs["train"]).mean())
    # the smallest penalty is one that a probe which trains for some epochs has, too
    ridge = RidgeCV(np.logspace(0, 4, 13)).fit(inputs["train"] / size, splits["train"].targets)
    return float(np.square(ridge.predict(inputs["val"] / size) - splits["val"].targets).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_of_the_proposed_and_its_own_the_better_one_is_taken(kind: str) -> None:
    right, wrong = (STRONG, WEAK) if kind == "large" else (WEAK, STRONG)
    assert held_out_error(kind, right) < 0.8 * held_out_error(kind, wrong), "nothing is at stake"
    corrected = chosen(kind, wrong)
    assert corrected != wrong
    assert held_out_error(kind, corrected) < held_out_error(kind, wrong)
    kept = chosen(kind, right)
    assert held_out_error(kind, kept) < 1.1 * held_out_error(kind, right)
    assert (kept > 0.5) == (corrected > 0.5) == (kind == "large"), "strong where large directions tell, else weak"


def test_the_test_pairs_have_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = splits_of("small")
    before = chosen("small", STRONG)
    test = splits["test"]
    monkeypatch.setitem(splits, "test", replace(test, targets=np.full_like(test.targets, np.nan)))
    assert chosen("small", STRONG) == before


EARLY = {s: 1.0 + abs(np.log10(s)) for s in SHRINKAGES}  # after few epochs 1 is best
LATE = {0.01: 0.3, 1.0: 0.5, 100.0: 0.7}


@pytest.mark.parametrize(
    ("proposed", "expected", "trained"), [(0.01, 0.01, {0.01, 1.0}), (100.0, 1.0, {100.0, 1.0}), (1.0, 1.0, set())]
)
def test_what_is_best_early_is_taken_only_if_it_ends_better(
    proposed: float, expected: float, trained: set[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = splits_of("small")
    whitening = Whitening.of(splits["train"])
    known = {float(np.abs(whitening.shrunk(s)(splits["val"].read(slice(0, 1)))).sum()): s for s in SHRINKAGES}
    assert len(known) == len(SHRINKAGES)
    to_the_end: set[float] = set()

    def measured(splits: Any, conditioning: Any, settings: Probing, **options: Any) -> mlp.ProbeResult:
        shrinkage = known[float(np.abs(conditioning(splits["val"].read(slice(0, 1)))).sum())]
        assert options == {"seeds": [0], "bf16": False}
        if settings.epochs == 24:
            to_the_end.add(shrinkage)
        else:
            assert settings.epochs == 3  # an eighth
        error = LATE[shrinkage] if settings.epochs == 24 else EARLY[shrinkage]
        return mlp.ProbeResult(np.zeros((1, 10, 2)), [1], [error])

    monkeypatch.setattr(mlp, "fit_mlp", measured)
    assert chosen("small", proposed, bf16=False) == expected
    assert to_the_end == trained
