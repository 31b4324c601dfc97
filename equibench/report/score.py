"""An encoder's score as a frame, in markdown and on the terminal: one row a task, with controls, floor and ceiling."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from equibench.evaluation.catalogue import CATALOGUE
from equibench.evaluation.context import Setting
from equibench.evaluation.controls import CONTROLS, RIVALS
from equibench.evaluation.evaluator import FAMILIES
from equibench.records import Record
from equibench.registry import TASKS
from equibench.report.definition import load_certificates
from equibench.report.table import MARK, plain

COMPARED = {"random_init": "random init", "pixels": "pixels", "image_statistics": "image stats"}
SHOWN = 6
"""Metrics of a family that a table has room for; the records hold all."""


def score_frame(name: str, records: Sequence[Record]) -> pd.DataFrame:
    """One row per subject, task, feature set and metric.

    Columns: subject, task, family, features, metric, value, low, high, floor (of the constant predictor, or of
    guessing), fraction (of the way from the floor to the oracle, for r2), signature.
    """
    oracle = {r.task: r.r2 for r in records if r.baseline == "oracle" and r.features == "full"}
    lines = []
    for record in records:
        for metric, value, low, high, floor in _numbers(record):
            fraction = fraction_of_the_way(value, floor, oracle.get(record.task)) if metric == "r2" else None
            lines.append(
                {
                    "subject": record.baseline,
                    "task": record.task,
                    "family": record.family,
                    "features": record.features,
                    "metric": metric,
                    "value": value,
                    "low": low,
                    "high": high,
                    "floor": floor,
                    "fraction": fraction,
                    "signature": record.signature,
                }
            )
    columns = [
        "subject",
        "task",
        "family",
        "features",
        "metric",
        "value",
        "low",
        "high",
        "floor",
        "fraction",
        "signature",
    ]
    return pd.DataFrame(lines, columns=columns).round(6)


def _numbers(record: Record) -> list[tuple[str, float, float | None, float | None, float | None]]:
    found: list[tuple[str, float, float | None, float | None, float | None]] = []
    if record.r2 is not None:
        found.append(("r2", record.r2, record.r2_low, record.r2_high, record.r2_floor))
    if record.r2_pooled is not None:
        found.append(("r2_pooled", record.r2_pooled, None, None, record.r2_pooled_floor))
    found += [(n, m.value, m.low, m.high, m.chance) for n, m in record.metrics.items() if m.value is not None]
    return found


def fraction_of_the_way(value: float, floor: float | None, ceiling: float | None) -> float | None:
    """(value - floor) / (ceiling - floor); None where an end is missing."""
    if floor is None or ceiling is None or ceiling <= floor:
        return None
    return (value - floor) / (ceiling - floor)


Grid = tuple[str, list[str], list[list[str]]]
"""A title, the head, and the rows of a table, as text."""


def score_tables(name: str, records: Sequence[Record]) -> list[Grid]:
    """The tables of a score: regression, layers, and one for each further family."""
    grids = [_regression(name, records), _as_published(name, records)]
    grids += [*_halves(name, records), *_layers(name, records)]
    for family in FAMILIES.values():
        mine = [r for r in records if r.family == family.name and r.features == "full"]
        if family.name != "regression" and mine:
            grids.append(_family(family.name, name, mine))
    return [grid for grid in grids if grid[2]]


def _regression(name: str, records: Sequence[Record]) -> Grid:
    by_row = {(r.baseline, r.task): r for r in records if r.family == "regression" and r.features == "full"}
    controls = {c: title for c, title in COMPARED.items() if any(row == c for row, _ in by_row)}
    rows = []
    for (row, task), record in by_row.items():
        if row != name or record.r2 is None:
            continue
        oracle = by_row.get(("oracle", task))
        way = fraction_of_the_way(record.r2, record.r2_floor, oracle.r2 if oracle else None)
        rivals = [by_row[c, task] for c in RIVALS if (c, task) in by_row]
        behind = bool(rivals) and (record.r2_low or 0) <= max(r.r2_high or 0 for r in rivals)
        cells = [_title(task), _interval(record) + (MARK if behind else ""), "–" if way is None else f"{way:.0%}"]
        cells += [plain(by_row[c, task].r2 or 0) if (c, task) in by_row else "–" for c in controls]
        rows.append([*cells, plain(record.r2_floor or 0)])
    return (
        "R² of a probe that regresses the transformation",
        ["", "R²", "to oracle", *controls.values(), "floor"],
        rows,
    )


def _as_published(name: str, records: Sequence[Record]) -> Grid:
    rows = [
        [_title(r.task), plain(r.r2_pooled), plain(r.r2_pooled_floor or 0), _units(r), *_certified(r)]
        for r in records
        if r.baseline == name and r.features == "full" and r.r2_pooled is not None
    ]
    head = ["", "pooled R²", "its floor", "errors", "CNN, view 2 alone", "CNN, both views"]
    return ("As published, in units, and what a small CNN reads from pixels", head, rows)


def _certified(record: Record) -> list[str]:
    """The task's leak and its ceiling, where it has been certified on these data."""
    facts = load_certificates().get(record.task, {})
    keys = ("task_version", "data")
    if [facts.get(k) for k in keys] != [record.task_version, record.data] or record.variant != "headline":
        return ["–", "–"]
    values = [facts.get(f"{source}_r2") for source in ("view2_alone", "both_views")]
    return ["–" if value is None else plain(float(str(value))) for value in values]


