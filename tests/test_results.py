"""The committed results: complete, made of their records, with controls where they must be."""

from __future__ import annotations

from pathlib import Path

import pytest

from equibench.controls import CONTROLS
from equibench.records import read_records
from equibench.tables import cells_of, load_definition, table_frame

DEMO = Path(__file__).parent.parent / "results/demo"
TABLE = load_definition("table2")
ROWS = [*TABLE.rows, *CONTROLS]


@pytest.fixture(scope="module")
def cells() -> dict:
    return cells_of(read_records(DEMO / "records.jsonl"))


def test_every_cell_is_there(cells: dict) -> None:
    assert set(cells) == {(row, column) for row in ROWS for column in TABLE.columns}


def test_the_table_is_what_its_records_say() -> None:
    frame = table_frame(TABLE, ROWS, TABLE.columns, read_records(DEMO / "records.jsonl"))
    assert frame.to_csv(index=False) == (DEMO / "table2.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("column", TABLE.columns)
def test_the_oracle_reaches_the_ceiling_and_the_constant_the_floor(cells: dict, column: str) -> None:
    assert cells["oracle", column].value > 0.98
    assert abs(cells["constant", column].value) <= 0.005


def test_the_pooled_floor_of_color_is_the_one_that_raw_factors_have(cells: dict) -> None:
    # closed form: one mean over factors around (1, 1, 1, 0), variances of U(-.4, .4) three times and of U(-.1, .1)
    within = (3 * 0.8**2 / 12 + 0.2**2 / 12) / 4
    between = 0.75 * 0.25
    assert cells["constant", "color"].pooled == pytest.approx(between / (within + between), abs=0.01)
