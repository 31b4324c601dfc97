"""Coefficients of determination and their bootstrap intervals.

Two versions of R² circulate (PROTOCOL 1.3). `r2` is scikit-learn's, averaged over the target's dimensions; `r2_pooled`
is the field's, with one scalar mean over all dimensions, which gives a constant predictor up to 0.82.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score

from equibench.metrics.bootstrap import (
    LEVEL,
    RESAMPLES,
    Array,
    Ratio,
    as_float,
    draw_counts,
    mean_of,
    resampled,
    resampled_sums,
)
from equibench.records import Metric
from equibench.transforms.transformation import ANGLES, SO3, Transformation

Array = NDArray[np.float64]


def r2_per_dimension(targets: Array, predictions: Array) -> Array:
    """R² of each dimension (K,), for targets and predictions (N, K)."""
    return np.asarray(r2_score(targets, predictions, multioutput="raw_values"))


def r2_pooled(targets: Array, predictions: Array) -> float:
    """1 - sum (t - o)² / sum (t - m)² over samples and dimensions, m being the one mean of all entries of t.

    This is SIE's definition (its eval_angle_prediction script), kept for comparison with published numbers.
    """
    return float(1 - np.square(targets - predictions).sum() / np.square(targets - targets.mean()).sum())


def bootstrap_r2(
    targets: Array,
    predictions: Array,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    cluster: int = 1,
) -> tuple[float, float]:
    """Percentile interval of the seeds' mean R² under resampling of the test images.

    Args:
        targets: (N, K).
        predictions: (seeds, N, K).
        resamples: number of bootstrap samples; all seeds see the same images in each.
        cluster: so many images that follow each other are drawn together, as the pairs of one object.

    Returns:
        Lower and upper end of the interval.
    """
    draws = resampled_r2(targets, predictions, resamples=resamples, seed=seed, cluster=cluster)
    low, high = np.quantile(draws, _tails(level))
    return float(low), float(high)


def resampled_r2(
    targets: Array, predictions: Array, *, resamples: int = RESAMPLES, seed: int = 0, cluster: int = 1
) -> Array:
    """The bootstrap distribution (resamples,) behind `bootstrap_r2`; equal seeds draw equal images, for pairing."""
    count, dimensions = targets.shape
    centred = targets - targets.mean(axis=0)  # against cancellation in the sum of squares
    columns = [np.square(targets - predictions).mean(axis=0), np.square(centred), centred]
    sums = resampled_sums(np.concatenate(columns, axis=1), resamples=resamples, seed=seed, cluster=cluster)
    residual, squares, shift = np.split(sums, [dimensions, 2 * dimensions], axis=1)
    total = squares - np.square(shift) / count
    return 1 - (residual / np.where(total > 0, total, np.nan)).mean(axis=1)


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2


@dataclass(frozen=True)
class Targets:
    """Coded test targets (N, K), and mean and standard deviation (K,) of the training targets.

    `cluster` test pairs that follow each other show one object, and are resampled together.
    """

    transformation: Transformation
    size: int
    test: Array
    mean: Array
    std: Array
    cluster: int = 1

    def standardise(self, coded: Array) -> Array:
        """Coded values (..., N, K) in units of the training targets' standard deviation."""
        return (coded - self.mean) / self.std

    def publish(self, coded: Array) -> Array:
        """Coded values (N, K) in the coding in which the field takes its pooled R²."""
        return self.transformation.publish(self.transformation.decode(coded, self.size), self.size)


@dataclass(frozen=True)
class Scores:
    """Scores of one feature set; the names are those of the record's keys."""

    r2: float
    r2_low: float
    r2_high: float
    r2_std_probe: float
    r2_pooled: float
    per_dimension: list[float]


