"""The committed results: complete, made of their records, with controls where they must be."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from equibench.evaluation.controls import CONTROLS
from equibench.records import Record, read_records
from equibench.report.definition import cells_of, columns_of, load_definition, table_frame, table_names
from equibench.report.table import overview

DEMO = Path(__file__).parents[2] / "results/demo"
ABSENT = {c for name in ("table5", "p2_table5") for c in load_definition(name).columns} - {"linear_cifar10"}
"""Columns whose data were not there."""
MEASURED = [name for name in table_names() if not name.startswith("p2_") or (DEMO / name).is_dir()]
"""The first paper's tables, all of them; the second's take hours in the demo."""


def records_of(name: str) -> list[Record]:
    return read_records(DEMO / name / "records.jsonl")


def rows_of(name: str) -> list[str]:
    return list(pd.read_csv(DEMO / name / f"{name}.csv")["baseline"])


@pytest.mark.parametrize("name", MEASURED)
def test_every_cell_is_there(name: str) -> None:
    definition, cells = load_definition(name), cells_of(records_of(name))
    for column in columns_of(definition.columns):
        suited = [c.name for c in CONTROLS.values() if c.has_encoder or column.task.evaluator in c.evaluators]
        if column.metric == "r2_linear":
            suited.remove("constant")  # no probe stands behind it
        for row in (*definition.rows, *suited):
            assert ((row, column.name) in cells) == (column.task.name not in ABSENT), (row, column.name)


@pytest.mark.parametrize("name", MEASURED)
def test_the_table_is_what_its_records_say(name: str) -> None:
    definition = load_definition(name)
    frame = table_frame(definition, rows_of(name), definition.columns, records_of(name))
    assert frame.to_csv(index=False) == (DEMO / name / f"{name}.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MEASURED)
def test_what_was_measured_on_rendered_data_says_so(name: str) -> None:
    report = (DEMO / name / f"{name}.md").read_text(encoding="utf-8")
    for record in records_of(name):
        title = next(c.title for c in columns_of(load_definition(name).columns) if c.task.name == record.task)
        assert record.data in ("cifar10", "rendered-objects", "rendered-scenes"), "no other data were there"
        assert (f"{title} (rendered)" in report) == (record.data != "cifar10")


def test_what_was_not_measured_says_where_its_data_belong() -> None:
    report = (DEMO / "table5/table5.md").read_text(encoding="utf-8")
    said = [line for line in report.splitlines() if line.startswith("Not measured, since the data are not there:")]
    absent = sorted(ABSENT & set(load_definition("table5").columns))
    assert len(said) == len(absent)
    frame = pd.read_csv(DEMO / "table5/table5.csv")
    for column in columns_of(absent):
        assert any(f" {column.title}: put the folder " in line for line in said)
        assert frame[column.score_key].isna().all()
    assert frame["linear_cifar10_top1"].notna().any()


def test_the_overview_is_what_the_tables_say() -> None:
    assert overview(DEMO, "demo") == (DEMO / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("column", load_definition("table2").columns)
def test_the_oracle_reaches_the_ceiling_and_the_constant_the_floor(column: str) -> None:
    cells = cells_of(records_of("table2"))
    assert cells["oracle", column].value > 0.98
    assert abs(cells["constant", column].value) <= 0.005


def test_the_pooled_floor_of_color_is_the_one_that_raw_factors_have() -> None:
    # closed form: one mean over factors around (1, 1, 1, 0), variances of U(-.4, .4) three times and of U(-.1, .1)
    within = (3 * 0.8**2 / 12 + 0.2**2 / 12) / 4
    between = 0.75 * 0.25
    cells = cells_of(records_of("table2"))
    assert cells["constant", "color"].pooled == pytest.approx(between / (within + between), abs=0.01)


def test_the_pooled_floor_of_rotations_is_the_one_that_quaternions_have() -> None:
    """A constant predictor has 0.229 on relative rotations of 3DIEBench's range (docs/protocol.md 8.2), less noise."""
    cells = cells_of(records_of("table1"))
    assert cells["constant", "object_rotation"].pooled == pytest.approx(0.229, abs=0.03)


def test_table_3_trains_on_a_fifth_what_needs_theta_and_takes_table_4_s_reconstruction() -> None:
    three, four = records_of("table3"), records_of("table4")
    known = {r.baseline: r.known_fraction for r in three if r.recipe_sha256}
    assert known == {"supervised": 0.2, "sie_all": 0.2, "reconstruction": 1.0}
    ours = [{(r.task, r.identifier) for r in side if r.baseline == "reconstruction"} for side in (three, four)]
    assert ours[0] == ours[1]
    sie = [{r.encoder_sha256 for r in side if r.baseline == "sie_all"} for side in (three, four)]
    assert not sie[0] & sie[1]
