"""What a rendered view shows: floor, spot, shadow, size and pose, each against its closed form."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from equibench.data import solids
from equibench.data.object_layout import LATENTS
from equibench.render import meshes, scene
from equibench.utils.random import uniforms


def white(corners: np.ndarray) -> meshes.Mesh:
    return meshes.make_mesh(corners, np.ones_like(corners))


def linear(pixel: np.ndarray) -> np.ndarray:
    """sRGB's definition, IEC 61966-2-1."""
    value = np.asarray(pixel, float) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def view(mesh: meshes.Mesh, size: int = 64, **latents: float) -> np.ndarray:
    given = {name: latents.get(name, 0.0) for name in LATENTS}
    return scene.render_view(mesh, np.array(list(given.values())), size)


@pytest.mark.parametrize("hue", [0.05, 0.3, 0.55, 0.9])
def test_the_floor_has_its_colour(hue: float) -> None:
    """Far from the spot, under white light: hue as given, saturation 0.6."""
    picture = view(white(meshes.TRIANGLES["cube"]()), floor_hue=hue, spot_theta=0.0)
    found = colorsys.rgb_to_hsv(*linear(picture[0, 0]))
    assert found[0] == pytest.approx(hue, abs=0.01)
    assert found[1] == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("hue", [0.0, 0.2, 0.6, 0.8])
def test_the_spot_has_its_colour_and_the_object_its_shadow(hue: float) -> None:
    """The light that the spot adds to the floor has its hue; a ray through the object adds nothing."""
    size, theta, phi = 128, 0.6, 0.0  # from the picture's left: the shadow falls beside the object
    latents = {"spot_theta": theta, "spot_phi": phi, "floor_hue": 0.4, "spot_hue": hue}
    picture = view(white(meshes.TRIANGLES["sphere"]() * [0.3, 0.3, 1]), size, **latents)
    spot = 4 * np.array([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)])
    below = -spot / spot[2]  # where the ray through the origin meets the floor z = -1
    x, y, _ = scene.camera().project(below, size)
    shadowed = linear(picture[int(y), int(x)])
    far = linear(picture[0, 0])
    np.testing.assert_allclose(shadowed, far, atol=0.01)
    x, y, _ = scene.camera().project(below - [0, 0.6, 0], size)
    added = (linear(picture[int(y), int(x)]) - far) / np.array(colorsys.hsv_to_rgb(0.4, 0.6, 0.6))
    found = colorsys.rgb_to_hsv(*np.maximum(added, 0))
    assert min(abs(found[0] - hue), 1 - abs(found[0] - hue)) < 0.02
    assert found[1] > 0.9
    assert found[2] > 0.1


def test_a_ball_is_as_large_as_it_is_seen() -> None:
    """A ball of radius 0.6 at 2.5: seen under asin(0.6 / 2.5), and the picture's half under atan(18 / 50)."""
    corners = scene.OBJECT_RADIUS * white(meshes.TRIANGLES["sphere"]()).corners
    covered = scene.cover(scene.camera().project(corners, 300), 300)
    radius = 300 * 50 / 36 * np.tan(np.arcsin(0.6 / 2.5))
    assert covered.sum() == pytest.approx(np.pi * radius**2, rel=5e-3)


@pytest.mark.parametrize("name", solids.CLASS_NAMES)
def test_the_pose_shows_whatever_the_symmetry(name: str) -> None:
    """Turns that map all or some of these solids onto themselves change the picture of every one of them."""
    solid = meshes.solid_object(name, uniforms((1, meshes.OBJECT_DRAWS), "test", name)[0])
    upright = view(solid, floor_hue=0.3, spot_hue=0.1).astype(int)
    for turn in (
        {"roll": np.pi / 2},
        {"roll": -np.pi / 2},
        {"yaw": np.pi / 2},
        {"pitch": np.pi / 2},
        {"yaw": 1, "roll": -1},
    ):
        turned = view(solid, floor_hue=0.3, spot_hue=0.1, **turn).astype(int)
        assert (np.abs(turned - upright).max(axis=2) > 25).mean() > 0.04
    again = view(solid, floor_hue=0.3, spot_hue=0.1).astype(int)
    np.testing.assert_array_equal(again, upright)
