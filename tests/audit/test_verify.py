"""`equibench verify` and `equibench explain`: what was changed is found and named, what is right is left in peace."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scored import Pixels, quick
from typer.testing import CliRunner

import equibench.evaluation.controls
import equibench.runner.open
from equibench.audit.find import explain, recipe_lines
from equibench.audit.verify import verify
from equibench.cli import app
from equibench.data.dataset import Dataset
from equibench.errors import UserError
from equibench.records import Record, predictions_path, read_predictions, read_records
from equibench.runner import table as api

TASKS = ["flip", "flip.action", "flip.wahba", "translation.retrieval", "translation.lie", "flip.invariance"]


@pytest.fixture(scope="module")
def original(solids_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A score of each evaluator, and the baseline of a small table."""
    folder = tmp_path_factory.mktemp("verified")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equibench.evaluation.controls, "LARGEST_SIDE", 16)
        patch.setattr(equibench.evaluation.controls, "POOLED_SIDE", 8)
        places = {"runs": folder / "runs", "out": folder / "table"}
        api.table(profile="tiny", rows=["vicreg"], columns=["flip"], jobs=1, **places)  # type: ignore[arg-type]
        patch.setattr(equibench.runner.open, "load_dataset", lambda *_, **__: solids_dataset)
        quick(Pixels(), folder, tasks=TASKS, name="mine")
        yield folder


@pytest.fixture
def scored(original: Path, tmp_path: Path) -> Path:
    """A copy of it that may be spoilt."""
    return Path(shutil.copytree(original, tmp_path / "copy"))


