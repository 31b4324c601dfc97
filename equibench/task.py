"""What a task is: one column of a table, one row of an encoder's score."""

from dataclasses import dataclass

from equibench.errors import UserError
from equibench.registry import Registry
from equibench.transforms.transformation import TRANSFORMATIONS

CLEAN_LEAK = 0.1
"""Largest R² that a small CNN may reach from view 2 alone on a task that claims to be clean."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One question about what a representation does, mostly under one transformation g.

    register_task(Task(name="shear", title="Shear", version=1, transformation="shear", note="±0.3 px per px"))

    """

    name: str  # the column's id, as in a table's CSV
    title: str  # the column's name in print
    version: int  # raised whenever anything changes that a score depends on
    transformation: str = ""  # the name of g; "" where there is none
    note: str = ""  # what a reader must know about the column
    claims_clean: bool = False  # that view 2 alone gives nothing away (R² at most `CLEAN_LEAK`, measured)
    evaluator: str = "regression"  # how it is measured; "regression" predicts θ from the features of I and g(I)
    data: str | None = None  # the data set that it brings along; None if it is asked of whatever data there are
    main_metric: str | None = None  # the metric by which encoders are compared, where it is not the evaluator's
    reference: str = ""  # where the task was first described
    # what every view 2 passes through after g, in this order, so that equal features do not show the identity: names
    # of transformations, each with the share of its range, in (0, 1], that is drawn from: (("translation", 0.5),)
    nuisance: tuple[tuple[str, float], ...] = ()

    @property
    def observed(self) -> bool:
        """Whether it is about views that data bring along, in which several show one object."""
        return bool(self.transformation) and TRANSFORMATIONS[self.transformation].observed


TASKS: Registry[Task] = Registry("task", "equibench.tasks")


def register_task(task: Task) -> Task:
    """Register a task as a column; a UserError if its name is taken or its nuisance cannot be applied."""
    if task.nuisance and (task.observed or task.evaluator != "regression"):
        raise UserError(f"{task.name!r} can have no nuisance", "leave it to regressions of what is applied to images")
    for name, share in task.nuisance:
        if name not in TRANSFORMATIONS or TRANSFORMATIONS[name].observed or not 0 < share <= 1:
            problem = f"the nuisance ({name!r}, {share}) of {task.name!r} cannot be drawn"
            raise UserError(problem, "name a transformation of images and a share of its range in (0, 1]")
    TASKS.add(task.name, task)
    return task


def regression_tasks() -> list[str]:
    """Names of the registered tasks that regress θ of a transformation that is applied to images."""
    return [name for name in TASKS.names() if (t := TASKS.get(name)).evaluator == "regression" and not t.observed]


def object_tasks() -> list[str]:
    """Names of the registered tasks for data in which several views show one object."""
    return [name for name in TASKS.names() if TASKS.get(name).observed]
