"""A table: its definition (a published CSV), its cells (records), and the files that come out of them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd

from equibench.controls import CONTROLS, RIVALS
from equibench.errors import UserError
from equibench.records import Record
from equibench.registry import BASELINES, TASKS, closest
from equibench.runner import row_title

PUBLISHED = files("equibench.published")


@dataclass(frozen=True)
class TableDefinition:
    """Rows and columns of a table with the published numbers, as strings like "0.862±0.004"."""

    name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    published: pd.DataFrame


@dataclass(frozen=True)
class Cell:
    """One score of a table: the task's headline metric, R² in regression, as the mean over pretraining seeds.

    Attributes:
        low, high: the bootstrap intervals' ends, averaged over pretraining seeds. The seeds share their test
            images, so the interval of their mean is at most as wide.
        std_seeds: standard deviation over pretraining seeds; None for a single seed.
        signatures: identifier of each seed's record, for `equibench explain`.
        beats_controls: whether low lies above the upper end of each control of `RIVALS`; None for the controls
            themselves and where one of them is missing.
    """

    r2: float
    low: float
    high: float
    pooled: float | None
    seeds: int
    std_seeds: float | None
    signatures: tuple[str, ...]
    beats_controls: bool | None = None


def table_names() -> list[str]:
    """Names of the tables that have a published CSV."""
    return sorted(f.name.removesuffix(".csv") for f in PUBLISHED.iterdir() if f.name.endswith(".csv"))


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
    try:
        frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(
            f"{where} is not a table: {error}", "first column `baseline`, then a column per task"
        ) from error
    if frame.empty or frame.columns[0] != "baseline":
        raise UserError(f"{where} has no column `baseline`, or no rows", "first column `baseline`, then one per task")
    frame = frame.set_index("baseline")
    _check_names(where, "row", list(frame.index), [*BASELINES.names(), *CONTROLS])
    _check_names(where, "column", list(frame.columns), TASKS.names())
    return TableDefinition(path.stem, tuple(frame.index), tuple(frame.columns), frame)


def _check_names(where: str, kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    unknown = [n for n in names if n not in known]
    if unknown:
        hint = closest(unknown[0], known)
        raise UserError(
            f"{where} names unknown {kind}s: {', '.join(unknown)}{hint}",
            "`equibench list` shows the known ones; --baseline FILE.py adds one",
        )
    if len(set(names)) < len(names):
        raise UserError(f"{where} names a {kind} twice", "remove the repetition")


def cells_of(records: Sequence[Record], features: str = "full") -> dict[tuple[str, str], Cell]:
    """Cells by (row, column) for one feature set; rows that have no such features are left out."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.features == features and record.headline_value() is not None:
            groups.setdefault((record.baseline, record.task), []).append(record)
    cells = {key: _cell(group) for key, group in groups.items()}
    return {key: _judged(key, cell, cells) for key, cell in cells.items()}


def _cell(group: Sequence[Record]) -> Cell:
    found = np.array([r.headline_value() for r in group])
    value, low, high = found.mean(axis=0).tolist()
    pooled = [r.r2_pooled for r in group if r.r2_pooled is not None]
    std = float(np.std(found[:, 0], ddof=1)) if len(group) > 1 else None
    return Cell(
        value,
        low,
        high,
        float(np.mean(pooled)) if pooled else None,
        len(group),
        std,
        tuple(r.identifier for r in group),
    )


def _judged(key: tuple[str, str], cell: Cell, cells: dict[tuple[str, str], Cell]) -> Cell:
    row, task = key
    rivals = [cells.get((control, task)) for control in RIVALS]
    if row in CONTROLS or None in rivals:
        return cell
    beats = cell.low > max(rival.high for rival in rivals if rival)
    return replace(cell, beats_controls=beats)


def table_frame(
    definition: TableDefinition, rows: Sequence[str], columns: Sequence[str], records: Sequence[Record]
) -> pd.DataFrame:
    """The table as one row per baseline or control, for its CSV.

    Columns for each task: published, r2, low, high, std_seeds, pooled, beats_controls, invariant, equivariant, and the
    identifiers of the signatures of r2.
    """
    full = cells_of(records)
    halves = {half: cells_of(records, half) for half in ("invariant", "equivariant")}
    lines = []
    for row in rows:
        line: dict[str, object] = {"baseline": row, "title": row_title(row)}
        seeds = [full[row, c].seeds for c in columns if (row, c) in full]
        line["pretraining_seeds"] = min(seeds) if seeds else 0
        for column in columns:
            line[f"{column}_published"] = published(definition, row, column)
            cell = full.get((row, column))
            line[f"{column}_r2"] = _digits(cell.r2) if cell else ""
            line[f"{column}_low"] = _digits(cell.low) if cell else ""
            line[f"{column}_high"] = _digits(cell.high) if cell else ""
            line[f"{column}_std_seeds"] = _digits(cell.std_seeds) if cell and cell.std_seeds is not None else ""
            line[f"{column}_pooled"] = _digits(cell.pooled) if cell and cell.pooled is not None else ""
            line[f"{column}_beats_controls"] = (
                "" if not cell or cell.beats_controls is None else str(cell.beats_controls).lower()
            )
            for half, cells in halves.items():
                other = cells.get((row, column))
                line[f"{column}_{half}"] = _digits(other.r2) if other else ""
            line[f"{column}_signature"] = " ".join(cell.signatures) if cell else ""
        lines.append(line)
    return pd.DataFrame(lines)


def published(definition: TableDefinition, row: str, column: str) -> str:
    """The published number of a cell, or nothing."""
    if row in definition.published.index and column in definition.published.columns:
        return str(definition.published.loc[row, column])
    return ""


def load_certificates() -> dict[str, dict[str, object]]:
    """What a small CNN gets from pixels, by task: kept beside the tasks, made by `equibench certify`."""
    text = files("equibench.tasks").joinpath("certificates.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def _digits(value: float) -> str:
    # no minus sign before a zero
    return f"{value + 0.0:.4f}".replace("-0.0000", "0.0000")
