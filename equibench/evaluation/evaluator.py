"""How a task is measured, what is kept of it, which numbers come out of what is kept, and the records of a row.

`evaluate` scores one row on one task: pairs -> views -> features -> measurement, which is kept -> scores -> records.

An evaluator is one class in one file that registers itself:

    @register_evaluator
    class Drift(RatioEvaluator):
        '''How far do features move?'''

        name, title, main_metric = "drift", "Drift", "drift"
        metrics = {"drift": MetricInfo("drift", "lower", "mean squared distance of f(gx) and f(x)")}
        transformations = ("rotation", "blur")      # registers the tasks rotation.drift and blur.drift

        def measure(self, row, task, context):
            pairs = context.pairs(task)
            first = context.encode(row, context.views.first(pairs))["default"]
            second = context.encode(row, context.views.second(pairs))["default"]
            distance = squared_norms(as_float(first) - as_float(second))[pairs.rows("test")]
            return Measurement(kept({"drift": mean_of(distance)}, "full"), features=("full",))
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from equibench.data.dataset import SPLITS
from equibench.errors import UserError
from equibench.evaluation.context import Context, Features, Row
from equibench.evaluation.controls import CONTROLS
from equibench.evaluation.features import ENCODER
from equibench.metrics.bootstrap import Ratio, resampled, resampled_each
from equibench.pairs.manifest import Pairs
from equibench.records import Metric, Record, Seeds, keep_predictions, predictions_path
from equibench.registry import Registry
from equibench.task import TASKS, Task, register_task, regression_tasks
from equibench.transforms.transformation import TRANSFORMATIONS
from equibench.utils.digests import __version__, code_digest
from equibench.utils.files import digest_of

Arrays = Mapping[str, NDArray[Any]]
Kept = dict[str, NDArray[Any]]
FIT_PAIRS = 20_000
"""Training pairs that a closed form is fitted on at most."""


@dataclass(frozen=True)
class MetricInfo:
    """What a metric is called, which way is better, and what it says.

    Attributes:
        title: its name in print.
        better: "higher", "lower", or "neither" where it says where an encoder stands and not how good it is.
        meaning: in a few words.
        complement: whether the stored ratio is subtracted from one.
    """

    title: str
    better: Literal["higher", "lower", "neither"]
    meaning: str
    complement: bool = False


@dataclass(frozen=True)
class Measurement:
    """What was measured of one row on one task.

    Attributes:
        arrays: all that the scores are computed from, by "<feature set>/<name>"; stored, so that they can be again.
        best_epochs: the probes' epochs by feature set, where there are probes.
        features: the feature sets that were looked at, if not all of the row's.
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


class Evaluator:
    """One way of asking what a representation does; subclass it and decorate the class with `register_evaluator`.

    Attributes:
        name: its id; a task names it.
        title: in print.
        main_metric: the metric by which encoders are compared, a key of `metrics`.
        metrics: what its numbers mean, by name.
        transformations: for each of these a task "<transformation>.<name>" is registered with it.
        note: what a reader must know about these tasks.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    main_metric: ClassVar[str]
    metrics: ClassVar[Mapping[str, MetricInfo]]
    transformations: ClassVar[tuple[str, ...]] = ()
    note: ClassVar[str] = ""

    def pairs(self, task: Task, context: Context) -> tuple[Pairs, ...]:
        """All pairs that it looks at; () where it looks at single images of the task's own data."""
        return (context.pairs(task),)

    def data(self, task: Task, context: Context) -> DataFacts:
        """What it is measured on: the context's own data, unless the task brings some along."""
        return DataFacts(context.dataset.name, context.dataset.sha256, context.dataset.left_out)

    def missing_data(self, task: Task, context: Context) -> str:
        """Where to put the data that the task brings along, if they are not there; else ""."""
        return ""

    def recipe(self, task: Task, context: Context) -> dict[str, Any]:
        """How what stands on the features is trained."""
        return asdict(context.probing)

    def measure(self, row: Row, task: Task, context: Context) -> Measurement:
        """Measure a row: targets, fit, predict; what is kept is all that `scores` needs."""
        raise TypeError(f"{type(self).__name__} must define measure(row, task, context)")

    def scores(self, arrays: Arrays, features: str) -> dict[str, Metric]:
        """Every metric of one feature set from what was kept."""
        raise TypeError(f"{type(self).__name__} must define scores(arrays, features)")

    def resampled(self, arrays: Arrays, features: str) -> NDArray[np.float64]:
        """The main metric's bootstrap distribution; equal seeds draw equal images, for pairing."""
        raise TypeError(f"{type(self).__name__} must define resampled(arrays, features)")

    def manifests(self, task: Task, context: Context) -> tuple[list[int], str]:
        """Sizes of all its pairs together, and one digest of them."""
        if task.data is not None:
            facts = self.data(task, context)
            return list(facts.sizes or ()), digest_of([facts.name, facts.sha256, facts.sizes])
        key = [asdict(task), context.dataset.sha256, asdict(context.probing), asdict(context.metric_sizes)]
        names = [(t, TASKS.get(t).version) for t in TASKS.names() if TASKS.get(t).transformation == task.transformation]
        sizes, digest = context.remembered(
            [*key, context.repeats, names, code_digest(type(self), Context)], lambda: self._drawn(task, context)
        )
        return sizes, digest

    def _drawn(self, task: Task, context: Context) -> tuple[list[int], str]:
        pairs = self.pairs(task, context)
        sizes = np.sum([p.sizes for p in pairs], axis=0).tolist()
        return sizes, pairs[0].sha256 if len(pairs) == 1 else digest_of([p.sha256 for p in pairs])


