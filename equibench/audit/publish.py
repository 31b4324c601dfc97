"""Results folders -> one HTML report: what is found below them, tested in pairs where predictions are here, written."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from equibench.audit.find import Predictions, unknown_transformation
from equibench.audit.paired import standings
from equibench.errors import UserError
from equibench.evaluation.controls import CONTROLS
from equibench.evaluation.evaluator import EVALUATORS, Arrays
from equibench.pretrain.method import BASELINES
from equibench.pretrain.runs import FACTS
from equibench.records import RECORDS, Record, read_records
from equibench.registry import load_file
from equibench.report.definition import Column, TableDefinition, columns_of, load_definition, table_names
from equibench.report.html import build_page, render_page
from equibench.report.html_pictures import Picture, report_pictures
from equibench.report.html_recipes import OpenPredictions
from equibench.report.html_tables import ReportSource, main_columns
from equibench.report.score import score_frame
from equibench.task import TASKS
from equibench.utils.files import read_lines, write_text

_TABLE_HEAD = "baseline,title,pretraining_seeds"
_KINDS = {"score.csv": "score", "curve.csv": "curve"}
_DROPPED = ("histograms of per-image errors", "pictures")
LARGEST = 2_000_000
"""Bytes of a report, which is sent by mail and opened on phones."""
Shown = tuple[Sequence[Picture], Sequence[str]]


@dataclass(frozen=True)
class WrittenReport:
    """Where a report is, and what it lacks and why."""

    path: Path
    left_out: list[str]


def report_html(
    results: str | Path | Sequence[str | Path] = "results",
    *,
    out: str | Path = "report.html",
    runs: str | Path = "runs",
    data_root: str | Path | None = None,
    pictures: bool = True,
    title: str | None = None,
    task_files: Sequence[str | Path] = (),
) -> WrittenReport:
    """Write one HTML file that shows results and opens offline.

        equibench.report_html("results/demo", out="report.html")

    Args:
        results: folders below which records.jsonl lie, or such files; each becomes a section.
        runs: folder below which predictions (for paired tests and histograms), logs (for training curves) and finished
            runs (for reconstructions) are looked for. What is not there is left out.
        data_root: folder that holds CIFAR-10, for pictures; else $EQUIBENCH_DATA and the cache. Nothing is downloaded.
        pictures: whether to look for pictures at all.
        task_files: Python files that register the tasks of one's own that were scored.

    Raises:
        UserError: no records there, a damaged file, or the report cannot be written.
    """
    for file in task_files:
        load_file(file, "task")
    places = [Path(results)] if isinstance(results, (str, Path)) else [Path(place) for place in results]
    found = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob(RECORDS)))]
    paths = list(dict.fromkeys(found))
    if not paths:
        named = ", ".join(map(str, places))
        raise UserError(f"there are no records below {named}", "make some: equibench table table2 --profile tiny")
    predictions = Predictions([runs])
    sources = [source for path in paths if (source := _source(path, predictions)) is not None]
    if not sources:
        raise UserError(f"no score below {', '.join(map(str, places))} is of a known task", "name the tasks' files")
    logs = _logs(Path(runs))
    shown = report_pictures(sources, logs, None if data_root is None else Path(data_root)) if pictures else ([], [])
    command = f"equibench report {' '.join(shlex.quote(str(place)) for place in places)}"
    named = title or f"equibench: {', '.join(str(place) for place in places)}"
    text, left_out = _small_enough(sources, _opener(predictions), logs, shown, named, command)
    write_text(Path(out), text)
    return WrittenReport(Path(out), left_out)


def _small_enough(
    sources: Sequence[ReportSource],
    opened: OpenPredictions,
    logs: dict[str, Path],
    shown: Shown,
    title: str,
    command: str,
) -> tuple[str, list[str]]:
    """The page and what it lacks: without histograms, then without pictures too, where it is larger than `LARGEST`."""
    for less in range(3):
        dropped = [f"{what}: the file would be larger than {LARGEST / 1e6:g} MB" for what in _DROPPED[:less]]
        pictures, reasons = ([], []) if less > 1 else shown
        page = build_page(
            sources, (lambda _: None) if less else opened, logs, (pictures, [*reasons, *dropped]), title, command
        )
        text = render_page(page, sources)
        if len(text.encode()) < LARGEST:
            break
    return text, list(page.left_out)


def _source(path: Path, predictions: Predictions) -> ReportSource | None:
    """A file of records with the CSV beside it; None where none of its tasks is known here."""
    every, folder = read_records(path), path.parent
    records = [record for record in every if record.task in TASKS.names()]
    if not records:
        return None
    unknown = sorted({record.task for record in every} - {record.task for record in records})
    left_out = [f"the tasks {', '.join(unknown)}, which a file of one's own registers"] if unknown else []
    csv, kind = _csv_beside(path)
    if csv is None:
        text, definition, columns = score_frame(records).to_csv(index=False), _no_definition(folder), None
    else:
        text = csv.read_text(encoding="utf-8")
        table = _table_of(csv, text) if kind == "table" else None
        definition, columns = table or (_no_definition(folder), None)
    names = _names(text, records, kind)
    columns = columns or main_columns(records)
    logs = read_lines(folder / "pretraining.jsonl")
    found = {} if kind == "curve" else standings(list(names), columns, records, predictions)  # steps do not compete
    return ReportSource(str(folder), kind, records, text, definition, names, columns, found, logs, left_out)


def _csv_beside(path: Path) -> tuple[Path | None, str]:
    """The CSV that belongs to a file of records, and what it is."""
    for file in sorted(path.parent.glob("*.csv")) if path.name == RECORDS else []:
        if file.name in _KINDS:
            return file, _KINDS[file.name]
        with file.open(encoding="utf-8") as lines:
            if lines.readline().startswith(_TABLE_HEAD):
                return file, "table"
    return None, "records"


def _table_of(csv: Path, text: str) -> tuple[TableDefinition, list[Column]]:
    """A table's definition and columns; of one that equibench does not know, as far as its CSV tells them."""
    head = pd.read_csv(io.StringIO(text), nrows=0).columns
    printed = [name.removesuffix("_published") for name in head if name.endswith("_published")]
    if csv.stem in table_names():
        definition = load_definition(csv.stem)
        there = [name for name in definition.columns if name.replace(":", "_") in printed]
        return definition, columns_of(there)
    names = {name: column for name in printed if (column := _column_name(name))}
    frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False).set_index("baseline")
    published = frame[[f"{name}_published" for name in names]].set_axis(list(names.values()), axis=1)
    rows = tuple(str(row) for row in frame.index)
    return TableDefinition(csv.stem, rows, tuple(names.values()), published, csv.stem), columns_of([*names.values()])


