"""`equibench stability`: rank agreement on made-up records, against scipy's τ and counts by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau
from typer.testing import CliRunner

from equibench.audit.stability import agreement, stability
from equibench.cli import app
from equibench.errors import UserError
from equibench.records import Metric, Record, Seeds, append_records

ALL = {"a": 0.9, "b": 0.7, "c": 0.68, "d": 0.3, "e": 0.1}
HALF = {"a": 0.6, "b": 0.65, "c": 0.5, "d": 0.2, "e": 0.25}
CLOSED = {"a": 0.8, "b": 0.6, "c": 0.61, "d": 0.4, "e": 0.0}


def keep(folder: Path, name: str, r2: float, width: float = 0.05, task: str = "rotation", **changes: Any) -> None:
    metrics = {"r2": Metric(value=r2, low=r2 - width, high=r2 + width)}
    for metric, values in (("r2_half", HALF), ("r2_closed", CLOSED)):
        if name in values:
            metrics[metric] = Metric(value=values[name])
    fields: dict[str, Any] = {
        "baseline": name, "task": task, "task_version": 1, "evaluator": "regression", "main_metric": "r2",
        "profile": "tiny", "variant": "headline", "data": "some", "data_sha256": "d" * 64, "features": "full",
        "seeds": Seeds(pretraining=0, probe=[0]), "pairs": [1, 1, 1], "pairs_sha256": "a" * 64, "probe": {},
        "precision": "32-true", "package_version": "0", "torch_version": "0", "seconds": 1.0, "command": "",
        "evaluation_sha256": "e" * 64, "metrics": metrics, **changes,
    }  # fmt: skip
    append_records(folder / "records.jsonl", [Record(**fields)])


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for name, r2 in ALL.items():
        keep(tmp_path, name, r2)
        keep(tmp_path, name, 0.1 * ALL[name], task="blur")  # all intervals overlap
        keep(tmp_path, name, 1 - r2, features="equivariant")
        keep(tmp_path, name, r2, task="rotation.wahba", main_metric="wahba", evaluator="wahba")
    keep(tmp_path, "oracle", 0.99)
    return tmp_path


def test_tau_is_scipys_and_swaps_are_those_of_rows_that_are_apart(results: Path) -> None:
    (found,) = stability(results)
    assert (found.task, found.rows) == ("rotation", tuple(ALL))
    assert found.separated == 9  # all but b and c
    assert found.half is not None
    assert found.closed is not None
    values = [list(scores.values()) for scores in (ALL, HALF, CLOSED)]
    assert found.half.tau == pytest.approx(kendalltau(values[0], values[1]).statistic)
    assert found.half.tau == pytest.approx((8 - 2) / 10)  # a with b, and d with e, of ten pairs
    assert found.half.swapped == 2
    assert found.closed.tau == pytest.approx((9 - 1) / 10)
    assert found.closed.swapped == 0  # b and c are swapped, but not apart


def test_brute_force_on_random_scores() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, other, width = rng.normal(size=7), rng.normal(size=7), rng.uniform(0, 0.5)
        found = agreement([(s, s - width, s + width) for s in scores], other.tolist())
        expected = sum(
            scores[i] - scores[j] > 2 * width and other[i] < other[j] for i in range(7) for j in range(7) if i != j
        )
        assert found.swapped == expected
        assert found.tau == pytest.approx(kendalltau(scores, other).statistic)
    assert np.isnan(agreement([(s, s, s) for s in (1.0, 2.0, 3.0)], [1.0, 1.0, 1.0]).tau)


def test_other_features_files_and_missing_scores(results: Path) -> None:
    (turned,) = stability(results / "records.jsonl", features="equivariant")
    assert turned.half is not None
    assert turned.half.tau == pytest.approx(-0.6)
    keep(results / "more", "a", 0.9)
    keep(results / "more", "b", 0.5)
    keep(results / "more", "late", 0.1)  # without the other scores
    found = stability(results)
    assert {one.file.parent: one.half is None for one in found} == {results: False, results / "more": True}


def test_seeds_are_averaged_and_other_pairs_are_another_column(tmp_path: Path) -> None:
    for name, r2 in ALL.items():
        keep(tmp_path, name, r2 + 0.2)
        keep(tmp_path, name, r2 - 0.2, seeds=Seeds(pretraining=1, probe=[0]), evaluation_sha256="f" * 64)
        keep(tmp_path, name, r2, pairs_sha256="b" * 64)
    both, other = stability(tmp_path)
    assert (both.half, both.separated) == (other.half, other.separated)


def test_nothing_to_say_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no records\.jsonl is below"):
        stability(tmp_path)
    for name, r2 in ALL.items():
        keep(tmp_path, name, r2, width=1.0)
    with pytest.raises(UserError, match="no column of regression ranks three rows and separates two"):
        stability(tmp_path)


def test_on_the_command_line(results: Path) -> None:
    shown = CliRunner().invoke(app, ["stability", str(results)], env={"COLUMNS": "120"})
    assert shown.exit_code == 0, shown.output
    (line,) = [line.split() for line in shown.output.splitlines() if line.strip().startswith("rotation")]
    assert line == ["rotation", "5", "9", "+0.60", "2", "+0.80", "0"]
    (told,) = json.loads(CliRunner().invoke(app, ["stability", str(results), "--json"]).stdout)
    assert told["half"] == {"tau": pytest.approx(0.6), "swapped": 2}
