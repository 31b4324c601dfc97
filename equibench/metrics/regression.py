"""Scores of regressed parameters: R² in two versions, errors in the parameters' own units, and their bootstrap.

Two versions of R² circulate (docs/protocol.md 8.2). `r2_per_dimension` is scikit-learn's, reported as the mean over
dimensions; `r2_pooled` is the field's, with one scalar mean over all dimensions, which gives a constant predictor up to
0.82.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from equibench.metrics.bootstrap import RESAMPLES, as_float, draw_counts, mean_of, resampled, resampled_sums
from equibench.metrics.bootstrap import Floats as Array
from equibench.records import Metric
from equibench.transforms.transformation import ANGLES, SO3, Transformation

RANDOM_RETRIEVAL_ERROR = 3 / 4 * (1 - (2 / np.pi) ** 4)
"""What `pose_retrieval_error` is on average for two independent poses with angles uniform in ±pi/2: 0.627.

<q, p>² = (1 + tr R^T S) / 4, so its mean is (1 + ||E R||²) / 4. Each of the three angles has mean cosine c = 2/pi and
mean sine 0, hence E R = diag(c², c², c²) and the error 1 - (1 + 3 c⁴) / 4. See docs/protocol.md 8.7.
"""

_UNITS = {360.0: "degrees", 1.0: "hue"}
"""What is measured in whole turns of that many units: an angle in the plane, and a place on the colour circle."""


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


def r2_scores(targets: Targets, predictions: Array) -> Scores:
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


def in_units(targets: Targets, predictions: Array) -> dict[str, Metric]:
    """Errors by name for the parameters that have a period, or two values, and for rotations in space.

    `degrees_mean` and `degrees_median` are geodesic errors in [0, 180] degrees, `acc_at_15` and `acc_at_30` the shares
    of errors up to that; `hue_mean`, `floor_hue_mean` and `spot_hue_mean` are errors round the colour circle in
    [0, 1/2] turns; see also `auc` and `balanced_accuracy`. Each is the mean over the seeds.

    Args:
        targets: the test targets and their transformation.
        predictions: (seeds, N, K) in the targets' coding.
    """
    transformation, cluster = targets.transformation, targets.cluster
    theta, predicted = (transformation.decode(coded, targets.size) for coded in (targets.test, predictions))
    found: dict[str, Metric] = {}
    if transformation.group == SO3:
        errors = geodesic_degrees(theta, predicted)
        found["degrees_mean"] = _mean(errors.mean(axis=0), cluster)
        found |= {f"acc_at_{limit}": _mean((errors <= limit).mean(axis=0), cluster) for limit in (15, 30)}
        return found | {"degrees_median": _median(errors, cluster)}
    if transformation.name == "hues":
        errors = circular_error(theta, predicted, 1).mean(axis=0)
        found |= {name: _mean(errors[:, i], cluster) for i, name in enumerate(("floor_hue_mean", "spot_hue_mean"))}
        return found | {"hue_mean": _mean(errors.mean(axis=1), cluster)}
    for number, period in enumerate(transformation.periods):
        if unit := _UNITS.get(period):
            errors = circular_error(theta[:, number], predicted[:, :, number], period)
            found[f"{unit}_mean"] = _mean(errors.mean(axis=0))
            if unit == "degrees":
                found["degrees_median"] = _median(errors)
    if transformation.discrete and theta.shape[1] == 1:
        yes, guess = theta[:, 0], predicted[:, :, 0]
        found["auc"] = _metric(auc(yes, guess), resampled_auc(yes, guess), floor=0.5)
        draws = resampled_balanced_accuracy(yes, guess)
        found["balanced_accuracy"] = _metric(balanced_accuracy(yes, guess), draws, floor=0.5)
    return found


def bits(per_dimension: Sequence[float]) -> float:
    """-1/2 log2(1 - R²), summed over dimensions: the information that predictions of a Gaussian with that R² hold.

    A negative R² counts as 0, and none for more than 10 bits.
    """
    left = 1 - np.clip(per_dimension, 0, 1 - 2.0**-20)
    return float(-np.log2(left).sum() / 2)


def r2_per_dimension(targets: Array, predictions: Array) -> Array:
    """R²_k = 1 - Σ_n (t_nk - o_nk)² / Σ_n (t_nk - mean_n t_nk)² of each dimension k: scikit-learn's `r2_score`.

    Args:
        targets: t (N, K).
        predictions: o (N, K).

    Returns:
        (K,), at most 1. Of a target that does not vary: 1 if it is predicted exactly, else 0.

    Raises:
        ValueError: shapes that do not match, or values that are not finite.

    Example:
        >>> r2_per_dimension(np.array([[0, 0], [1, 2], [2, 4]]), np.array([[0, 0], [1, 2], [2, 2]]))
        array([1. , 0.5])
    """
    from sklearn.metrics import r2_score

    return np.asarray(r2_score(targets, predictions, multioutput="raw_values"))


def r2_pooled(targets: Array, predictions: Array) -> float:
    """1 - Σ_nk (t_nk - o_nk)² / Σ_nk (t_nk - m)², m being the one mean of all entries of t.

    This is SIE's definition (its eval_angle_prediction script), kept for comparison with published numbers. Where the
    dimensions have different means, a constant predictor that says them scores above 0.

    Args:
        targets: t (N, K).
        predictions: o (N, K).

    Raises:
        ValueError: shapes that do not match.

    Example:
        >>> targets = np.array([[0.0, 10.0], [2.0, 12.0]])
        >>> round(r2_pooled(targets, np.array([[1.0, 11.0], [1.0, 11.0]])), 3)
        0.962
    """
    return float(1 - np.square(targets - predictions).sum() / np.square(targets - targets.mean()).sum())


def bootstrap_r2(targets: Array, predictions: Array, *, level: float = 0.95, **options: int) -> tuple[float, float]:
    """Percentile interval of the seeds' mean R² under resampling of the test images; arguments as `resampled_r2`."""
    low, high = np.quantile(resampled_r2(targets, predictions, **options), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_r2(
    targets: Array, predictions: Array, *, resamples: int = RESAMPLES, seed: int = 0, cluster: int = 1
) -> Array:
    """Bootstrap distribution (resamples,) of the seeds' mean R²; equal seeds draw equal images, for pairing.

    Args:
        targets: (N, K).
        predictions: (seeds, N, K); all of them see the same images in each resample.
        cluster: so many images that follow each other are drawn together, as the pairs of one object.
    """
    count, dimensions = targets.shape
    centred = targets - targets.mean(axis=0)  # against cancellation in the sum of squares
    columns = [np.square(targets - predictions).mean(axis=0), np.square(centred), centred]
    sums = resampled_sums(np.concatenate(columns, axis=1), resamples=resamples, seed=seed, cluster=cluster)
    residual, squares, shift = np.split(sums, [dimensions, 2 * dimensions], axis=1)
    total = squares - np.square(shift) / count
    return 1 - (residual / np.where(total > 0, total, np.nan)).mean(axis=1)


def circular_error(targets: ArrayLike, predictions: ArrayLike, period: float) -> Array:
    """The shorter way round between angles, in [0, period / 2]; the geodesic distance on the circle."""
    half = period / 2
    return np.abs((as_float(predictions) - as_float(targets) + half) % period - half)


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


def absolute_quaternion(latents: ArrayLike) -> Array:
    """Latents (N, 7) of views -> the object's rotations (N, 4), from extrinsic xyz angles; of either sign."""
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_euler("xyz", as_float(latents)[:, ANGLES]).as_quat())