def score(targets: Targets, predictions: Array) -> Scores:
    """Scores of predictions (seeds, N, K) in the targets' coding, each the mean over the probe seeds."""
    truth, predicted = targets.standardise(targets.test), targets.standardise(predictions)
    per_seed = np.array([r2_per_dimension(truth, p) for p in predicted])
    low, high = bootstrap_r2(truth, predicted, cluster=targets.cluster)
    published = targets.publish(targets.test)
    return Scores(
        r2=float(per_seed.mean()),
        r2_low=low,
        r2_high=high,
        r2_std_probe=float(per_seed.mean(axis=1).std()),
        r2_pooled=float(np.mean([r2_pooled(published, targets.publish(p)) for p in predictions])),
        per_dimension=per_seed.mean(axis=0).tolist(),
    )


def floors(targets: Targets) -> tuple[float, float]:
    """R² and pooled R² of the constant predictor, which says the training mean whatever the image."""
    constant = np.broadcast_to(targets.mean, targets.test.shape)
    r2 = float(r2_per_dimension(targets.test, constant).mean())
    return r2, r2_pooled(targets.publish(targets.test), targets.publish(constant))


DEGREES, TURNS = 360.0, 1.0


def in_units(targets: Targets, predictions: Array) -> dict[str, Metric]:
    """Errors by name for the parameters that have a period, or two values, and for rotations in space.

    Args:
        targets: the test targets and their transformation.
        predictions: (seeds, N, K) in the targets' coding.
    """
    transformation = targets.transformation
    theta = transformation.decode(targets.test, targets.size)
    predicted = transformation.decode(predictions, targets.size)
    found: dict[str, Metric] = {}
    if transformation.group == SO3:
        found |= _of_ratios(pose_ratios(theta, predicted), targets.cluster)
        draws = resampled_median(geodesic_degrees(theta, predicted), cluster=targets.cluster)
        return found | {"degrees_median": _metric(pose_median(theta, predicted), draws)}
    if transformation.name == "hues":
        return _of_ratios(hue_difference_ratios(theta, predicted), targets.cluster)
    for number, period in enumerate(transformation.periods):
        truth, guess = theta[:, number], predicted[:, :, number]
        if period == DEGREES:
            found |= _of_ratios(degrees_ratios(truth, guess))
            draws = resampled_median(circular_error(truth, guess, DEGREES))
            found["degrees_median"] = _metric(degrees_median(truth, guess), draws)
        elif period == TURNS:
            found |= _of_ratios(hue_ratios(truth, guess))
    if transformation.discrete and theta.shape[1] == 1:
        yes, guess = theta[:, 0], predicted[:, :, 0]
        found["auc"] = _metric(auc(yes, guess), resampled_auc(yes, guess), chance=0.5)
        draws = resampled_balanced_accuracy(yes, guess)
        found["balanced_accuracy"] = _metric(balanced_accuracy(yes, guess), draws, chance=0.5)
    return found


def _of_ratios(ratios: dict[str, Ratio], cluster: int = 1) -> dict[str, Metric]:
    return {name: _metric(ratio.value, resampled(ratio, cluster=cluster)) for name, ratio in ratios.items()}


def _metric(value: float, draws: Array, chance: float | None = None) -> Metric:
    """A number with its 95 % interval; null where it is not defined, as the AUC of one class."""
    if np.isnan(value):
        return Metric(value=None, low=None, high=None, chance=chance)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Metric(value=value, low=float(low), high=float(high), chance=chance)


def circular_error(targets: ArrayLike, predictions: ArrayLike, period: float) -> Array:
    """The shorter way round between angles, in [0, period / 2]; the geodesic distance on the circle."""
    half = period / 2
    return np.abs((as_float(predictions) - as_float(targets) + half) % period - half)


def degrees_ratios(targets: ArrayLike, predictions: ArrayLike) -> dict[str, Ratio]:
    """`degrees_mean`: the mean geodesic error in degrees, in [0, 180]; lower is better.

    Args:
        targets: (N,) in degrees.
        predictions: (seeds, N) in degrees.
    """
    return {"degrees_mean": mean_of(circular_error(targets, predictions, 360).mean(axis=0))}


