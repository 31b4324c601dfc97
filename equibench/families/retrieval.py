"""Is the transform that W(θ) f(x) predicts the nearest one among many transforms of the same image?"""

from __future__ import annotations

from typing import Any

import numpy as np

from equibench.data.pair_sets import bank_pairs
from equibench.data.pairs import Pairs
from equibench.families.base import (
    Arrays,
    Family,
    Kept,
    Measurement,
    kept,
    metrics_of,
    ratio_headline,
    ratios_of,
)
from equibench.families.regression_pairs import channels, fitted_actions, pairs_of
from equibench.metrics.retrieval import random_baseline, ranks, retrieval_ratios
from equibench.setting import Setting, Subject
from equibench.task import Task


def measure(subject: Subject, task: Task, setting: Setting) -> Measurement:
    """Rank every transform of an image's bank by its distance to the prediction, in the action's components."""
    bank = setting.metric_sizes.bank
    pairs = bank_pairs(setting.dataset, task, setting.metric_sizes.retrieval_images, bank)
    first = setting.encode(subject, setting.views.first(pairs))
    second = setting.encode(subject, setting.views.second(pairs))
    arrays: Kept = {"bank": np.array(bank)}
    for name, (action, _) in fitted_actions(subject, task, setting).items():
        start = action.project(channels(subject, first, name))
        end = action.project(channels(subject, second, name))
        predicted = action.predict(pairs.theta, start)
        shape = (-1, bank, end.shape[1])
        arrays |= kept(retrieval_ratios(ranks(predicted.reshape(shape), end.reshape(shape))), name)
    return Measurement(arrays)


def scores(arrays: Arrays, features: str) -> dict[str, Any]:
    """Each metric with what guessing scores."""
    return {"metrics": metrics_of(ratios_of(arrays, features), random_baseline(int(arrays["bank"])))}


def _pairs(task: Task, setting: Setting) -> tuple[Pairs, ...]:
    sizes = setting.metric_sizes
    return pairs_of(task, setting), bank_pairs(setting.dataset, task, sizes.retrieval_images, sizes.bank)


RETRIEVAL = Family(
    name="retrieval",
    title="Retrieval among transforms of the same image",
    headline="mrr",
    code=("families/retrieval.py", "families/regression_pairs.py", "metrics/action.py", "metrics/retrieval.py"),
    pairs=_pairs,
    measure=measure,
    scores=scores,
    resampled=ratio_headline("mrr"),
)
