"""The search is the same for every row, looks at no test image, and takes what its rule says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from equibench.config import RunConfig
from equibench.data.dataset import split_indices
from equibench.errors import UserError
from equibench.pretrain.method import Criterion
from equibench.profiles import PROFILES
from equibench.runner.open import open_context
from equibench.runner.tune import FACTORS, _validation, choose, trials, tune

BASE = PROFILES["tiny"].pretraining
WHOLE = 9


def test_trials_begin_with_the_profile_and_cover_the_grid_once() -> None:
    found = trials(BASE, WHOLE)
    assert found[0] == BASE
    assert len(set(found)) == WHOLE
    assert trials(BASE, 6) == found[:6]
    first = {(t.lr / BASE.lr, t.batch / BASE.batch, t.weight / BASE.weight) for t in found[:6]}
    for at, values in enumerate(FACTORS.values()):
        assert {point[at] for point in first} == set(values), "six trials see every value once at least"


def test_more_trials_than_the_grid_has_are_refused() -> None:
    with pytest.raises(UserError, match="10 trials"):
        trials(BASE, WHOLE + 1)


def test_a_run_that_learned_goes_before_a_higher_r2_and_the_nearest_one_where_none_did() -> None:
    frame = pd.DataFrame(
        [("a", 0, 1.0, 0.3), ("a", 1, 2.0, 0.9), ("a", 2, 1.0, 0.4), ("b", 0, 3.0, 0.9), ("b", 1, 2.0, 0.1)],
        columns=["row", "trial", "shortfall", "r2"],
    )
    marked, chosen = choose(frame, [replace(BASE, lr=lr) for lr in (1.0, 2.0, 3.0)])
    assert {row: settings["lr"] for row, settings in chosen.items()} == {"a": 3.0, "b": 2.0}
    assert marked.set_index(["row", "trial"])["chosen"].to_dict() == {
        ("a", 0): False, ("a", 1): False, ("a", 2): True, ("b", 0): False, ("b", 1): True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("side", "limit", "value", "expected"),
    [("below", 0.2, 0.1, 1), ("below", 0.2, 0.4, 2), ("above", 1.5, 2, 1), ("above", 1.5, 0.5, 3)],
)
def test_shortfall_is_how_many_times_a_diagnostic_misses(side, limit, value, expected) -> None:
    assert Criterion(side, limit).shortfall(value) == pytest.approx(expected)
    assert Criterion(side, limit).shortfall(float("nan")) == np.inf


def test_no_test_image_is_looked_at(tmp_path: Path) -> None:
    context = open_context(RunConfig.of(profile="tiny", runs=tmp_path))
    looked_at, split = _validation(context, tmp_path).dataset, split_indices(context.dataset)
    assert np.array_equal(looked_at.test.images, context.dataset.train.images[split["val"]])
    assert np.array_equal(looked_at.train.images, context.dataset.train.images[split["train"]])
    assert looked_at.sha256 != context.dataset.sha256


def test_a_search_writes_a_line_for_each_row_and_trial_and_goes_on_where_it_was(tmp_path: Path) -> None:
    options = {"count": 2, "profile": "tiny", "rows": ["vicreg", "supervised"], "jobs": 1, "runs": tmp_path / "runs"}
    result = tune(out=tmp_path / "out", console=Console(quiet=True), **options)
    log = pd.read_csv(tmp_path / "out" / "log.csv")
    assert sorted(zip(log["row"], log["trial"], strict=True)) == [
        (r, t) for r in ("supervised", "vicreg") for t in (0, 1)
    ]
    assert log.groupby("row")["chosen"].sum().eq(1).all()
    assert json.loads((tmp_path / "out" / "chosen.json").read_text()) == result.chosen
    again = tune(out=tmp_path / "again", console=Console(quiet=True), **options)
    pd.testing.assert_frame_equal(again.frame, result.frame)  # with the seconds that the runs took


@pytest.mark.parametrize("profile", [p for p in PROFILES.values() if p.tuned], ids=lambda p: p.name)
def test_tuned_settings_are_those_of_a_committed_search(profile) -> None:
    file = Path(__file__).parents[2] / "results" / "demo" / "tune" / "chosen.json"
    assert profile.tuned == json.loads(file.read_text())
