"""Losses and their gradients against numpy written from the published formulae."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from equibench.baselines.sie import HypernetworkPredictor, sie_loss
from equibench.baselines.vicreg import vicreg_loss
from sharded import arrays, losses_of, sharded
from torch import Tensor

from equibench.pretrain.method import gather
from equibench.pretrain.modules import covariance, full_precision, invariance, masked_pixel_mse, variance

Array = np.ndarray


def np_invariance(x: Array, y: Array) -> float:
    return float(sum((a - b) ** 2 for a, b in zip(x.ravel(), y.ravel(), strict=True)) / x.size)


def np_variance(x: Array) -> float:
    return float(np.mean([max(0.0, 1 - np.sqrt(np.var(column, ddof=1) + 1e-4)) for column in x.T]))


def np_covariance(x: Array) -> float:
    matrix, size = np.cov(x, rowvar=False), x.shape[1]
    return sum(matrix[i, j] ** 2 for i in range(size) for j in range(size) if i != j) / size


def np_vicreg(x: Array, y: Array) -> float:
    spread = (np_variance(x) + np_variance(y)) / 2
    return 10 * np_invariance(x, y) + 10 * spread + np_covariance(x) + np_covariance(y)


def np_sie(inv1: Array, inv2: Array, equi1: Array, equi2: Array, predicted: Array) -> float:
    x, y = np.concatenate([inv1, equi1], axis=1), np.concatenate([inv2, equi2], axis=1)
    spread = np_variance(x) / 2 + np_variance(y) / 2
    return (
        10 * np_invariance(inv1, inv2)
        + 10 * 0.45 * np_invariance(predicted, equi2)
        + 10 * spread
        + 10 * np_variance(predicted) / 2
        + np_covariance(x)
        + np_covariance(y)
    )


def numerical_gradient(function: Callable[..., float], inputs: list[Array]) -> list[Array]:
    gradients = []
    for array in inputs:
        gradient = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            kept = array[place]
            array[place] = kept + 1e-5
            above = function(*inputs)
            array[place] = kept - 1e-5
            gradient[place] = (above - function(*inputs)) / 2e-5
            array[place] = kept
        gradients.append(gradient)
    return gradients


LOSSES = {
    "invariance": (invariance, np_invariance, 2),
    "variance": (variance, np_variance, 1),
    "covariance": (covariance, np_covariance, 1),
    "vicreg": (lambda x, y: vicreg_loss(x, y)["loss"], np_vicreg, 2),
    "sie": (lambda *t: sie_loss(*t)["loss"], np_sie, 5),
}


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_the_formulas(name: str) -> None:
    ours, formula, count = LOSSES[name]
    inputs = arrays(count, 7, 5)
    tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in inputs]
    value = ours(*tensors)
    value.backward()
    assert value.item() == pytest.approx(formula(*inputs), rel=1e-10)
    for tensor, expected in zip(tensors, numerical_gradient(formula, inputs), strict=True):
        np.testing.assert_allclose(tensor.grad, expected, atol=1e-7)


def test_terms_are_reported_beside_the_sum() -> None:
    x, y = (torch.from_numpy(a) for a in arrays(2, 7, 5))
    terms = vicreg_loss(x, y)
    total = 10 * terms["invariance"] + 10 * terms["variance"] + terms["covariance"]
    torch.testing.assert_close(terms["loss"], total)
    other = vicreg_loss(x, y, (25.0, 25.0, 1.0))
    total = 25 * terms["invariance"] + 25 * terms["variance"] + terms["covariance"]
    torch.testing.assert_close(other["loss"], total)


def test_covariance_keeps_small_terms_beside_a_large_diagonal() -> None:
    x = torch.from_numpy(arrays(1, 512, 64)[0] * 30).float()
    assert float(covariance(x)) == pytest.approx(np_covariance(x.double().numpy()), rel=1e-3)


def test_masked_pixel_error_is_the_mean_over_visible_pixels() -> None:
    prediction, target = arrays(2, 3, 4, 6)
    mask = np.random.default_rng(1).random((4, 6)) < 0.5
    seen = [(n, i, j) for n in range(3) for i in range(4) for j in range(6) if mask[i, j]]
    expected = np.mean([(prediction[p] - target[p]) ** 2 for p in seen])
    leaf = torch.from_numpy(prediction).requires_grad_()
    value = masked_pixel_mse(leaf, torch.from_numpy(target), torch.from_numpy(mask).double())
    value.backward()
    assert value.item() == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(leaf.grad, 2 * (prediction - target) * mask / len(seen))


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_autocast_does_not_change_a_loss(name: str) -> None:
    ours, _, count = LOSSES[name]
    full = [torch.from_numpy(a).float() for a in arrays(count, 64, 16)]
    half = [t.bfloat16() for t in full]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = ours(*full)
        of_half = ours(*half)
    assert under.dtype == of_half.dtype == torch.float32
    torch.testing.assert_close(under, ours(*full), rtol=1e-6, atol=0)
    torch.testing.assert_close(of_half, ours(*(t.float() for t in half)), rtol=1e-6, atol=0)


def test_full_precision_lets_autocast_be_on_around_it() -> None:
    @full_precision
    def product(a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    a = torch.full((2, 2), 1.001)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product(a, a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16


def test_predictor_is_a_weighted_sum_of_matrices() -> None:
    torch.manual_seed(0)
    predictor = HypernetworkPredictor(3, 4)
    x, z = (torch.randn(5, size) for size in (4, 3))
    basis = predictor.basis.detach().numpy()
    expected = [sum(z[n, k].item() * basis[k] for k in range(3)) @ x[n].numpy() for n in range(5)]
    np.testing.assert_allclose(predictor(x, z).detach(), np.stack(expected), rtol=1e-4, atol=1e-6)


def test_two_processes_give_the_loss_and_gradient_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(sharded, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    result = torch.load(tmp_path / "result.pt")
    x, y, weight = (torch.from_numpy(a) for a in (*arrays(2, 8, 6), *arrays(1, 6, 6, seed=1)))
    weight.requires_grad_()
    loss = losses_of(x @ weight, y @ weight)
    loss.backward()
    torch.testing.assert_close(result["loss"], loss.detach())
    torch.testing.assert_close(result["grad"], weight.grad)
    assert result["order"][:, 0].tolist() == list(range(8))
    assert gather(x) is x
