"""Every transformation against torchvision and scipy: sign, centre, unit, borders and order."""

from __future__ import annotations

import doctest
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from equibench.transforms import transformation
from equibench.transforms.operations import (
    TAPS,
    Fill,
    crop_matrix,
    flip_matrix,
    gaussian_blur,
    rotation_matrix,
    translation_matrix,
    warp,
)
from equibench.transforms.transformation import BLUR_RANGE, BUILT_IN, transform, visible_disc

SIZE = 32
BILINEAR = InterpolationMode.BILINEAR
GEOMETRY = ("crop", "flip", "rotation", "translation")
SOME = {
    "crop": (0.55, 0.45, 0.6, 0.7),
    "flip": (1.0,),
    "rotation": (40.0,),
    "translation": (4.0, -3.5),
    "color": (0.2, -0.3, 0.35, 0.08),
    "blur": (1.3,),
}


def noise(count: int = 4, *, seed: int = 0, size: int = SIZE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def smooth(count: int = 4) -> Tensor:
    """Images in [.2, .8] without fine detail, on which resampling twice is nearly resampling once."""
    fields = ndimage.gaussian_filter(np.random.default_rng(0).random((count, 3, SIZE, SIZE)), (0, 0, 3, 3))
    low, high = fields.min(axis=(2, 3), keepdims=True), fields.max(axis=(2, 3), keepdims=True)
    return torch.from_numpy(0.2 + 0.6 * (fields - low) / (high - low)).float()


def theta_of(name: str, value: tuple[float, ...], count: int = 4) -> dict[str, Tensor]:
    return {name: torch.tensor([value] * count)}


def interior(radius: float) -> Tensor:
    return visible_disc(SIZE, radius).bool()


@pytest.mark.parametrize("degrees", [-45.0, -10.0, 7.5, 30.0, 45.0])
@pytest.mark.parametrize("fill", ["reflect", "black"])
def test_rotation_is_torchvisions_and_scipys(degrees: float, fill: Fill) -> None:
    images = noise()
    ours = transform(images, theta_of("rotation", (degrees,)), fill)[..., interior(14.5)]
    torchvisions = tv.rotate(images, degrees, interpolation=BILINEAR)[..., interior(14.5)]
    scipys = ndimage.rotate(images.numpy(), degrees, axes=(2, 3), reshape=False, order=1)
    torch.testing.assert_close(ours, torchvisions, atol=2e-5, rtol=0)
    torch.testing.assert_close(ours, torch.from_numpy(scipys)[..., interior(14.5)], atol=2e-5, rtol=0)


def test_quarter_turn_is_counter_clockwise_about_the_centre() -> None:
    images = noise()
    turned = transform(images, theta_of("rotation", (90.0,)))
    torch.testing.assert_close(turned, torch.rot90(images, 1, (2, 3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shift", [(3, 0), (0, 2), (-4, 1), (4, -4)])
def test_translation_moves_right_and_down_by_pixels(shift: tuple[int, int]) -> None:
    images = noise()
    ours = transform(images, theta_of("translation", shift))
    rolled = torch.from_numpy(np.roll(images.numpy(), (shift[1], shift[0]), axis=(2, 3)))
    torch.testing.assert_close(ours[..., 4:-4, 4:-4], rolled[..., 4:-4, 4:-4], atol=1e-5, rtol=0)


def test_fractional_translation_is_torchvisions() -> None:
    images = noise()
    ours = transform(images, theta_of("translation", (1.3, -2.6)))
    theirs = tv.affine(images, angle=0, translate=[1.3, -2.6], scale=1, shear=[0.0, 0.0], interpolation=BILINEAR)
    torch.testing.assert_close(ours[..., 4:-4, 4:-4], theirs[..., 4:-4, 4:-4], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("top", "left", "height", "width"), [(3, 10, 20, 16), (0, 0, 32, 32), (8, 1, 12, 24)])
def test_crop_is_torchvisions_resized_crop(top: int, left: int, height: int, width: int) -> None:
    images = noise()
    box = ((left + width / 2) / SIZE, (top + height / 2) / SIZE, width / SIZE, height / SIZE)
    ours = transform(images, theta_of("crop", box))
    theirs = tv.resized_crop(images, top, left, height, width, [SIZE, SIZE], interpolation=BILINEAR, antialias=False)
    # at its rim torchvision repeats the crop's last pixel where this shows the image beyond the crop
    torch.testing.assert_close(ours[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2], atol=2e-5, rtol=0)


def test_flip_mirrors_left_and_right_where_it_is_one() -> None:
    images = noise()
    ours = transform(images, {"flip": torch.tensor([[1.0], [0.0], [1.0], [0.0]])})
    expected = torch.where(torch.tensor([1, 0, 1, 0]).view(4, 1, 1, 1) == 1, torch.flip(images, [3]), images)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("column", "adjust", "offset"),
    [(0, tv.adjust_brightness, 1), (1, tv.adjust_contrast, 1), (2, tv.adjust_saturation, 1), (3, tv.adjust_hue, 0)],
)
@pytest.mark.parametrize("share", [-1.0, -0.4, 0.3, 1.0])
def test_each_colour_change_is_torchvisions(column: int, adjust: object, offset: int, share: float) -> None:
    images, theta = noise(), torch.zeros(4, 4)
    theta[:, column] = change = share * (0.1 if column == 3 else 0.4)
    expected = adjust(images, offset + change)  # type: ignore[operator]
    torch.testing.assert_close(transform(images, {"color": theta}), expected, atol=2e-5, rtol=0)


def test_colour_changes_come_in_the_order_brightness_contrast_saturation_hue() -> None:
    images = noise()
    b, c, s, h = 0.35, 0.4, 0.4, 0.1
    expected = tv.adjust_brightness(images, 1 + b)
    expected = tv.adjust_contrast(expected, 1 + c)
    expected = tv.adjust_saturation(expected, 1 + s)
    expected = tv.adjust_hue(expected, h)
    ours = transform(images, theta_of("color", (b, c, s, h)))
    torch.testing.assert_close(ours, expected, atol=5e-5, rtol=0)


def test_blur_is_torchvisions_and_scipys_with_one_sigma_per_sample() -> None:
    images, sigmas = noise(5), (0.1, 0.5, 1.0, 1.37, 2.0)
    ours = transform(images, {"blur": torch.tensor(sigmas)[:, None]})
    for image, result, sigma in zip(images, ours, sigmas, strict=True):
        theirs = tv.gaussian_blur(image, [TAPS, TAPS], [sigma, sigma])
        torch.testing.assert_close(result, theirs, atol=1e-5, rtol=0)
        scipys = ndimage.gaussian_filter(image.double().numpy(), (0, sigma, sigma), mode="mirror", radius=(0, 6, 6))
        np.testing.assert_allclose(result.numpy(), scipys, atol=1e-5)


def test_the_kernel_covers_three_sigma() -> None:
    assert 3 * BLUR_RANGE[1] <= TAPS // 2
    spot = torch.zeros(1, 1, SIZE, SIZE)
    spot[..., 16, 16] = 1
    profile = gaussian_blur(spot, torch.tensor([[BLUR_RANGE[1]]]))[0, 0].sum(0)
    variance = (profile * (torch.arange(SIZE) - 16) ** 2).sum()
    assert float(variance) == pytest.approx(BLUR_RANGE[1] ** 2, rel=0.03)


def by_torchvision(images: Tensor, order: tuple[str, ...]) -> Tensor:
    """The transformations of SOME one after the other; the crop is a shrunken view, so as to need no rim."""
    for name in order:
        value = SOME[name]
        if name == "crop":
            x, y, width, height = value
            corners = [[x + sx * width / 2, y + sy * height / 2] for sy in (-1, 1) for sx in (-1, 1)]
            start = [[SIZE * cx - 0.5, SIZE * cy - 0.5] for cx, cy in corners]
            end = [[cx - 0.5, cy - 0.5] for cy in (0.0, SIZE) for cx in (0.0, SIZE)]
            images = tv.perspective(images, start, end, interpolation=BILINEAR)
        elif name == "flip":
            images = tv.horizontal_flip(images)
        elif name == "rotation":
            images = tv.rotate(images, value[0], interpolation=BILINEAR)
        elif name == "translation":
            images = tv.affine(images, 0, list(value), 1, [0.0, 0.0], interpolation=BILINEAR)
        elif name == "color":
            images = tv.adjust_brightness(images, 1 + value[0])
            images = tv.adjust_contrast(images, 1 + value[1])
            images = tv.adjust_saturation(images, 1 + value[2])
            images = tv.adjust_hue(images, value[3])
        else:
            images = tv.gaussian_blur(images, [TAPS, TAPS], [value[0], value[0]])
    return images


def difference(order: tuple[str, ...]) -> float:
    """Mean difference, in the middle, of `transform` and of torchvision in some order."""
    names = set(order)
    ours = transform(smooth(), {n: torch.tensor([SOME[n]] * 4) for n in SOME if n in names}, "black")
    return float((ours - by_torchvision(smooth(), order)).abs()[..., interior(7)].mean())


def test_geometry_is_composed_in_the_order_crop_flip_rotation_translation() -> None:
    right = difference(GEOMETRY)
    assert right < 0.008
    for first, second in pairwise(range(4)):
        order = list(GEOMETRY)
        order[first], order[second] = order[second], order[first]
        assert difference(tuple(order)) > 4 * right


def test_geometry_then_colour_then_blur() -> None:
    assert (*GEOMETRY, "color", "blur") == BUILT_IN
    right = difference(("translation", "color", "blur"))
    assert right < 0.004
    assert difference(("color", "translation", "blur")) > 2 * right
    images = noise()
    ours = transform(images, {n: torch.tensor([SOME[n]] * 4) for n in ("blur", "color")})
    torch.testing.assert_close(ours, by_torchvision(images, ("color", "blur")), atol=5e-5, rtol=0)
    assert (ours - by_torchvision(images, ("blur", "color"))).abs().max() > 0.01


def test_composed_matrices_carry_points_as_the_single_steps_do() -> None:
    theta = {n: torch.tensor([SOME[n]], dtype=torch.float64) for n in GEOMETRY}
    matrix = (
        crop_matrix(theta["crop"], SIZE)
        @ flip_matrix(theta["flip"], SIZE)
        @ rotation_matrix(theta["rotation"], SIZE)
        @ translation_matrix(theta["translation"], SIZE)
    )[0].numpy()
    x, y = 3.0, -5.0  # a point of the original, from the centre, y downwards
    cx, cy, width, height = SOME["crop"]
    u, v = (x - SIZE * (cx - 0.5)) / width, (y - SIZE * (cy - 0.5)) / height
    u = -u
    angle = math.radians(SOME["rotation"][0])  # counter-clockwise with y downwards
    u, v = u * math.cos(angle) + v * math.sin(angle), -u * math.sin(angle) + v * math.cos(angle)
    u, v = u + SOME["translation"][0], v + SOME["translation"][1]
    np.testing.assert_allclose(matrix @ [u, v, 1], [x, y, 1], atol=1e-12)


def test_black_leaves_corners_empty_and_reflection_fills_them() -> None:
    images = noise() * 0.5 + 0.5
    theta = theta_of("rotation", (45.0,))
    corners = transform(images, theta, "black")[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 0).all()
    assert (transform(images, theta, "reflect") >= 0.5 - 1e-6).all()
    moved = transform(images, theta_of("translation", (4.0, 0.0)), "reflect")
    torch.testing.assert_close(moved[..., :4], images[..., :4].flip(3), atol=1e-5, rtol=0)


def test_nothing_from_outside_is_seen_in_the_disc() -> None:
    degrees = torch.linspace(-45, 45, 181)[:, None]
    axis = torch.linspace(-4, 4, 17)
    shifts = torch.cartesian_prod(axis, axis)
    matrices = torch.cat([rotation_matrix(degrees, SIZE), translation_matrix(shifts, SIZE)])
    shown = warp(torch.ones(len(matrices), 1, SIZE, SIZE), matrices, "black")
    assert (shown[..., interior(11.5)] > 1 - 1e-5).all()
    assert (shown[..., interior(12.6)] < 0.9).any(), "a larger disc would show the fill"


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(transformation) == (0, 2)


def test_unknown_transformation() -> None:
    with pytest.raises(KeyError, match="rotatoin"):
        transform(noise(), {"rotatoin": torch.zeros(4, 1)})
