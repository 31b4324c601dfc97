"""What a family of tasks is: how one is measured, what is kept of it, and what scores come out of what is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equibench.data.dataset import SPLITS
from equibench.errors import UserError, closest
from equibench.evaluation.action import ACTION, Triple
from equibench.evaluation.catalogue import CATALOGUE
from equibench.evaluation.classification import CLASSIFICATION
from equibench.evaluation.context import Features, Setting, Subject
from equibench.evaluation.invariance import INVARIANCE
from equibench.evaluation.lie import LIE
from equibench.evaluation.object_retrieval import OBJECT_RETRIEVAL
from equibench.evaluation.regression import REGRESSION
from equibench.evaluation.retrieval import RETRIEVAL
from equibench.evaluation.segmentation import SEGMENTATION
from equibench.evaluation.wahba import WAHBA
from equibench.metrics.bootstrap import Ratio, resampled, resampled_each
from equibench.pairs.manifest import Pairs
from equibench.records import Metric
from equibench.registry import TASKS
from equibench.task import Task, regression_tasks
from equibench.utils.files import digest_of

Arrays = Mapping[str, NDArray[Any]]
Kept = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Measurement:
    """What was measured of one subject on one task.

    Attributes:
        arrays: all that the scores are computed from, by "<feature set>/<name>"; stored, so that they can be again.
        best_epochs: the probes' epochs by feature set, where there are probes.
        features: the feature sets that were looked at, if not all of the subject's.
    """

    arrays: Kept
    best_epochs: dict[str, list[int]] = field(default_factory=dict)
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataFacts:
    """What a task was measured on: its name, the digest of its content, and how much of it was left out as bad.

    Attributes:
        sizes: images for training, validation and test; None where the pairs say it.
    """

    name: str
    sha256: str
    left_out: int = 0
    sizes: tuple[int, int, int] | None = None


def setting_data(task: Task, setting: Setting) -> DataFacts:
    """The setting's own data, for families that are asked of whatever data there are."""
    return DataFacts(setting.dataset.name, setting.dataset.sha256, setting.dataset.left_out)


@dataclass(frozen=True)
class Family:
    """One way of asking what a representation does under a transformation.

    Attributes:
        headline: name of the metric by which encoders are compared: "r2", or one of the catalogue.
        code: files and folders of the package that its scores depend on, beside those that all families share.
        pairs: (task, setting) -> all pairs that it looks at; () where it looks at single images of its own data.
        measure: measures a subject.
        scores: kept arrays, feature set -> fields of the record.
        resampled: kept arrays, feature set -> the headline's bootstrap distribution; equal seeds draw equal images.
        data: (task, setting) -> what it is measured on.
        recipe: (task, setting) -> how what stands on the features is trained, where it is not the MLP probe.
    """

    name: str
    title: str
    headline: str
    code: tuple[str, ...]
    pairs: Callable[[Task, Setting], tuple[Pairs, ...]]
    measure: Callable[[Subject, Task, Setting], Measurement]
    scores: Callable[[Arrays, str], dict[str, Any]]
    resampled: Callable[[Arrays, str], NDArray[np.float64]]
    data: Callable[[Task, Setting], DataFacts] = setting_data
    recipe: Callable[[Task, Setting], dict[str, Any]] = lambda task, setting: {}

    def manifests(self, task: Task, setting: Setting) -> tuple[list[int], str]:
        """Sizes of all its pairs together, and one digest of them."""
        pairs = self.pairs(task, setting)
        if not pairs:
            facts = self.data(task, setting)
            return list(facts.sizes or ()), digest_of([facts.name, facts.sha256, facts.sizes])
        sizes = np.sum([p.sizes for p in pairs], axis=0).tolist()
        return sizes, pairs[0].sha256 if len(pairs) == 1 else digest_of([p.sha256 for p in pairs])


def kept(ratios: Mapping[str, Ratio], features: str) -> Kept:
    """Ratios as arrays (2, N) under the names by which they are stored."""
    return {f"{features}/{name}": np.stack([ratio.top, ratio.bottom]) for name, ratio in ratios.items()}


def ratios_of(arrays: Arrays, features: str) -> dict[str, Ratio]:
    """The stored ratios of one feature set."""
    found = {}
    for key, value in arrays.items():
        owner, _, name = key.rpartition("/")
        if owner == features and name in CATALOGUE:
            top, bottom = np.asarray(value, dtype=np.float64)
            found[name] = Ratio(top, bottom, complement=CATALOGUE[name].complement)
    return found


def ratio_scores(arrays: Arrays, features: str) -> dict[str, Any]:
    """Fields of the record of a family whose scores are ratios without a chance level."""
    return {"metrics": metrics_of(ratios_of(arrays, features))}


def ratio_headline(name: str) -> Callable[[Arrays, str], NDArray[np.float64]]:
    """The bootstrap distribution of one of the stored ratios."""
    return lambda arrays, features: resampled(ratios_of(arrays, features)[name])


def metrics_of(ratios: Mapping[str, Ratio], chance: Mapping[str, float] | None = None) -> dict[str, Metric]:
    """Values and 95 % intervals for the record; what is not defined is null."""
    by_count: dict[int, dict[str, Ratio]] = {}
    for name, ratio in ratios.items():
        by_count.setdefault(len(ratio.top), {})[name] = ratio
    draws = {name: values for group in by_count.values() for name, values in resampled_each(group).items()}
    return {name: _metric(ratio, draws[name], (chance or {}).get(name)) for name, ratio in ratios.items()}


def _metric(ratio: Ratio, draws: NDArray[np.float64], chance: float | None) -> Metric:
    if np.isnan(ratio.value):
        return Metric(value=None, low=None, high=None, chance=chance)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Metric(value=ratio.value, low=float(low), high=float(high), chance=chance)


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


def channels(subject: Subject, features: dict[str, Features], name: str) -> np.ndarray:
    """One feature set of a subject's encoded views (N, D)."""
    layer, columns = subject.feature_sets()[name]
    return np.asarray(features[layer])[:, columns]


def _read(features: Features, rows: slice, columns: slice) -> np.ndarray:
    return np.asarray(features[rows])[:, columns]


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
