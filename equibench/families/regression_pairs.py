"""Features of a transformation's regression pairs, on which the other families fit what they need to fit."""

from __future__ import annotations

import numpy as np

from equibench.data.pairs import SPLITS, Pairs
from equibench.metrics.action import Action, Triple, fit_action
from equibench.registry import TASKS
from equibench.setting import Features, Setting, Subject
from equibench.task import Task, regression_tasks
from equibench.transforms import TRANSFORMATIONS

FIT_PAIRS = 20_000
"""Training pairs that a closed-form action is fitted on at most."""


def pairs_of(task: Task, setting: Setting) -> Pairs:
    """The pairs of the regression task of the same transformation, which are encoded anyway; else the task's own."""
    for name in regression_tasks():
        if TASKS.get(name).transformation == task.transformation:
            return setting.pairs(TASKS.get(name))
    return setting.pairs(task)


def encoded(subject: Subject, task: Task, setting: Setting) -> dict[str, dict[str, Triple]]:
    """f(x), f(gx) and θ by feature set and split."""
    pairs = pairs_of(task, setting)
    first = setting.encode(subject, setting.views.first(pairs))
    second = setting.encode(subject, setting.views.second(pairs))
    splits = {s: pairs.rows(s) for s in SPLITS}
    splits["train"] = slice(0, min(splits["train"].stop, FIT_PAIRS))
    return {
        name: {s: Triple(_read(first[n], r, c), _read(second[n], r, c), pairs.theta[r]) for s, r in splits.items()}
        for name, (n, c) in subject.feature_sets().items()
    }


def fitted_actions(subject: Subject, task: Task, setting: Setting) -> dict[str, tuple[Action, Triple]]:
    """The closed-form action of each feature set, and the test pairs."""
    periods = TRANSFORMATIONS[task.transformation].periods
    sets = encoded(subject, task, setting)
    return {name: (fit_action(t["train"], t["val"], periods), t["test"]) for name, t in sets.items()}


def channels(subject: Subject, features: dict[str, Features], name: str) -> np.ndarray:
    """One feature set of a subject's encoded views (N, D)."""
    layer, columns = subject.feature_sets()[name]
    return np.asarray(features[layer])[:, columns]


def _read(features: Features, rows: slice, columns: slice) -> np.ndarray:
    return np.asarray(features[rows])[:, columns]
