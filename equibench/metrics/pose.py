"""Errors of predicted rotations and hues between two views of an object, and SIE's error of pose retrieval.

Rotations are unit quaternions x, y, z, w; q and -q are the same one. What is to be predicted between two views stands
in `transforms.observed`. A probe's predictions come for several seeds, (seeds, N, ...); scores are means over these.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

from equibench.metrics.angles import circular_error
from equibench.metrics.ratio import Array, Ratio, as_float, mean_of
from equibench.transforms.observed import ANGLES

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
