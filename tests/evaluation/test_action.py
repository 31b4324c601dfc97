"""The closed-form action on encoders that are exactly equivariant, exactly invariant, or random."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from equibench.evaluation import action as module
from equibench.evaluation.action import Action, Triple, action_ratios, basis, composition_error, fit_action
from equibench.transforms.transformation import BUILT_IN, TRANSFORMATIONS

FREQUENCIES = np.array([0, 1, 1, 2])
EIGHT = 2 * len(FREQUENCIES)


def turned(codes: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """ρ(θ) f for codes (N, 8): planes turned by 0, 1, 1 and 2 times the angles (N, 1)."""
    planes = codes.reshape(len(codes), -1, 2)
    angle = np.deg2rad(degrees) * FREQUENCIES
    x, y = planes[..., 0], planes[..., 1]
    moved = np.stack([np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y], axis=2)
    return moved.reshape(len(codes), -1)


def mixed(codes: np.ndarray) -> np.ndarray:
    """An encoder's 20 features of the codes: a fixed linear map, an offset, and float32 as they are stored."""
    mix = np.random.default_rng(9).normal(size=(codes.shape[1], 20))
    return (codes @ mix + 3).astype(np.float32)


def equivariant(count: int, seed: int, angle: float = 45) -> Triple:
    rng = np.random.default_rng(seed)
    codes, theta = rng.normal(size=(count, EIGHT)) + 0.5, angle * rng.uniform(-1, 1, size=(count, 1))
    return Triple(mixed(codes), mixed(turned(codes, theta)), theta)


def invariant(count: int, seed: int) -> Triple:
    triple = equivariant(count, seed)
    return Triple(triple.first, triple.first, triple.theta)


def unrelated(count: int, seed: int) -> Triple:
    rng = np.random.default_rng(seed)
    return Triple(*rng.normal(size=(2, count, 10)), rng.uniform(-45, 45, size=(count, 1)))


def fitted(make: object, **options: object) -> Action:
    return fit_action(make(2000, 0, **options), make(500, 1, **options), (360.0,))  # type: ignore[operator]


def values(action: Action, test: Triple) -> dict[str, float]:
    ratios = action_ratios(action, test, identity=(0.0,), inverse=-test.theta)
    assert all(len(r.top) == len(r.bottom) == len(test.first) for r in ratios.values())
    return {name: ratio.value for name, ratio in ratios.items()}


@pytest.mark.parametrize("angle", [45, 180])
def test_equivariant_encoder(angle: float) -> None:
    action, test = fitted(equivariant, angle=angle), equivariant(1000, 2, angle)
    scores = values(action, test)
    assert action.project.explained == pytest.approx(1)
    assert scores["equivariance_r2"] == pytest.approx(1, abs=1e-3)
    assert scores["theta_gain"] > 0.99
    assert scores["r2_without_theta"] < 0.8
    assert scores["identity_r2"] < scores["r2_without_theta"] + 1e-9
    assert scores["identity_error"] < 1e-3
    assert scores["inverse_error"] < 1e-3


def test_without_theta_the_best_guess_is_the_mean_rotation() -> None:
    """Over ±180° only the planes of frequency 0 can be guessed: the share of their variance is R² without θ."""
    count = 4000
    rng = np.random.default_rng(0)
    codes, theta = rng.normal(size=(count, EIGHT)), rng.uniform(-180, 180, size=(count, 1))
    train = Triple(codes, turned(codes, theta), theta)
    action = fit_action(train, train, (360.0,))
    assert values(action, train)["r2_without_theta"] == pytest.approx(2 / EIGHT, abs=0.02)
    assert values(action, train)["identity_r2"] == pytest.approx(2 / EIGHT - (EIGHT - 2) / EIGHT, abs=0.05)


def test_composition() -> None:
    action, rng = fitted(equivariant, angle=180), np.random.default_rng(5)
    codes, one, two = rng.normal(size=(500, EIGHT)), *rng.uniform(-60, 60, size=(2, 500, 1))
    composed = mixed(turned(codes, one + two))
    assert composition_error(action, mixed(codes), one, two, composed).value < 1e-3
    assert composition_error(action, mixed(codes), one, -two, composed).value > 0.1


def test_invariant_encoder() -> None:
    scores = values(fitted(invariant), invariant(1000, 2))
    assert scores["equivariance_r2"] == pytest.approx(1, abs=1e-6)
    assert scores["identity_r2"] == 1
    assert scores["r2_without_theta"] == pytest.approx(1, abs=1e-6)
    assert scores["theta_gain"] == pytest.approx(0, abs=1e-4)
    assert scores["identity_error"] < 1e-6
    assert np.isnan(scores["inverse_error"])


