"""An encoder's score as a frame, in markdown and on the terminal: one row a task, with controls, floor and ceiling."""

from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from equibench.encoders.vit import TOKEN_SETS
from equibench.evaluation.context import Context
from equibench.evaluation.controls import CONTROLS, RIVALS
from equibench.evaluation.evaluator import EVALUATORS
from equibench.records import Record
from equibench.report.definition import MARK, load_leakage, plain, probe_marks
from equibench.task import TASKS

COMPARED = {"random_init": "random init", "pixels": "pixels", "image_statistics": "image stats"}
SHOWN = 6
"""Metrics of an evaluator that a table has room for; the records hold all."""


def score_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One line per row, task, feature set and metric.

    Columns: row, task, evaluator, features, metric, value, low, high, floor (of the constant predictor, or of
    guessing), fraction (of the way from the floor to the oracle, for r2), signature.
    """
    oracle = {r.task: r.metrics["r2"].value for r in records if r.baseline == "oracle" and r.features == "full"}
    keys, numbers = ("row", "task", "evaluator", "features", "metric"), ("value", "low", "high", "floor", "fraction")
    lines = []
    for record in records:
        head = (record.baseline, record.task, record.evaluator, record.features)
        for name, metric in record.metrics.items():
            if metric.value is not None:
                way = _way_to_ceiling(metric.value, metric.floor, oracle.get(record.task)) if name == "r2" else None
                ends = (metric.low, metric.high, metric.floor)
                lines.append((*head, name, metric.value, *ends, way, record.signature))
    return pd.DataFrame(lines, columns=[*keys, *numbers, "signature"]).round(6)


def _way_to_ceiling(value: float, floor: float | None, ceiling: float | None) -> float | None:
    """(value - floor) / (ceiling - floor); None where an end is missing."""
    if floor is None or ceiling is None or ceiling <= floor:
        return None
    return (value - floor) / (ceiling - floor)


Grid = tuple[str, list[str], list[list[str]]]
"""A title, the head, and the rows of a table, as text."""


def score_tables(name: str, records: Sequence[Record]) -> list[Grid]:
    """The tables of a score: regression, halves, layers, and one for each further evaluator."""
    grids = [_regression(name, records), _as_published(name, records), _probes(name, records), _halves(name, records)]
    grids += [_sets(name, records)]
    grids += [_layers(row, records) for row in (name, "random_init")]
    for kind in EVALUATORS.names():
        mine = [r for r in records if r.evaluator == kind and r.features == "full"]
        if kind != "regression" and mine:
            grids.append(_further(kind, name, mine))
    return [grid for grid in grids if grid[2]]


def _regression(name: str, records: Sequence[Record]) -> Grid:
    by_row = {(r.baseline, r.task): r for r in records if r.evaluator == "regression" and r.features == "full"}
    r2 = {key: record.metrics["r2"] for key, record in by_row.items()}
    controls = {c: title for c, title in COMPARED.items() if any(row == c for row, _ in by_row)}
    rows = []
    for (row, task), record in by_row.items():
        found = record.interval()
        if row != name or found is None:
            continue
        floor, oracle = r2[row, task].floor, r2.get(("oracle", task))
        way = _way_to_ceiling(found[0], floor, oracle.value if oracle else None)
        rivals = [r2[c, task].high or 0 for c in RIVALS if (c, task) in r2]
        behind = bool(rivals) and found[1] <= max(rivals)
        marks = (MARK if behind else "") + probe_marks([record])
        cells = [_title(task), _cell(record) + marks, "–" if way is None else f"{way:.0%}"]
        cells += [plain(r2[c, task].value or 0) if (c, task) in r2 else "–" for c in controls]
        rows.append([*cells, plain(floor or 0)])
    head = ["", "R²", "to oracle", *controls.values(), "floor"]
    return "R² of a probe that regresses the transformation", head, rows


def _as_published(name: str, records: Sequence[Record]) -> Grid:
    rows = [
        [_title(r.task), plain(pooled.value or 0), plain(pooled.floor or 0), _units(r), *_leaks(r)]
        for r in records
        if r.baseline == name and r.features == "full" and (pooled := r.metrics.get("r2_pooled"))
    ]
    head = ["", "pooled R²", "its floor", "errors", "CNN, view 2 alone", "CNN, both views"]
    return "As published, in units, and what a small CNN reads from pixels", head, rows


def _probes(name: str, records: Sequence[Record]) -> Grid:
    """What the other probe says, and the learning curve."""
    shown = ("r2_closed", "r2_unwhitened", "r2_quarter", "r2_half", "r2", "r2_asymptote", "bits")
    mine = [r for r in records if r.baseline == name and r.features == "full" and "r2_closed" in r.metrics]
    rows = [[_title(r.task), *(_number(r, metric) for metric in shown)] for r in mine]
    pairs = mine[0].pairs[0] if mine else 0
    curve = [f"{pairs // 4:,} pairs", f"{pairs // 2:,}", f"{pairs:,}", "extrapolated", "bits"]
    return "R² of each probe, and with fewer training pairs", ["", "closed form", "unwhitened", *curve], rows


def _number(record: Record, metric: str) -> str:
    found = record.metrics.get(metric)
    return "–" if found is None or found.value is None else plain(found.value)


def _sets(name: str, records: Sequence[Record]) -> Grid:
    """The representation beside what else the encoder gives, and the one number |f2 - f1|."""
    found = {(r.features, r.task): r for r in records if r.baseline == name and r.evaluator == "regression"}
    of = {TASKS.get(t).transformation: t for _, t in found if t in TASKS.names()}
    attentive = [r for r in records if r.baseline == name and r.evaluator == "attentive" and r.task in TASKS.names()]
    found |= {(r.features, t): r for r in attentive if (t := of.get(TASKS.get(r.task).transformation))}
    sets = [s for s in ("full", *TOKEN_SETS, "attentive", "distance") if any(features == s for features, _ in found)]
    tasks = list(dict.fromkeys(task for features, task in found if features != "full"))
    rows = [[_title(t), *(_cell(found[s, t]) if (s, t) in found else "–" for s in sets)] for t in tasks]
    return "Feature sets, R²", ["", *sets], rows


def _leaks(record: Record) -> list[str]:
    """The task's leak and its ceiling, where it has been certified on these data."""
    facts = load_leakage().get(record.task, {})
    if (facts.get("task_version"), facts.get("data"), "headline") != (record.task_version, record.data, record.variant):
        return ["–", "–"]
    values = [facts.get(f"{source}_r2") for source in ("view2_alone", "both_views")]
    return ["–" if value is None else plain(value) for value in values]


