"""The scene of 3DIEBench: an object above a coloured floor, lit by a coloured spot, seen by a camera that never moves.

What is fixed is as published (docs/protocol.md 2.7 and the generator of the data): the floor lies at z = -1, the camera
2.5 from the origin at 45° from the vertical, the spot 4 from the origin with an opening of 22.5°, above all a wide
white light. What varies is a view's seven latents. Colours are HSV, taken as linear light; the rest (how strong the
lights are, the light that the floor throws back, the shadow's soft edge, the gloss, the z-buffer) is this module's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy import ndarray as Array
from scipy import ndimage
from scipy.spatial.transform import Rotation

from equibench.data.object_layout import HIGHEST, LOWEST
from equibench.data.solids import hsv
from equibench.render.meshes import Mesh

OBJECT_RADIUS = 0.6  # of the ball that holds the object
OVERSAMPLING = 2  # samples per pixel along each side
_FLOOR = -1.0
_CAMERA_DISTANCE, _CAMERA_THETA = 2.5, np.pi / 4
_FOCAL = 50 / 36  # a 50 mm lens before 36 mm of film
_SPOT_DISTANCE, _SPOT_OPENING = 4.0, np.pi / 8

_SPOT = 1.1  # radiance of a white surface that faces the spot at its distance from the origin
_SKY, _BOUNCE = 0.62, 0.45  # of one that faces up; of one that faces down, over a white floor
_GLOSS, _SHININESS = 0.12, 20.0
_SOFT = 0.012  # of a picture's side: standard deviation of the shadow's edge
_RIM = 0.85  # from this share of its opening on, the spot fades

_BATCH = 1 << 21  # samples in the bounding boxes of the triangles worked on at a time; bounds the memory
_SLACK = 1e-9  # pixels by which a span is widened: rounding must not open a gap between triangles that share an edge
_THIN = 1e-12  # square pixels: a triangle of less area is seen from its edge


def draw_latents(uniform: Array) -> Array:
    """(V, 7) numbers in [0, 1) to latents in their published ranges: angles in radians, hues in turns."""
    return LOWEST + uniform * (HIGHEST - LOWEST)


def object_rotation(latents: Array) -> Rotation:
    """The rotation that a view's latents (7,) give its object: about the world's x, then y, then z (extrinsic)."""
    return Rotation.from_euler("xyz", latents[:3])


def render_view(mesh: Mesh, latents: Array, size: int) -> Array:
    """The picture (size, size, 3) uint8 of a mesh in the unit ball under a view's latents (7,)."""
    side, eye = size * OVERSAMPLING, camera()
    theta, phi = latents[4:6]
    spot = _SPOT_DISTANCE * np.array([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)])
    rotation = object_rotation(latents).as_matrix()
    corners = mesh.corners @ (OBJECT_RADIUS * rotation.T)
    samples, faces, weights = see(eye.project(corners, side), side)
    away = corners - spot
    on_floor = spot + away * ((_FLOOR - spot[2]) / away[..., 2:])  # where the spot's rays through the corners arrive
    shadow = cover(eye.project(on_floor, side), side)
    soft = ndimage.gaussian_filter(shadow.astype(np.float32), _SOFT * side)
    floor_colour = hsv(latents[3], 0.6, 0.6).astype(np.float32)
    light = (_SPOT * hsv(latents[6], 1.0, 0.8)).astype(np.float32)
    arriving, towards = _spot_light(_floor_points(side), spot)
    lit = arriving * towards[..., 2] * (1 - soft)
    picture = (floor_colour * (np.float32(_SKY) + lit[..., None] * light)).reshape(-1, 3)
    weights = weights.astype(np.float32)
    corner_facts = (part[faces].astype(np.float32) for part in (corners, mesh.normals, mesh.colours))
    points, normals, tints = (np.einsum("nk,nkc->nc", weights, part) for part in corner_facts)
    normals = _unit(normals @ rotation.T.astype(np.float32))
    picture[samples] = _surface(points, normals, tints, eye, spot, floor_colour, light)
    pixels = np.einsum("rycxk->rck", picture.reshape(size, OVERSAMPLING, size, OVERSAMPLING, 3)) / OVERSAMPLING**2
    pixels = np.clip(pixels, 0, 1)  # what is brighter than white is white
    screen = np.where(pixels <= 0.0031308, pixels * 12.92, 1.055 * pixels ** (1 / 2.4) - 0.055)  # sRGB
    return np.rint(screen * 255).astype(np.uint8)


def _spot_light(points: Array, spot: Array) -> tuple[Array, Array]:
    """How much of the spot's light arrives at points (..., 3), and the unit vectors from there to the spot."""
    towards = spot.astype(np.float32) - points
    square = _dot(towards, towards)
    towards /= np.sqrt(square)[..., None]
    axis = (spot / _SPOT_DISTANCE).astype(np.float32)
    angle = np.arccos(np.clip(towards @ axis, -1, 1)) / (_SPOT_OPENING / 2)
    fade = np.clip((1 - angle) / (1 - _RIM), 0, 1)
    return fade * fade * (3 - 2 * fade) * (_SPOT_DISTANCE**2 / square), towards


@lru_cache(maxsize=2)
def _floor_points(side: int) -> Array:
    """(side, side, 3) float32 where the floor is seen; the camera looks down far enough to see nothing but floor."""
    eye = camera()
    rays = eye.rays(side)
    return (eye.position + rays * ((_FLOOR - eye.position[2]) / rays[..., 2:])).astype(np.float32)