def degrees_median(targets: ArrayLike, predictions: ArrayLike) -> float:
    """Median geodesic error in degrees over images, the mean over seeds; arguments as for `degrees_ratios`."""
    return float(np.median(circular_error(targets, predictions, 360), axis=1).mean())


def hue_ratios(targets: ArrayLike, predictions: ArrayLike) -> dict[str, Ratio]:
    """`hue_mean`: the mean error round the colour circle in turns, in [0, 1/2]; lower is better.

    Args:
        targets: (N,) in turns.
        predictions: (seeds, N) in turns.
    """
    return {"hue_mean": mean_of(circular_error(targets, predictions, 1).mean(axis=0))}


def auc(targets: ArrayLike, predictions: ArrayLike) -> float:
    """Area under the ROC curve: how often a predicted yes (N of {0, 1}) is above a no; 1 is best, 1/2 is chance.

    nan where only one class occurs.
    """
    truth = np.asarray(targets) > 0.5
    if truth.all() or not truth.any():
        return float("nan")
    return float(np.mean([roc_auc_score(truth, p) for p in np.atleast_2d(as_float(predictions))]))


def balanced_accuracy(targets: ArrayLike, predictions: ArrayLike, threshold: float = 0.5) -> float:
    """Mean over the two classes of the share found, a prediction (seeds, N) above the threshold being a yes.

    1 is best, 1/2 is chance.
    """
    truth = np.asarray(targets) > 0.5
    return float(np.mean([balanced_accuracy_score(truth, p > threshold) for p in np.atleast_2d(as_float(predictions))]))


