"""A table: its definition (a published CSV), its cells (records), and the files that come out of them.

A definition may begin with lines `# key: text`. Keys: title; data (what its rows are pretrained on, the profile's data
unless told); known_fraction (of training images whose θ is known); scale (100 where numbers are percentages); recipe (a
published one of `recipes.PUBLISHED_RECIPES`), claim and limit (what it can and cannot show), which may be repeated.
A column is a task's id, or TASK:METRIC for one of its
metrics.
"""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from equibench.errors import UserError, closest
from equibench.evaluation.controls import CONTROLS, RIVALS, row_title
from equibench.evaluation.evaluator import MetricInfo, evaluator_of, metric_info
from equibench.metrics.learning_curve import DISAGREEMENT, RISING, disagree, rising
from equibench.pretrain.method import BASELINES
from equibench.records import Interval, Record
from equibench.report.recipes import PUBLISHED_RECIPES
from equibench.task import CLEAN_LEAK, TASKS, Task

MARK = "†"
"""Behind a number that does not beat its controls."""
UNTRAINED = "‡"
"""Behind the name of a row that has not learned what it is for."""
RISES, DISAGREES = "↑", "≠"
"""Behind an R² that still rises with the training pairs, and behind one that the closed form does not confirm."""
PROBE_LEGEND = {
    RISES: f"still rises by more than {RISING:g} at the last doubling of the training pairs: a lower bound",
    DISAGREES: f"the closed form's R² differs by more than {DISAGREEMENT:g}",
}

PUBLISHED = files("equibench.published")
_T = TypeVar("_T")
_MEASURED_LEAKS = {
    "both_views": "both views (the pixels' ceiling)",
    "view2_alone": "view 2 alone (the leak)",
    "border": "of it the outermost ring alone",
    "interpolation": "view 2 of noise (what resampling leaves)",
}
KEYS = ("title", "data", "known_fraction", "scale", "recipe", "claim", "limit")


@dataclass(frozen=True)
class TableDefinition:
    """Rows and columns of a table with the published numbers; what its facts mean, the head of this file says."""

    name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    published: pd.DataFrame  # of strings like "0.862±0.004"
    title: str = ""
    data: str | None = None
    known_fraction: float = 1.0
    scale: float = 1.0
    claims: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()

    @property
    def recipe_lines(self) -> list[str]:
        """The published recipes behind the published numbers, a line each."""
        lines = []
        for name in self.recipes:
            one = PUBLISHED_RECIPES[name]
            warmup = "" if one.warmup_epochs is None else f", warm-up of {one.warmup_epochs} epochs"
            lines.append(
                f"{name} as published: {one.backbone}, {one.epochs} epochs of ImageNet-1K with batch {one.batch:,}, "
                f"{one.steps:,} steps, peak lr {one.lr:.3g}{warmup}; {one.said}"
            )
        return lines


@dataclass(frozen=True)
class Column:
    """A column: a task's main metric, or another of its metrics, which `further` says."""

    name: str
    task: Task
    metric: str
    further: bool

    @property
    def info(self) -> MetricInfo:
        return evaluator_of(self.task).metrics[self.metric]

    @property
    def title(self) -> str:
        return f"{self.task.title}: {self.info.title}" if self.further else self.task.title

    @property
    def score_key(self) -> str:
        """What the score is called in the table's CSV: <task>_<metric>."""
        return f"{self.task.name}_{self.metric}"


def columns_of(names: Sequence[str]) -> list[Column]:
    """Columns by name, TASK or TASK:METRIC; a UserError where there is no such task or metric."""
    found = []
    for name in names:
        task_name, _, metric = name.partition(":")
        task = TASKS.get(task_name)
        evaluator = evaluator_of(task)
        if metric and metric not in evaluator.metrics:
            problem = f"the column {name!r} names an unknown metric{closest(metric, evaluator.metrics)}"
            raise UserError(problem, "`equibench list metrics` shows the known ones")
        found.append(Column(name, task, metric or task.main_metric or evaluator.main_metric, bool(metric)))
    return found


