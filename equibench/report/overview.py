"""All tables of a profile on one page, results/<profile>/README.md: what each shows, can claim, and cannot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from equibench.errors import UserError
from equibench.evaluation.controls import CONTROLS, row_title
from equibench.profiles import get_profile
from equibench.records import RECORDS, Record, read_records
from equibench.report.definition import (
    Cells,
    Column,
    TableDefinition,
    cells_of,
    columns_of,
    load_definition,
    table_names,
)
from equibench.report.table import MARK, UNBEATEN, is_rendered, score_grids


def overview(folder: Path, profile: str) -> str:
    """The page, made of the tables' definitions and records alone.

    Args:
        folder: results/<profile>, with a folder for each table.

    Raises:
        UserError: no table is there, or one has a row that is not registered here.
    """
    found = [name for name in table_names() if (folder / name / RECORDS).is_file()]
    if not found:
        raise UserError(f"there is no table below {folder}", f"make one: equibench table table2 --profile {profile}")
    lines = [f"# The tables in the profile {profile}", "", f"{_sentence(get_profile(profile).title)}", ""]
    lines += [
        "Published | ours ± half the 95 % bootstrap interval over test images; rows in italics are controls. "
        f"{MARK} does not beat its controls: {UNBEATEN}. Columns marked *rendered* were measured on small pictures "
        "that equibench renders itself: their numbers must not be compared with the published ones. A dash: not "
        "measured, since the data were not there.",
        "",
    ]
    for name in found:
        lines += _section(folder, name)
    return "\n".join(lines).rstrip() + "\n"


def _section(folder: Path, name: str) -> list[str]:
    definition, records = load_definition(name), read_records(folder / name / RECORDS)
    frame = pd.read_csv(folder / name / f"{name}.csv", dtype=str, keep_default_na=False)
    columns = columns_of(definition.columns)
    rows = [str(row) for row in frame["baseline"]]
    cells = cells_of(records, scale=definition.scale)
    lines = [f"## [{definition.title or name}]({name}/{name}.md)", ""]
    lines += score_grids(definition, rows, columns, cells)
    lines += ["", "It can show " + "; ".join(definition.claims) + ".", ""] if definition.claims else [""]
    lines += ["What limits it:", "", *[f"- {limit}" for limit in _limits(definition, columns, records, cells)], ""]
    return [*lines, "What it says:", "", *[f"- {line}" for line in _verdicts(rows, columns, cells)], ""]


def _limits(
    definition: TableDefinition, columns: Sequence[Column], records: Sequence[Record], cells: Cells
) -> list[str]:
    profile = get_profile(records[0].profile)
    limits = [_sentence(limit) for limit in definition.limits]
    rendered = sorted({cell.data for cell in cells.values() if is_rendered(cell.data)})
    if rendered:
        everything = all(is_rendered(cell.data) for cell in cells.values())
        which = "Every number is" if everything else "Some numbers are"
        limits.append(f"{which} of {', '.join(rendered)}, data of our own; the published data were not there.")
    seeds = {record.seeds.pretraining for record in records if record.recipe_sha256}
    pairs = profile.pretraining.pairs
    limits.append(
        f"Encoders are small (width {profile.encoder.width}, {profile.encoder.depth} blocks) and saw {pairs:,} pairs, "
        + ("with one pretraining seed." if len(seeds) == 1 else f"with {len(seeds)} pretraining seeds.")
    )
    return limits


def _verdicts(rows: Sequence[str], columns: Sequence[Column], cells: Cells) -> list[str]:
    """For each column the best row, those that it cannot be told apart from, and which rows beat every control."""
    lines = []
    methods = [row for row in rows if row not in CONTROLS]
    for column in columns:
        there = {row: cells[row, column.name] for row in methods if (row, column.name) in cells}
        if not there:
            continue
        best = (min if column.info.better == "lower" else max)(there, key=lambda row: there[row].value)
        top = there[best]
        tied = [row_title(r) for r, c in there.items() if r != best and c.high >= top.low and c.low <= top.high]
        ahead = [row_title(r) for r, c in there.items() if c.beats_controls]
        said = f"{column.title}: best is {row_title(best)}"
        said += f" (overlapping: {', '.join(tied)})" if tied else ""
        lines.append(f"{said}; {', '.join(ahead) or 'no row'} better than all controls.")
    return lines


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else text + "."
