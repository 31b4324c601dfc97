"""The generator against statements that do not come from its own distance functions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from equibench.data import solids
from equibench.errors import UserError


@pytest.fixture(scope="module")
def sample() -> solids.Solids:
    return solids.render_solids(200, seed=7)


def surface(name: str, count: int = 60_000) -> np.ndarray:
    """(count, 3) points on a solid's surface, from its parametric form."""
    rng = np.random.default_rng(0)
    ball = rng.normal(size=(count, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    turn, along, across = rng.uniform(0, 2 * np.pi, count), rng.uniform(-1, 1, count), rng.uniform(size=count)
    circle = np.stack([np.cos(turn), np.sin(turn)], 1)
    if name == "sphere":
        return ball
    if name == "ellipsoid":
        return ball * solids.ELLIPSOID_AXES
    if name in ("cube", "box"):
        cube = ball / np.abs(ball).max(1, keepdims=True)
        return cube * (solids.CUBE_HALF if name == "cube" else solids.BOX_HALF)
    if name == "octahedron":
        return ball / np.abs(ball).sum(1, keepdims=True)
    if name == "tetrahedron":
        corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
        weights = rng.dirichlet(np.ones(3), count)
        faces = np.array([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]])[rng.integers(4, size=count)]
        return np.einsum("nk,nkd->nd", weights, corners[faces])
    side = np.arange(count) % 2 == 0
    if name == "cylinder":
        radius, half = solids.CYLINDER
        reach = np.where(side, 1, np.sqrt(across)) * radius
        return np.column_stack([circle * reach[:, None], half * np.where(side, along, np.sign(along))])
    if name == "cone":
        radius, base = solids.CONE
        reach = np.sqrt(across)
        height = np.where(side, 1 - reach * (1 - base), base)
        return np.column_stack([circle * (radius * reach)[:, None], height])
    if name == "capsule":
        radius, half = solids.CAPSULE
        ends = ball * radius + np.sign(ball[:, 2:]) * [0, 0, half]
        return np.where(side[:, None], np.column_stack([circle * radius, half * along]), ends)
    assert name == "torus"
    ring, tube = solids.TORUS
    angle = np.pi * along
    return np.column_stack([circle * (ring + tube * np.cos(angle))[:, None], tube * np.sin(angle)])


def test_slices_and_repeats_agree() -> None:
    whole = solids.render_solids(12, seed=3, start=5)
    parts = [solids.render_solids(7, seed=3, start=5), solids.render_solids(5, seed=3, start=12)]
    for field in ("images", "labels", "pose", "hue", "masks"):
        joined = np.concatenate([getattr(part, field) for part in parts])
        np.testing.assert_array_equal(getattr(whole, field), joined)
    assert not np.array_equal(whole.images, solids.render_solids(12, seed=4, start=5).images)
    assert solids.render_solids(0).images.shape == (0, 3, 32, 32)


def test_shapes_and_types(sample: solids.Solids) -> None:
    assert sample.images.shape == (200, 3, 32, 32)
    assert sample.images.dtype == np.uint8
    assert sample.labels.dtype == np.int64
    assert (sample.pose.shape, sample.pose.dtype) == ((200, 4), np.float32)
    assert (sample.hue.shape, sample.hue.dtype) == ((200, 2), np.float32)
    assert (sample.masks.shape, sample.masks.dtype) == ((200, 32, 32), bool)
    assert len(solids.CLASS_NAMES) == 10
    assert sample.hue.min() >= 0
    assert sample.hue.max() < 1


def test_classes_are_balanced_and_not_in_a_fixed_order(sample: solids.Solids) -> None:
    np.testing.assert_array_equal(np.bincount(sample.labels), np.full(10, 20))
    orders = sample.labels.reshape(-1, 10)
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(10), (20, 1)))
    assert len(np.unique(orders, axis=0)) > 15


def test_poses_are_uniform_rotations() -> None:
    pose = np.stack([solids.draw_scene(0, index).pose for index in range(3000)])
    np.testing.assert_allclose(np.linalg.norm(pose, axis=1), 1, atol=1e-12)
    # Uniform on SO(3): no direction of the four-dimensional sphere is preferred, and the angle of rotation
    # has the density (1 - cos a) / pi.
    np.testing.assert_allclose(pose.T @ pose / len(pose), np.eye(4) / 4, atol=0.02)
    angle = np.sort(Rotation.from_quat(pose).magnitude())
    expected = (angle - np.sin(angle)) / np.pi
    assert np.abs(expected - (np.arange(len(angle)) + 0.5) / len(angle)).max() < 1.63 / np.sqrt(len(angle))


@pytest.mark.parametrize("name", solids.CLASS_NAMES)
def test_mask_is_the_projection_of_the_posed_surface(name: str) -> None:
    size, label = 64, solids.CLASS_NAMES.index(name)
    points = surface(name)
    for index in range(20):  # some of these look along a flat face
        scene = replace(solids.draw_scene(11, index), label=label)
        x, y, z = (Rotation.from_quat(scene.pose).apply(points) * scene.radius).T
        depth = solids.CAMERA_DISTANCE / (solids.CAMERA_DISTANCE - z)
        column = np.floor((1 + (x + scene.centre[0]) * depth) * size / 2).astype(int)
        row = np.floor((1 - (y + scene.centre[1]) * depth) * size / 2).astype(int)
        assert min(column.min(), row.min()) >= 0, "the solid leaves the picture"
        assert max(column.max(), row.max()) < size, "the solid leaves the picture"
        seen = np.zeros((size, size), bool)
        seen[row, column] = True
        mask = solids.render_scene(scene, size)[1]
        # A sharp corner may be thinner than the half pixel that the mask asks for.
        assert (seen & ~ndimage.binary_dilation(mask)).sum() <= 1
        assert not (seen & ~ndimage.binary_dilation(mask, iterations=2)).any()
        assert not (ndimage.binary_erosion(mask) & ~seen).any()