def _halves(name: str, records: Sequence[Record]) -> Grid:
    found = {(r.features, r.task): r for r in records if r.baseline == name and r.evaluator == "regression"}
    halves = ("invariant", "equivariant")
    tasks = [task for features, task in found if features == "invariant"]
    rows = [[_title(task), *(_cell(found[half, task]) for half in halves)] for task in tasks]
    return "The halves alone, R²", ["", *halves], rows


def _layers(name: str, records: Sequence[Record]) -> Grid:
    """R² over depth."""
    found = {(r.features, r.task): r for r in records if r.baseline == name and r.evaluator == "regression"}
    tasks = list(dict.fromkeys(task for _, task in found))
    rows = [
        [layer.removeprefix("layer:"), *(_cell(found[layer, t]) if (layer, t) in found else "–" for t in tasks)]
        for layer in dict.fromkeys(features for features, _ in found if features.startswith("layer:"))
    ]
    return f"R² by layer: {name}", ["layer", *map(_title, tasks)], rows


def _further(kind: str, name: str, records: Sequence[Record]) -> Grid:
    evaluator = EVALUATORS.get(kind)
    shown = [m for m in evaluator.metrics if any(m in r.metrics for r in records)][:SHOWN]
    arrows = {"higher": " ↑", "lower": " ↓", "neither": ""}
    head = ["", *(f"{evaluator.metrics[m].title}{arrows[evaluator.metrics[m].better]}" for m in shown)]
    rows = []
    for task in dict.fromkeys(r.task for r in records):
        mine = [r for r in records if r.task == task]
        for record in mine:
            title = _title(task) if record.baseline == name else f"  {CONTROLS[record.baseline].title}"
            rows.append([title, *(_cell(record, metric) for metric in shown)])
        floors = {m: metric.floor for m, metric in mine[0].metrics.items() if metric.floor is not None}
        if floors:
            rows.append(["  guessing", *(plain(floors[m]) if m in floors else "–" for m in shown)])
    return evaluator.title, head, rows


