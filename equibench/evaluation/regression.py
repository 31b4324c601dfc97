"""Regression of θ from the representations of I and g(I): P1's question, with controls."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from equibench.data.dataset import SPLITS
from equibench.evaluation.context import Context, Features, Row
from equibench.evaluation.controls import constant_prediction, oracle_features, pixel_features, statistics_features
from equibench.evaluation.evaluator import Arrays, Evaluator, Measurement, MetricInfo, register_evaluator
from equibench.metrics.regression import Targets, floors, in_units, r2_scores, resampled_r2
from equibench.pairs.manifest import Pairs
from equibench.probes.mlp import Split, fit_linear, fit_probes
from equibench.records import Metric
from equibench.task import Task
from equibench.transforms.transformation import TRANSFORMATIONS


@register_evaluator
class RegressionEvaluator(Evaluator):
    """Regression of θ from the representations of I and g(I): P1's question, with controls."""

    name, title, main_metric = "regression", "Regression of the transformation's parameters", "r2"
    metrics = {
        "r2": MetricInfo("R²", "higher", "per dimension on standardised targets, mean over dimensions and probe seeds"),
        "r2_pooled": MetricInfo("pooled R²", "higher", "one scalar mean over all dimensions, in the published coding"),
        "r2_linear": MetricInfo("R², linear probe", "higher", "of a linear probe instead of the MLP"),
        "degrees_mean": MetricInfo("mean error in degrees", "lower", "geodesic, mean over images and probe seeds"),
        "degrees_median": MetricInfo("median error in degrees", "lower", "geodesic, median over images"),
        "acc_at_15": MetricInfo("within 15°", "higher", "share of predicted rotations that are at most so far off"),
        "acc_at_30": MetricInfo("within 30°", "higher", "the same for 30°"),
        "hue_mean": MetricInfo("hue error in turns", "lower", "round the colour circle"),
        "floor_hue_mean": MetricInfo("floor's hue error", "lower", "of the floor alone, in turns"),
        "spot_hue_mean": MetricInfo("light's hue error", "lower", "of the light alone, in turns"),
        "auc": MetricInfo("AUC", "higher", "how often a transformed pair is ranked above an untransformed one"),
        "balanced_accuracy": MetricInfo("balanced accuracy", "higher", "at the threshold of one half"),
    }

    def measure(self, row: Row, task: Task, context: Context) -> Measurement:
        """Probe every feature set and keep the test predictions (float32) beside the targets."""
        pairs = context.pairs(task)
        coded = TRANSFORMATIONS[task.transformation].encode(pairs.theta, context.size)
        train = coded[pairs.rows("train")]
        arrays: dict[str, NDArray[Any]] = {
            "targets": np.ascontiguousarray(coded[pairs.rows("test")]),  # sums as they will be of what is read back
            "mean": train.mean(axis=0),
            "std": train.std(axis=0),
            "size": np.array(context.size),
            "transformation": np.array(task.transformation),
            "cluster": np.array(pairs.cluster),
        }
        epochs: dict[str, list[int]] = {}
        for layer, views in _representations(row, pairs, coded, context).items():
            splits = {s: Split(views[0][pairs.rows(s)], views[1][pairs.rows(s)], coded[pairs.rows(s)]) for s in SPLITS}
            predictions, chosen = _predictions(row, layer, splits, context)
            if task.observed:
                arrays |= _linear(row, layer, splits)
            arrays |= {f"{name}/predictions": p.astype(np.float32) for name, p in predictions.items()}
            epochs |= chosen
        return Measurement(arrays, epochs)

    def scores(self, arrays: Arrays, features: str) -> dict[str, Metric]:
        """R² in both versions with floors; errors in the parameters' own units where they have any."""
        targets = targets_of(arrays)
        predictions = np.asarray(arrays[f"{features}/predictions"], dtype=np.float64)
        found, (floor, pooled_floor) = r2_scores(targets, predictions), floors(targets)
        r2 = Metric(
            value=found.r2, low=found.r2_low, high=found.r2_high, floor=floor, std_probe=found.r2_std_probe,
            per_dimension=found.per_dimension,
        )  # fmt: skip
        metrics = {"r2": r2, "r2_pooled": Metric(value=found.r2_pooled, floor=pooled_floor)}
        metrics |= in_units(targets, predictions)
        if (linear := arrays.get(f"{features}/linear")) is not None:
            found = r2_scores(targets, np.asarray(linear, dtype=np.float64)[None])
            metrics["r2_linear"] = Metric(value=found.r2, low=found.r2_low, high=found.r2_high)
        return metrics

    def resampled(self, arrays: Arrays, features: str) -> NDArray[np.float64]:
        """Bootstrap distribution of the probe seeds' mean R²."""
        targets = targets_of(arrays)
        predictions = targets.standardise(np.asarray(arrays[f"{features}/predictions"], dtype=np.float64))
        return resampled_r2(targets.standardise(targets.test), predictions, cluster=targets.cluster)


def _representations(
    row: Row, pairs: Pairs, coded: NDArray[np.float64], context: Context
) -> dict[str, tuple[Features, Features]]:
    """Representations of both views by layer."""
    if row.name == "oracle":
        return {"default": oracle_features(pairs, coded)}
    if row.name == "constant":
        return {"default": (np.zeros_like(coded), np.zeros_like(coded))}
    first, second = context.views.first(pairs), context.views.second(pairs)
    if not row.has_encoder:
        if row.name == "pixels":
            return {"default": pixel_features(first, second, pairs.rows("train"), context.spec)}
        return {"default": statistics_features(first, second, context.spec)}
    one, other = context.encode(row, first), context.encode(row, second)
    return {layer: (one[layer], other[layer]) for layer in row.layers}


def _predictions(
    row: Row, layer: str, splits: dict[str, Split], context: Context
) -> tuple[dict[str, NDArray[np.float64]], dict[str, list[int]]]:
    """Test predictions (seeds, N, K) and chosen epochs of the layer's feature sets."""
    if row.name == "constant":
        return {"full": np.repeat(constant_prediction(splits)[None], len(context.probe_seeds), axis=0)}, {}
    columns = {name: channels for name, (owner, channels) in row.feature_sets().items() if owner == layer}
    results = fit_probes(
        splits, columns, context.probing, seeds=context.probe_seeds, device=context.device, bf16=context.bf16
    )
    return {n: r.predictions for n, r in results.items()}, {n: r.best_epoch for n, r in results.items()}


def _linear(row: Row, layer: str, splits: dict[str, Split]) -> dict[str, NDArray[np.float32]]:
    """Test predictions (N, K) of a linear probe, as the field uses for colors of 3DIEBench (docs/protocol.md 7.2)."""
    if row.name == "constant":
        return {}
    columns = {name: channels for name, (owner, channels) in row.feature_sets().items() if owner == layer}
    return {f"{name}/linear": fit_linear(splits, channels).astype(np.float32) for name, channels in columns.items()}


def targets_of(arrays: Arrays) -> Targets:
    """The test targets with what standardises them, as they were stored."""
    transformation = TRANSFORMATIONS[str(arrays["transformation"])]
    test, mean, std = (np.asarray(arrays[key], dtype=np.float64) for key in ("targets", "mean", "std"))
    # predictions that were kept before there were objects have no cluster
    return Targets(transformation, int(arrays["size"]), test, mean, std, int(arrays.get("cluster", 1)))
