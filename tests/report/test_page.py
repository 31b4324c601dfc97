"""results/cifar10: every table is what its records say, and the page's tables are what lies beside it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from equibench.errors import UserError
from equibench.pretrain.method import BASELINES
from equibench.records import Record, read_records
from equibench.registry import load_file
from equibench.report.definition import cells_of, load_definition, table_frame

FOLDER = Path(__file__).parents[2] / "results/cifar10"
with pytest.MonkeyPatch.context() as _patch:
    _patch.syspath_prepend(FOLDER)
    from page import filled
    from page_tables import BLOCKS, COMPARISONS, THREE
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
TABLES = {
    "table2": "table2", "table3": "table3", "table4": "table4", "three_seeds": "table2", "black_corners": "table2",
    "ablations": FOLDER / "ablations.csv",
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def ablation_rows() -> Iterator[None]:
    """The ablations' rows, which no other test should see."""
    before = set(BASELINES.names())
    load_file(FOLDER / "ablations.py", "baseline")
    yield
    for name in set(BASELINES.names()) - before:
        del BASELINES._entries[name]
    for name in [m for m in sys.modules if m.startswith("equibench_user_ablations")]:
        del sys.modules[name]


STEPS = {"demo": 45_000 // 32, "cifar10_cpu": 90_000 // 32}
"""Of the profiles as they were when the study was made: pairs by batch."""


def records_of(part: str) -> list[Record]:
    return read_records(FOLDER / part / "records.jsonl")


@pytest.mark.parametrize("part", TABLES)
def test_the_table_is_what_its_records_say(part: str) -> None:
    definition = load_definition(TABLES[part])
    path = FOLDER / part / f"{definition.name}.csv"
    rows = list(pd.read_csv(path)["baseline"])
    frame = table_frame(definition, rows, definition.columns, records_of(part))
    assert frame.to_csv(index=False) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("part", TABLES)
def test_a_table_has_one_budget_one_probe_and_real_images(part: str) -> None:
    records = [r for r in records_of(part) if r.features == "full"]
    assert {record.data for record in records} == {"cifar10"}
    assert len({record.profile for record in records}) == 1
    assert len({str({**record.probe, "best_epochs": None}) for record in records}) == 1
    for task in {record.task for record in records}:
        assert len({record.pairs_sha256 for record in records if record.task == task}) == 1
    logs = pd.read_json(FOLDER / part / "pretraining.jsonl", lines=True)
    assert set(logs["step"]) == {STEPS[records[0].profile]}


def test_three_rows_have_three_pretraining_seeds_and_every_score_three_probes() -> None:
    cells = cells_of(records_of("three_seeds"))
    for row in (*THREE, "random_init"):
        assert all(cells[row, task].seeds == 3 for task in load_definition("table2").columns)
    assert all(len(record.seeds.probe) == 3 for record in records_of("three_seeds"))


def test_rows_of_one_seed_begin_with_the_same_encoder_and_end_with_their_own() -> None:
    records = [r for r in records_of("three_seeds") if r.features == "full" and r.encoder_sha256]
    weights = {(r.baseline, r.seeds.pretraining): r.encoder_sha256 for r in records}
    assert len(set(weights.values())) == len(weights) == 12


def test_the_page_shows_what_lies_beside_it() -> None:
    assert filled(PAGE, FOLDER) == PAGE


def test_the_page_has_every_block() -> None:
    assert set(re.findall(r"<!-- (\w+):begin -->", PAGE)) == set(BLOCKS)


def test_a_block_that_nothing_writes_is_refused() -> None:
    with pytest.raises(UserError, match="no function writes the block 'other'"):
        filled("<!-- other:begin -->\n<!-- other:end -->", FOLDER)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"curve.csv is missing"):
        filled("<!-- curve:begin -->\n<!-- curve:end -->", tmp_path)


def test_comparisons_are_of_the_scores_in_the_tables() -> None:
    frame = pd.read_csv(FOLDER / COMPARISONS)
    assert len(frame) > 30
    cells = {part: cells_of(records_of(part)) for part in set(frame.part)}
    for line in frame.itertuples():
        one, other = (cells[line.part][row, line.task] for row in (line.row_a, line.row_b))
        assert line.a == pytest.approx(one.value, abs=1e-4)
        assert line.b == pytest.approx(other.value, abs=1e-4)
        assert line.difference == pytest.approx(one.value - other.value, abs=1e-4)
        assert line.low <= line.difference <= line.high
        # paired: the same images make it no wider than two separate intervals would be
        assert line.high - line.low <= (one.high - one.low) + (other.high - other.low) + 1e-4


def test_the_curve_ends_at_the_table() -> None:
    curve, table = pd.read_csv(FOLDER / "curve/curve.csv"), cells_of(records_of("table2"))
    for row in dict.fromkeys(curve.baseline):
        last = curve[curve.baseline == row].groupby("task").last()
        for task in last.index:
            assert last.r2[task] == pytest.approx(table[row, task].value, abs=1e-4)


def test_it_is_run_as_a_script() -> None:
    said = subprocess.run(
        [sys.executable, str(FOLDER / "page.py"), "--help"], capture_output=True, text=True, timeout=120
    )
    assert said.returncode == 0, said.stderr
    assert "--runs" in said.stdout
