"""Transformations that nobody applies: they stand between pictures that data bring along, such as 3DIEBench's views.

Their θ is computed from what the data say of each picture, its latents (PROTOCOL 1.1): yaw, pitch, roll, hue of the
floor, two angles and hue of the light. Coding and targets are SIE's (PROTOCOL 1.2), without canonicalising.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from equibench.transforms.families import TRANSFORMATIONS, Transformation

Array = NDArray[np.float64]

ANGLES, HUES = slice(0, 3), [3, 6]
"""Columns of the latents (N, 7): the object's three angles; the hues of floor and light."""
LARGEST_ANGLE = np.pi / 2
SO3 = "SO(3)"


def pose_between(first: Array, second: Array) -> Array:
    """Latents (N, 7) of both views -> R1⁻¹ R2 as quaternions x, y, z, w (N, 4); extrinsic xyz angles."""
    one, other = (Rotation.from_euler("xyz", latents[:, ANGLES]) for latents in (first, second))
    return np.asarray((one.inv() * other).as_quat())


def hues_between(first: Array, second: Array) -> Array:
    """Latents (N, 7) of both views -> differences of the two hues in turns (N, 2), in (-1, 1), not wrapped."""
    return np.asarray(second[:, HUES] - first[:, HUES])


BETWEEN = {"pose": pose_between, "hues": hues_between}
"""θ of each observed transformation from the latents of two views."""


def _drawn_angles(u: Array) -> Array:
    latents = np.zeros((len(u), 7))
    latents[:, ANGLES] = LARGEST_ANGLE * (2 * u - 1)
    return latents


def _inverse_pose(theta: Array) -> Array:
    return theta * np.array([-1.0, -1.0, -1.0, 1.0])


def _as_it_is(size: int) -> tuple[Array, Array]:
    return np.zeros(1), np.ones(1)


TRANSFORMATIONS["pose"] = Transformation(
    name="pose",
    parameters=("quaternion x", "quaternion y", "quaternion z", "quaternion w"),
    group=SO3,
    uniforms=6,
    draw=lambda u, size: pose_between(_drawn_angles(u[:, :3]), _drawn_angles(u[:, 3:])),
    identity=(0.0, 0.0, 0.0, 1.0),
    code=_as_it_is,
    publish=lambda theta, size: theta,
    inverse=_inverse_pose,
)
TRANSFORMATIONS["hues"] = Transformation(
    name="hues",
    parameters=("hue of the floor in turns", "hue of the light in turns"),
    group="torus",
    uniforms=4,
    draw=lambda u, size: u[:, 2:] - u[:, :2],
    identity=(0.0, 0.0),
    code=_as_it_is,
    publish=lambda theta, size: theta,
    inverse=lambda theta: -theta,
    periods=(1.0, 1.0),
)
