"""The camera and the z-buffer against closed forms, scipy's rotations and a test of every sample by its signs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from equibench.render import scene


def random_triangles(count: int, side: int, seed: int = 0) -> np.ndarray:
    """(count, 3, 3) in a picture, some of them partly outside, some long and thin."""
    rng = np.random.default_rng(seed)
    middle = rng.uniform(-0.1 * side, 1.1 * side, (count, 1, 2))
    spread = rng.uniform(0.2, 0.4 * side, (count, 1, 2)) * rng.normal(size=(count, 3, 2))
    return np.concatenate([middle + spread, rng.uniform(0.2, 1.0, (count, 3, 1))], axis=-1)


def inside(corners: np.ndarray, side: int) -> np.ndarray:
    """(F, side, side) bool: the sample lies on the same side of all three edges, one triangle and sample at a time."""
    x, y = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
    found = np.empty((len(corners), side, side), bool)
    for number, triangle in enumerate(corners):
        signs = []
        for k in range(3):
            (x0, y0), (x1, y1) = triangle[k, :2], triangle[(k + 1) % 3, :2]
            signs.append((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0))
        found[number] = np.all(np.array(signs) > 0, axis=0) | np.all(np.array(signs) < 0, axis=0)
    return found


def test_coverage_is_that_of_every_sample_tested_by_itself() -> None:
    corners = random_triangles(60, 40)
    reference = inside(corners, 40)
    for triangle, expected in zip(corners, reference, strict=True):
        np.testing.assert_array_equal(scene.cover(triangle[None], 40), expected)
    np.testing.assert_array_equal(scene.cover(corners, 40), reference.any(axis=0))


def test_batches_do_not_change_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    corners = random_triangles(80, 50)
    whole = scene.see(corners, 50)
    monkeypatch.setattr(scene, "_BATCH", 100)
    cut = scene.see(corners, 50)
    for one, other in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_nearest_triangle_is_seen() -> None:
    """Against solving, at each sample, for the point of each triangle's plane in space."""
    side, eye = 32, scene.camera()
    rng = np.random.default_rng(3)
    world = rng.uniform(-0.6, 0.6, (25, 3, 3))
    samples, faces, weights = scene.see(eye.project(world, side), side)
    shown = np.full(side * side, -1)
    shown[samples] = faces
    rays = eye.rays(side).reshape(-1, 3)
    depth = np.full((len(world), side * side), np.inf)
    for number, (a, b, c) in enumerate(world):
        # position + t ray = a + u (b - a) + v (c - a)
        for sample, ray in enumerate(rays):
            t, u, v = np.linalg.solve(np.stack([ray, a - b, a - c], axis=1), a - eye.position)
            if min(u, v, 1 - u - v) >= 0:
                depth[number, sample] = t
    expected = np.where(np.isfinite(depth.min(axis=0)), depth.argmin(axis=0), -1)
    np.testing.assert_array_equal(shown, expected)
    assert (expected >= 0).sum() > 200
    # and the point seen is the one that the ray meets
    points = np.einsum("nk,nkc->nc", weights, world[faces])
    met = eye.position + rays[samples] * depth.min(axis=0)[samples, None]
    np.testing.assert_allclose(points, met, atol=1e-9)


def test_a_near_triangle_hides_a_far_one_in_either_order() -> None:
    big = np.array([[2.0, 2, 0.5], [28, 2, 0.5], [2, 28, 0.5]])
    small = np.array([[4.0, 4, 0.9], [12, 4, 0.9], [4, 12, 0.9]])
    for order in ((big, small), (small, big)):
        samples, faces, _ = scene.see(np.stack(order), 30)
        shown = np.full((30, 30), -1)
        shown.flat[samples] = faces
        assert order[shown[6, 6]] is small
        assert order[shown[3, 20]] is big


def test_area_of_a_triangle() -> None:
    triangle = np.array([[[31.3, 40.2, 1.0], [401.7, 77.9, 1.0], [118.4, 433.6, 1.0]]])
    (x0, y0), (x1, y1), (x2, y2) = triangle[0, :, :2]
    exact = abs(x0 * (y1 - y2) + x1 * (y2 - y0) + x2 * (y0 - y1)) / 2
    assert scene.cover(triangle, 512).sum() == pytest.approx(exact, rel=2e-3)