def _surface(
    points: Array, normals: Array, colours: Array, eye: Camera, spot: Array, floor: Array, light: Array
) -> Array:
    """(n, 3) float32 radiance of the object at points with normals and colours, (n, 3) each."""
    colours = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)  # sRGB to linear light
    view = _unit(eye.position.astype(np.float32) - points)
    # meshes seldom say which side of a face is the outside: it is the one that is seen
    normals *= np.where(_dot(normals, view) < 0, -1, 1).astype(np.float32)[:, None]
    arriving, towards = _spot_light(points, spot)
    facing = np.maximum(_dot(normals, towards), 0)
    shine = _GLOSS * np.maximum(_dot(normals, _unit(towards + view)), 0) ** np.float32(_SHININESS) * (facing > 0)
    up = (1 + normals[:, 2:]) / 2
    around = np.float32(_SKY) * up + np.float32(_BOUNCE) * (1 - up) * floor
    return colours * (around + (arriving * facing)[:, None] * light) + (arriving * shine)[:, None] * light


def _dot(a: Array, b: Array) -> Array:
    return np.einsum("...k,...k->...", a, b)


def _unit(vectors: Array) -> Array:
    return vectors / np.maximum(np.sqrt(_dot(vectors, vectors)), np.float32(1e-6))[..., None]


# The camera and the z-buffer


@dataclass(frozen=True)
class Camera:
    """A pinhole camera whose picture is a square."""

    position: Array  # (3,) in the world
    axes: Array  # (3, 3) unit rows in the world: to the picture's right, to its top, along the line of sight
    focal: float  # focal length in sides of the picture

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


def camera() -> Camera:
    """The camera of every view: it looks at the origin, the world's z upwards in its picture."""
    position = _CAMERA_DISTANCE * np.array([0.0, np.sin(_CAMERA_THETA), np.cos(_CAMERA_THETA)])
    sight = (np.zeros(3) - position) / np.linalg.norm(position)
    right = np.cross(sight, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return Camera(position, np.stack([right, np.cross(right, sight), sight]), _FOCAL)


def see(corners: Array, side: int) -> tuple[Array, Array, Array]:
    """What each sample shows of triangles with corners (F, 3, 3) as from `Camera.project`.

    A triangle is seen from both sides, and not at all if one of its corners lies behind the camera.

    Returns:
        The samples that show a triangle (n,) as row * side + column, ascending; the nearest triangle there (n,); shares
        of its corners at the point seen (n, 3), corrected for perspective, which sum to 1.
    """
    nearest = np.zeros(side * side)
    faces = np.full(side * side, -1)
    inverse = corners[..., 2]  # 1 / depth, which is linear in the picture
    least, most = _least(inverse), _most(inverse)
    with np.errstate(divide="ignore", invalid="ignore"):  # triangles seen from their edge are never drawn
        plane = np.stack([np.einsum("fk,fk->f", part, inverse) for part in _edges(corners)], axis=1)
    for samples, owners in _fragments(corners, side):
        row, column = np.divmod(samples, side)
        a, b, c = plane[owners].T
        # beyond its corners' depths a sliver's plane is nothing but rounding
        near = np.clip(a * (column + 0.5) + b * (row + 0.5) + c, least[owners], most[owners])
        np.maximum.at(nearest, samples, near)
        wins = near == nearest[samples]
        faces[samples[wins]] = owners[wins]
    samples = np.flatnonzero(faces >= 0)
    faces = faces[samples]
    row, column = np.divmod(samples, side)
    a, b, c = _edges(corners[faces])
    shares = a * (column + 0.5)[:, None] + b * (row + 0.5)[:, None] + c
    shares = np.maximum(shares, 0) * inverse[faces]  # linear in the picture are the shares over the depth
    return samples, faces, shares / np.einsum("nk->n", shares)[:, None]


def cover(corners: Array, side: int) -> Array:
    """(side, side) bool: which samples lie in any of the triangles with corners (F, 3, 3) as from `Camera.project`."""
    covered = np.zeros(side * side, bool)
    for samples, _ in _fragments(corners, side):
        covered[samples] = True
    return covered.reshape(side, side)


def _fragments(corners: Array, side: int) -> Iterator[tuple[Array, Array]]:
    """All samples in all triangles as (samples, the triangle of each), a batch of triangles at a time."""
    least, most = _least(corners), _most(corners)  # (F, 3)
    kept = (least[:, 2] > 0) & np.isfinite(np.einsum("fk->f", least + most))
    first, last = np.zeros((len(corners), 2), int), np.full((len(corners), 2), -1)
    first[kept] = np.ceil(np.clip(least[kept, :2], 0, side) - 0.5)
    last[kept] = np.floor(np.clip(most[kept, :2], 0, side) - 0.5)
    extent = np.maximum(last - first + 1, 0).prod(axis=1)
    kept &= (extent > 0) & (np.abs(_doubled_area(corners)) > 2 * _THIN)
    chosen = np.flatnonzero(kept)
    batch = np.cumsum(extent[chosen]) // _BATCH
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
    start = np.ceil(np.maximum(left, 0) - 0.5 - _SLACK).astype(int)
    stop = np.floor(np.minimum(right, side) - 0.5 + _SLACK).astype(int)
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
