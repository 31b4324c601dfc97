"""A table as markdown, for results/<profile>/."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from equibench.controls import CONTROLS
from equibench.records import Record
from equibench.report.facts import header
from equibench.report.findings import geometry_findings, own_column_findings
from equibench.runner import row_title
from equibench.setting import Setting
from equibench.tables import Cell, TableDefinition, cells_of, published
from equibench.task import CLEAN_LEAK, Task

MARK = "†"
CERTIFIED = {
    "both_views": "both views (the pixels' ceiling)",
    "view2_alone": "view 2 alone (the leak)",
    "border": "of it the outermost ring alone",
    "interpolation": "view 2 of noise (what resampling leaves)",
}
"""What a certificate measures, in print."""


def markdown_table(
    definition: TableDefinition,
    rows: Sequence[str],
    tasks: Sequence[Task],
    records: Sequence[Record],
    setting: Setting,
    seeds: Sequence[int],
    certificates: dict[str, dict[str, object]],
) -> str:
    """The whole report of a table."""
    full = cells_of(records)
    several = any(cell.std_seeds is not None for cell in full.values())
    lines = [f"# {definition.name}", "", *[f"- {line}" for line in header(setting, tasks, seeds)], ""]
    lines += ["## Published | ours", ""]
    lines += _grid(rows, tasks, lambda row, task: _headline(definition, full, row, task))
    lines += [
        "",
        f"{MARK} does not beat its controls: its interval does not lie above the upper end of the best of random init, "
        "pixels and image statistics, so the score says nothing about the training.",
        "",
        *_certificate_lines(tasks, certificates),
    ]
    if several:
        lines += ["", "## Standard deviation over pretraining seeds", ""]
        lines += _grid(
            _with(full, rows, lambda c: c.std_seeds is not None),
            tasks,
            lambda r, t: _std(full.get((r, t.name))),
        )
    own, geometry = own_column_findings(rows, tasks, full), geometry_findings(rows, tasks, full)
    if geometry:
        lines += ["", "## Mean of rotation and translation", "", *[f"- {line}" for line in geometry]]
    if own:
        lines += ["", "## Is SIE(x) the best SIE row in its own column?", "", *[f"- {line}" for line in own]]
    lines += ["", "## Pooled R², as published", "", _floors(tasks, records), ""]
    lines += _grid(rows, tasks, lambda row, task: _pooled(definition, full, row, task))
    lines += ["", "## The halves alone", "", "R² from the invariant | the equivariant half.", ""]
    inv, equi = cells_of(records, "invariant"), cells_of(records, "equivariant")
    lines += _grid(
        _with(inv, rows, lambda c: True),
        tasks,
        lambda r, t: _halves(inv.get((r, t.name)), equi.get((r, t.name))),
    )
    lines += ["", "## Signatures", "", "`equibench explain` turns one into the score's recipe and command.", ""]
    lines += _grid(rows, tasks, lambda r, t: _signatures(full.get((r, t.name))))
    return "\n".join(lines) + "\n"


def _signatures(cell: Cell | None) -> str:
    return " ".join(f"`{s}`" for s in cell.signatures) if cell else "–"


def score(cell: Cell | None) -> str:
    """0.345 ±0.012, with a mark where the cell does not beat its controls."""
    if cell is None:
        return "–"
    mark = MARK if cell.beats_controls is False else ""
    return f"{plain(cell.r2)} ±{(cell.high - cell.low) / 2:.3f}{mark}"


def plain(value: float) -> str:
    """Three decimals, and no minus sign before a zero."""
    return f"{value:.3f}".replace("-0.000", "0.000")


def _headline(definition: TableDefinition, cells: dict[tuple[str, str], Cell], row: str, task: Task) -> str:
    return f"{published(definition, row, task.name) or '–'} \\| {score(cells.get((row, task.name)))}"


def _pooled(definition: TableDefinition, cells: dict[tuple[str, str], Cell], row: str, task: Task) -> str:
    cell = cells.get((row, task.name))
    ours = plain(cell.pooled) if cell and cell.pooled is not None else "–"
    return f"{published(definition, row, task.name) or '–'} \\| {ours}"


def _std(cell: Cell | None) -> str:
    return f"{cell.std_seeds:.3f}" if cell and cell.std_seeds is not None else "–"


def _halves(invariant: Cell | None, equivariant: Cell | None) -> str:
    return " \\| ".join(plain(c.r2) if c else "–" for c in (invariant, equivariant))


def _with(cells: dict[tuple[str, str], Cell], rows: Sequence[str], test: Callable[[Cell], bool]) -> list[str]:
    return [row for row in rows if any(test(cell) for (name, _), cell in cells.items() if name == row)]


def _grid(rows: Sequence[str], tasks: Sequence[Task], text: Callable[[str, Task], str]) -> list[str]:
    lines = ["| | " + " | ".join(t.title for t in tasks) + " |", "|---|" + "---|" * len(tasks)]
    for row in rows:
        title = f"*{row_title(row)}*" if row in CONTROLS else row_title(row)
        lines.append(f"| {title} | " + " | ".join(text(row, task) for task in tasks) + " |")
    return lines


def _floors(tasks: Sequence[Task], records: Sequence[Record]) -> str:
    floors = {r.task: r.r2_pooled_floor for r in records if r.r2_pooled_floor is not None}
    named = [f"{t.title} {plain(floors[t.name])}" for t in tasks if t.name in floors]
    return "One scalar mean over all dimensions (SIE's formula); a constant predictor scores: " + ", ".join(named) + "."


def _certificate_lines(tasks: Sequence[Task], certificates: dict[str, dict[str, object]]) -> list[str]:
    """What pixels hold (a CNN on both views) and what leaks (the CNN on view 2 alone)."""
    known = [t for t in tasks if certificates.get(t.name, {}).get("task_version") == t.version]
    if not known:
        return ["No certificate is on file for these tasks: run `equibench certify`."]
    some = certificates[known[0].name]
    lines = [
        f"A small CNN trained from scratch on {some['pairs']:,} pairs of {some['data']}, headline views; a task that "
        f"claims to be clean leaks at most {CLEAN_LEAK:g}:",
        "",
    ]
    lines += ["| | " + " | ".join(t.title for t in known) + " |", "|---|" + "---|" * len(known)]
    for name, title in CERTIFIED.items():
        values = [certificates[t.name].get(f"{name}_r2") for t in known]
        if any(value is not None for value in values):
            shown = ["–" if value is None else plain(float(str(value))) for value in values]
            lines.append(f"| {title} | " + " | ".join(shown) + " |")
    lines.append("| claims to be clean | " + " | ".join("yes" if t.claims_clean else "no" for t in known) + " |")
    return lines
