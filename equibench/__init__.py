"""equibench: which transformations does a representation keep, which does it throw away, and how sure are we?

    import equibench as eb

    eb.table("table2", profile="tiny")
    eb.score("timm:resnet18", tasks=["rotation"], profile="tiny")

The names are those of the command line; each is imported when it is first asked for, since torch takes seconds.
"""

from typing import TYPE_CHECKING, Any

from equibench.errors import UserError
from equibench.utils.digests import __version__

if TYPE_CHECKING:
    from equibench.audit.compare import compare
    from equibench.audit.doctor import doctor
    from equibench.audit.figures import figures
    from equibench.audit.find import explain
    from equibench.audit.leakage import certify
    from equibench.audit.publish import report_html
    from equibench.audit.verify import verify
    from equibench.cli.tables import described
    from equibench.config import RunConfig
    from equibench.data.own import OwnImages, register_dataset
    from equibench.evaluation.evaluator import Evaluator, register_evaluator
    from equibench.pretrain.method import Baseline, register_baseline
    from equibench.runner.curve import curve
    from equibench.runner.exchange import export_pairs
    from equibench.runner.score import score
    from equibench.runner.study import run_study
    from equibench.runner.table import pretrain, table
    from equibench.task import Task, register_task
    from equibench.transforms.transformation import Transformation, register_transformation

_HOMES = {
    "score": "runner.score",
    "table": "runner.table",
    "pretrain": "runner.table",
    "curve": "runner.curve",
    "run_study": "runner.study",
    "compare": "audit.compare",
    "explain": "audit.find",
    "verify": "audit.verify",
    "certify": "audit.leakage",
    "doctor": "audit.doctor",
    "report_html": "audit.publish",
    "figures": "audit.figures",
    "described": "cli.tables",
    "RunConfig": "config",
    "Baseline": "pretrain.method",
    "export_pairs": "runner.exchange",
    "OwnImages": "data.own",
    "register_dataset": "data.own",
    "register_baseline": "pretrain.method",
    "Task": "task",
    "register_task": "task",
    "Evaluator": "evaluation.evaluator",
    "register_evaluator": "evaluation.evaluator",
    "Transformation": "transforms.transformation",
    "register_transformation": "transforms.transformation",
}

__all__ = [
    "Baseline", "Evaluator", "OwnImages", "RunConfig", "Task", "Transformation", "UserError", "__version__",
    "certify", "compare", "curve", "described", "doctor", "explain", "export_pairs", "figures", "list_baselines",
    "list_metrics", "list_profiles", "list_tables", "list_tasks", "pretrain", "register_baseline", "register_dataset",
    "register_evaluator", "register_task", "register_transformation", "report_html", "run_study", "score", "table",
    "verify",
]  # fmt: skip


def list_tasks() -> list[str]:
    """Names of the registered tasks."""
    return _names("tasks")


def list_baselines() -> list[str]:
    """Names of the registered baselines, and of the controls that stand beside them in every table."""
    return _names("baselines")


def list_tables() -> list[str]:
    """Names of the tables that have published numbers."""
    return _names("tables")


def list_profiles() -> list[str]:
    """Names of the profiles, which say how large a run is.

    >>> list_profiles()[:2]
    ['tiny', 'demo']
    """
    return _names("profiles")


def list_metrics() -> list[str]:
    """Names of all metrics."""
    return _names("metrics")


def _names(kind: str) -> list[str]:
    from equibench.cli.tables import described

    return [name for rows in described(kind).values() for name, _ in rows]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'equibench' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"equibench.{_HOMES[name]}"), name)
