"""What a table says of the pretraining behind its rows: who has not learned, and how far the halves overlap."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from equibench.audit.find import Explanation, recipe_lines
from equibench.pretrain.method import BASELINES
from equibench.records import Record, read_records, record_line
from equibench.report.definition import (
    MARK,
    UNTRAINED,
    load_definition,
    table_frame,
    untrained_legend,
    untrained_rows,
    with_overlaps,
)
from equibench.report.table import print_table
from equibench.runner import table as api

DEMO = Path(__file__).parents[2] / "results/demo"
SHRUNKEN = {"variance": 0.63, "shuffled_code_ratio": 2.0, "halves_overlap": 0.25}


def made(baseline: str, trained: bool | None, seed: int = 0, **diagnostics: float) -> Record:
    """A record of that row with these facts on its training, all else as in one that was measured."""
    base = next(r for r in read_records(DEMO / "table2/records.jsonl") if r.seeds.pretraining == 0)
    seeds = base.seeds.model_copy(update={"pretraining": seed})
    facts: dict[str, Any] = {"trained": trained, "diagnostics": diagnostics or None}
    return base.model_copy(update={"baseline": baseline, "seeds": seeds, **facts})


def test_marks_differ() -> None:
    assert UNTRAINED != MARK


def test_the_failing_diagnostic_is_named() -> None:
    records = [made("sie_rot", False, **SHRUNKEN), made("sie_all", True, variance=0.1), made("random_init", None)]
    assert untrained_rows(records) == {"sie_rot": "variance 0.63, not below 0.2"}
    legend = untrained_legend(records)
    assert legend.startswith(UNTRAINED)
    assert "SIE(rot) (variance 0.63, not below 0.2)" in legend
    assert "SIE(all)" not in legend
    assert untrained_legend(records[1:]) == ""


def test_of_several_seeds_those_are_named_that_have_not_learned() -> None:
    records = [made("vicreg", True, seed=0, variance=0.1), made("vicreg", False, seed=1, variance=0.4)]
    assert untrained_rows(records) == {"vicreg": "seed 1: variance 0.40, not below 0.2"}


def test_a_table_of_halves_gets_a_column_of_overlaps() -> None:
    lines = ["| | Rotation |", "|---|---|", "| Ours | 0.1 |", "| SIE(all) | 0.2 |"]
    records = [
        made("reconstruction", True, seed=seed, halves_overlap=overlap) for seed, overlap in ((0, 0.2), (1, 0.4))
    ]
    head, rule, ours, sie, _, said = with_overlaps(lines, ["reconstruction", "sie_all"], records)
    assert (head, rule) == ("| | Rotation | Overlap |", "|---|---| --- |")
    assert (ours, sie) == ("| Ours | 0.1 | 0.300 |", "| SIE(all) | 0.2 | – |")
    assert "linear function" in said
    assert with_overlaps(lines, ["reconstruction"], [made("reconstruction", None)]) == lines, "an old record"


def test_the_csv_says_who_has_learned_where_records_know_it() -> None:
    definition = load_definition("table2")
    known = [made("sie_rot", False, variance=0.5), made("sie_all", True, variance=0.1), made("random_init", None)]
    frame = table_frame(definition, ["sie_rot", "sie_all", "random_init"], definition.columns, known)
    assert list(frame["trained"]) == ["false", "true", ""]
    assert "trained" not in table_frame(definition, ["sie_rot"], definition.columns, [made("sie_rot", None)])


def test_a_record_keeps_it_and_explain_shows_it(tmp_path: Path) -> None:
    record = made("sie_rot", False, **SHRUNKEN)
    (tmp_path / "records.jsonl").write_text(record_line(record) + "\n")
    assert read_records(tmp_path / "records.jsonl") == [record]
    lines = dict(recipe_lines(Explanation(record, tmp_path, None)))
    assert lines["trained"] == "False"
    assert lines["held out: variance"] == "0.6300"
    assert "trained" not in dict(recipe_lines(Explanation(made("sie_rot", None), tmp_path, None)))


@pytest.fixture(scope="module")
def table2(tmp_path_factory: pytest.TempPathFactory) -> api.TableResult:
    """Runs of 30 steps, after which no row has learned."""
    folder = tmp_path_factory.mktemp("table2")
    return api.table(
        "table2",
        profile="tiny",
        rows=["vicreg", "reconstruction"],
        columns=["flip"],
        jobs=1,
        runs=folder / "runs",
        out=folder / "results",
        console=Console(quiet=True),
    )


def test_a_run_s_end_reaches_records_table_and_terminal(table2: api.TableResult) -> None:
    by_row = {r.baseline: r for r in table2.records if r.features == "full"}
    assert by_row["pixels"].trained is by_row["pixels"].diagnostics is by_row["random_init"].trained is None
    report = table2.files[1].read_text(encoding="utf-8")
    console = Console(record=True, width=160, file=io.StringIO())
    print_table(
        table2.definition, table2.rows, table2.columns, table2.records, table2.context, table2.config.seeds, console
    )
    terminal = console.export_text()
    for name in ("vicreg", "reconstruction"):
        record, entry = by_row[name], BASELINES.get(name)
        assert record.diagnostics is not None
        assert record.trained == (not entry.method.not_learned(record.diagnostics))
        assert ("halves_overlap" in record.diagnostics) == entry.splits_features
        for text in (report, terminal):
            assert (f"{entry.title}{UNTRAINED}" in text) == (not record.trained)
    overlap = by_row["reconstruction"].diagnostics["halves_overlap"]
    halves = report.split("## The halves alone")[1]
    assert re.search(rf"\| Ours \|.*\| {overlap:.3f} \|", halves)