class RatioEvaluator(Evaluator):
    """An evaluator all of whose metrics are ratios of sums over test images (see `kept`)."""

    def floors(self, arrays: Arrays) -> Mapping[str, float]:
        """What guessing scores, by metric, where that is known."""
        return {}

    def ratios(self, arrays: Arrays, features: str) -> dict[str, Ratio]:
        """The stored ratios of one feature set."""
        found = {}
        for key, value in arrays.items():
            owner, _, name = key.rpartition("/")
            if owner == features and name in self.metrics:
                top, bottom = np.asarray(value, dtype=np.float64)
                found[name] = Ratio(top, bottom, complement=self.metrics[name].complement)
        return found

    def scores(self, arrays: Arrays, features: str) -> dict[str, Metric]:
        return metrics_of(self.ratios(arrays, features), self.floors(arrays))

    def resampled(self, arrays: Arrays, features: str) -> NDArray[np.float64]:
        return resampled(self.ratios(arrays, features)[self.main_metric])


EVALUATORS: Registry[Evaluator] = Registry("evaluator", "equibench.evaluation")
E = TypeVar("E", bound=type[Evaluator])


def register_evaluator(kind: E) -> E:
    """Class decorator that registers an `Evaluator`, and a task for each of its `transformations`.

    Raises:
        UserError: the name of the evaluator or of a task is taken, or its main metric is not among its metrics.
    """
    if kind.main_metric not in kind.metrics:
        raise UserError(f"{kind.__name__}: {kind.main_metric!r} is not in its metrics", "describe it in `metrics`")
    EVALUATORS.add(kind.name, kind())
    for name in kind.transformations:
        title = next((t.title for t in TASKS.entries() if t.name == name), name.capitalize())
        register_task(
            Task(name=f"{name}.{kind.name}", title=title, version=1, transformation=name, note=kind.note,
                 evaluator=kind.name)
        )  # fmt: skip
    return kind


def evaluator_of(task: Task) -> Evaluator:
    """The evaluator of a task.

    Raises:
        UserError: there is none of that name.
    """
    return EVALUATORS.get(task.evaluator)


def metric_info(name: str) -> MetricInfo | None:
    """What a metric means, whichever evaluator it belongs to; None if no evaluator has it."""
    return next((e.metrics[name] for e in map(EVALUATORS.get, EVALUATORS.names()) if name in e.metrics), None)


# What evaluators share


def kept(ratios: Mapping[str, Ratio], features: str) -> Kept:
    """Ratios as arrays (2, N) under the names by which they are stored."""
    return {f"{features}/{name}": np.stack([ratio.top, ratio.bottom]) for name, ratio in ratios.items()}


def metrics_of(ratios: Mapping[str, Ratio], floors: Mapping[str, float] | None = None) -> dict[str, Metric]:
    """Values and 95 % intervals for the record; what is not defined is absent."""
    by_count: dict[int, dict[str, Ratio]] = {}
    for name, ratio in ratios.items():
        by_count.setdefault(len(ratio.top), {})[name] = ratio
    draws = {name: values for group in by_count.values() for name, values in resampled_each(group).items()}
    return {name: metric_of(ratio.value, draws[name], (floors or {}).get(name)) for name, ratio in ratios.items()}


def metric_of(value: float, draws: NDArray[np.float64], floor: float | None = None) -> Metric:
    """A number with its 95 % interval from its bootstrap distribution; without them where it is not defined."""
    if np.isnan(value):
        return Metric(floor=floor)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Metric(value=value, low=float(low), high=float(high), floor=floor)


@dataclass(frozen=True)
class Triple:
    """Features of the pairs of one split: f(x) (N, D), f(g x) (N, D), and g's raw θ (N, P)."""

    first: Any
    second: Any
    theta: NDArray[np.float64]