@dataclass(frozen=True)
class Cell:
    """One score of a table: the task's main metric, R² in regression, as the mean over pretraining seeds.

    Low and high are the means of the bootstrap intervals' ends: the seeds share their test images, so the interval of
    their mean is at most as wide.
    """

    value: float
    low: float
    high: float
    pooled: float | None
    seeds: int
    std_seeds: float | None  # standard deviation over pretraining seeds; None for a single seed
    signatures: tuple[str, ...]  # identifier of each seed's record, for `equibench explain`
    data: str  # what it was measured on
    marks: str = ""  # what the probes say of it: `RISES`, `DISAGREES`
    beats_controls: bool | None = None
    """Whether the interval lies beyond that of each control of `RIVALS` that is there; None for the controls
    themselves, where one with an encoder is missing, and for metrics that are not better or worse."""


Cells = dict[tuple[str, str], Cell]
"""By row and column, TASK and TASK:METRIC alike."""


def table_names() -> list[str]:
    """Names of the tables that have a published CSV, the first paper's first."""
    names = (f.name.removesuffix(".csv") for f in PUBLISHED.iterdir() if f.name.endswith(".csv"))
    return sorted(names, key=lambda name: (name.startswith("p2_"), name))


def load_definition(name: str | Path) -> TableDefinition:
    """A table by name, or by the path of a CSV of the same form.

    Raises:
        UserError: no such table, or its CSV is malformed or names rows or columns that are not registered.
    """
    path = Path(name)
    if path.suffix == ".csv":
        if not path.is_file():
            raise UserError(f"table file not found: {path}", "give a table's name or the path of a CSV")
        text, where = path.read_text(encoding="utf-8"), str(path)
    elif str(name) in table_names():
        text, where = PUBLISHED.joinpath(f"{name}.csv").read_text(encoding="utf-8"), f"{name}.csv"
    else:
        known = table_names()
        raise UserError(f"unknown table {str(name)!r}{closest(str(name), known)}", f"tables: {', '.join(known)}")
    facts, shape = _front_matter(where, text), "first column `baseline`, then a column per task"
    try:
        frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, comment="#")
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{where} is not a table: {error}", shape) from error
    if frame.empty or frame.columns[0] != "baseline":
        raise UserError(f"{where} has no column `baseline`, or no rows", shape)
    frame = frame.set_index("baseline")
    rows, columns = tuple(frame.index), tuple(frame.columns)
    _check_names(where, "row", rows, [*BASELINES.names(), *CONTROLS])
    _check_names(where, "column", [column.partition(":")[0] for column in columns], TASKS.names())
    columns_of(columns)
    for kind, names in (("row", rows), ("column", columns)):
        if len(set(names)) < len(names):
            raise UserError(f"{where} names a {kind} twice", "remove the repetition")
    return TableDefinition(path.stem, rows, columns, frame, **facts)


def _front_matter(where: str, text: str) -> dict[str, Any]:
    """What the lines `# key: text` say."""
    found: dict[str, list[str]] = {key: [] for key in KEYS}
    for line in text.splitlines():
        if line.startswith("#"):
            key, colon, value = line[1:].partition(":")
            if not colon or key.strip() not in KEYS:
                raise UserError(f"{where}: {line!r} is not understood", f"# KEY: text, with KEY of {', '.join(KEYS)}")
            found[key.strip()].append(value.strip())
    facts: dict[str, Any] = {f"{key}s": tuple(found.pop(key)) for key in ("recipe", "claim", "limit")}
    _check_names(where, "recipe", facts["recipes"], list(PUBLISHED_RECIPES))
    for key, values in found.items():
        if len(values) > 1:
            raise UserError(f"{where} gives {key} {len(values)} times", "say it once")
        if values:
            facts[key] = _number(where, key, values[0]) if key in ("known_fraction", "scale") else values[0]
    return facts


