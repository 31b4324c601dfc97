"""What the numbers of a table say about the paper's claims, as sentences made from the records alone."""

from __future__ import annotations

from collections.abc import Sequence

from equibench.controls import CONTROLS
from equibench.registry import BASELINES
from equibench.runner import row_title
from equibench.tables import Cell
from equibench.task import Task

Cells = dict[tuple[str, str], Cell]


def own_column_findings(rows: Sequence[str], tasks: Sequence[Task], cells: Cells) -> list[str]:
    """Whether a row trained on one known transformation is the best of its kind in that transformation's column.

    P1 (section 3) says so of SIE. A win counts only above the upper bound of random init, and only in a column that
    separates at least two of the rows compared.
    """
    kind = [r for r in rows if r.startswith("sie_")]
    lines = []
    for row in kind:
        known = BASELINES.get(row).transformations
        for task in tasks:
            if known == (task.transformation,) and (row, task.name) in cells:
                lines.append(f"{row_title(row)} in {task.title}: {_verdict(row, task, kind, cells)}")
    return lines


def _verdict(row: str, task: Task, kind: Sequence[str], cells: Cells) -> str:
    column = {r: cells[r, task.name] for r in kind if (r, task.name) in cells}
    best = max(column, key=lambda r: column[r].value)
    separated = max(c.low for c in column.values()) > min(c.high for c in column.values())
    floor = cells.get(("random_init", task.name))
    mine = f"{column[row].value:.3f}"
    if len(column) < 2 or floor is None:
        return "not tested, since the rows to compare it with are missing."
    if best != row:
        return f"no; {row_title(best)} is best with {column[best].value:.3f} against {mine}."
    if not separated:
        return f"best with {mine}, but the column separates no two SIE rows, so this is no win."
    if column[row].value <= floor.high:
        return f"best of the SIE rows with {mine}, but not above random init's upper bound {floor.high:.3f}: no win."
    return f"yes, with {mine}, above random init's upper bound {floor.high:.3f}."


def mean_of(row: str, tasks: Sequence[Task], cells: Cells) -> tuple[float, float, float] | None:
    """Mean R² of a row over tasks with the mean of the intervals' ends; None if a cell is missing.

    The tasks share their test images, so the interval of the mean is at most as wide.
    """
    found = [cells[row, t.name] for t in tasks if (row, t.name) in cells]
    if len(found) < len(tasks) or not found:
        return None
    return tuple(sum(getattr(c, end) for c in found) / len(found) for end in ("value", "low", "high"))  # type: ignore[return-value]


def geometry_findings(rows: Sequence[str], tasks: Sequence[Task], cells: Cells) -> list[str]:
    """Rows by their mean over rotation and translation, with what lies above both VICReg and random init."""
    geometry = [t for t in tasks if t.transformation in ("rotation", "translation")]
    rivals = [mean_of(r, geometry, cells) for r in ("vicreg", "random_init")]
    if len(geometry) < 2 or None in rivals:
        return []
    bar = max(rival[2] for rival in rivals if rival)
    lines = []
    for row in (*(r for r in rows if r not in CONTROLS), "random_init"):
        mean = mean_of(row, geometry, cells)
        if mean:
            above = " above both VICReg and random init" if mean[1] > bar else ""
            lines.append(f"{row_title(row)}: {mean[0]:.3f} [{mean[1]:.3f}, {mean[2]:.3f}]{above}")
    return lines
