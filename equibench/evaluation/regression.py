"""Regression of θ from the representations of I and g(I): P1's question, with controls."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from equibench.data.dataset import SPLITS
from equibench.encoders.vit import TOKEN_SETS
from equibench.evaluation.context import Context, Row
from equibench.evaluation.controls import (
    constant_prediction,
    distance_features,
    oracle_features,
    pixel_features,
    statistics_features,
)
from equibench.evaluation.evaluator import Arrays, Evaluator, Measurement, MetricInfo, register_evaluator
from equibench.metrics.learning_curve import SHARES, curve_metrics
from equibench.metrics.regression import Targets, bits, floors, in_units, r2_scores, resampled_r2
from equibench.pairs.manifest import Pairs
from equibench.probes.mlp import choose_shrinkage, fit_mlp, literal_schedule
from equibench.probes.ridge import fit_closed_form, fit_linear
from equibench.probes.whitening import Features, Split, Whitening, standardised
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
        "bits": MetricInfo("bits", "higher", "-1/2 log2(1 - R²), summed over dimensions: what R² means in information"),
        "r2_closed": MetricInfo("R², closed form", "higher", "of kernel ridge regression instead of the MLP, no seeds"),
        "r2_unwhitened": MetricInfo(
            "R², unwhitened", "higher", "of P1's literal probe, which reads the coordinates too"
        ),
        "r2_eighth": MetricInfo("R² at n/8", "higher", "from an eighth of the training pairs, one probe seed"),
        "r2_quarter": MetricInfo("R² at n/4", "higher", "from a quarter of them"),
        "r2_half": MetricInfo("R² at n/2", "higher", "from half of them"),
        "r2_asymptote": MetricInfo("R², extrapolated", "higher", "where the learning curve leads, if that can be said"),
        "pairs_to_half": MetricInfo("pairs to R² 0.5", "lower", "training pairs at which the learning curve is there"),
        "pairs_to_ninety": MetricInfo("pairs to R² 0.9", "lower", "the same for 0.9"),
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
            "pairs": np.array(len(train)),
        }
        epochs: dict[str, list[int]] = {}
        for name, (first, second, columns) in _representations(row, pairs, coded, context).items():
            rows = {split: pairs.rows(split) for split in SPLITS}
            splits = {s: Split(first[r], second[r], coded[r], columns) for s, r in rows.items()}
            if row.name == "constant":
                found = {"predictions": np.repeat(constant_prediction(splits)[None], len(context.probe_seeds), axis=0)}
            else:
                found, chosen = _probe(name, splits, context)
                epochs |= {name: chosen} if chosen else {}
            if task.observed and row.name != "constant":  # as the field has it for colors of 3DIEBench
                found["linear"] = fit_linear(splits)
            arrays |= {f"{name}/{what}": values.astype(np.float32) for what, values in found.items()}
        return Measurement(arrays, epochs, tuple(_names(arrays)))

    def scores(self, arrays: Arrays, features: str) -> dict[str, Metric]:
        """R² in both versions with floors, of each probe; errors in the parameters' own units where they have any."""
        targets = targets_of(arrays)
        kept = {n: v.astype(np.float64) for key, v in arrays.items() if (n := _of(key, features))}
        predictions = kept["predictions"]
        found, (floor, pooled_floor) = r2_scores(targets, predictions), floors(targets)
        r2 = Metric(
            value=found.r2, low=found.r2_low, high=found.r2_high, floor=floor, std_probe=found.r2_std_probe,
            per_dimension=found.per_dimension,
        )  # fmt: skip
        metrics = {"r2": r2, "r2_pooled": Metric(value=found.r2_pooled, floor=pooled_floor)}
        metrics["bits"] = Metric(value=bits(found.per_dimension), floor=0)
        metrics |= in_units(targets, predictions)
        for what in ("closed", "unwhitened", "linear"):
            if what in kept:
                found = r2_scores(targets, kept[what] if kept[what].ndim == 3 else kept[what][None])
                metrics[f"r2_{what}"] = Metric(value=found.r2, low=found.r2_low, high=found.r2_high)
        if "curve" in kept:
            points = [*(point[None] for point in kept["curve"]), predictions]
            curve = np.array([r2_scores(targets, point).r2 for point in points])
            draws = np.stack([_resampled(targets, point) for point in points], axis=1)
            metrics |= curve_metrics(curve, draws, int(arrays["pairs"]))
        return metrics

    def resampled(self, arrays: Arrays, features: str) -> NDArray[np.float64]:
        """Bootstrap distribution of the probe seeds' mean R²."""
        return _resampled(targets_of(arrays), np.asarray(arrays[f"{features}/predictions"], dtype=np.float64))


