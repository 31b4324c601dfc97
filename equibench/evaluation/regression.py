"""Regression of θ from the representations of I and g(I): P1's question, with controls."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equibench.data.dataset import SPLITS
from equibench.evaluation.context import Features, Setting, Subject
from equibench.evaluation.controls import constant_prediction, oracle_features, pixel_features, statistics_features
from equibench.evaluation.evaluator import Arrays, Family, Measurement
from equibench.metrics.regression import Targets, floors, in_units, resampled_r2, score
from equibench.pairs.manifest import Pairs
from equibench.probes.mlp import Split, fit_linear, fit_probes
from equibench.records import Metric
from equibench.task import Task
from equibench.transforms.transformation import TRANSFORMATIONS


def measure(subject: Subject, task: Task, setting: Setting) -> Measurement:
    """Probe every feature set and keep the test predictions (float32) beside the targets."""
    pairs = setting.pairs(task)
    coded = TRANSFORMATIONS[task.transformation].encode(pairs.theta, setting.size)
    train = coded[pairs.rows("train")]
    arrays: dict[str, NDArray[Any]] = {
        "targets": np.ascontiguousarray(coded[pairs.rows("test")]),  # sums as they will be of what is read back
        "mean": train.mean(axis=0),
        "std": train.std(axis=0),
        "size": np.array(setting.size),
        "transformation": np.array(task.transformation),
        "cluster": np.array(pairs.cluster),
    }
    epochs: dict[str, list[int]] = {}
    for layer, views in _representations(subject, pairs, coded, setting).items():
        splits = {s: Split(views[0][pairs.rows(s)], views[1][pairs.rows(s)], coded[pairs.rows(s)]) for s in SPLITS}
        predictions, chosen = _predictions(subject, layer, splits, setting)
        if task.observed:
            arrays |= _linear(subject, layer, splits)
        arrays |= {f"{name}/predictions": p.astype(np.float32) for name, p in predictions.items()}
        epochs |= chosen
    return Measurement(arrays, epochs)


def _representations(
    subject: Subject, pairs: Pairs, coded: NDArray[np.float64], setting: Setting
) -> dict[str, tuple[Features, Features]]:
    """Representations of both views by layer."""
    if subject.name == "oracle":
        return {"default": oracle_features(pairs, coded)}
    if subject.name == "constant":
        return {"default": (np.zeros_like(coded), np.zeros_like(coded))}
    first, second = setting.views.first(pairs), setting.views.second(pairs)
    if subject.encoder is None:
        if subject.name == "pixels":
            return {"default": pixel_features(first, second, pairs.rows("train"), setting.spec)}
        return {"default": statistics_features(first, second, setting.spec)}
    one, other = setting.encode(subject, first), setting.encode(subject, second)
    return {layer: (one[layer], other[layer]) for layer in subject.layers}


def _predictions(
    subject: Subject, layer: str, splits: dict[str, Split], setting: Setting
) -> tuple[dict[str, NDArray[np.float64]], dict[str, list[int]]]:
    """Test predictions (seeds, N, K) and chosen epochs of the layer's feature sets."""
    if subject.name == "constant":
        return {"full": np.repeat(constant_prediction(splits)[None], len(setting.probe_seeds), axis=0)}, {}
    columns = {name: channels for name, (owner, channels) in subject.feature_sets().items() if owner == layer}
    results = fit_probes(
        splits, columns, setting.probing, seeds=setting.probe_seeds, device=setting.device, bf16=setting.bf16
    )
    return {n: r.predictions for n, r in results.items()}, {n: r.best_epoch for n, r in results.items()}


def _linear(subject: Subject, layer: str, splits: dict[str, Split]) -> dict[str, NDArray[np.float32]]:
    """Test predictions (N, K) of a linear probe, which the field uses for colors of 3DIEBench (PROTOCOL 1.2)."""
    if subject.name == "constant":
        return {}
    columns = {name: channels for name, (owner, channels) in subject.feature_sets().items() if owner == layer}
    return {f"{name}/linear": fit_linear(splits, channels).astype(np.float32) for name, channels in columns.items()}


def targets_of(arrays: Arrays) -> Targets:
    """The test targets with what standardises them, as they were stored."""
    transformation = TRANSFORMATIONS[str(arrays["transformation"])]
    test, mean, std = (np.asarray(arrays[key], dtype=np.float64) for key in ("targets", "mean", "std"))
    # predictions that were kept before there were objects have no cluster
    return Targets(transformation, int(arrays["size"]), test, mean, std, int(arrays.get("cluster", 1)))


def scores(arrays: Arrays, features: str) -> dict[str, Any]:
    """R² in both versions with floors; errors in the parameters' own units where they have any."""
    targets = targets_of(arrays)
    predictions = np.asarray(arrays[f"{features}/predictions"], dtype=np.float64)
    floor, pooled_floor = floors(targets)
    metrics = in_units(targets, predictions)
    if (linear := arrays.get(f"{features}/linear")) is not None:
        found = score(targets, np.asarray(linear, dtype=np.float64)[None])
        metrics["r2_linear"] = Metric(value=found.r2, low=found.r2_low, high=found.r2_high)
    return {
        **asdict(score(targets, predictions)),
        "r2_floor": floor,
        "r2_pooled_floor": pooled_floor,
        "metrics": metrics,
    }


def resampled(arrays: Arrays, features: str) -> NDArray[np.float64]:
    """Bootstrap distribution of the probe seeds' mean R²."""
    targets = targets_of(arrays)
    predictions = targets.standardise(np.asarray(arrays[f"{features}/predictions"], dtype=np.float64))
    return resampled_r2(targets.standardise(targets.test), predictions, cluster=targets.cluster)


REGRESSION = Family(
    name="regression",
    title="Regression of the transformation's parameters",
    headline="r2",
    code=(
        "controls.py",
        "probes/linear.py",
        "probes/mlp.py",
        "metrics/angles.py",
        "metrics/regression.py",
        "metrics/scores.py",
        "metrics/pose.py",
        "metrics/units.py",
        "families/regression.py",
    ),
    pairs=lambda task, setting: (setting.pairs(task),),
    measure=measure,
    scores=scores,
    resampled=resampled,
)