def pose_retrieval_error(target: ArrayLike, retrieved: ArrayLike) -> Array:
    """1 - <q_t, q_r>² of the pose asked for and the one found, in [0, 1]; the mean is SIE's PRE (docs/protocol.md 8.7).

    Args:
        target: (..., 4) absolute poses, unit quaternions of any sign.
        retrieved: (..., 4) likewise.

    Returns:
        (...), 0 for the same pose; `RANDOM_RETRIEVAL_ERROR` is what poses drawn blindly give.
    """
    return 1 - np.square(np.sum(as_float(target) * as_float(retrieved), axis=-1))


def auc(targets: ArrayLike, predictions: ArrayLike) -> float:
    """Area under the ROC curve: how often the prediction for a yes is above that for a no; 1 is best, 1/2 is chance.

    nan where only one class occurs.

    Args:
        targets: (N,) 1 for a yes, 0 for a no.
        predictions: (N,), or (seeds, N), of which the mean is taken.
    """
    from sklearn.metrics import roc_auc_score

    truth = np.asarray(targets) > 0.5
    if truth.all() or not truth.any():
        return float("nan")
    return float(np.mean([roc_auc_score(truth, p) for p in np.atleast_2d(as_float(predictions))]))


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


def balanced_accuracy(targets: ArrayLike, predictions: ArrayLike, threshold: float = 0.5) -> float:
    """Mean over the two classes of the share found, a prediction above the threshold being a yes; arguments as `auc`.

    1 is best, 1/2 is chance.
    """
    from sklearn.metrics import balanced_accuracy_score

    truth = np.asarray(targets) > 0.5
    return float(np.mean([balanced_accuracy_score(truth, p > threshold) for p in np.atleast_2d(as_float(predictions))]))


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


def _mean(values: Array, cluster: int = 1) -> Metric:
    """Of values (N,), one for each image."""
    ratio = mean_of(values)
    return _metric(ratio.value, resampled(ratio, cluster=cluster))


def _median(errors: Array, cluster: int = 1) -> Metric:
    """Over images of errors (seeds, N), the mean over seeds."""
    return _metric(float(np.median(errors, axis=1).mean()), resampled_median(errors, cluster=cluster))


def _metric(value: float, draws: Array, floor: float | None = None) -> Metric:
    """A number with its 95 % interval; null where it is not defined, as the AUC of one class."""
    if np.isnan(value):
        return Metric(floor=floor)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Metric(value=value, low=float(low), high=float(high), floor=floor)
