"""The report's tables, ready for the template: numbers with their intervals, ties, controls and anchors of recipes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from equibench.evaluation.controls import CONTROLS
from equibench.evaluation.evaluator import EVALUATORS, evaluator_of
from equibench.records import Metric, Record
from equibench.report.definition import (
    PROBE_LEGEND,
    Cell,
    Cells,
    Column,
    TableDefinition,
    cells_of,
    columns_of,
    plain,
    published,
)
from equibench.report.latex import csv_payload, emphasis, marks_of
from equibench.report.standing import Standings
from equibench.task import TASKS

_ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}
_HALVES = ("invariant", "equivariant")


@dataclass(frozen=True)
class ReportSource:
    """One file of records, and what lies beside it.

    Attributes:
        kind: "table", "score", "curve", or "records" where no CSV stands beside them.
        csv: the text of its CSV.
        names: the rows in order, with their names in print.
        columns: for a table its columns, for anything else the main metric of each task.
        logs: the last line of each pretraining run, where the folder holds them.
        left_out: what of the folder is not shown, and why.
    """

    path: str
    kind: str
    records: Sequence[Record]
    csv: str
    definition: TableDefinition
    names: Mapping[str, str]
    columns: Sequence[Column]
    standings: Standings
    logs: Sequence[Mapping[str, object]] = ()
    left_out: Sequence[str] = ()
    _cells: dict[str, Cells] = field(default_factory=dict, compare=False, repr=False)

    @property
    def title(self) -> str:
        """The table's; of anything else what it is and of whom."""
        rows = [name for row, name in self.names.items() if row not in CONTROLS]
        of = ", ".join(rows[:3]) + (" and others" if len(rows) > 3 else "")
        kinds = {"score": f"Score of {of}", "curve": "R² over pretraining"}
        return self.definition.title or kinds.get(self.kind, self.path)

    @property
    def digits(self) -> int:
        return 3 if self.definition.scale == 1 else 2

    def cells(self, features: str = "full") -> Cells:
        """The cells of a feature set."""
        if features not in self._cells:
            self._cells[features] = cells_of(self.records, features, self.definition.scale)
        return self._cells[features]

    def payload(self) -> dict[str, object]:
        """What the page's JSON holds of it: the head of its CSV, and the values of its lines."""
        rows = csv_payload(self.csv)
        columns = list(rows[0]) if rows else []
        return {"path": self.path, "kind": self.kind, "columns": columns, "rows": [list(r.values()) for r in rows]}


@dataclass(frozen=True)
class Head:
    """A column's head: `task` and `data` are what the page filters by; `both` if published numbers stand beside."""

    title: str
    task: str
    data: str = ""
    both: bool = False
    note: str = ""


@dataclass(frozen=True)
class ReportNumber:
    """A cell: `value` is what is sorted by, `anchor` leads to its recipe, `share` (0 to 1) shades a heat map."""

    text: str = "–"
    value: float | None = None
    interval: str = ""
    published: str = ""
    marks: str = ""
    anchor: str = ""
    standing: str = ""  # "best", "second", "level" or ""
    share: float | None = None


@dataclass(frozen=True)
class Line:
    """A row; `task` only where the row, and not the column, stands for one."""

    name: str
    numbers: Sequence[ReportNumber]
    control: bool = False
    untrained: bool = False
    task: str = ""


@dataclass(frozen=True)
class ReportTable:
    """A table of the page."""

    title: str
    caption: str
    heads: Sequence[Head]
    lines: Sequence[Line]
    heat: bool = False


@dataclass
class Anchors:
    """Ids of recipes by row and task within one source; the same for every table that shows them."""

    prefix: str
    ids: dict[tuple[str, str], str] = field(default_factory=dict)

    def of(self, row: str, task: str) -> str:
        return self.ids.setdefault((row, task), f"{self.prefix}-{len(self.ids)}")


def grids_of(source: ReportSource, anchors: Anchors) -> list[ReportTable]:
    """Every table of a source; those without a number are left out."""
    grids = [_scores(source, columns, title, anchors) for title, columns in _groups(source)]
    grids += [_share_of_oracle(source, anchors), _pooled(source, anchors)]
    if source.kind != "table":
        grids += [_further(source, kind, anchors) for kind in dict.fromkeys(c.task.evaluator for c in source.columns)]
    grids += [_feature_sets(source, anchors), _diagnostics(source)]
    return [grid for grid in grids if any(n.value is not None for line in grid.lines for n in line.numbers)]


def main_columns(records: Iterable[Record]) -> list[Column]:
    """The main metric of each task of these records."""
    return columns_of(list(dict.fromkeys(record.task for record in records)))


def _groups(source: ReportSource) -> list[tuple[str, list[Column]]]:
    """A table's columns together; those of anything else by what measures them."""
    if source.kind == "table":
        return [("Published and ours", list(source.columns))]
    groups: dict[str, list[Column]] = {}
    for column in source.columns:
        groups.setdefault(f"{evaluator_of(column.task).title}: {column.info.title}", []).append(column)
    return list(groups.items())


