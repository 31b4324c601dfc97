"""The families of tasks, each in a file of its own: regression, and the metrics beyond it."""

from __future__ import annotations

from equibench.errors import UserError
from equibench.families.action import ACTION
from equibench.families.base import Family
from equibench.families.classification import CLASSIFICATION
from equibench.families.invariance import INVARIANCE
from equibench.families.lie import LIE
from equibench.families.object_retrieval import OBJECT_RETRIEVAL
from equibench.families.regression import REGRESSION
from equibench.families.retrieval import RETRIEVAL
from equibench.families.segmentation import SEGMENTATION
from equibench.families.wahba import WAHBA
from equibench.registry import closest
from equibench.task import Task

FAMILIES: dict[str, Family] = {
    f.name: f
    for f in [
        REGRESSION, CLASSIFICATION, SEGMENTATION, ACTION, RETRIEVAL, OBJECT_RETRIEVAL, INVARIANCE, WAHBA, LIE,
    ]
}  # fmt: skip


def family_of(task: Task) -> Family:
    """The family that a task belongs to.

    Raises:
        UserError: there is no such family.
    """
    if task.family not in FAMILIES:
        raise UserError(
            f"the task {task.name!r} is of the unknown family {task.family!r}{closest(task.family, FAMILIES)}",
            f"one of {', '.join(FAMILIES)}",
        )
    return FAMILIES[task.family]
