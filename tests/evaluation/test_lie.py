"""Lie derivatives against closed forms, and of token maps that move as the image does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from equibench.evaluation.lie import lie_ratios, pooled_derivative, pooled_spread, token_derivative, token_spread, undo
from equibench.transforms import operations

SIZE, IMAGES = 24, 6


def smooth(matrix: torch.Tensor, size: int = SIZE, side: float = SIZE) -> torch.Tensor:
    """Six images of two channels, waves of long wavelength, moved exactly by a map (3, 3) in pixels of a side."""
    axis = (torch.arange(size, dtype=torch.float64) + 0.5 - size / 2) * side / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)]).reshape(3, -1)
    rng = np.random.default_rng(0)
    waves, phases = torch.from_numpy(rng.normal(size=(IMAGES, 2, 2)) / 5), torch.from_numpy(rng.normal(size=(6, 2, 1)))
    return torch.sin(waves @ (matrix.double() @ points)[:2] + phases).reshape(IMAGES, 2, size, size)


def rotated(degrees: float) -> torch.Tensor:
    return operations.rotation_matrix(torch.tensor([[degrees]], dtype=torch.float64), SIZE)


def shifted(x: float, y: float) -> torch.Tensor:
    return operations.translation_matrix(torch.tensor([[x, y]], dtype=torch.float64), SIZE)


@pytest.mark.parametrize(
    ("plus", "minus", "step"), [(rotated(1), rotated(-1), 1.0), (shifted(0.3, -0.2), shifted(-0.3, 0.2), 0.3)]
)
def test_image_itself_is_equivariant_by_token_and_not_by_place(
    plus: torch.Tensor, minus: torch.Tensor, step: float
) -> None:
    maps = [smooth(m[0]) for m in (plus, minus)]
    undone = token_derivative(*maps, undo(plus, SIZE), undo(minus, SIZE), step)
    left = token_derivative(*maps, lambda m: m, lambda m: m, step)
    assert undone.shape == (IMAGES,)
    assert undone.sum() < 1e-3 * left.sum()


def test_shift_in_tokens_is_smaller_by_the_stride() -> None:
    """Tokens of every second pixel: the same shift in image pixels is undone in a map of half the side."""
    plus, minus = shifted(0.5, 0), shifted(-0.5, 0)
    maps = [smooth(m[0], size=SIZE // 2) for m in (plus, minus)]
    wrong = token_derivative(*maps, undo(plus, SIZE // 2), undo(minus, SIZE // 2), 0.5)
    right = token_derivative(*maps, undo(plus, SIZE), undo(minus, SIZE), 0.5)
    assert right.sum() < 0.02 * wrong.sum()


def test_undo_is_the_inverse_and_works_per_sample() -> None:
    maps = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    matrix = torch.cat([rotated(90), shifted(3, 0)])
    moved = undo(torch.linalg.inv(matrix), SIZE)(maps)
    torch.testing.assert_close(moved[0], torch.rot90(maps[0], 1, (1, 2)))
    torch.testing.assert_close(moved[1, :, :, 1:], maps[1, :, :, :-1])
    torch.testing.assert_close(undo(matrix, SIZE)(moved)[:, :, 2:6, 2:6], maps[:, :, 2:6, 2:6])


def test_token_derivative_of_a_linear_ramp() -> None:
    """f = c · (x + t) in each token: L f = c with nothing undone; and its square's mean over the disc is c²."""
    ramp = torch.arange(8.0).expand(3, 1, 8, 8)
    slope = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    found = token_derivative((slope * (ramp + 0.1)).numpy(), slope * (ramp - 0.1), lambda m: m, lambda m: m, 0.1)
    np.testing.assert_allclose(found, [1, 4, 9], rtol=1e-4)


def test_only_the_disc_counts() -> None:
    maps = torch.zeros(1, 1, 10, 10)
    maps[:, :, 0] = maps[:, :, -1] = maps[:, :, :, 0] = maps[:, :, :, -1] = 5
    same = (lambda m: m, lambda m: m)
    assert token_derivative(maps, -maps, *same, 1.0).sum() == 0
    assert token_derivative(maps, -maps, *same, 1.0, radius=1.5).sum() > 0
    assert token_derivative(maps, -maps, *same, 1.0, radius=2)[0] == pytest.approx(25 * 36 / 100)
    tiny = torch.ones(1, 1, 2, 2)
    assert token_derivative(tiny, -tiny, *same, 1.0)[0] == 1


def test_token_spread_is_the_variance_in_the_disc() -> None:
    maps = np.random.default_rng(0).normal(size=(5, 3, 6, 6))
    tokens = maps[:, :, 1:5, 1:5][:, :, [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3], [1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 1, 2]]
    expected = np.square(tokens - tokens.mean(axis=(0, 2), keepdims=True)).mean(axis=(1, 2))
    np.testing.assert_allclose(token_spread(maps), expected)


def test_pooled_derivative_of_a_linear_encoder() -> None:
    """f = A code, the code's planes turning by k times the angle: ||L f||² = ||A K code||², up to the step's square."""
    rng = np.random.default_rng(0)
    codes, a = rng.normal(size=(40, 2)) @ [[1], [1j]] * [1, 1], rng.normal(size=(4, 7))
    k = np.array([1, 2])

    def encoder(t: float) -> np.ndarray:
        z = codes * np.exp(1j * k * t)
        return np.concatenate([z.real, z.imag], axis=1) @ a

    z = 1j * k * codes
    expected = np.square(np.concatenate([z.real, z.imag], axis=1) @ a).sum(axis=1) / 7
    np.testing.assert_allclose(pooled_derivative(encoder(1e-3), encoder(-1e-3), 1e-3), expected, rtol=1e-5)


def test_invariant_encoder_has_none_and_scale_cancels() -> None:
    first = np.random.default_rng(0).normal(size=(50, 6))
    assert pooled_derivative(first, first, 0.1).sum() == 0
    plus = first + 0.01 * np.random.default_rng(1).normal(size=(50, 6))

    def scores(scale: float) -> dict[str, float]:
        squares = pooled_derivative(scale * plus, scale * first, 0.1)
        ratios = lie_ratios([squares, squares], pooled_spread(scale * first + 5))
        return {name: ratio.value for name, ratio in ratios.items()}

    assert scores(10)["lee_pooled"] == pytest.approx(100 * scores(1)["lee_pooled"])
    assert scores(10)["lee_pooled_relative"] == pytest.approx(scores(1)["lee_pooled_relative"])
    difference, spread = np.square(plus - first).sum(), np.square(first - first.mean(axis=0)).sum()
    assert scores(1)["lee_pooled_relative"] == pytest.approx(difference / 0.04 / spread)
    assert scores(1)["lee_pooled"] == pytest.approx(difference / 0.04 / first.size)


def test_names_say_of_what() -> None:
    assert set(lie_ratios(np.ones(3), np.ones(3), "tokens")) == {"lee_tokens", "lee_tokens_relative"}