def _column_name(printed: str) -> str | None:
    """TASK or TASK:METRIC of a column that a CSV calls TASK or TASK_METRIC; None where there is no such task."""
    if printed in TASKS.names():
        return printed
    for task in TASKS.names():
        metric = printed.removeprefix(f"{task}_")
        if metric != printed and metric in EVALUATORS.get(TASKS.get(task).evaluator).metrics:
            return f"{task}:{metric}"
    return None


def _no_definition(folder: Path) -> TableDefinition:
    return TableDefinition(folder.name, (), (), pd.DataFrame())


def _names(text: str, records: Sequence[Record], kind: str) -> dict[str, str]:
    """Rows in order with their names in print: those of the CSV where it has them, controls last."""
    names: dict[str, str] = {}
    if kind == "table":
        frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
        names = dict(zip(frame["baseline"], frame["title"], strict=True))
    there = dict.fromkeys(record.baseline for record in records)
    for row in [*(r for r in there if r not in CONTROLS), *(c for c in CONTROLS if c in there)]:
        names.setdefault(row, _name_of(row))
    return names


def _name_of(row: str) -> str:
    if row in CONTROLS:
        return CONTROLS[row].title
    base, at, step = row.partition("@")  # an encoder that a run kept on its way
    title = BASELINES.get(base).title if base in BASELINES.names() else base
    return f"{title}, step {step}" if at else title


def _logs(runs: Path) -> dict[str, Path]:
    """The logs of finished pretraining runs, by the digest of the weights that they ended with."""
    found = {}
    for facts in sorted(runs.rglob(FACTS)) if runs.is_dir() else []:
        log = facts.parent / "log.jsonl"
        try:
            weights = json.loads(facts.read_text(encoding="utf-8"))["encoder_sha256"]
        except (ValueError, KeyError, TypeError):  # no run of ours, or a damaged one, of which others say so
            continue
        if log.is_file():
            found[str(weights)] = log
    return found


def _opener(predictions: Predictions) -> OpenPredictions:
    """Gives the predictions behind a record: None where they are not here, or are of a transformation of one's own."""

    def opened(record: Record) -> Arrays | None:
        if predictions.path(record) is None:
            return None
        arrays = predictions.arrays(record)
        return None if unknown_transformation(arrays) else arrays

    return opened
