"""Does a matrix W(θ) act on the features as g acts on images, and do these matrices compose as the g do?"""

from __future__ import annotations

from typing import Any

import numpy as np

from equibench.data.pair_sets import composed_pairs
from equibench.data.pairs import Pairs
from equibench.families.base import Arrays, Family, Kept, Measurement, kept, ratio_headline, ratio_scores
from equibench.families.regression_pairs import channels, fitted_actions, pairs_of
from equibench.metrics.action import Triple, action_ratios, composition_error
from equibench.records import Metric
from equibench.setting import Setting, Subject
from equibench.task import Task
from equibench.transforms import TRANSFORMATIONS


def measure(subject: Subject, task: Task, setting: Setting) -> Measurement:
    """Fit W(θ) by ridge on the regression pairs; test it on theirs and on two-step pairs.

    The inverse is tested where it lies in the range that W was fitted on, as it does for all but some colors.
    """
    transformation = TRANSFORMATIONS[task.transformation]
    pairs = composed_pairs(setting.dataset, task, setting.metric_sizes.composition_images)
    assert pairs.then is not None
    first = setting.encode(subject, setting.views.first(pairs))
    composed = setting.encode(subject, setting.views.second(pairs))
    arrays: Kept = {}
    for name, (action, test) in fitted_actions(subject, task, setting).items():
        ratios = action_ratios(action, test, identity=np.array(transformation.identity))
        before, after = channels(subject, first, name), channels(subject, composed, name)
        ratios["composition_error"] = composition_error(action, before, pairs.theta, pairs.then, after)
        if transformation.inverse:
            inverse = transformation.inverse(test.theta)
            inside = ((inverse >= test.theta.min(axis=0)) & (inverse <= test.theta.max(axis=0))).all(axis=1)
            if inside.any():
                near = Triple(test.first[inside], test.second[inside], test.theta[inside])
                ratios["inverse_error"] = action_ratios(action, near, inverse=inverse[inside])["inverse_error"]
        arrays |= kept(ratios, name) | {f"{name}/explained": np.array(action.project.explained)}
    return Measurement(arrays)


def scores(arrays: Arrays, features: str) -> dict[str, Any]:
    """The ratios, and how much of the features' variance the components hold in which all of them are taken."""
    found = ratio_scores(arrays, features)
    share = Metric(value=float(arrays[f"{features}/explained"]), low=None, high=None)
    return {"metrics": {**found["metrics"], "explained_variance": share}}


def _pairs(task: Task, setting: Setting) -> tuple[Pairs, ...]:
    composed = composed_pairs(setting.dataset, task, setting.metric_sizes.composition_images)
    return pairs_of(task, setting), composed


ACTION = Family(
    name="action",
    title="Closed-form action: f(gx) = W(θ) f(x)",
    headline="equivariance_r2",
    code=("families/action.py", "families/regression_pairs.py", "metrics/action.py"),
    pairs=_pairs,
    measure=measure,
    scores=scores,
    resampled=ratio_headline("equivariance_r2"),
)
