"""What the transformations obey as groups and as functions of tensors, and how they are drawn and coded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from equibench.transforms.operations import (
    adjust_color,
    crop_matrix,
    flip_matrix,
    rotation_matrix,
    shift_hue,
    translation_matrix,
    warp,
)
from equibench.transforms.transformation import (
    BUILT_IN,
    CROP_RATIO,
    CROP_SCALE,
    TRANSFORMATIONS,
    max_shift,
    transform,
    visible_disc,
)

SIZE = 32
MIDDLE = visible_disc(SIZE, 9).bool()


def noise(count: int = 4, *, size: int = SIZE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def smooth(count: int = 4) -> Tensor:
    """Images in [.1, .6] on which resampling twice is nearly resampling once."""
    fields = ndimage.gaussian_filter(np.random.default_rng(0).random((count, 3, SIZE, SIZE)), (0, 0, 3, 3))
    low, high = fields.min(axis=(2, 3), keepdims=True), fields.max(axis=(2, 3), keepdims=True)
    return torch.from_numpy(0.1 + 0.5 * (fields - low) / (high - low)).float()


def drawn(name: str, count: int, *, size: int = SIZE, seed: int = 0) -> np.ndarray:
    transformation = TRANSFORMATIONS[name]
    return transformation.draw(np.random.default_rng(seed).random((count, transformation.uniforms)), size)


def rows(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", BUILT_IN)
def test_identity_gives_the_image_back(name: str) -> None:
    images = noise()
    theta = torch.tensor([TRANSFORMATIONS[name].identity] * 4)
    torch.testing.assert_close(transform(images, {name: theta}), images, atol=1e-5, rtol=0)


def test_matrices_compose_as_their_groups_do() -> None:
    def assert_equal(product: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(product, expected, atol=1e-12, rtol=0)

    turn = [rotation_matrix(rows((angle,)), SIZE) for angle in (25.0, -60.0, -35.0)]
    assert_equal(turn[0] @ turn[1], turn[2])
    shift = [translation_matrix(rows(s), SIZE) for s in ((1.5, -2.0), (2.0, 0.25), (3.5, -1.75))]
    assert_equal(shift[0] @ shift[1], shift[2])
    mirror = flip_matrix(rows((1.0,)), SIZE)
    assert_equal(mirror @ mirror, torch.eye(3, dtype=torch.float64)[None])
    # a crop of a crop: its centre is where the first one puts it, its sides multiply
    crops = [crop_matrix(rows(c), SIZE) for c in ((0.4, 0.6, 0.5, 0.8), (0.7, 0.5, 0.5, 0.25))]
    both = (0.4 + (0.7 - 0.5) * 0.5, 0.6, 0.25, 0.2)
    assert_equal(crops[0] @ crops[1], crop_matrix(rows(both), SIZE))


@pytest.mark.parametrize(
    ("name", "first", "second", "together", "tolerance"),
    [
        ("rotation", (12.0,), (18.0,), (30.0,), 0.02),
        ("translation", (1.5, -0.5), (1.25, 2.0), (2.75, 1.5), 0.02),
        ("flip", (1.0,), (1.0,), (0.0,), 1e-5),
        ("blur", (1.0,), (1.2,), (np.sqrt(1 + 1.2**2),), 0.002),
        ("color", (0.2, 0, 0, 0), (-0.3, 0, 0, 0), (1.2 * 0.7 - 1, 0, 0, 0), 1e-6),
        ("color", (0, 0, 0, 0.07), (0, 0, 0, 0.06), (0, 0, 0, 0.13), 1e-5),
        ("color", (0, 0, 0, 0.7), (0, 0, 0, 0.6), (0, 0, 0, 0.3), 1e-5),
    ],
)
def test_images_compose_as_their_groups_do(
    name: str, first: tuple[float, ...], second: tuple[float, ...], together: tuple[float, ...], tolerance: float
) -> None:
    def apply(images: Tensor, theta: tuple[float, ...]) -> Tensor:
        return transform(images, {name: torch.tensor([theta] * len(images), dtype=torch.float32)})

    images = smooth()
    gap = (apply(apply(images, first), second) - apply(images, together))[..., MIDDLE].abs()
    assert float(gap.max()) < tolerance
    apart = (apply(images, first) - apply(images, together))[..., MIDDLE].abs()
    assert float(apart.max()) > 2 * tolerance, "the tolerance could not tell the two"


def test_batch_is_the_same_as_one_at_a_time() -> None:
    images = noise(6)
    theta = {name: torch.from_numpy(drawn(name, 6)).float() for name in BUILT_IN}
    batch = transform(images, theta)
    for row in range(6):
        alone = transform(images[row : row + 1], {name: t[row : row + 1] for name, t in theta.items()})
        torch.testing.assert_close(batch[row : row + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", BUILT_IN)
def test_gradients_in_image_and_theta_are_those_of_differences(name: str) -> None:
    # the middle of [0, 1], so that no colour is clamped
    image = (0.3 + 0.3 * noise(1, size=6)).double().requires_grad_()
    some = {
        "crop": (0.53, 0.46, 0.71, 0.63),
        "flip": (0.23,),  # the formula between its two values
        "rotation": (17.0,),
        "translation": (0.37, -0.61),
        "color": (0.11, -0.07, 0.13, 0.031),
        "blur": (0.9,),
    }
    theta = torch.tensor([some[name]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, t: transform(x, {name: t}), (image, theta), atol=1e-6)


@pytest.mark.parametrize("name", BUILT_IN)
def test_gradients_are_finite_at_the_identity_and_on_gray(name: str) -> None:
    image = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    theta = torch.tensor([TRANSFORMATIONS[name].identity], requires_grad=True)
    transform(image, {name: theta}).square().sum().backward()
    assert torch.isfinite(image.grad).all()  # type: ignore[arg-type]
    assert torch.isfinite(theta.grad).all()  # type: ignore[arg-type]


def test_colour_stays_within_range_and_hue_keeps_value_and_saturation() -> None:
    images = noise()
    extreme = torch.tensor([[0.4, 0.4, 0.4, 0.1]] * 4)
    assert adjust_color(images, extreme).min() >= 0
    assert adjust_color(images, extreme).max() <= 1
    shifted = shift_hue(images, torch.full((4, 1, 1, 1), 0.3))
    torch.testing.assert_close(shifted.amax(1), images.amax(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(shifted.amin(1), images.amin(1), atol=1e-6, rtol=0)


def test_warp_of_any_float_range_keeps_a_constant() -> None:
    images = torch.full((1, 3, SIZE, SIZE), -7.5)
    turned = warp(images, rotation_matrix(torch.tensor([[33.0]]), SIZE), "reflect")
    torch.testing.assert_close(turned, images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("name", BUILT_IN)
def test_coding_there_and_back(name: str, size: int) -> None:
    theta, transformation = drawn(name, 50, size=size), TRANSFORMATIONS[name]
    assert theta.shape == (50, len(transformation.parameters))
    np.testing.assert_allclose(transformation.decode(transformation.encode(theta, size), size), theta)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("rotation", -1, 1),
        ("translation", -1, 1),
        ("color", -0.5, 0.5),
        ("blur", 0.05, 1),
        ("flip", 0, 1),
        ("crop", 0, 1),
    ],
)
@pytest.mark.parametrize("size", [32, 224])
def test_targets_fill_their_range_at_every_size(name: str, low: float, high: float, size: int) -> None:
    targets = TRANSFORMATIONS[name].encode(drawn(name, 5000, size=size), size)
    assert low <= targets.min() < low + 0.15
    assert high - 0.02 < targets.max() <= high


def test_published_coding_of_colour_is_factors_and_of_crop_corner_and_size() -> None:
    published = TRANSFORMATIONS["color"].publish(np.array([[0.1, -0.2, 0.4, 0.05]]), SIZE)
    np.testing.assert_allclose(published, [[1.1, 0.8, 1.4, 0.05]])
    top, left, height, width = 3, 10, 20, 16
    theta = np.array([[(left + width / 2) / 32, (top + height / 2) / 32, width / 32, height / 32]])
    published = TRANSFORMATIONS["crop"].publish(theta, SIZE)
    np.testing.assert_allclose(published * 32, [[top, left, height, width]])
    for name in ("rotation", "flip", "translation", "blur"):
        theta = drawn(name, 3)
        np.testing.assert_array_equal(TRANSFORMATIONS[name].publish(theta, SIZE), theta)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("rotation", [-45], [45]),
        ("translation", [-4, -4], [4, 4]),
        ("color", [-0.4, -0.4, -0.4, -0.1], [0.4, 0.4, 0.4, 0.1]),
        ("blur", [0.1], [2.0]),
    ],
)
def test_draws_are_uniform(name: str, low: list[float], high: list[float]) -> None:
    theta = drawn(name, 5000)
    for column, start, end in zip(theta.T, low, high, strict=True):
        assert stats.kstest(column, stats.uniform(start, end - start).cdf).pvalue > 0.01
    correlation = np.corrcoef(theta, rowvar=False).reshape(len(low), len(low)) - np.eye(len(low))
    assert np.abs(correlation).max() < 0.05


def test_flip_is_a_fair_coin() -> None:
    flips = drawn("flip", 5000)
    assert set(np.unique(flips)) == {0.0, 1.0}
    assert stats.binomtest(int(flips.sum()), 5000).pvalue > 0.01


def test_crops_are_drawn_as_torchvision_draws_them() -> None:
    side, ours = 4000, drawn("crop", 1500)
    torch.manual_seed(0)
    canvas = torch.empty(0, side, side)
    boxes = np.array([RandomResizedCrop.get_params(canvas, list(CROP_SCALE), list(CROP_RATIO)) for _ in range(1500)])
    top, left, height, width = boxes.T / side
    theirs = np.stack([left + width / 2, top + height / 2, width, height], axis=1)
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 0.01


def test_crops_stay_in_the_image_and_in_their_bounds() -> None:
    x, y, width, height = drawn("crop", 5000, seed=1).T
    for centre, side in ((x, width), (y, height)):
        assert (centre - side / 2).min() >= -1e-12
        assert (centre + side / 2).max() <= 1 + 1e-12
    assert (width * height).min() >= 0.08 - 1e-12
    assert (width / height).min() >= 3 / 4 - 1e-12
    assert (width / height).max() <= 4 / 3 + 1e-12
    never = np.full((1, TRANSFORMATIONS["crop"].uniforms), 1 - 1e-9)  # area 1 at ratio 4/3 fits nowhere
    np.testing.assert_allclose(TRANSFORMATIONS["crop"].draw(never, SIZE), [[0.5, 0.5, 1, 1]])


def test_largest_shift_is_four_pixels_at_32_and_ten_at_224() -> None:
    assert (max_shift(32), max_shift(224)) == (4, 10)