def test_random_encoder() -> None:
    scores = values(fitted(unrelated), unrelated(1000, 2))
    # a fit to noise with all 55 coefficients would lose 55 / 2000; the penalty takes most of that away
    assert -0.03 < scores["equivariance_r2"] < 0.005
    assert -0.03 < scores["r2_without_theta"] < 0.005
    assert abs(scores["theta_gain"]) < 0.02
    assert scores["identity_r2"] == pytest.approx(-1, abs=0.06)  # 1 - 2 σ² / σ², ±3 / sqrt(10 000 / 4)
    assert scores["inverse_error"] == pytest.approx(0.5, abs=0.05)
    assert scores["identity_error"] == pytest.approx(1, abs=0.05)


def test_constant_encoder_has_no_scores() -> None:
    train = Triple(np.ones((100, 5)), np.ones((100, 5)), np.zeros((100, 1)))
    scores = values(fit_action(train, train), train)
    assert np.isnan([scores[name] for name in scores]).all()


def test_told_nothing_the_parameter_gives_nothing() -> None:
    """Shuffled θ: P falls back on the predictor without θ, and so does its score."""
    train, val, test = (equivariant(1000, seed) for seed in range(3))
    rng = np.random.default_rng(0)
    train, val, test = (Triple(t.first, t.second, rng.permutation(t.theta)) for t in (train, val, test))
    scores = values(fit_action(train, val, (360.0,)), test)
    assert abs(scores["theta_gain"]) < 0.03


@pytest.mark.parametrize("name", [*BUILT_IN, "pose"])
def test_linear_response_to_every_transformation(name: str) -> None:
    """f(g x) = f(x) + B θ is within the basis, whatever the number, range and periods of the parameters."""
    transformation = TRANSFORMATIONS[name]
    rng = np.random.default_rng(0)
    theta = transformation.draw(rng.random((1500, transformation.uniforms)), 32)
    first = rng.normal(size=(1500, 6))
    response = rng.normal(size=(theta.shape[1], 6)) / np.maximum(theta.std(axis=0), 1e-9)[:, None]
    second = first + theta @ response
    parts = [Triple(first[rows], second[rows], theta[rows]) for rows in np.split(np.arange(1500), [900, 1200])]
    action = fit_action(*parts[:2], transformation.periods)
    inverse = transformation.inverse(parts[2].theta) if transformation.inverse else None
    ratios = action_ratios(action, parts[2], identity=transformation.identity, inverse=inverse)
    assert ratios["equivariance_r2"].value > 0.999
    assert ratios["theta_gain"].value > 0.99


def test_few_pairs_get_few_components() -> None:
    triple = unrelated(40, 0)
    action = fit_action(triple, triple, (360.0,))
    assert action.weights.shape == (5, 8, 7)  # 5 functions of θ and 8 coefficients are 40 per output
    assert fit_action(unrelated(400, 0), triple, (360.0,), components=4).weights.shape == (5, 5, 4)


def test_basis_functions() -> None:
    theta = np.array([[0.25, 3.0, -1.0]])
    linear = [0, 1, 3, -1]  # cos and sin of a quarter turn, then the two others
    second = [-1, 0, 9, 1]
    products = [0, 0, 3, -1, -3]  # cos t₁ t₂, cos t₁ t₃, sin t₁ t₂, ... in the order of the pairs
    found = basis(theta, (1.0, 0.0, 0.0))[0]
    np.testing.assert_allclose(found[:9], [1, *linear, *second], atol=1e-12)
    np.testing.assert_allclose(np.sort(found[9:]), np.sort(products), atol=1e-12)
    np.testing.assert_array_equal(basis(theta[:, :1]), [[1, 0.25, 0.0625]])
    np.testing.assert_allclose(basis(np.array([[10.0]]), (360.0,)), basis(np.array([[370.0]]), (360.0,)))


def test_ridge_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    phi, z, y = rng.normal(size=(90, 3)), rng.normal(size=(90, 4)), rng.normal(size=(90, 2))
    weights, alpha = module._ridge((phi, z, y), (phi, z, y), [0.5])
    design = np.concatenate([phi[:, [k]] * np.c_[z, np.ones(90)] for k in range(3)], axis=1)
    theirs = Ridge(alpha=0.5 * 90, fit_intercept=False).fit(design, y)
    assert alpha == 0.5
    np.testing.assert_allclose(weights.reshape(15, 2), theirs.coef_.T, atol=1e-10)
    np.testing.assert_allclose(module._apply(weights, phi, z), theirs.predict(design), atol=1e-10)


def test_scores_do_not_depend_on_scale_offset_or_rotation_of_the_features() -> None:
    train, val, test = (equivariant(800, seed) for seed in range(3))
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(20, 20)))[0]

    def other(triple: Triple) -> Triple:
        return Triple(100 * triple.first @ turn - 7, 100 * triple.second @ turn - 7, triple.theta)

    one = values(fit_action(train, val, (360.0,)), test)
    two = values(fit_action(other(train), other(val), (360.0,)), other(test))
    assert one == pytest.approx(two, abs=1e-5)
