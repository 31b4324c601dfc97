"""What a task is: one column of a table, one row of an encoder's score."""

from __future__ import annotations

from dataclasses import dataclass

from equibench.registry import TASKS
from equibench.transforms.transformation import TRANSFORMATIONS


@dataclass(frozen=True)
class Task:
    """One question about what a representation does under one transformation g.

    Attributes:
        name: the column's id, as in a table's CSV.
        title: the column's name in print.
        version: raised whenever anything changes that a score depends on.
        transformation: the name of g; "" where there is none.
        claims_clean: whether view 2 alone is claimed to give nothing away (R² at most `CLEAN_LEAK`, certified).
        note: what a reader must know about the column.
        family: how it is measured: a name in `equibench.families.FAMILIES`. "regression" predicts θ from the
            representations of I and g(I).
        data: the data set that the task brings along; None if it is asked of whatever data there are.
        headline: the metric by which encoders are compared, where it is not the family's.
    """

    name: str
    title: str
    version: int
    transformation: str
    claims_clean: bool
    note: str
    family: str = "regression"
    data: str | None = None
    headline: str | None = None

    @property
    def observed(self) -> bool:
        """Whether it is about views that data bring along, in which several show one object."""
        return bool(self.transformation) and TRANSFORMATIONS[self.transformation].observed


CLEAN_LEAK = 0.1
"""Largest R² that a small CNN may reach from view 2 alone on a task that claims to be clean."""


def register_task(task: Task) -> Task:
    """Register a task as a column.

    Raises:
        UserError: the name is taken.
    """
    TASKS.add(task.name, task)
    return task


def regression_tasks() -> list[str]:
    """Names of the registered tasks that regress θ of a transformation that is applied to images."""
    return [name for name in TASKS.names() if (t := TASKS.get(name)).family == "regression" and not t.observed]


def object_tasks() -> list[str]:
    """Names of the registered tasks for data in which several views show one object."""
    return [name for name in TASKS.names() if TASKS.get(name).observed]