def _representations(
    row: Row, pairs: Pairs, coded: NDArray[np.float64], context: Context
) -> dict[str, tuple[Features, Features, slice]]:
    """Representations of both views, and the columns that count, by feature set."""
    everything = slice(None)
    if row.name == "oracle":
        return {"full": (*oracle_features(pairs, coded), everything)}
    if row.name == "constant":
        return {"full": (np.zeros_like(coded), np.zeros_like(coded), everything)}
    first, second = context.views.first(pairs), context.views.second(pairs)
    if row.name == "pixels":
        return {"full": (*pixel_features(first, second, pairs.rows("train"), context.spec), everything)}
    if row.name == "image_statistics":
        return {"full": (*statistics_features(first, second, context.spec), everything)}
    layers = (*row.layers, *row.token_sets())
    one, other = context.encode(row, first, layers), context.encode(row, second, layers)
    found = {n: (one[layer], other[layer], columns) for n, (layer, columns) in row.feature_sets(tokens=True).items()}
    if "default" in one:
        found["distance"] = (*distance_features(one["default"], other["default"]), everything)
    return found


def _probe(name: str, splits: dict[str, Split], context: Context) -> tuple[dict[str, NDArray[np.float64]], list[int]]:
    """Test predictions (seeds, N, K) of the MLP, (N, K) of the closed form, which proposes a shrinkage; best epochs.

    The representation itself gets a learning curve (3, N, K) and P1's literal probe besides. What only stands beside it
    (class token, token grid, distance) is read by the closed form alone.
    """
    settings, seeds = context.probing, context.probe_seeds
    options: dict[str, Any] = {"device": context.device, "bf16": context.bf16}
    whitening = Whitening.of(splits["train"])
    closed = fit_closed_form(splits, whitening)
    if name in (*TOKEN_SETS, "distance"):
        return {"predictions": closed.predictions[None], "closed": closed.predictions}, []
    shrinkage = choose_shrinkage(splits, whitening, closed.shrinkage, settings, **options)
    best = fit_mlp(splits, whitening.shrunk(shrinkage), settings, seeds=seeds, **options)
    found = {"predictions": best.predictions, "closed": closed.predictions}
    if name == "full":
        plain = fit_mlp(splits, standardised(splits["train"]), literal_schedule(settings), seeds=seeds, **options)
        found["unwhitened"] = plain.predictions
        points = []
        for share in SHARES.values():
            fewer = {**splits, "train": splits["train"].head(len(splits["train"].targets) // share)}
            conditioning = Whitening.of(fewer["train"]).shrunk(shrinkage)
            points.append(fit_mlp(fewer, conditioning, settings, seeds=seeds[:1], **options).predictions[0])
        found["curve"] = np.stack(points)
    return found, best.best_epochs


def _names(arrays: Arrays) -> list[str]:
    return [key.rpartition("/")[0] for key in arrays if key.endswith("/predictions")]


def _of(key: str, features: str) -> str:
    """What a kept array of a feature set is; "" for those of others."""
    owner, _, what = key.rpartition("/")
    return what if owner == features else ""


def _resampled(targets: Targets, predictions: NDArray[np.float64]) -> NDArray[np.float64]:
    standard = targets.standardise(predictions)
    return resampled_r2(targets.standardise(targets.test), standard, cluster=targets.cluster)


def targets_of(arrays: Arrays) -> Targets:
    """The test targets with what standardises them, as they were stored."""
    transformation = TRANSFORMATIONS[str(arrays["transformation"])]
    test, mean, std = (np.asarray(arrays[key], dtype=np.float64) for key in ("targets", "mean", "std"))
    # predictions that were kept before there were objects have no cluster
    return Targets(transformation, int(arrays["size"]), test, mean, std, int(arrays.get("cluster", 1)))
