"""A rasteriser in numpy: a pinhole camera, a z-buffer over triangles, and what each sample of a picture shows.

Every row of every triangle is cut to its span of samples at once, so that only samples that a triangle covers are
ever looked at. A picture has x to the right and y down; its sample (row r, column c) lies at (c + 1/2, r + 1/2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

BATCH = 1 << 21  # samples in the bounding boxes of the triangles that are worked on at a time; bounds the memory
SLACK = 1e-9  # pixels by which a span is widened: rounding must not open a gap between two triangles that share an edge
THIN = 1e-12  # square pixels: a triangle of less area is seen from its edge


@dataclass(frozen=True)
class Camera:
    """A pinhole camera whose picture is a square.

    Attributes:
        position: (3,) in the world.
        axes: (3, 3) unit rows in the world: to the picture's right, to its top, along the line of sight.
        focal: focal length in sides of the picture.
    """

    position: Array
    axes: Array
    focal: float

    def project(self, points: Array, side: int) -> Array:
        """World points (..., 3) to (..., 3): x and y in a picture of ``side`` samples, and 1 / depth.

        The depth is measured along the line of sight; where it is not positive a point lies behind the camera.
        """
        seen = (points - self.position) @ self.axes.T
        with np.errstate(divide="ignore", invalid="ignore"):
            near = 1 / seen[..., 2]
            x, y = seen[..., 0] * near, seen[..., 1] * near
        return np.stack([(0.5 + self.focal * x) * side, (0.5 - self.focal * y) * side, near], axis=-1)

    def rays(self, side: int) -> Array:
        """(side, side, 3) from the camera through each sample, in the world, one unit deep."""
        across = (np.arange(side) + 0.5) / side - 0.5
        x, y = np.meshgrid(across / self.focal, -across / self.focal)
        return np.stack([x, y, np.ones_like(x)], axis=-1) @ self.axes


def look_at(position: Array, target: Array, focal: float) -> Camera:
    """A camera at ``position`` that looks at ``target``, the world's z upwards in its picture."""
    sight = (target - position) / np.linalg.norm(target - position)
    right = np.cross(sight, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return Camera(position, np.stack([right, np.cross(right, sight), sight]), focal)


@dataclass(frozen=True)
class Seen:
    """The samples that show a triangle.

    Attributes:
        samples: (n,) row * side + column, ascending.
        faces: (n,) the nearest triangle there.
        weights: (n, 3) shares of its corners at the point seen, corrected for perspective; they sum to 1.
    """

    samples: Array
    faces: Array
    weights: Array


def see(corners: Array, side: int) -> Seen:
    """What each sample shows of triangles with corners (F, 3, 3) as from `Camera.project`.

    A triangle is seen from both sides, and not at all if one of its corners lies behind the camera.
    """
    nearest = np.zeros(side * side)
    faces = np.full(side * side, -1)
    plane, least, most = _inverse_depths(corners)
    for samples, owners in _fragments(corners, side):
        row, column = np.divmod(samples, side)
        a, b, c = plane[owners].T
        # beyond its corners' depths a sliver's plane is nothing but rounding
        near = np.clip(a * (column + 0.5) + b * (row + 0.5) + c, least[owners], most[owners])
        np.maximum.at(nearest, samples, near)
        wins = near == nearest[samples]
        faces[samples[wins]] = owners[wins]
    samples = np.flatnonzero(faces >= 0)
    return Seen(samples, faces[samples], _weights(corners[faces[samples]], samples, side))


def cover(corners: Array, side: int) -> Array:
    """(side, side) bool: which samples lie in any of the triangles with corners (F, 3, 3) as from `Camera.project`."""
    covered = np.zeros(side * side, bool)
    for samples, _ in _fragments(corners, side):
        covered[samples] = True
    return covered.reshape(side, side)


def _fragments(corners: Array, side: int) -> Iterator[tuple[Array, Array]]:
    """All samples in all triangles as (samples, the triangle of each), a batch of triangles at a time."""
    least, most = _least(corners), _most(corners)  # (F, 3)
    low, high = least[:, :2], most[:, :2]
    kept = (least[:, 2] > 0) & np.isfinite(np.einsum("fk->f", least + most))
    first, last = np.zeros(low.shape, int), np.full(low.shape, -1)
    first[kept] = np.ceil(np.clip(low[kept], 0, side) - 0.5)
    last[kept] = np.floor(np.clip(high[kept], 0, side) - 0.5)
    width, height = np.maximum(last - first + 1, 0).T
    extent = width * height
    kept &= (extent > 0) & (np.abs(_doubled_area(corners)) > 2 * THIN)
    chosen = np.flatnonzero(kept)
    batch = np.cumsum(extent[chosen]) // BATCH
    for part in np.split(chosen, np.flatnonzero(np.diff(batch)) + 1):
        if len(part):
            yield _fill(corners[part], first[part, 1], last[part, 1], part, side)


def _fill(corners: Array, first: Array, last: Array, names: Array, side: int) -> tuple[Array, Array]:
    """The samples in the triangles whose rows are ``first`` to ``last``, and the names of their triangles."""
    owners, row = _ranges(first, last)
    # A row meets each edge's half plane a x + b y + c >= 0 in all x on one side of -(b y + c) / a.
    a, b, c = _edges(corners)
    left, right = _least(corners)[owners, 0], _most(corners)[owners, 0]
    for edge in range(3):
        slope = a[owners, edge]
        offset = b[owners, edge] * (row + 0.5) + c[owners, edge]
        with np.errstate(divide="ignore", invalid="ignore"):
            meets = -offset / slope
        np.maximum(left, meets, out=left, where=slope > 0)
        np.minimum(right, meets, out=right, where=slope < 0)
    start = np.ceil(np.maximum(left, 0) - 0.5 - SLACK).astype(int)
    stop = np.floor(np.minimum(right, side) - 0.5 + SLACK).astype(int)
    spans, column = _ranges(start, np.minimum(stop, side - 1))
    return row[spans] * side + column, names[owners[spans]]


def _ranges(first: Array, last: Array) -> tuple[Array, Array]:
    """The whole numbers of all ranges first..last, ends included, as (number of the range, number)."""
    counts = np.maximum(last - first + 1, 0)
    owners = np.repeat(np.arange(len(counts)), counts)
    starts = np.cumsum(counts) - counts
    return owners, np.arange(len(owners)) + (first - starts)[owners]


def _least(corners: Array) -> Array:
    """The least over a triangle's corners; several times faster than min(axis=1)."""
    return np.minimum(np.minimum(corners[:, 0], corners[:, 1]), corners[:, 2])


def _most(corners: Array) -> Array:
    """The largest over a triangle's corners."""
    return np.maximum(np.maximum(corners[:, 0], corners[:, 1]), corners[:, 2])


def _doubled_area(corners: Array) -> Array:
    """(F,) twice the signed area in the picture."""
    (x0, x1, x2), (y0, y1, y2) = corners[..., 0].T, corners[..., 1].T
    return (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)


def _edges(corners: Array) -> tuple[Array, Array, Array]:
    """(F, 3) each: a x + b y + c is corner k's share of a point in column k, its sign positive inside."""
    x, y = corners[..., 0], corners[..., 1]
    x1, y1 = x[:, [1, 2, 0]], y[:, [1, 2, 0]]
    x2, y2 = x[:, [2, 0, 1]], y[:, [2, 0, 1]]
    area = _doubled_area(corners)[:, None]
    a, b = (y1 - y2) / area, (x2 - x1) / area
    return a, b, -(a * x1 + b * y1)


def _inverse_depths(corners: Array) -> tuple[Array, Array, Array]:
    """1 / depth, which is linear in the picture: its plane's (F, 3) coefficients, its least and its largest value."""
    near = corners[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):  # triangles seen from their edge are never drawn
        plane = np.stack([np.einsum("fk,fk->f", part, near) for part in _edges(corners)], axis=1)
    return plane, _least(near), _most(near)


def _weights(corners: Array, samples: Array, side: int) -> Array:
    row, column = np.divmod(samples, side)
    a, b, c = _edges(corners)
    shares = a * (column + 0.5)[:, None] + b * (row + 0.5)[:, None] + c
    shares = np.maximum(shares, 0) * corners[..., 2]  # linear in the picture are the shares over the depth
    return shares / np.einsum("nk->n", shares)[:, None]