def resampled_median(errors: Array, *, resamples: int = RESAMPLES, seed: int = 0, cluster: int = 1) -> Array:
    """Bootstrap distribution (resamples,) of the median over images of errors (seeds, N), the mean over seeds.

    The lower median: half of the draws, or the first beyond, lie at or below it.
    """
    count, medians = errors.shape[1], np.zeros(resamples)
    for values in errors:
        order = np.argsort(values, kind="stable")
        draws = (np.repeat(c, cluster, axis=1) for c in draw_counts(count // cluster, resamples, seed))
        half = [(c[:, order].cumsum(axis=1) >= count / 2).argmax(axis=1) for c in draws]
        medians += values[order][np.concatenate(half)] / len(errors)
    return medians


def resampled_auc(targets: ArrayLike, predictions: Array, *, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Bootstrap distribution (resamples,) of `auc`; ties between predictions (seeds, N) count half."""
    truth, found = np.asarray(targets) > 0.5, np.zeros(resamples)
    for values in predictions:
        _, tied = np.unique(values, return_inverse=True)
        order = np.argsort(tied, kind="stable")
        starts = np.flatnonzero(np.diff(tied[order], prepend=-1))
        parts = []
        for counts in draw_counts(len(truth), resamples, seed):
            # sums over equal predictions, in ascending order
            yes, no = (np.add.reduceat((counts * group)[:, order], starts, axis=1) for group in (truth, ~truth))
            below = no.cumsum(axis=1) - no / 2
            parts.append((yes * below).sum(axis=1) / (yes.sum(axis=1) * no.sum(axis=1)))
        found += np.concatenate(parts) / len(predictions)
    return found


def resampled_balanced_accuracy(
    targets: ArrayLike, predictions: Array, threshold: float = 0.5, *, resamples: int = RESAMPLES, seed: int = 0
) -> Array:
    """Bootstrap distribution (resamples,) of `balanced_accuracy`."""
    truth = np.asarray(targets) > 0.5
    hits = ((predictions > threshold) == truth).mean(axis=0)
    shares = []
    for group in (truth, ~truth):
        sums = [(c @ (hits * group)) / (c @ group.astype(float)) for c in draw_counts(len(truth), resamples, seed)]
        shares.append(np.concatenate(sums))
    return (shares[0] + shares[1]) / 2


LIMITS = (15, 30)  # degrees
HUES = ("floor_hue", "spot_hue")
RANDOM_RETRIEVAL_ERROR = 3 / 4 * (1 - (2 / np.pi) ** 4)
"""What `pose_retrieval_error` is on average for two independent poses with angles uniform in ±pi/2: 0.627.

<q, p>² = (1 + tr R^T S) / 4, so its mean is (1 + ||E R||²) / 4. Each of the three angles has mean cosine c = 2/pi and
mean sine 0, hence E R = diag(c², c², c²) and the error 1 - (1 + 3 c⁴) / 4. PROTOCOL 1.4 has 0.628 from a simulation.
"""


def absolute_quaternion(latents: ArrayLike) -> Array:
    """Latents (N, 7) of views -> the object's rotations (N, 4), from extrinsic xyz angles; of either sign."""
    return np.asarray(Rotation.from_euler("xyz", as_float(latents)[:, ANGLES]).as_quat())


def geodesic_degrees(truth: ArrayLike, predicted: ArrayLike) -> Array:
    """The angle of the rotation from one to the other, in [0, 180] degrees: 2 acos |<q, p>|, for any sign of both.

    By the lengths of p - q and p + q, since the acos loses half of its digits near 0.

    Args:
        truth: (..., 4) unit quaternions.
        predicted: (..., 4) of any length, normalised here; zeros name no rotation, and are as wrong as can be: 180.
    """
    q, p = as_float(truth), as_float(predicted)
    length = np.linalg.norm(p, axis=-1, keepdims=True)
    p = p / np.where(length > 0, length, 1)
    apart, together = np.linalg.norm(p - q, axis=-1), np.linalg.norm(p + q, axis=-1)
    return np.rad2deg(4 * np.arctan2(np.minimum(apart, together), np.maximum(apart, together)))


def pose_ratios(truth: ArrayLike, predicted: ArrayLike) -> dict[str, Ratio]:
    """`degrees_mean` in [0, 180], lower is better; `acc_at_15` and `acc_at_30`, the shares of errors up to that.

    Args:
        truth: (N, 4) unit quaternions.
        predicted: (seeds, N, 4), of any length.
    """
    degrees = geodesic_degrees(truth, predicted)
    ratios = {"degrees_mean": mean_of(degrees.mean(axis=0))}
    return ratios | {f"acc_at_{limit}": mean_of((degrees <= limit).mean(axis=0)) for limit in LIMITS}


def pose_median(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Median geodesic error in degrees over images, the mean over seeds; arguments as for `pose_ratios`."""
    return float(np.median(geodesic_degrees(truth, predicted), axis=1).mean())


def hue_difference_ratios(truth: ArrayLike, predicted: ArrayLike) -> dict[str, Ratio]:
    """Mean errors round the colour circle in turns, in [0, 1/2]: `floor_hue_mean`, `spot_hue_mean`, `hue_mean` of both.

    Args:
        truth: (N, 2) differences of the two hues in turns; whole turns more or less are the same difference.
        predicted: (seeds, N, 2).
    """
    errors = circular_error(truth, predicted, 1).mean(axis=0)
    ratios = {f"{name}_mean": mean_of(errors[:, column]) for column, name in enumerate(HUES)}
    return ratios | {"hue_mean": mean_of(errors.mean(axis=1))}


def pose_retrieval_error(target: ArrayLike, retrieved: ArrayLike) -> Array:
    """1 - <q_t, q_r>² of the pose asked for and the pose found, each in [0, 1]; the mean is SIE's PRE (PROTOCOL 1.4).

    Args:
        target: (..., 4) absolute poses, unit quaternions of any sign.
        retrieved: (..., 4) likewise.

    Returns:
        (...), 0 for the same pose; `RANDOM_RETRIEVAL_ERROR` is what poses drawn blindly give.
    """
    return 1 - np.square(np.sum(as_float(target) * as_float(retrieved), axis=-1))
