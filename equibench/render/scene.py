"""The scene of 3DIEBench: an object above a coloured floor, lit by a coloured spot, seen by a camera that never moves.

What is fixed is as published (PROTOCOL 1.1 and the generator of the data): the floor lies at z = -1, the camera
2.5 from the origin at 45° from the vertical, the spot 4 from the origin with an opening of 22.5°, above all a wide
white light. What varies is a view's seven latents. Colours are HSV, taken as linear light; the rest (how strong the
lights are, the light that the floor throws back, the shadow's soft edge, the gloss) is this module's own.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from equibench.render.meshes import Mesh, hsv
from equibench.render.raster import Camera, Seen, cover, look_at, see

Array = np.ndarray

LATENTS = ("yaw", "pitch", "roll", "floor_hue", "spot_theta", "spot_phi", "spot_hue")
LOWEST = np.array([-np.pi / 2, -np.pi / 2, -np.pi / 2, 0.0, 0.0, 0.0, 0.0])
HIGHEST = np.array([np.pi / 2, np.pi / 2, np.pi / 2, 1.0, np.pi / 4, 2 * np.pi, 1.0])

RADIUS = 0.6  # of the ball that holds the object
FLOOR = -1.0
CAMERA_DISTANCE, CAMERA_THETA = 2.5, np.pi / 4
FOCAL = 50 / 36  # a 50 mm lens before 36 mm of film
SPOT_DISTANCE, SPOT_OPENING = 4.0, np.pi / 8
SUPERSAMPLING = 2  # samples per pixel along each side

SPOT = 1.1  # radiance of a white surface that faces the spot at its distance from the origin
SKY, BOUNCE = 0.62, 0.45  # of one that faces up; of one that faces down, over a white floor
GLOSS, SHININESS = 0.12, 20.0
SOFT = 0.012  # of a picture's side: standard deviation of the shadow's edge
RIM = 0.85  # from this share of its opening on, the spot fades


def camera() -> Camera:
    """The camera of every view."""
    position = CAMERA_DISTANCE * np.array([0.0, np.sin(CAMERA_THETA), np.cos(CAMERA_THETA)])
    return look_at(position, np.zeros(3), FOCAL)


def object_rotation(latents: Array) -> Rotation:
    """The rotation that a view's latents (7,) give its object: about the world's x, then y, then z (extrinsic)."""
    return Rotation.from_euler("xyz", latents[:3])


def spot_position(latents: Array) -> Array:
    """(3,) where the spot stands; it points to the origin."""
    theta, phi = latents[4:6]
    return SPOT_DISTANCE * np.array([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)])


def draw_latents(uniform: Array) -> Array:
    """(V, 7) numbers in [0, 1) to latents in their published ranges: angles in radians, hues in turns."""
    return LOWEST + uniform * (HIGHEST - LOWEST)


def render_view(mesh: Mesh, latents: Array, size: int) -> Array:
    """The picture (size, size, 3) uint8 of a mesh in the unit ball under a view's latents (7,)."""
    side = size * SUPERSAMPLING
    eye, spot = camera(), spot_position(latents)
    rotation = object_rotation(latents).as_matrix()
    corners = mesh.corners @ (RADIUS * rotation.T)
    seen = see(eye.project(corners, side), side)
    shadow = cover(eye.project(_on_floor(corners, spot), side), side)
    soft = ndimage.gaussian_filter(shadow.astype(np.float32), SOFT * side)
    floor_colour = hsv(latents[3], 0.6, 0.6).astype(np.float32)
    light = (SPOT * hsv(latents[6], 1.0, 0.8)).astype(np.float32)
    picture = _floor(side, spot, soft, floor_colour, light).reshape(-1, 3)
    picture[seen.samples] = _surface(mesh, seen, corners, rotation, eye, spot, floor_colour, light)
    pixels = np.einsum("rycxk->rck", picture.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3)) / SUPERSAMPLING**2
    return np.rint(_to_screen(pixels) * 255).astype(np.uint8)


def _on_floor(corners: Array, spot: Array) -> Array:
    """Where the spot's rays through points (..., 3) meet the floor."""
    away = corners - spot
    return spot + away * ((FLOOR - spot[2]) / away[..., 2:])


def _spot_light(points: Array, spot: Array) -> tuple[Array, Array]:
    """How much of the spot's light arrives at points (..., 3), and the unit vectors from there to the spot."""
    towards = spot.astype(np.float32) - points
    square = _dot(towards, towards)
    towards /= np.sqrt(square)[..., None]
    axis = (spot / SPOT_DISTANCE).astype(np.float32)
    angle = np.arccos(np.clip(towards @ axis, -1, 1)) / (SPOT_OPENING / 2)
    fade = np.clip((1 - angle) / (1 - RIM), 0, 1)
    return fade * fade * (3 - 2 * fade) * (SPOT_DISTANCE**2 / square), towards


@lru_cache(maxsize=2)
def _floor_points(side: int) -> Array:
    """(side, side, 3) float32 where the floor is seen; the camera looks down far enough to see nothing but floor."""
    eye = camera()
    rays = eye.rays(side)
    return (eye.position + rays * ((FLOOR - eye.position[2]) / rays[..., 2:])).astype(np.float32)


def _floor(side: int, spot: Array, shadow: Array, colour: Array, light: Array) -> Array:
    """(side, side, 3) float32 radiance of the floor."""
    arriving, towards = _spot_light(_floor_points(side), spot)
    lit = arriving * towards[..., 2] * (1 - shadow)
    return colour * (np.float32(SKY) + lit[..., None] * light)


def _surface(
    mesh: Mesh, seen: Seen, corners: Array, rotation: Array, eye: Camera, spot: Array, floor: Array, light: Array
) -> Array:
    """(n, 3) float32 radiance of the object at the samples that show it."""
    weights, faces = seen.weights.astype(np.float32), seen.faces
    points, normals, colours = (
        np.einsum("nk,nkc->nc", weights, part[faces].astype(np.float32))
        for part in (corners, mesh.normals, mesh.colours)
    )
    normals = _unit(normals @ rotation.T.astype(np.float32))
    view = _unit(eye.position.astype(np.float32) - points)
    # meshes seldom say which side of a face is the outside: it is the one that is seen
    normals *= np.where(_dot(normals, view) < 0, -1, 1).astype(np.float32)[:, None]
    arriving, towards = _spot_light(points, spot)
    facing = np.maximum(_dot(normals, towards), 0)
    shine = GLOSS * np.maximum(_dot(normals, _unit(towards + view)), 0) ** np.float32(SHININESS) * (facing > 0)
    up = (1 + normals[:, 2:]) / 2
    around = np.float32(SKY) * up + np.float32(BOUNCE) * (1 - up) * floor
    return _to_light(colours) * (around + (arriving * facing)[:, None] * light) + (arriving * shine)[:, None] * light


def _dot(a: Array, b: Array) -> Array:
    return np.einsum("...k,...k->...", a, b)


def _unit(vectors: Array) -> Array:
    return vectors / np.maximum(np.sqrt(_dot(vectors, vectors)), np.float32(1e-6))[..., None]


def _to_light(colour: Array) -> Array:
    """Screen values in [0, 1] to linear light (sRGB)."""
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def _to_screen(light: Array) -> Array:
    """Linear light to screen values in [0, 1] (sRGB); what is brighter than white is white."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