def pairs_of(task: Task, context: Context) -> Pairs:
    """The pairs of the regression task of the same transformation, which are encoded anyway; else the task's own.

    A regression's nuisance is left out, for what is measured is what g alone does. These pairs are then drawn for the
    version of the task that asks: how the regression is made harder does not change them.
    """
    for regression in map(TASKS.get, regression_tasks()):
        if regression.transformation == task.transformation:
            pure = replace(regression, nuisance=(), version=task.version)
            return context.pairs(pure if regression.nuisance else regression)
    return context.pairs(task)


def encoded(row: Row, task: Task, context: Context) -> dict[str, dict[str, Triple]]:
    """f(x), f(gx) and θ of a transformation's regression pairs, by feature set and split."""
    pairs = pairs_of(task, context)
    first = context.encode(row, context.views.first(pairs))
    second = context.encode(row, context.views.second(pairs))
    splits = {s: pairs.rows(s) for s in SPLITS}
    splits["train"] = slice(0, min(splits["train"].stop, FIT_PAIRS))
    return {
        name: {s: Triple(_read(first[n], r, c), _read(second[n], r, c), pairs.theta[r]) for s, r in splits.items()}
        for name, (n, c) in row.feature_sets().items()
    }


def channels(row: Row, features: dict[str, Features], name: str) -> NDArray[Any]:
    """One feature set of a row's encoded views (N, D)."""
    layer, columns = row.feature_sets()[name]
    return np.asarray(features[layer])[:, columns]


def _read(features: Features, rows: slice, columns: slice) -> NDArray[Any]:
    return np.asarray(features[rows])[:, columns]


def evaluation_digest(row: Row, task: Task, context: Context) -> str:
    """Digest of everything that a score depends on: equal digests, equal scores."""
    evaluator = evaluator_of(task)
    return digest_of(
        {
            "row": row.name if row.name in CONTROLS else "encoder",
            "encoder": dict(row.identity) if row.identity else None,
            "half": row.half,
            "layers": list(row.layers),
            "task": [task.name, task.version],
            "pairs": evaluator.manifests(task, context),
            "views": asdict(context.spec),
            "probe": evaluator.recipe(task, context),
            "bf16": context.bf16,
            "device": context.device.type,
            "code": code_digest(type(evaluator), *((ENCODER,) if row.has_encoder else ())),
        }
    )


def evaluate(row: Row, task: Task, context: Context) -> list[Record]:
    """Score a row on one task.

    Returns:
        One record of each feature set.
    """
    started = time.perf_counter()
    evaluator = evaluator_of(task)
    measurement = evaluator.measure(row, task, context)
    digest = evaluation_digest(row, task, context)
    keep_predictions(predictions_path(context.work, digest), measurement.arrays)
    scores = {n: evaluator.scores(measurement.arrays, n) for n in measurement.features or row.feature_sets()}
    common = _common(row, task, evaluator, context, digest)
    seconds = round(time.perf_counter() - started, 2)
    records = []
    for name, metrics in scores.items():
        epochs = {"best_epochs": measurement.best_epochs[name]} if name in measurement.best_epochs else {}
        probe = {**common["probe"], **epochs}
        records.append(Record(**{**common, "probe": probe}, features=name, metrics=metrics, seconds=seconds))
    return records


def _common(row: Row, task: Task, evaluator: Evaluator, context: Context, digest: str) -> dict[str, Any]:
    """What the records of a task's feature sets have in common."""
    sizes, pairs_digest = evaluator.manifests(task, context)
    facts = evaluator.data(task, context)
    transformation = TRANSFORMATIONS.get(task.transformation)
    hidden = ("pairs", "seeds")  # which have keys of their own
    return {
        "baseline": row.name,
        "task": task.name,
        "task_version": task.version,
        "evaluator": evaluator.name,
        "main_metric": task.main_metric or evaluator.main_metric,
        "profile": context.profile.name,
        "variant": context.variant,
        "data": facts.name,
        "data_sha256": facts.sha256,
        "left_out": facts.left_out,
        "known_fraction": row.known_fraction,
        "seeds": Seeds(pretraining=row.seed, probe=context.probe_seeds),
        "parameters": list(transformation.parameters) if transformation else None,
        "pairs": sizes,
        "pairs_sha256": pairs_digest,
        "encoder": row.description,
        "encoder_sha256": row.encoder_sha256,
        "recipe_sha256": row.recipe_sha256,
        "evaluation_sha256": digest,
        "probe": {key: value for key, value in evaluator.recipe(task, context).items() if key not in hidden},
        "precision": "bf16-mixed" if context.bf16 else "32-true",
        "package_version": __version__,
        "torch_version": torch.__version__,
        "collapsed": row.collapsed,
        "diagnostics": dict(row.diagnostics) if row.diagnostics else None,
        "trained": row.trained,
        "pretraining_seconds": row.seconds,
        "command": row.command.replace("{task}", shlex.quote(row.task_files.get(task.name, task.name))),
    }