def _number(where: str, key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= (1 if key == "known_fraction" else float("inf")):
        raise UserError(f"{where}: {key} is {text!r}", "a positive number, for `known_fraction` of at most 1")
    return value


def _check_names(where: str, kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        problem = f"{where} names unknown {kind}s: {', '.join(unknown)}{closest(unknown[0], known)}"
        raise UserError(problem, "`equibench list` shows the known ones; --baseline FILE.py adds one")


def cells_of(records: Sequence[Record], features: str = "full", scale: float = 1.0) -> Cells:
    """Cells of one feature set; rows that have no such features are left out."""
    groups: dict[tuple[str, str], list[tuple[Record, Interval]]] = {}
    for record in records:
        if record.features == features:
            further = {f"{record.task}:{metric}": metric for metric in record.metrics}
            for column, metric in {record.task: record.main_metric, **further}.items():
                if value := record.interval(metric):
                    groups.setdefault((record.baseline, column), []).append((record, value))
    cells = {key: _cell(group, scale, _metric(key[1], group[0][0])) for key, group in groups.items()}
    return {key: replace(cells[key], beats_controls=_beats(key, group[0][0], cells)) for key, group in groups.items()}


def probe_marks(records: Sequence[Record]) -> str:
    """What the probes say of the R² of these records; a mark for most of them is one for their mean."""
    half = len(records) / 2
    rises, differs = (sum(map(says, (r.metrics for r in records))) > half for says in (rising, disagree))
    return RISES * rises + DISAGREES * differs


def best_sets(records: Sequence[Record]) -> dict[tuple[str, str], tuple[str, float]]:
    """By row and task: the feature set of which the closed form reads most, and its R², the mean over seeds."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for record in records:
        if record.features != "distance" and (found := record.interval("r2_closed")):
            values.setdefault((record.baseline, record.task), {}).setdefault(record.features, []).append(found[0])
    means = {key: {name: float(np.mean(found)) for name, found in sets.items()} for key, sets in values.items()}
    return {key: max(sets.items(), key=lambda item: item[1]) for key, sets in means.items() if len(sets) > 1}


def _metric(column: str, record: Record) -> str:
    return column.partition(":")[2] or record.main_metric


def _cell(group: Sequence[tuple[Record, Interval]], scale: float, metric: str) -> Cell:
    found = np.array([value for _, value in group]) * scale
    value, low, high = found.mean(axis=0).tolist()
    records = [record for record, _ in group]
    pooled = [m.value for r in records if (m := r.metrics.get("r2_pooled")) and m.value is not None]
    return Cell(
        value=value,
        low=low,
        high=high,
        pooled=float(np.mean(pooled)) if pooled else None,
        seeds=len(group),
        std_seeds=float(np.std(found[:, 0], ddof=1)) if len(group) > 1 else None,
        signatures=tuple(r.identifier for r in records),
        data=records[0].data,
        marks=probe_marks(records) if metric == "r2" else "",
    )


def _beats(key: tuple[str, str], record: Record, cells: Cells) -> bool | None:
    """See `Cell.beats_controls`."""
    row, column = key
    info = metric_info(_metric(column, record))
    better = info.better if info else "higher"
    needed = [c for c in RIVALS if CONTROLS[c].has_encoder or record.evaluator in CONTROLS[c].evaluators]
    rivals = [cells[control, column] for control in needed if (control, column) in cells]
    if row in CONTROLS or len(rivals) < len(needed) or better == "neither":
        return None
    if better == "higher":
        return cells[key].low > max(rival.high for rival in rivals)
    return cells[key].high < min(rival.low for rival in rivals)


def table_frame(
    definition: TableDefinition, rows: Sequence[str], columns: Sequence[str], records: Sequence[Record]
) -> pd.DataFrame:
    """The table as one row per baseline or control, for its CSV.

    Columns for each column of the table: published, the score (named after its metric: r2, top1, ...), low, high,
    std_seeds, beats_controls, data, and the identifiers of the signatures; in regression also pooled, invariant and
    equivariant. One of the row, where records say it: trained, whether all its runs have learned what they are for.
    """
    full = cells_of(records, scale=definition.scale)
    halves = {half: cells_of(records, half, definition.scale) for half in ("invariant", "equivariant")}
    trained = {row: True for row in (r.baseline for r in records if r.trained is not None)}
    trained |= {r.baseline: False for r in records if r.trained is False}
    lines = []
    for row in rows:
        seeds = [full[row, c].seeds for c in columns if (row, c) in full]
        line: dict[str, object] = {"baseline": row, "title": row_title(row), "pretraining_seeds": min(seeds, default=0)}
        line |= {"trained": str(trained.get(row, "")).lower()} if trained else {}
        for column in columns_of(columns):
            name, cell = column.name.replace(":", "_"), full.get((row, column.name))
            line[f"{name}_published"] = published(definition, row, column.name)
            line[column.score_key] = _four_digits(cell, "value")
            for end in ("low", "high", "std_seeds"):
                line[f"{name}_{end}"] = _four_digits(cell, end)
            beats = getattr(cell, "beats_controls", None)
            line[f"{name}_beats_controls"] = "" if beats is None else str(beats).lower()
            line[f"{name}_data"] = cell.data if cell else ""
            if column.task.evaluator == "regression" and not column.further:
                line[f"{name}_pooled"] = _four_digits(cell, "pooled")
                for half, cells in halves.items():
                    line[f"{name}_{half}"] = _four_digits(cells.get((row, column.name)), "value")
            line[f"{name}_signature"] = " ".join(cell.signatures) if cell else ""
        lines.append(line)
    return pd.DataFrame(lines)


def plain(value: float, digits: int = 3) -> str:
    """So many decimals, and no minus sign before a zero."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _four_digits(cell: Cell | None, key: str) -> str:
    value = getattr(cell, key, None)
    return "" if value is None else plain(value, 4)


def published(definition: TableDefinition, row: str, column: str) -> str:
    """The published number of a cell, or nothing."""
    if row in definition.published.index and column in definition.published.columns:
        return str(definition.published.loc[row, column])
    return ""


def leakage_path() -> Path:
    """Where the leakage of the registered tasks is kept."""
    return Path(str(files("equibench.tasks"))) / "leakage.json"


def load_leakage() -> dict[str, dict[str, Any]]:
    """What a small CNN gets from pixels, by task; made by `equibench certify`."""
    return dict(json.loads(leakage_path().read_text(encoding="utf-8")))


def untrained_rows(records: Sequence[Record]) -> dict[str, str]:
    """Rows of which a run has not learned what it is for, with the diagnostics that say so."""
    found = _by_run(records, _failed)
    several = {r.seeds.pretraining for r in records if r.trained is not None}
    return {
        row: ", ".join(f"seed {seed}: {said}" if len(several) > 1 else said for seed, said in runs.items())
        for row, runs in found.items()
    }


def untrained_legend(records: Sequence[Record]) -> str:
    """What the mark means, and which diagnostic failed for which row; nothing where no row is marked."""
    rows = "; ".join(f"{row_title(row)} ({why})" for row, why in untrained_rows(records).items())
    said = "has not learned what it is for, by held-out diagnostics when pretraining ended"
    return f"{UNTRAINED} {said}: {rows}." if rows else ""


def with_overlaps(lines: Sequence[str], rows: Sequence[str], records: Sequence[Record]) -> list[str]:
    """A markdown table of the rows' halves with a column more: how far these overlap, where that is known of any."""
    found = _by_run(records, lambda record: (record.diagnostics or {}).get("halves_overlap"))
    if not found:
        return list(lines)
    means = [plain(float(np.mean(list(found[row].values())))) if row in found else "–" for row in rows]
    said = "Overlap: R² of the equivariant half as a linear function of the invariant one, on validation images."
    return [*(f"{line} {cell} |" for line, cell in zip(lines, ["Overlap", "---", *means], strict=True)), "", said]


def _failed(record: Record) -> str | None:
    if record.trained is not False:
        return None
    return " and ".join(BASELINES.get(record.baseline).method.not_learned(record.diagnostics or {}))


def _by_run(records: Sequence[Record], told: Callable[[Record], _T | None]) -> dict[str, dict[int | None, _T]]:
    """What is told of each row and pretraining seed, where anything is."""
    found: dict[str, dict[int | None, _T]] = {}
    for record in records:
        if (value := told(record)) is not None:
            found.setdefault(record.baseline, {})[record.seeds.pretraining] = value
    return found


def markdown_head(titles: Iterable[str]) -> list[str]:
    """The first two lines of a table in markdown, whose first column has no title."""
    titles = list(titles)
    return ["| | " + " | ".join(titles) + " |", "|---|" + "---|" * len(titles)]


def leakage_lines(tasks: Sequence[Task]) -> list[str]:
    """What pixels hold (a CNN on both views) and what leaks (the CNN on view 2 alone)."""
    leakage = load_leakage()
    known = [t for t in tasks if leakage.get(t.name, {}).get("task_version") == t.version]
    if not known:
        return ["No measurement is on file for these tasks: run `equibench certify`."]
    some = leakage[known[0].name]
    lines = [
        f"A small CNN trained from scratch on {some['pairs']:,} pairs of {some['data']}, headline views; a task that "
        f"claims to be clean leaks at most {CLEAN_LEAK:g}:",
        "",
        *markdown_head(task.title for task in known),
    ]
    for name, title in _MEASURED_LEAKS.items():
        values = [leakage[task.name].get(f"{name}_r2") for task in known]
        if any(value is not None for value in values):
            lines.append(f"| {title} | " + " | ".join("–" if v is None else plain(v) for v in values) + " |")
    lines.append("| claims to be clean | " + " | ".join("yes" if t.claims_clean else "no" for t in known) + " |")
    return lines