def _halves(name: str, records: Sequence[Record]) -> list[Grid]:
    found = {(r.features, r.task): r for r in records if r.baseline == name and r.family == "regression"}
    rows = [
        [_title(task), _interval(found["invariant", task]), _interval(found["equivariant", task])]
        for (features, task), record in found.items()
        if features == "invariant" and record.r2 is not None
    ]
    return [("The halves alone, R²", ["", "invariant", "equivariant"], rows)]


def _layers(name: str, records: Sequence[Record]) -> list[Grid]:
    """R² over depth."""
    grids = []
    for subject in (name, "random_init"):
        mine = [r for r in records if r.baseline == subject and r.family == "regression" and r.r2 is not None]
        layers = list(dict.fromkeys(r.features for r in mine if r.features.startswith("layer:")))
        tasks = list(dict.fromkeys(r.task for r in mine))
        found = {(r.features, r.task): r for r in mine}
        rows = [
            [layer.removeprefix("layer:"), *(_interval(found[layer, t]) if (layer, t) in found else "–" for t in tasks)]
            for layer in layers
        ]
        grids.append((f"R² by layer: {subject}", ["layer", *map(_title, tasks)], rows))
    return grids


def _family(family: str, name: str, records: Sequence[Record]) -> Grid:
    shown = [m for m in CATALOGUE if any(m in r.metrics for r in records)][:SHOWN]
    arrows = {"higher": " ↑", "lower": " ↓", "neither": ""}
    head = ["", *(f"{CATALOGUE[m].title}{arrows[CATALOGUE[m].better]}" for m in shown)]
    rows = []
    for task in dict.fromkeys(r.task for r in records):
        for record in (r for r in records if r.task == task):
            cells = [_cell(record, metric) for metric in shown]
            title = _title(task) if record.baseline == name else f"  {CONTROLS[record.baseline].title}"
            rows.append([title, *cells])
        chances = next((r.metrics for r in records if r.task == task), {})
        if any(m.chance is not None for m in chances.values()):
            guesses = [
                plain(chances[m].chance or 0) if m in chances and chances[m].chance is not None else "–" for m in shown
            ]
            rows.append(["  guessing", *guesses])
    return (FAMILIES[family].title, head, rows)


def score_markdown(name: str, records: Sequence[Record], setting: Setting, notes: Sequence[str]) -> str:
    """The whole report of a score."""
    lines = [f"# {name}", "", *(f"- {line}" for line in header(name, records, setting, notes)), ""]
    for title, head, rows in score_tables(name, records):
        lines += [f"## {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    if any(MARK in cell for _, _, rows in score_tables(name, records) for row in rows for cell in row):
        lines += [f"{MARK} does not beat random init, pixels and image statistics.", ""]
    lines += ["## Signatures", "", "`equibench explain` turns one into the recipe and the command.", ""]
    lines += [f"- `{r.signature}`" for r in records if r.baseline == name and r.headline_value()]
    return "\n".join(lines) + "\n"


def header(name: str, records: Sequence[Record], setting: Setting, notes: Sequence[str]) -> list[str]:
    """What a reader must know before the numbers."""
    probing, radius = setting.probing, setting.spec.radius
    described = next((r.encoder for r in records if r.baseline == name and r.encoder), "")
    views = f"mirrored fill, disc of radius {radius:g} px" if radius else "black fill, no mask (paper_like)"
    train, val, test = probing.pairs
    again = f" (an image is used up to {setting.repeats} times)" if setting.repeats > 1 else ""
    return [
        f"Encoder: {described}.",
        *notes,
        f"Data: {setting.dataset.description}.",
        f"Views: {setting.size} px, {views}.",
        f"Probe: 3-layer MLP of width {probing.width}, at most {probing.epochs} epochs, {probing.seeds} seeds; "
        f"{train:,} training and {val:,} validation{again} and {test:,} test pairs.",
        "± is half the 95 % bootstrap interval over test images.",
    ]


def print_score(name: str, records: Sequence[Record], setting: Setting, notes: Sequence[str], console: Console) -> None:
    """Print a score to the terminal."""
    for line in header(name, records, setting, notes):
        console.print(line, style="dim", highlight=False)
    for title, head, rows in score_tables(name, records):
        table = Table(
            title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_style="bold"
        )
        for number, column in enumerate(head):
            table.add_column(column, justify="right" if number else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for record in records:
        if record.baseline == name and record.features == "full":
            console.print(record.signature, style="dim", highlight=False, soft_wrap=True)


def _cell(record: Record, metric: str) -> str:
    """A metric's value; the headline with its interval, the others' are in the records."""
    found = record.metrics.get(metric)
    if found is None or found.value is None:
        return "–"
    return _plus_minus(found.value, found.low, found.high) if metric == record.headline else plain(found.value)


def _title(task: str) -> str:
    return TASKS.get(task).title if task in TASKS.names() else task


def _interval(record: Record) -> str:
    found = record.headline_value()
    return "–" if found is None else _plus_minus(*found)


def _plus_minus(value: float, low: float | None, high: float | None) -> str:
    """Without a space, so that a narrow terminal breaks the heads and not the numbers."""
    return plain(value) if low is None or high is None else f"{plain(value)}±{(high - low) / 2:.3f}"


def _units(record: Record) -> str:
    texts = []
    for name, metric in record.metrics.items():
        if metric.value is None:
            continue
        if name.startswith("degrees"):
            texts.append(f"{name.removeprefix('degrees_')} {metric.value:.1f}°")
        else:
            texts.append(f"{CATALOGUE[name].title if name in CATALOGUE else name} {metric.value:.3f}")
    return ", ".join(texts) or "–"