def test_triangles_that_share_edges_leave_no_gap_and_no_overlap() -> None:
    """A fan over a square whose corners and centre lie on samples: each sample once, save those on an edge."""
    centre, corners = (
        np.array([16.5, 16.5, 1]),
        np.array([[4.5, 4.5, 1], [28.5, 4.5, 1], [28.5, 28.5, 1], [4.5, 28.5, 1]]),
    )
    fan = np.stack([np.stack([centre, corners[k], corners[(k + 1) % 4]]) for k in range(4)])
    assert scene.cover(fan, 33).sum() == 25 * 25
    assert len(scene.see(fan, 33)[0]) == 25 * 25
    shifted = fan + [0.123, 0.321, 0]
    assert sum(scene.cover(one[None], 33).sum() for one in shifted) == scene.cover(shifted, 33).sum() == 24 * 24


def test_edge_on_behind_and_outside_are_not_drawn() -> None:
    on_edge = [[3.0, 3, 1], [9, 9, 1], [15, 15, 1]]
    behind = [[3.0, 3, 1], [9, 3, -1], [3, 9, 1]]
    infinite = [[3.0, 3, 1], [np.inf, 3, 1], [3, 9, 1]]
    outside = [[-30.0, -30, 1], [-9, -30, 1], [-30, -9, 1]]
    assert not scene.cover(np.array([on_edge, behind, infinite, outside]), 16).any()
    assert len(scene.see(np.empty((0, 3, 3)), 16)[0]) == 0


def test_known_points_through_the_published_camera() -> None:
    """It stands 2.5 from the origin at 45 degrees, sees the origin in the middle and z upwards; 36 mm : 50 mm."""
    eye, side = scene.camera(), 200
    np.testing.assert_allclose(eye.position, [0, 2.5 / np.sqrt(2), 2.5 / np.sqrt(2)])
    np.testing.assert_allclose(eye.project(np.zeros(3), side), [100, 100, 1 / 2.5])
    # right in the picture is -x, for the camera looks along -y; a point of the plane through the origin that faces it
    half = 2.5 * 18 / 50
    np.testing.assert_allclose(eye.project(np.array([-half, 0, 0]), side)[:2], [200, 100])
    np.testing.assert_allclose(eye.project(np.array([0, -half, half]) / np.sqrt(2), side)[:2], [100, 0], atol=1e-9)
    # one unit towards the camera along the line of sight
    np.testing.assert_allclose(eye.project(eye.position / 2.5, side), [100, 100, 1 / 1.5])
    np.testing.assert_allclose(eye.axes @ eye.axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(eye.axes) == pytest.approx(-1)  # right, up and the line of sight are left-handed
    assert eye.axes[1, 2] > 0


@pytest.mark.parametrize("point", [(0.3, -0.2, 0.4), (-0.5, 0.1, -0.1), (0.0, 0.4, 0.3)])
def test_a_tiny_triangle_is_drawn_where_the_closed_form_says(point: tuple[float, float, float]) -> None:
    side, p = 400, np.array(point)
    position = np.array([0, 2.5 / np.sqrt(2), 2.5 / np.sqrt(2)])
    depth = 2.5 - p @ position / 2.5
    up = (p[2] - p[1]) / np.sqrt(2)
    x = side * (0.5 + 50 / 36 * -p[0] / depth)
    y = side * (0.5 - 50 / 36 * up / depth)
    tiny = p + 0.012 * np.array([[1, 0, 0], [-0.5, 0.6, -0.6], [-0.5, -0.6, 0.6]])
    rows, columns = np.nonzero(scene.cover(scene.camera().project(tiny[None], side), side))
    assert len(rows) > 4
    assert columns.mean() + 0.5 == pytest.approx(x, abs=0.5)
    assert rows.mean() + 0.5 == pytest.approx(y, abs=0.5)


def test_the_object_turns_as_scipy_says() -> None:
    """By hand: extrinsic about x, then y, then z is Rz Ry Rx; and turning the camera back shows the same."""
    yaw, pitch, roll = latents = np.array([0.4, -1.1, 0.9])
    (cx, sx), (cy, sy), (cz, sz) = ((np.cos(a), np.sin(a)) for a in (yaw, pitch, roll))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    rotation = scene.object_rotation(np.concatenate([latents, np.zeros(4)]))
    np.testing.assert_allclose(rotation.as_matrix(), about_z @ about_y @ about_x, atol=1e-12)
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 3))
    eye = scene.camera()
    turned_back = scene.Camera(rotation.inv().apply(eye.position), Rotation.inv(rotation).apply(eye.axes), eye.focal)
    np.testing.assert_allclose(eye.project(rotation.apply(points), 100), turned_back.project(points, 100), atol=1e-9)


def test_rays_and_projection_are_inverse() -> None:
    eye, side = scene.camera(), 24
    points = eye.position + 3.1 * eye.rays(side)
    x, y = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
    np.testing.assert_allclose(eye.project(points, side), np.stack([x, y, np.full_like(x, 1 / 3.1)], -1), atol=1e-9)
