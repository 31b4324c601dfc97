"""The ten solids of the generator as signed distances, or lower bounds of them: negative inside.

Every solid fits in the unit ball of its own coordinates. A distance takes three arrays of coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

Array = np.ndarray
Distance = Callable[[Array, Array, Array], Array]


def _sphere(x: Array, y: Array, z: Array) -> Array:
    return np.sqrt(x * x + y * y + z * z) - 1


def _ellipsoid(x: Array, y: Array, z: Array) -> Array:
    # Not the distance, which has no closed form, but a bound of it to first order near the surface.
    a, b, c = ELLIPSOID_AXES
    scaled = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    slope = np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2 + (z / c**2) ** 2)
    return scaled * (scaled - 1) / np.maximum(slope, 1e-6)


def _block(x: Array, y: Array, z: Array, half: tuple[float, float, float]) -> Array:
    dx, dy, dz = np.abs(x) - half[0], np.abs(y) - half[1], np.abs(z) - half[2]
    inside = np.minimum(np.maximum(np.maximum(dx, dy), dz), 0)
    dx, dy, dz = np.maximum(dx, 0), np.maximum(dy, 0), np.maximum(dz, 0)
    return np.sqrt(dx * dx + dy * dy + dz * dz) + inside


def _cylinder(x: Array, y: Array, z: Array) -> Array:
    radius, half = CYLINDER
    side, end = np.sqrt(x * x + y * y) - radius, np.abs(z) - half
    outside = np.sqrt(np.maximum(side, 0) ** 2 + np.maximum(end, 0) ** 2)
    return outside + np.minimum(np.maximum(side, end), 0)


def _cone(x: Array, y: Array, z: Array) -> Array:
    # The larger of the distances to its mantle (tip at z = 1) and to the plane of its base: never too large.
    radius, base = CONE
    height = 1 - base
    slant = float(np.hypot(radius, height))
    mantle = (np.sqrt(x * x + y * y) * height + (z - 1) * radius) / slant
    return np.maximum(mantle, base - z)


def _torus(x: Array, y: Array, z: Array) -> Array:
    ring, tube = TORUS
    return np.sqrt((np.sqrt(x * x + y * y) - ring) ** 2 + z * z) - tube


def _octahedron(x: Array, y: Array, z: Array) -> Array:
    return (np.abs(x) + np.abs(y) + np.abs(z) - 1) * float(3**-0.5)


def _capsule(x: Array, y: Array, z: Array) -> Array:
    radius, half = CAPSULE
    beyond = z - np.clip(z, -half, half)
    return np.sqrt(x * x + y * y + beyond * beyond) - radius


def _tetrahedron(x: Array, y: Array, z: Array) -> Array:
    # Corners at (1,1,1), (1,-1,-1), (-1,1,-1), (-1,-1,1) over sqrt 3; each face lies opposite to one of them.
    far = np.maximum(np.maximum(-x - y - z, -x + y + z), np.maximum(x - y + z, x + y - z))
    return (far - float(3**-0.5)) * float(3**-0.5)


ELLIPSOID_AXES = (0.5, 0.72, 1.0)
CUBE_HALF = (0.577, 0.577, 0.577)
BOX_HALF = (0.3, 0.5, 0.8)
CYLINDER = (0.55, 0.8)  # radius, half the height
CONE = (0.75, -0.65)  # radius of the base, z of the base
TORUS = (0.68, 0.3)  # radius of the ring, of the tube
CAPSULE = (0.42, 0.58)  # radius, half the length between the centres of its ends

SHAPES: dict[str, Distance] = {
    "sphere": _sphere,
    "ellipsoid": _ellipsoid,
    "cube": partial(_block, half=CUBE_HALF),
    "box": partial(_block, half=BOX_HALF),
    "cylinder": _cylinder,
    "cone": _cone,
    "torus": _torus,
    "octahedron": _octahedron,
    "capsule": _capsule,
    "tetrahedron": _tetrahedron,
}
CLASS_NAMES: tuple[str, ...] = tuple(SHAPES)
# Not convex, or (the ellipsoid) with no more than a bound for its distance; both curve away from every ray.
CURVED = ("torus", "ellipsoid")
