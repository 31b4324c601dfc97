"""Errors of poses against SciPy's rotations; what guessing gives, against simulation, quadrature and the protocol."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from equibench.metrics.regression import (
    RANDOM_RETRIEVAL_ERROR,
    Targets,
    absolute_quaternion,
    geodesic_degrees,
    in_units,
    pose_retrieval_error,
    r2_pooled,
)
from equibench.records import Metric
from equibench.transforms.transformation import TRANSFORMATIONS, hues_between, pose_between

LOW = np.array([-np.pi / 2] * 3 + [0.0] * 4)
HIGH = np.array([np.pi / 2] * 3 + [1, np.pi / 4, 2 * np.pi, 1])


def draw_latents(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(LOW, HIGH, size=(count, 7))


def measured(name: str, truth: np.ndarray, predicted: np.ndarray) -> dict[str, Metric]:
    return in_units(Targets(TRANSFORMATIONS[name], 32, truth, truth.mean(axis=0), truth.std(axis=0)), predicted)


def axis(place: int, angles: np.ndarray) -> np.ndarray:
    """Matrices (N, 3, 3) that turn about one axis, written out."""
    c, s, matrix = np.cos(angles), np.sin(angles), np.zeros((len(angles), 3, 3))
    one, other = (place + 1) % 3, (place + 2) % 3
    matrix[:, place, place] = 1
    matrix[:, one, one] = matrix[:, other, other] = c
    matrix[:, one, other], matrix[:, other, one] = -s, s
    return matrix


def matrices(latents: np.ndarray) -> np.ndarray:
    """Extrinsic xyz: about the fixed x axis first, then y, then z."""
    return axis(2, latents[:, 2]) @ axis(1, latents[:, 1]) @ axis(0, latents[:, 0])


def test_absolute_poses_are_the_product_of_three_turns() -> None:
    latents = draw_latents(200, 0)
    np.testing.assert_allclose(
        Rotation.from_quat(absolute_quaternion(latents)).as_matrix(), matrices(latents), atol=1e-12
    )


def test_relative_poses_and_hues_are_the_published_targets() -> None:
    one, other = draw_latents(200_000, 1), draw_latents(200_000, 2)
    relative = pose_between(one, other)
    few = slice(0, 200)
    expected = matrices(one[few]).transpose(0, 2, 1) @ matrices(other[few])
    np.testing.assert_allclose(Rotation.from_quat(relative[few]).as_matrix(), expected, atol=1e-12)
    assert (relative[:, 3] < 0).mean() == pytest.approx(0.044, abs=0.002), "signs are left as they come"
    hues = hues_between(one, other)
    np.testing.assert_array_equal(hues, np.stack([other[:, 3] - one[:, 3], other[:, 6] - one[:, 6]], axis=1))
    assert np.abs(hues).max() > 0.9, "not wrapped"


def test_a_constant_reaches_the_protocols_pooled_r2() -> None:
    relative = pose_between(draw_latents(200_000, 3), draw_latents(200_000, 4))
    constant = np.broadcast_to(relative.mean(axis=0), relative.shape)
    assert r2_pooled(relative, constant) == pytest.approx(0.229, abs=0.01)
    np.testing.assert_allclose(relative.mean(axis=0), [0, 0, 0, 0.533], atol=0.01)
    np.testing.assert_allclose(relative.var(axis=0), [0.209, 0.209, 0.209, 0.090], atol=0.01)


def test_geodesic_error_is_the_magnitude_of_the_rotation_between() -> None:
    truth, guess = Rotation.random(500, random_state=0), Rotation.random(500, random_state=1)
    expected = np.rad2deg((truth.inv() * guess).magnitude())
    lengths = np.random.default_rng(2).uniform(-3, 3, size=(500, 1))  # either sign, any length
    np.testing.assert_allclose(geodesic_degrees(truth.as_quat(), guess.as_quat() * lengths), expected, atol=1e-10)
    np.testing.assert_allclose(geodesic_degrees(-truth.as_quat(), guess.as_quat()), expected, atol=1e-10)


def test_geodesic_error_keeps_its_digits_at_both_ends() -> None:
    truth = Rotation.random(4, random_state=0)
    angles = np.array([0, 1e-6, 1e-3, 180.0])
    turned = truth * Rotation.from_rotvec(np.deg2rad(angles)[:, None] * [0.6, 0.0, 0.8])
    np.testing.assert_allclose(geodesic_degrees(truth.as_quat(), turned.as_quat()), angles, rtol=1e-8, atol=1e-12)
    assert geodesic_degrees(truth.as_quat(), np.zeros((4, 4))).tolist() == [180] * 4
    assert np.isnan(geodesic_degrees([0, 0, 0, 1], [0, 0, np.nan, 1]))


def test_pose_scores_are_means_over_seeds() -> None:
    truth = Rotation.random(5, random_state=0)
    off = np.array([[0, 14.9, 15.1, 29.9, 30.1], [10, 20, 40, 100, 180]])
    predicted = np.stack(
        [2 * (truth * Rotation.from_rotvec(np.deg2rad(d)[:, None] * [0, 1, 0])).as_quat() for d in off]
    )
    found = {name: metric.value for name, metric in measured("pose", truth.as_quat(), predicted).items()}
    expected = {"degrees_mean": off.mean(), "acc_at_15": 0.3, "acc_at_30": 0.6, "degrees_median": (15.1 + 40) / 2}
    assert found == pytest.approx(expected)


def test_hue_errors_go_the_shorter_way_round() -> None:
    truth = np.array([[0.9, -0.3], [0.1, 0.5]])
    predicted = np.array([[[-0.05, -0.3], [0.1, -0.5]], [[0.9, 0.1], [1.0, 0.25]]])
    found = {name: metric.value for name, metric in measured("hues", truth, predicted).items()}
    floor, spot = 0.05 + 0 + 0 + 0.1, 0 + 0.4 + 0 + 0.25
    expected = {"floor_hue_mean": floor / 4, "spot_hue_mean": spot / 4, "hue_mean": (floor + spot) / 8}
    assert found == pytest.approx(expected)


def test_retrieval_error_is_that_of_the_angle_between() -> None:
    one, other = Rotation.random(100, random_state=0), Rotation.random(100, random_state=1)
    errors = pose_retrieval_error(one.as_quat(), -other.as_quat())
    np.testing.assert_allclose(errors, np.sin((one.inv() * other).magnitude() / 2) ** 2, atol=1e-12)
    np.testing.assert_allclose(pose_retrieval_error(one.as_quat(), one.as_quat()), 0, atol=1e-12)


def test_the_retrieval_error_of_guessing() -> None:
    """By quadrature over the three angles: the mean of <q, p>² is the squared length of the mean of q q^T."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    grid = np.stack(np.meshgrid(nodes, nodes, nodes), axis=-1).reshape(-1, 3) * np.pi / 2
    share = np.prod(np.stack(np.meshgrid(weights, weights, weights), axis=-1).reshape(-1, 3) / 2, axis=1)
    quaternions = absolute_quaternion(np.pad(grid, ((0, 0), (0, 4))))
    moment = np.einsum("n,ni,nj->ij", share, quaternions, quaternions)
    assert pytest.approx(1 - np.square(moment).sum(), abs=1e-10) == RANDOM_RETRIEVAL_ERROR
    drawn = [absolute_quaternion(draw_latents(200_000, seed)) for seed in (5, 6)]
    assert pose_retrieval_error(*drawn).mean() == pytest.approx(RANDOM_RETRIEVAL_ERROR, abs=0.002)
    assert pytest.approx(0.627, abs=5e-4) == RANDOM_RETRIEVAL_ERROR  # docs/protocol.md 8.7
