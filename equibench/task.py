"""What a regression task is: one column of a table."""

from __future__ import annotations

from dataclasses import dataclass

from equibench.registry import TASKS


@dataclass(frozen=True)
class Task:
    """Regress the parameters of one transformation from the representations of I and g(I).

    Attributes:
        name: the column's id, as in a table's CSV.
        title: the column's name in print.
        version: raised whenever anything changes that a score depends on.
        transformation: the name of g.
        claims_clean: whether view 2 alone is claimed to give nothing away (R² at most `CLEAN_LEAK`, certified).
        note: what a reader must know about the column.
    """

    name: str
    title: str
    version: int
    transformation: str
    claims_clean: bool
    note: str


CLEAN_LEAK = 0.1
"""Largest R² that a small CNN may reach from view 2 alone on a task that claims to be clean."""


def register_task(task: Task) -> Task:
    """Register a task as a column.

    Raises:
        UserError: the name is taken.
    """
    TASKS.add(task.name, task)
    return task