def change_line(file: Path, wanted: Callable[[dict[str, Any]], bool], change: Callable[[dict[str, Any]], None]) -> str:
    """Change the first record of a kind; returns its signature."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    line = next(line for line in lines if wanted(line))
    change(line)
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return str(line["signature"])


def mine(task: str) -> Callable[[dict[str, Any]], bool]:
    return lambda line: line["baseline"] == "mine" and line["task"] == task


def test_a_fresh_score_verifies(scored: Path) -> None:
    done: list[tuple[int, int]] = []
    found = verify(scored / "out", runs=scored / "runs", report=lambda *both: done.append(both))
    scores = [r for r in read_records(scored / "out/records.jsonl") if r.interval()]
    assert (found.mismatches, found.absent) == ([], [])
    assert found.checked == len(scores)
    assert {r.evaluator for r in scores} == {"regression", "action", "retrieval", "invariance", "wahba", "lie"}
    assert done[-1][0] == done[-1][1]
    table = verify(scored / "table", runs=scored / "runs")
    assert (table.mismatches, table.absent, table.tables) == ([], [], 1)


@pytest.mark.parametrize(
    ("task", "place"),
    [
        ("flip", ["metrics", "r2", "value"]),
        ("flip", ["metrics", "r2", "high"]),
        ("flip", ["metrics", "r2", "floor"]),
        ("flip", ["metrics", "r2", "std_probe"]),
        ("flip", ["metrics", "r2", "per_dimension", 0]),
        ("flip", ["metrics", "auc", "value"]),
        ("flip.action", ["metrics", "theta_gain", "value"]),
        ("flip.wahba", ["metrics", "wahba", "low"]),
        ("translation.retrieval", ["metrics", "mrr", "floor"]),
        ("translation.lie", ["metrics", "lee_pooled_relative", "high"]),
    ],
)
def test_a_number_that_was_changed_is_found_and_named(task: str, place: list[Any], scored: Path) -> None:
    def spoil(line: dict[str, Any]) -> None:
        for key in place[:-1]:
            line = line[key]
        line[place[-1]] += 1e-6

    signature = change_line(scored / "out/records.jsonl", mine(task), spoil)
    (line,) = verify(scored / "out", runs=scored / "runs").mismatches
    assert signature in line
    assert all(str(key) in line for key in place)


@pytest.mark.parametrize("value", [None, math.nan, 0.5])
def test_a_score_that_was_taken_away_or_put_in_is_found(value: float | None, scored: Path) -> None:
    def spoil(line: dict[str, Any]) -> None:
        line["metrics"]["wahba"]["value"] = value
        line["metrics"]["mrr"] = {"value": 1.0}

    change_line(scored / "out/records.jsonl", mine("flip.wahba"), spoil)
    changed, invented = verify(scored / "out", runs=scored / "runs").mismatches
    assert "wahba.value is reported as" in changed
    assert "mrr is reported, and not computed" in invented


def test_a_recipe_that_was_changed_does_not_fit_its_signature(scored: Path) -> None:
    signature = change_line(scored / "out/records.jsonl", mine("flip"), lambda line: line.update(data="imagenet"))
    (line,) = verify(scored / "out", runs=scored / "runs").mismatches
    assert signature in line
    assert "imagenet" in line


@pytest.mark.parametrize("task", ["flip", "flip.wahba"])
def test_a_prediction_that_was_changed_is_found(task: str, scored: Path) -> None:
    record = next(r for r in read_records(scored / "out/records.jsonl") if mine(task)(r.model_dump()))
    file = predictions_path(scored / "runs/score/solids-headline", record.evaluation_sha256)
    arrays = read_predictions(file)
    name = "full/predictions" if task == "flip" else "full/wahba"
    arrays[name][0, 3] += 0.01
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    found = verify(scored / "out", runs=scored / "runs").mismatches
    assert found
    assert all(record.signature in line for line in found)
    del arrays[name]
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    assert any("full" in line for line in verify(scored / "out", runs=scored / "runs").mismatches)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        verify(scored / "out", runs=scored / "runs")


def test_a_table_that_was_changed_is_found(scored: Path) -> None:
    csv = scored / "table/table2.csv"
    csv.write_text(csv.read_text().replace("0.", "1.", 1))
    (line,) = verify(scored / "table", runs=scored / "runs").mismatches
    assert "table2.csv" in line


def test_a_table_with_a_baseline_that_is_not_registered_is_not_compared(scored: Path) -> None:
    for file in (scored / "table/table2.csv", scored / "table/records.jsonl"):
        file.write_text(file.read_text().replace("vicreg", "qqq"))
    found = verify(scored / "table", runs=scored / "runs")
    assert found.tables == 0
    assert found.skipped == [f"{scored / 'table/table2.csv'}: unknown baseline 'qqq'"]


def test_absent_predictions_are_said_and_are_no_mismatch(scored: Path) -> None:
    shutil.rmtree(scored / "runs/score/solids-headline/predictions")
    found = verify(scored / "out", runs=scored / "runs")
    assert (found.checked, found.mismatches) == (0, [])
    assert len(found.absent) == len([r for r in read_records(scored / "out/records.jsonl") if r.interval()])
    with pytest.raises(UserError, match="no records"):
        verify(scored / "nothing")


def test_the_exit_status_says_it(scored: Path) -> None:
    command = ["verify", str(scored / "out"), "--runs", str(scored / "runs")]
    right = CliRunner(env={"COLUMNS": "200"}).invoke(app, command)
    assert (right.exit_code, "no mismatches" in right.output) == (0, True), right.output
    change_line(scored / "out/records.jsonl", mine("flip"), lambda line: line["metrics"]["r2"].update(value=0.9999))
    wrong = CliRunner(env={"COLUMNS": "200"}).invoke(app, command)
    assert (wrong.exit_code, "0.9999" in wrong.output) == (1, True)
    shutil.rmtree(scored / "runs")
    lost = CliRunner(env={"COLUMNS": "200"}).invoke(app, command)
    assert (lost.exit_code, "made again by: equibench score" in lost.output) == (0, True)


# explain


@pytest.fixture(scope="module")
def record(original: Path) -> Record:
    return next(r for r in read_records(original / "out/records.jsonl") if mine("flip")(r.model_dump()))


def test_a_signature_is_found_whole_by_its_end_and_by_a_beginning_of_that(original: Path, record: Record) -> None:
    for words in (record.signature, f" `{record.signature}`\n", record.identifier, record.identifier[:8]):
        found = explain(words, [original])
        assert found.record == record
        assert found.path.name == "records.jsonl"
        assert found.predictions is not None
        assert found.predictions.is_file()
    lines = dict(recipe_lines(found))
    assert lines["again with"] == record.command
    assert f"{record.metrics['r2'].value:.4f}" in lines["score"]
    assert lines["pairs_sha256"] == record.pairs_sha256


def test_a_signature_that_was_changed_by_hand_is_refused(original: Path, record: Record, scored: Path) -> None:
    with pytest.raises(UserError, match="is not the signature"):
        explain(record.signature.replace("mine", "yours"), [original])
    change_line(scored / "out/records.jsonl", mine("flip"), lambda line: line.update(variant="paper_like"))
    with pytest.raises(UserError, match="is not the signature"):
        explain(record.signature, [scored / "out"])


def test_unknown_and_ambiguous_signatures(original: Path, record: Record) -> None:
    for words in ("", "ffffffffffff", "flip.1|solids|nothing", f"{record.identifier}0"):
        with pytest.raises(UserError, match="no score with the signature"):
            explain(words, [original])
    firsts = [r.identifier[0] for r in read_records(original / "out/records.jsonl")]
    shared = next(first for first in firsts if firsts.count(first) > 1)
    with pytest.raises(UserError, match="give more of its digits"):
        explain(shared, [original])
    with pytest.raises(UserError, match="no score"):
        explain(record.identifier, [original / "nowhere"])


def test_explain_on_the_command_line(original: Path, record: Record) -> None:
    told = ["explain", record.identifier, "--in", str(original)]
    shown = CliRunner().invoke(app, told, env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert record.signature in shown.output.replace("\n", "")
    assert json.loads(CliRunner().invoke(app, [*told, "--json"]).stdout)["signature"] == record.signature
