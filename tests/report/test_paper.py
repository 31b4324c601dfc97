"""Tables for a paper: bold and underlined only where a paired test says so, and every format says the same."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_results import ROOT, TASKS, write_results
from scipy.stats import ttest_rel
from typer.testing import CliRunner

from equibench.audit.find import Predictions
from equibench.audit.paired import standings
from equibench.cli import app
from equibench.cli.report import PAPER_FORMATS
from equibench.errors import UserError
from equibench.evaluation.controls import row_title
from equibench.records import RECORDS, Record, read_predictions, read_records
from equibench.report.bibliography import bib_entries
from equibench.report.definition import columns_of, load_definition, table_frame
from equibench.report.latex import FORMATS, PrintedTable, csv_payload, formatted, latex_escaped

FAR = {"reconstruction": 0.3, "vicreg": 0.6, "sie_rot": 0.9}
"""Rows of which each is far better than the next."""


def printed(records: list[Record], folder: Path, columns: tuple[str, ...] = TASKS) -> PrintedTable:
    definition, found = load_definition("table2"), columns_of(columns)
    names = {row: row_title(row) for row in dict.fromkeys(record.baseline for record in records)}
    tested = standings(list(names), found, records, Predictions([folder / "runs"]))
    return PrintedTable(definition, names, found, records, tested)


def errors(folder: Path, record: Record) -> np.ndarray:
    path = next((folder / "runs").rglob(f"{record.evaluation_sha256[:32]}.npz"))
    arrays = read_predictions(path)
    return np.square(arrays["full/predictions"] - arrays["targets"]).mean(axis=(0, 2))


def test_rows_far_apart_are_best_and_second(tmp_path: Path) -> None:
    table = printed(write_results(tmp_path, FAR), tmp_path)
    assert {(s.best, s.second, s.level, s.test) for s in table.standings.values()} == {
        ("reconstruction", "vicreg", (), "paired")
    }


def test_what_chance_made_is_not_marked_and_a_t_test_agrees(tmp_path: Path) -> None:
    records = write_results(tmp_path)
    table = printed(records, tmp_path)
    for task, standing in table.standings.items():
        by_row = {r.baseline: errors(tmp_path, r) for r in records if r.task == task}
        assert ttest_rel(by_row["vicreg"], by_row["sie_rot"]).pvalue > 0.05
        assert ttest_rel(by_row["reconstruction"], by_row["vicreg"]).pvalue < 1e-6
        assert (standing.best, standing.second) == ("reconstruction", None)
    assert r"\underline" not in formatted(table, "latex")


def test_level_rows_have_no_best(tmp_path: Path) -> None:
    table = printed(write_results(tmp_path, {"vicreg": 0.6, "sie_rot": 0.6, "random_init": 0.1}), tmp_path)
    for standing in table.standings.values():
        assert standing.best is None
        assert set(standing.level) == {"vicreg", "sie_rot"}  # the control is ahead and does not compete
    assert r"\mathbf" not in formatted(table, "latex")


def test_without_predictions_nothing_is_marked_and_the_footnote_says_why(tmp_path: Path) -> None:
    records = write_results(tmp_path, FAR)
    table = printed(records, tmp_path / "elsewhere")
    text = formatted(table, "latex")
    assert r"\mathbf" not in text
    assert "Not tested, so nothing is marked: rotation, blur (the predictions are not here)." in text


def test_rows_of_other_pairs_are_not_compared(tmp_path: Path) -> None:
    records = write_results(tmp_path, FAR)
    records[0] = records[0].model_copy(update={"pairs_sha256": "0" * 64})
    standing = printed(records, tmp_path).standings["rotation"]
    assert (standing.best, standing.reason) == (None, "the rows were scored on different pairs")


def test_only_the_main_metric_is_tested(tmp_path: Path) -> None:
    table = printed(write_results(tmp_path, FAR), tmp_path, ("rotation:degrees_mean",))
    standing = table.standings["rotation:degrees_mean"]
    assert (standing.best, standing.reason) == (None, "only a task's main metric is tested")


def test_seeds_are_averaged_before_rows_are_compared(tmp_path: Path) -> None:
    records = write_results(tmp_path, FAR, seeds=(0, 1))
    assert {s.best for s in printed(records, tmp_path).standings.values()} == {"reconstruction"}
    assert "pretraining seeds 0, 1" in formatted(printed(records, tmp_path), "markdown")


def test_latex_has_as_many_cells_as_columns_and_the_numbers_of_the_records(tmp_path: Path) -> None:
    records = write_results(tmp_path, FAR)
    text = formatted(printed(records, tmp_path), "latex")
    spec = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert spec
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == len(FAR)
    for line, row in zip(lines, FAR, strict=True):
        assert line.count("&") == len(spec[1]) - 1
        for record in (r for r in records if r.baseline == row):
            value, low, high = record.interval() or (0, 0, 0)
            assert f"{value:.3f}" in line
            assert f"[{low:.3f}, {high:.3f}]" in line
            assert f"{record.identifier}" in text
    assert lines[0].count(r"\mathbf") == lines[1].count(r"\underline") == len(TASKS)
    assert set(re.findall(r"\\cite\{(\w+)\}", text)) <= set(
        re.findall(r"@\w+\{(\w+),", formatted(printed(records, tmp_path), "bibtex"))
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path: Path) -> None:
    tables = [printed(write_results(tmp_path), tmp_path)]
    for name in ("table1", "table5"):
        records, definition = read_records(ROOT / f"results/demo/{name}" / RECORDS), load_definition(name)
        names = {row: row_title(row) for row in dict.fromkeys(record.baseline for record in records)}
        columns = columns_of(definition.columns)
        found = standings(list(names), columns, records, Predictions([tmp_path / "none"]))
        tables.append(PrintedTable(definition, names, columns, records, found))
    body = "\n".join(formatted(table, "latex") for table in tables)
    document = (
        f"\\documentclass{{article}}\\usepackage{{booktabs,graphicx}}\\begin{{document}}\n{body}\\end{{document}}\n"
    )
    (tmp_path / "paper.tex").write_text(document, encoding="utf-8")
    run = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    made = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stdout[-1500:]
    assert "Missing character" not in made.stdout


def test_what_latex_cannot_print_is_escaped() -> None:
    assert latex_escaped("a_b & 5 % of {R²} \\ ~ † λ") == (
        r"a\_b \& 5 \% of \{R$^2$\} \textbackslash{} \textasciitilde{} $^\dagger$ $\lambda$"
    )


def test_csv_and_json_hold_the_same(tmp_path: Path) -> None:
    records = write_results(tmp_path)
    table = printed(records, tmp_path)
    text = formatted(table, "csv")
    frame = table_frame(table.definition, list(table.names), list(TASKS), records)
    assert text == frame.to_csv(index=False)
    found = json.loads(formatted(table, "json"))
    read = pd.read_csv(io.StringIO(text), dtype={c: str for c in frame if c.endswith(("published", "signature"))})
    assert found["rows"] == read.astype(object).where(read.notna(), None).to_dict("records")
    assert found["standings"]["rotation"]["best"] == "reconstruction"


def test_an_identifier_that_looks_like_a_number_stays_a_text() -> None:
    text = "baseline,rotation_r2,rotation_beats_controls,rotation_signature\nmine,0.5,true,12e456789012\nother,,,\n"
    assert csv_payload(text) == [
        {"baseline": "mine", "rotation_r2": 0.5, "rotation_beats_controls": True, "rotation_signature": "12e456789012"},
        {"baseline": "other", "rotation_r2": None, "rotation_beats_controls": None, "rotation_signature": None},
    ]


def test_entries_are_those_of_what_was_used(tmp_path: Path) -> None:
    keys = set(re.findall(r"@\w+\{(\w+),", formatted(printed(write_results(tmp_path, FAR), tmp_path), "bibtex")))
    assert {"equibench", "wang2024equivariant", "garrido2023sie", "bardes2022vicreg", "krizhevsky2009cifar"} == keys
    for entry in bib_entries().values():
        assert entry.count("{") == entry.count("}")
        assert re.search(r"(year = \{\d{4}\}|Version )", entry)


def test_a_table_of_the_second_paper_cites_it_and_the_methods_that_it_builds_on(tmp_path: Path) -> None:
    record = next(r for r in write_results(tmp_path) if r.task == "rotation")
    rows = {"simclr": "chen2020simclr", "dinov2_all_rot": "oquab2024dinov2", "ibot": "zhou2022ibot"}
    records = [record.model_copy(update={"baseline": row}) for row in rows]
    names = {row: row_title(row) for row in rows}
    table = PrintedTable(load_definition("p2_table4"), names, columns_of(["rotation"]), records, {})
    text = formatted(table, "latex")
    assert r"Published numbers are those of~\cite{wang2025coherent}." in text
    assert r"\caption{Intermediate reconstruction on top of" in text
    keys = set(re.findall(r"@\w+\{(\w+),", formatted(table, "bibtex")))
    assert keys == {"equibench", "wang2025coherent", "krizhevsky2009cifar", *rows.values()}


def test_an_unknown_format_is_refused_before_anything_runs(tmp_path: Path) -> None:
    assert ", ".join(FORMATS) == PAPER_FORMATS
    with pytest.raises(UserError, match="did you mean 'latex'"):
        formatted(printed(write_results(tmp_path), tmp_path), "latx")
    result = CliRunner().invoke(app, ["table", "table2", "--format", "latx"])
    assert isinstance(result.exception, UserError)
    two = CliRunner().invoke(app, ["table", "table2", "table4", "--format", "csv"])
    assert isinstance(two.exception, UserError)
    assert "one table" in two.exception.problem


def test_a_table_ends_with_its_report_unless_told_and_prints_its_format_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["table", "table2", "--profile", "tiny", "--rows", "vicreg", "--columns", "flip", "--jobs", "1"]
    given += ["--device", "cpu"]
    made = CliRunner().invoke(app, [*given, "--format", "csv", "--no-report"])
    assert made.exit_code == 0, made.output
    folder = tmp_path / "results/tiny/table2/partial"
    assert made.stdout == (folder / "table2.csv").read_text(encoding="utf-8")
    assert not (folder / "report.html").exists()
    made = CliRunner().invoke(app, given)
    assert made.stdout.rstrip().endswith("report: results/tiny/table2/partial/report.html")
    assert "vicreg" in (folder / "report.html").read_text(encoding="utf-8")