def score_markdown(name: str, records: Sequence[Record], context: Context, notes: Sequence[str]) -> str:
    """The whole report of a score."""
    lines = [f"# {name}", "", *(f"- {line}" for line in _header(name, records, context, notes)), ""]
    grids = score_tables(name, records)
    for title, head, rows in grids:
        lines += [f"## {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    if any(MARK in cell for _, _, rows in grids for row in rows for cell in row):
        lines += [f"{MARK} does not beat random init, pixels and image statistics.", ""]
    lines += ["## Signatures", "", "`equibench explain` turns one into the recipe and the command.", ""]
    lines += [f"- `{r.signature}`" for r in records if r.baseline == name and r.interval()]
    return "\n".join(lines) + "\n"


def _header(name: str, records: Sequence[Record], context: Context, notes: Sequence[str]) -> list[str]:
    """What a reader must know before the numbers."""
    probing, radius = context.probing, context.spec.radius
    described = next((r.encoder for r in records if r.baseline == name and r.encoder), "")
    views = f"mirrored fill, disc of radius {radius:g} px" if radius else "black fill, no mask (paper_like)"
    train, val, test = probing.pairs
    again = f" (an image is used up to {context.repeats} times)" if context.repeats > 1 else ""
    return [
        f"Encoder: {described}.",
        *notes,
        f"Data: {context.dataset.description}.",
        f"Views: {context.size} px, {views}.",
        f"Probe: 3-layer MLP of width {probing.width}, at most {probing.epochs} epochs, {probing.seeds} seeds; "
        f"{train:,} training and {val:,} validation{again} and {test:,} test pairs.",
        "± is half the 95 % bootstrap interval over test images.",
    ]


def print_score(name: str, records: Sequence[Record], context: Context, notes: Sequence[str], console: Console) -> None:
    """Print a score to the terminal; names as they are, whatever brackets they hold."""
    for line in _header(name, records, context, notes):
        console.print(line, style="dim", highlight=False, markup=False)
    for title, head, rows in score_tables(name, records):
        table = Table(
            title=Text(title, style="bold"), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
        )
        for number, column in enumerate(head):
            table.add_column(column, justify="right" if number else "left")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
    for record in records:
        if record.baseline == name and record.features == "full":
            console.print(record.signature, style="dim", highlight=False, soft_wrap=True, markup=False)


def _cell(record: Record, metric: str | None = None) -> str:
    """A metric's value; that of the main one, which stands for None, with its interval."""
    found = record.metrics.get(metric or record.main_metric)
    if found is None or found.value is None:
        return "–"
    if metric not in (None, record.main_metric) or found.low is None or found.high is None:
        return plain(found.value)
    # without a space, so that a narrow terminal breaks the heads and not the numbers
    return f"{plain(found.value)}±{(found.high - found.low) / 2:.3f}"


def _title(task: str) -> str:
    return TASKS.get(task).title if task in TASKS.names() else task


def _units(record: Record) -> str:
    infos, texts = EVALUATORS.get("regression").metrics, []
    for name, metric in record.metrics.items():
        if name.startswith("degrees") and metric.value is not None:
            texts.append(f"{name.removeprefix('degrees_')} {metric.value:.1f}°")
        elif not name.startswith(("r2", "bits", "pairs")) and metric.value is not None:
            texts.append(f"{infos[name].title if name in infos else name} {metric.value:.3f}")
    return ", ".join(texts) or "–"