def _scores(source: ReportSource, columns: Sequence[Column], title: str, anchors: Anchors) -> ReportTable:
    cells = source.cells()
    heads = [_head(column, source, cells) for column in columns]
    untrained = {record.baseline for record in source.records if record.trained is False}
    lines = []
    for row, name in source.names.items():
        numbers = [
            _number(source, cells.get((row, c.name)), row, c, published(source.definition, row, c.name), anchors)
            for c in columns
        ]
        if any(number.value is not None or number.published for number in numbers):
            lines.append(Line(name, numbers, row in CONTROLS, row in untrained))
    return ReportTable(title, _caption(source, columns, cells), heads, lines)


def _head(column: Column, source: ReportSource, cells: Cells) -> Head:
    data = sorted({cell.data for (_, name), cell in cells.items() if name == column.name})
    both = any(published(source.definition, row, column.name) for row in source.names)
    title = f"{column.title} {_ARROWS[column.info.better]}".strip()
    return Head(title, column.task.name, " ".join(data), both, f"{column.info.title}: {column.info.meaning}")


def _number(
    source: ReportSource, cell: Cell | None, row: str, column: Column, said: str, anchors: Anchors
) -> ReportNumber:
    if cell is None:
        return ReportNumber(published=said)
    standing = source.standings.get(column.name)
    how = emphasis(row, standing) or ("level" if standing and row in standing.level else "")
    interval = f"{plain(cell.low, source.digits)} to {plain(cell.high, source.digits)}"
    return ReportNumber(
        plain(cell.value, source.digits), cell.value, interval, said, marks_of(cell),
        anchors.of(row, column.task.name), how,
    )  # fmt: skip


def _caption(source: ReportSource, columns: Sequence[Column], cells: Cells) -> str:
    """How a table is to be read: of the marks and tests, those that occur."""
    here = {column.name for column in columns}
    mine = {name: standing for name, standing in source.standings.items() if name in here}
    said = ["Small numbers are 95 % bootstrap intervals over test images; rows in italics are controls."]
    if any(standing.test == "paired" for standing in mine.values()):
        said.append(
            "Bold and underlined are the best and the second best where a paired bootstrap separates them from all "
            "below (p < 0.05, Holm within the column); ≈ marks those that it cannot tell from the best score."
        )
    reasons = list(dict.fromkeys(standing.reason for standing in mine.values() if standing.reason))
    if any(standing.level and standing.test == "overlap" for standing in mine.values()):
        said.append(f"Without a paired test ({'; '.join(reasons)}), ≈ marks intervals that overlap the best score's.")
    shown = [cell for (_, name), cell in cells.items() if name in here]
    if any(cell.beats_controls is False for cell in shown):
        said.append("† does not beat random init, pixels and image statistics.")
    marks = {mark for cell in shown for mark in cell.marks}
    said += [f"{mark} {meaning}." for mark, meaning in PROBE_LEGEND.items() if mark in marks]
    if any(record.trained is False for record in source.records):
        said.append("‡ has not learned what it is for, by held-out diagnostics.")
    return " ".join(said)


def _share_of_oracle(source: ReportSource, anchors: Anchors) -> ReportTable:
    """Encoder x transformation: how far R² has come from the floor to the oracle, which is 100 %."""
    cells, floors = source.cells(), _floors(source.records)
    columns = [c for c in source.columns if c.metric == "r2" and ("oracle", c.name) in cells and c.task.name in floors]
    lines = []
    for row, name in source.names.items():
        numbers = []
        for column in columns:
            cell, floor = cells.get((row, column.name)), floors[column.task.name]
            top = cells["oracle", column.name].value / source.definition.scale
            if cell is None or top <= floor:
                numbers.append(ReportNumber())
                continue
            share = (cell.value / source.definition.scale - floor) / (top - floor)
            anchor = anchors.of(row, column.task.name)
            numbers.append(
                ReportNumber(f"{plain(100 * share, 0)} %", share, anchor=anchor, share=min(max(share, 0), 1))
            )
        lines.append(Line(name, numbers, row in CONTROLS))
    heads = [_head(column, source, cells) for column in columns]
    said = "R² between the floor, what is reached without an image (0 %), and the oracle (100 %)."
    return ReportTable(
        "Share of the oracle", said, [Head(h.title, h.task, h.data, note=h.note) for h in heads], lines, True
    )


def _floors(records: Sequence[Record]) -> dict[str, float]:
    return {r.task: m.floor for r in records if (m := r.metrics.get("r2")) is not None and m.floor is not None}


