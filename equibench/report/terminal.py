"""A table for the terminal: published | ours ± interval."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from equibench.controls import CONTROLS
from equibench.progress import clock
from equibench.records import Record
from equibench.report.facts import header
from equibench.report.markdown import MARK, Cells, column_title, score, split_columns
from equibench.runner import Plan, row_title
from equibench.setting import Setting
from equibench.tables import Column, TableDefinition, cells_of, published

WIDE, MEDIUM = 150, 118


def print_table(
    definition: TableDefinition,
    rows: Sequence[str],
    columns: Sequence[Column],
    records: Sequence[Record],
    setting: Setting,
    seeds: Sequence[int],
    console: Console,
) -> None:
    """Print a table; on a narrow terminal each cell takes two lines or three."""
    cells = cells_of(records, scale=definition.scale)
    for line in header(setting, [column.task for column in columns], seeds, records):
        console.print(line, style="dim", highlight=False)
    title = f"{definition.title or definition.name}, profile {setting.profile.name}"
    printed, further = split_columns(definition, columns)
    console.print(_table(f"{title}: published | ours", definition, rows, printed, cells, console))
    if further:
        there = [row for row in rows if any((row, column.name) in cells for column in further)]
        console.print(_table("not in the published table", definition, there, further, cells, console))
    shown = {column.name for column in columns}
    if any(cell.beats_controls is False for (_, name), cell in cells.items() if name in shown):
        console.print(f"{MARK} does not beat random init, pixels and image statistics", style="dim")


def _table(
    title: str,
    definition: TableDefinition,
    rows: Sequence[str],
    columns: Sequence[Column],
    cells: Cells,
    console: Console,
) -> Table:
    table = Table(title=title, show_lines=False)
    table.add_column("")
    for column in columns:
        table.add_column(column_title(column, cells), justify="right", overflow="fold")
    separator = " | " if console.width >= WIDE else "\n"
    narrow = console.width < MEDIUM
    for number, row in enumerate(rows):
        texts = []
        for column in columns:
            cell = cells.get((row, column.name))
            ours = score(cell, definition.scale)
            style = "dim" if cell is None or cell.beats_controls is False else "bold"
            said = published(definition, row, column.name)
            if narrow:
                said, ours = said.split("±")[0], ours.replace(" ", "\n")
            texts.append(f"[dim]{said}{separator}[/dim][{style}]{ours}[/]" if said else f"[{style}]{ours}[/]")
        last_method = row not in CONTROLS and number + 1 < len(rows) and rows[number + 1] in CONTROLS
        table.add_row(row_title(row), *texts, style="italic" if row in CONTROLS else "", end_section=last_method)
    return table


def print_plan(plan: Plan, console: Console) -> None:
    """The units of a table with an estimate for those still to be done."""
    table = Table("unit", "seed", "to do", "estimate")
    for unit in plan.units:
        steps = (["pretrain"] if unit.pretrain else []) + [task.name for task in unit.tasks]
        seconds = plan.estimates.get(("pretrain", unit.row), 0.0) * unit.pretrain
        seconds += plan.estimates.get(("score", unit.row), 0.0) * bool(unit.tasks)
        seed = "" if unit.seed is None else str(unit.seed)
        table.add_row(unit.row, seed, ", ".join(steps) or "done", clock(seconds) if steps else "")
    console.print(table)
    to_do = sum(not unit.done for unit in plan.units)
    console.print(f"{to_do} of {len(plan.units)} units to do, about {clock(plan.total)}")