def test_sphere_covers_the_disc_it_is_seen_under() -> None:
    size = 96
    side = (np.arange(size) + 0.5) * 2 / size - 1
    for index in range(5):
        scene = replace(solids.draw_scene(2, index), label=0)
        ray = np.stack(np.broadcast_arrays(side[None], -side[:, None], -solids.CAMERA_DISTANCE), -1)
        towards = np.array([*scene.centre, -solids.CAMERA_DISTANCE])
        cosine = ray @ towards / np.linalg.norm(ray, axis=-1) / np.linalg.norm(towards)
        disc = np.arccos(cosine) < np.arcsin(scene.radius / np.linalg.norm(towards))
        mask = solids.render_scene(scene, size)[1]
        assert abs(int(mask.sum()) - int(disc.sum())) < 0.02 * disc.sum()
        assert not (mask ^ disc)[~(ndimage.binary_dilation(disc) ^ ndimage.binary_erosion(disc))].any()


def test_quarter_turn_of_a_cube_keeps_its_mask_but_not_its_picture() -> None:
    scene = replace(solids.draw_scene(5, 0), label=solids.CLASS_NAMES.index("cube"))
    picture, mask = solids.render_scene(scene, 64)
    for axis in "xyz":
        turned = Rotation.from_quat(scene.pose) * Rotation.from_euler(axis, 90, degrees=True)
        other, other_mask = solids.render_scene(replace(scene, pose=turned.as_quat()), 64)
        assert (mask ^ other_mask).sum() <= 2  # rounding may decide a grazing ray
        assert np.abs(picture.astype(int) - other)[:, mask].mean() > 5


@pytest.mark.parametrize("texture", [0, 1, 2])
def test_pose_of_a_sphere_can_be_seen(texture: int) -> None:
    scene = replace(solids.draw_scene(5, 1), label=0, texture=texture, ambient=1.0)
    pictures = [
        solids.render_scene(replace(scene, pose=rotation.as_quat()), 32)[0].astype(int)
        for rotation in Rotation.create_group("O")
    ]
    for first in range(24):
        for second in range(first):
            assert np.abs(pictures[first] - pictures[second]).mean() > 0.5


def test_light_falls_from_where_it_stands() -> None:
    scene = replace(solids.draw_scene(5, 2), label=0, centre=(0.0, 0.0), pose=np.array([0, 0, 0, 1.0]))
    upper, mask = solids.render_scene(replace(scene, light=np.array([0, 1.0, 0])), 64)
    lower, _ = solids.render_scene(replace(scene, light=np.array([0, -1.0, 0])), 64)
    change = upper.sum(0).astype(int) - lower.sum(0).astype(int)
    assert change[:30][mask[:30]].mean() > 50
    assert change[34:][mask[34:]].mean() < -50


def test_hues_show(sample: solids.Solids) -> None:
    def hue_of(pixels: np.ndarray) -> np.ndarray:
        red, green, blue = pixels.astype(float)
        return np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * np.pi)

    def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.abs((a - b + 0.5) % 1 - 0.5)

    inner = [ndimage.binary_erosion(mask) for mask in sample.masks]
    outer = [~ndimage.binary_dilation(mask) for mask in sample.masks]
    means = [np.stack([image[:, part].mean(1) for image, part in zip(sample.images, parts, strict=True)])
             for parts in (inner, outer)]  # fmt: skip
    for place in (0, 1):
        assert np.median(apart(hue_of(means[place].T), sample.hue[:, place])) < 0.05
    assert apart(sample.hue[:, 0], sample.hue[:, 1]).min() >= 0.149
    distance = np.linalg.norm(means[0] - means[1], axis=1)
    assert (distance > 15).mean() > 0.97


def test_background_does_not_depend_on_the_object() -> None:
    scene = solids.draw_scene(9, 0)
    one, first = solids.render_scene(replace(scene, label=0), 32)
    two, second = solids.render_scene(replace(scene, label=6, pose=np.array([0, 0, 0, 1.0])), 32)
    outside = ~ndimage.binary_dilation(first | second, iterations=2)
    assert outside.any()
    np.testing.assert_array_equal(one[:, outside], two[:, outside])
    assert one[:, outside].std(axis=1).max() > 3


def test_sizes_show_the_same_scene() -> None:
    small, large = solids.render_solids(10, size=32), solids.render_solids(10, size=64)
    np.testing.assert_array_equal(small.labels, large.labels)
    halved = large.images.reshape(10, 3, 32, 2, 32, 2).mean((3, 5))
    assert np.abs(halved - small.images).mean() < 3


@pytest.mark.parametrize("bad", [{"count": -1}, {"size": 0}, {"seed": -1}, {"start": -1}])
def test_numbers_out_of_range(bad: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        solids.render_solids(**({"count": 1} | bad))