def _pooled(source: ReportSource, anchors: Anchors) -> ReportTable:
    """The published form of R² beside the published numbers."""
    cells = source.cells()
    columns = [
        c for c in source.columns
        if c.metric == "r2" and not c.further and any((row, c.name) in cells for row in source.names)
    ]  # fmt: skip
    lines = []
    for row, name in source.names.items():
        numbers = []
        for column in columns:
            cell, said = cells.get((row, column.name)), published(source.definition, row, column.name)
            found = None if cell is None else cell.pooled
            text, anchor = ("–", "") if found is None else (plain(found), anchors.of(row, column.task.name))
            numbers.append(ReportNumber(text, found, published=said, anchor=anchor))
        lines.append(Line(name, numbers, row in CONTROLS))
    said = "One scalar mean over all dimensions, as the papers report it; a constant predictor is above 0."
    return ReportTable("Pooled R²", said, [_head(column, source, cells) for column in columns], lines)


def _further(source: ReportSource, kind: str, anchors: Anchors) -> ReportTable:
    """All metrics of an evaluator: a line for each row and task."""
    evaluator = EVALUATORS.get(kind)
    records = [r for r in source.records if r.evaluator == kind and r.features == "full"]
    metrics = [name for name in evaluator.metrics if any(name in r.metrics for r in records)]
    data = " ".join(sorted({r.data for r in records}))
    heads = [
        Head(f"{evaluator.metrics[m].title} {_ARROWS[evaluator.metrics[m].better]}".strip(), "", data,
             note=evaluator.metrics[m].meaning)
        for m in metrics
    ]  # fmt: skip
    lines = []
    for record in records:
        anchor = anchors.of(record.baseline, record.task)
        numbers = [_metric(record.metrics.get(m), anchor) for m in metrics]
        name = f"{source.names[record.baseline]} · {_task_title(record.task)}"
        lines.append(Line(name, numbers, record.baseline in CONTROLS, task=record.task))
    return ReportTable(f"{evaluator.title}: all metrics", "A line for each row and task.", heads, lines)


def _metric(found: Metric | None, anchor: str) -> ReportNumber:
    if found is None or found.value is None:
        return ReportNumber()
    ends = "" if found.low is None or found.high is None else f"{plain(found.low)} to {plain(found.high)}"
    return ReportNumber(plain(found.value), found.value, ends, anchor=anchor)


def _feature_sets(source: ReportSource, anchors: Anchors) -> ReportTable:
    """What can be read of halves, class token, token grid and inner layers, by row."""
    sets = [s for s in dict.fromkeys(record.features for record in source.records) if s != "full"]
    sets.sort(key=lambda name: _HALVES.index(name) if name in _HALVES else len(_HALVES))
    by_set = {name: source.cells(name) for name in sets}
    columns = [c for c in source.columns if any((row, c.name) in f for f in by_set.values() for row in source.names)]
    lines = []
    for row, name in source.names.items():
        for features, cells in by_set.items():
            if any((row, column.name) in cells for column in columns):
                numbers = [_of_set(source, cells.get((row, c.name)), row, c, anchors) for c in columns]
                lines.append(Line(f"{name} · {features.removeprefix('layer:')}", numbers, row in CONTROLS))
    heads = [_head(column, source, source.cells()) for column in columns]
    heads = [Head(head.title, head.task, head.data, note=head.note) for head in heads]
    return ReportTable("Feature sets", "Halves, class token, token grid, inner layers, scored alone.", heads, lines)


def _of_set(source: ReportSource, cell: Cell | None, row: str, column: Column, anchors: Anchors) -> ReportNumber:
    if cell is None:
        return ReportNumber()
    digits = source.digits
    interval = f"{plain(cell.low, digits)} to {plain(cell.high, digits)}"
    return ReportNumber(plain(cell.value, digits), cell.value, interval, anchor=anchors.of(row, column.task.name))


def _diagnostics(source: ReportSource) -> ReportTable:
    """What each pretraining run's last line says of itself."""
    names = [n for n in dict.fromkeys(key for log in source.logs for key in log) if _is_diagnostic(n)]
    lines = []
    for log in source.logs:
        numbers = []
        for name in names:
            value = log.get(name)
            known = isinstance(value, (int, float)) and bool(np.isfinite(value))
            numbers.append(ReportNumber(f"{value:.4g}", float(value)) if known else ReportNumber())  # type: ignore[arg-type]
        row = str(log.get("baseline"))
        lines.append(Line(f"{source.names.get(row, row)} · seed {log.get('seed')}", numbers))
    heads = [Head(name.removeprefix("held_out/").replace("_", " "), "") for name in names]
    said = "The last line of each run's log; held out: on images of the validation split."
    return ReportTable("Diagnostics when pretraining ended", said, heads, lines)


def _is_diagnostic(name: str) -> bool:
    return name.startswith("held_out/") or name in ("loss", "feature_std")


def _task_title(task: str) -> str:
    return TASKS.get(task).title if task in TASKS.names() else task
