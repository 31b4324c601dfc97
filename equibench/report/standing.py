"""Who leads a column: the rows that a paired test separates from all that follow, and those that it does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from equibench.evaluation.controls import CONTROLS
from equibench.report.definition import Cells, Column


@dataclass(frozen=True)
class Standing:
    """Who leads a column of a table; controls do not compete.

    Attributes:
        best: the row that is better than every other one; None where the test does not separate it.
        second: the row that is better than all but the best one; None likewise, and where there is no best.
        level: rows that cannot be told from the one with the best score, that one first; () where there is a best.
        test: by what they were told apart, "paired" (bootstrap over the same test images) or "overlap" (of intervals).
        reason: why there was no paired test; "" where there was one.
    """

    best: str | None = None
    second: str | None = None
    level: tuple[str, ...] = ()
    test: str = "overlap"
    reason: str = ""


Standings = Mapping[str, Standing]
"""By column, TASK or TASK:METRIC."""


def contenders(column: Column, rows: Sequence[str], cells: Cells) -> list[str]:
    """The rows of a column that compete, from the best score to the worst; () where neither direction is better."""
    if column.info.better == "neither":
        return []
    there = [row for row in rows if row not in CONTROLS and (row, column.name) in cells]
    return sorted(there, key=lambda row: cells[row, column.name].value, reverse=column.info.better == "higher")


def by_overlap(column: Column, rows: Sequence[str], cells: Cells, reason: str) -> Standing:
    """Without a paired test: the best score, and the rows whose intervals overlap its own; nobody is called best."""
    order = contenders(column, rows, cells)
    top = cells[order[0], column.name] if order else None
    level = [row for row in order if top and (c := cells[row, column.name]).low <= top.high and c.high >= top.low]
    return Standing(level=tuple(level) if len(level) > 1 else (), reason=reason)
