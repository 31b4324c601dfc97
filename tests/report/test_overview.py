"""The page of all tables: what stands on it is what the records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from equibench.errors import UserError
from equibench.evaluation.controls import CONTROLS
from equibench.records import Metric, Record, read_records, write_records
from equibench.report.definition import load_definition, table_frame
from equibench.report.table import overview

DEMO = Path(__file__).parents[2] / "results/demo"
VALUES = {
    "sie_pose": (0.30, 60.0),
    "sie_pose_hues": (0.10, 90.0),
    "reconstruction": (0.29, 50.0),
    "random_init": (0.05, 100.0),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Table 1 with scores ± 0.02, and degrees ± 3, of three rows and a control, all else as in a measured record."""
    base = read_records(DEMO / "table2/records.jsonl")[0]

    def record(row: str) -> Record:
        r2, degrees = VALUES[row]
        found = {
            "r2": Metric(value=r2, low=r2 - 0.02, high=r2 + 0.02),
            "degrees_mean": Metric(value=degrees, low=degrees - 3, high=degrees + 3),
        }
        named = {"baseline": row, "task": "object_rotation", "data": "rendered-objects", "features": "full"}
        return base.model_copy(update={**named, "metrics": found})

    records = [record(row) for row in VALUES]
    definition = load_definition("table1")
    write_records(tmp_path / "table1/records.jsonl", records)
    rows = [*definition.rows, "random_init"]
    frame = table_frame(definition, rows, ["object_rotation", "object_rotation:degrees_mean"], records)
    (tmp_path / "table1/table1.csv").write_text(frame.to_csv(index=False), encoding="utf-8")
    return tmp_path


def test_the_best_row_is_the_highest_or_the_one_with_the_smallest_error(folder: Path) -> None:
    text = overview(folder, "demo")
    assert "- Rotation prediction: best is SIE(rot), 3-D (overlapping: Ours);" in text
    assert "mean error in degrees: best is Ours; " in text


def test_published_and_further_columns_stand_apart(folder: Path) -> None:
    text = overview(folder, "demo")
    published, _, further = text.partition("Not in the published table:")
    assert "0.724 \\| 0.300 ±0.020" in published
    assert "60.000 ±3.000" not in published
    assert "60.000 ±3.000" in further
    assert "Rotation prediction (rendered)" in published


def test_what_limits_a_table_is_said(folder: Path) -> None:
    text = overview(folder, "demo")
    for limit in load_definition("table1").limits:
        assert limit[1:] in text
    assert "Every number is of rendered-objects, data of our own" in text


def test_without_tables_the_command_that_makes_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="equibench table table2 --profile tiny"):
        overview(tmp_path, "tiny")


def test_controls_are_no_contenders(folder: Path) -> None:
    says = overview(folder, "demo").partition("What it says:")[2]
    assert not any(control.title in says for control in CONTROLS.values())
