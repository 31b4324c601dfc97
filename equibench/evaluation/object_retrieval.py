"""Is the view of an object that W(q) f(x) predicts the nearest one? SIE's MRR, H@k and PRE (PROTOCOL 1.4).

SIE asks this of the embeddings that its own predictor was trained on; here W(q) is fitted in closed form on frozen
features, so that it can be asked of every encoder (`metrics.action`, with distances in its components).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from equibench.evaluation.action import fitted_actions
from equibench.evaluation.context import Setting, Subject
from equibench.evaluation.evaluator import (
    Arrays,
    Family,
    Kept,
    Measurement,
    channels,
    kept,
    metrics_of,
    pairs_of,
    ratio_headline,
    ratios_of,
)
from equibench.evaluation.retrieval import random_baseline, ranks, retrieval_ratios
from equibench.metrics.bootstrap import mean_of
from equibench.metrics.regression import RANDOM_RETRIEVAL_ERROR, absolute_quaternion, pose_retrieval_error
from equibench.pairs.manifest import Pairs, between_views, split_objects
from equibench.task import Task

HITS = (1, 2, 5, 10)


def bank_pairs(task: Task, setting: Setting) -> tuple[Pairs, int]:
    """From the first view of each test object to each of its views, the first included; and how many views that is.

    As many views of each object as the one with fewest has.
    """
    objects = split_objects(setting.dataset, "test")[: setting.metric_sizes.retrieval_images]
    views = min(len(rows) for rows in objects)
    first = np.concatenate([np.repeat(rows[:1], views) for rows in objects])
    second = np.concatenate([rows[:views] for rows in objects])
    sizes = (0, 0, len(first))
    name = f"{task.name} bank"
    pairs = between_views(
        setting.dataset, task.transformation, first, second, sizes, task=name, version=task.version, cluster=views
    )
    return pairs, views


def measure(subject: Subject, task: Task, setting: Setting) -> Measurement:
    """Rank each object's views by their distance to the prediction, and find the nearest view of all objects."""
    pairs, views = bank_pairs(task, setting)
    assert pairs.other is not None
    latents = setting.dataset.test.latents
    assert latents is not None
    poses = absolute_quaternion(np.asarray(latents)[pairs.other])
    first = setting.encode(subject, setting.views.first(pairs))
    second = setting.encode(subject, setting.views.second(pairs))
    arrays: Kept = {"bank": np.array(views)}
    for name, (action, _) in fitted_actions(subject, task, setting).items():
        end = action.project(channels(subject, second, name))
        predicted = action.predict(pairs.theta, action.project(channels(subject, first, name)))
        shape = (-1, views, end.shape[1])
        ratios = retrieval_ratios(ranks(predicted.reshape(shape), end.reshape(shape)), HITS)
        error = pose_retrieval_error(poses, poses[_nearest(end, predicted)])
        ratios["pose_retrieval_error"] = mean_of(error.reshape(-1, views).mean(axis=1))
        arrays |= kept(ratios, name)
    return Measurement(arrays)


def _nearest(bank: NDArray[np.float64], predicted: NDArray[np.float64]) -> NDArray[np.int64]:
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(bank)
    return np.asarray(search.kneighbors(predicted, return_distance=False)[:, 0])


def scores(arrays: Arrays, features: str) -> dict[str, Any]:
    """Each metric with what guessing scores."""
    chance = {**random_baseline(int(arrays["bank"]), HITS), "pose_retrieval_error": RANDOM_RETRIEVAL_ERROR}
    return {"metrics": metrics_of(ratios_of(arrays, features), chance)}


OBJECT_RETRIEVAL = Family(
    name="object_retrieval",
    title="Retrieval among the views of an object",
    headline="mrr",
    code=(
        "data/object_pairs.py",
        "families/object_retrieval.py",
        "families/regression_pairs.py",
        "metrics/action.py",
        "metrics/pose.py",
        "metrics/retrieval.py",
    ),
    pairs=lambda task, setting: (pairs_of(task, setting), bank_pairs(task, setting)[0]),
    measure=measure,
    scores=scores,
    resampled=ratio_headline("mrr"),
)
