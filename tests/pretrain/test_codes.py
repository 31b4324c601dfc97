"""SIE's two codes of the transformations between the views, against their definitions (docs/protocol.md 6.5)."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from equibench.baselines.sie import HypernetworkPredictor, code_size, transformation_code
from torch import Tensor

from equibench.pretrain.method import ViewPair
from equibench.transforms.transformation import BUILT_IN, TRANSFORMATIONS

Array = np.ndarray
ALL = BUILT_IN
standardised = partial(transformation_code, code="standardised")


def views_with(theta: dict[str, Tensor], known: dict[str, Tensor] | None = None) -> ViewPair:
    count = len(next(iter(theta.values())))
    nothing = torch.zeros(count, 3, 1, 1)
    everything = {name: torch.ones(count, dtype=torch.bool) for name in theta}
    return ViewPair(nothing, nothing, theta, known or everything, torch.ones(1, 1))


def coded(name: str, theta: Array) -> Tensor:
    return torch.from_numpy(TRANSFORMATIONS[name].encode(theta, 32)).float()


def drawn(name: str, count: int) -> Array:
    u = np.random.default_rng(9).random((count, TRANSFORMATIONS[name].uniforms))
    return TRANSFORMATIONS[name].draw(u, 32)


# Phases

TURN = 0.8 * np.pi
ANGLES = {  # by transformation: θ, and the angle of each parameter
    "rotation": ([[-45.0], [0.0], [22.5]], [[-TURN], [0], [TURN / 2]]),
    "translation": ([[4.0, -1.0], [0.0, 0.0]], [[TURN, -TURN / 4], [0, 0]]),
    "color": ([[0.4, -0.2, 0.0, 0.1]], [[TURN, -TURN / 2, 0, TURN]]),
    "blur": ([[2.0], [1.0], [0.0]], [[2 * TURN], [TURN], [0]]),
    "hues": ([[0.25, -0.5], [-0.75, 0.5]], [[np.pi / 2, np.pi], [np.pi / 2, np.pi]]),
}


@pytest.mark.parametrize("name", ANGLES)
def test_a_phase_is_linear_in_the_parameter_and_0_at_the_identity(name: str) -> None:
    theta, angle = map(np.array, ANGLES[name])
    code = transformation_code(views_with({name: coded(name, theta)}), (name,))
    assert code.shape[1] == code_size((name,)) == 2 * len(TRANSFORMATIONS[name].parameters)
    np.testing.assert_allclose(code, np.concatenate([np.cos(angle), np.sin(angle)], axis=1), atol=1e-3)


def test_a_flip_is_plus_or_minus_one() -> None:
    code = transformation_code(views_with({"flip": coded("flip", np.array([[0.0], [1.0]]))}), ("flip",))
    np.testing.assert_allclose(code, [[1], [-1]], atol=1e-6)
    assert code_size(("flip",)) == 1


def test_a_pose_is_its_quaternion_and_the_identity_where_unknown() -> None:
    q = np.array([[0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, 0.5]])
    views = views_with({"pose": coded("pose", q)}, {"pose": torch.tensor([True, False])})
    np.testing.assert_allclose(transformation_code(views, ("pose",)), [q[0], [0, 0, 0, 1]])


@pytest.mark.parametrize("name", [*ALL, "hues"])
def test_what_is_not_known_is_coded_as_the_identity(name: str) -> None:
    identity = np.array([TRANSFORMATIONS[name].identity] * 50)
    theta = {name: coded(name, drawn(name, 50))}
    unknown = transformation_code(views_with(theta, {name: torch.zeros(50, dtype=torch.bool)}), (name,))
    expected = transformation_code(views_with({name: coded(name, identity)}), (name,))
    torch.testing.assert_close(unknown, expected, atol=1e-6, rtol=0)
    parameters = len(TRANSFORMATIONS[name].parameters)
    assert (unknown[:, :parameters] == 1).all()
    assert (unknown[:, parameters:] == 0).all()


@pytest.mark.parametrize("name", ALL)
def test_no_fixed_combination_of_phases_is_a_constant(name: str) -> None:
    """Else W(z) could be the same whatever the code, as it can where an entry is 1 or hardly varies."""

    def distance_from_constant(code: Array) -> float:
        weights, *_ = np.linalg.lstsq(code, np.ones(len(code)), rcond=None)
        return float(np.mean(np.square(code @ weights - 1)))

    views = views_with({name: coded(name, drawn(name, 5000))})
    assert distance_from_constant(transformation_code(views, (name,)).numpy()) > 0.05
    assert distance_from_constant(standardised(views, (name,)).numpy()) < 0.01


def test_phases_of_several_stand_beside_each_other() -> None:
    theta = {name: coded(name, drawn(name, 6)) for name in ALL}
    code = transformation_code(views_with(theta), ALL)
    each = [transformation_code(views_with({name: theta[name]}), (name,)) for name in ALL]
    assert torch.equal(code, torch.cat(each, dim=1))
    assert code.shape[1] == code_size(ALL) == 25


# The standardised code


def test_standardised_code_of_a_rotation_is_cosine_and_sine() -> None:
    degrees = np.array([[-45.0], [0.0], [10.0], [30.0]])
    code = standardised(views_with({"rotation": coded("rotation", degrees)}), ("rotation",))
    expected = np.concatenate([np.cos(np.pi * degrees / 180), np.sin(np.pi * degrees / 180)], axis=1)
    np.testing.assert_allclose(code, expected, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in ALL if name != "rotation"])
def test_standardised_code_of_anything_else_is_standardised_with_a_constant(name: str) -> None:
    code = standardised(views_with({name: coded(name, drawn(name, 20_000))}), (name,)).numpy()
    assert code.shape[1] == code_size((name,), "standardised") == len(TRANSFORMATIONS[name].parameters) + 1
    np.testing.assert_allclose(code[:, :-1].mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(code[:, :-1].std(axis=0), 1, atol=0.02)
    np.testing.assert_array_equal(code[:, -1], 1)


def test_standardised_code_of_a_uniform_parameter_is_the_closed_form() -> None:
    sigma = np.array([[0.1], [1.05], [2.0]])
    code = standardised(views_with({"blur": coded("blur", sigma)}), ("blur",))
    np.testing.assert_allclose(code[:, 0], [-np.sqrt(3), 0, np.sqrt(3)], atol=0.02)


def test_standardised_code_of_what_was_not_drawn_is_zero() -> None:
    theta = {name: coded(name, drawn(name, 6)) for name in ALL}
    known = {name: torch.arange(6) == number for number, name in enumerate(ALL)}
    code = standardised(views_with(theta, known), ALL)
    assert code.shape == (6, code_size(ALL, "standardised"))
    everything = standardised(views_with(theta), ALL)
    widths = [2 if name == "rotation" else len(TRANSFORMATIONS[name].parameters) for name in ALL]
    owner = np.repeat(np.arange(6), widths)
    for row in range(6):
        mine = torch.from_numpy(np.append(owner == row, True))
        assert torch.equal(code[row], torch.where(mine, everything[row], 0.0))


def test_standardised_code_of_a_pose_is_its_quaternion_and_nothing_else() -> None:
    q = np.array([[0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 1.0]])
    assert code_size(("pose",), "standardised") == 4
    code = standardised(views_with({"pose": coded("pose", q)}), ("pose",))
    np.testing.assert_allclose(code, q)
    with_hues = standardised(
        views_with({"pose": coded("pose", q), "hues": coded("hues", np.array([[0.5, 0.0], [0.0, -0.5]]))}),
        ("pose", "hues"),
    )
    assert with_hues.shape == (2, code_size(("pose", "hues"), "standardised")) == (2, 6)
    # differences of two uniform hues have a variance of 1/6
    np.testing.assert_allclose(with_hues[:, 4:], np.array([[0.5, 0.0], [0.0, -0.5]]) * np.sqrt(6), atol=0.02)


@pytest.mark.parametrize("names", [("rotation",), ("blur",), ("crop",), ALL])
def test_standardised_predictor_can_be_the_identity_when_nothing_happens(names: tuple[str, ...]) -> None:
    theta = {name: coded(name, np.array([TRANSFORMATIONS[name].identity] * 3)) for name in names}
    code = standardised(views_with(theta), names)
    torch.manual_seed(0)
    predictor, x = HypernetworkPredictor(code_size(names, "standardised"), 4), torch.randn(3, 4)
    # cos 0 = 1 for a rotation alone, else the constant; the others stay arbitrary
    pivot = 0 if names == ("rotation",) else -1
    assert (code[:, pivot] == 1).all()
    rest = code[0].clone()
    rest[pivot] = 0
    with torch.no_grad():
        predictor.basis[pivot] = torch.eye(4) - torch.einsum("k,koi->oi", rest, predictor.basis)
    torch.testing.assert_close(predictor(x, code), x, atol=1e-5, rtol=0)
