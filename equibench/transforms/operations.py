"""What is done to images, with parameters of its own for each sample: affine maps, colour and blur.

Crop, flip, rotation and translation are one affine map and one bilinear resampling. Coordinates are pixels relative to
the image's centre, x to the right and y downwards. A matrix maps a point of the *output* to the point of the input that
it shows, so composing transformations multiplies their matrices in the order in which they are applied.

The colour changes are torchvision's (`adjust_brightness` and its siblings), which take one factor for a whole batch;
these take one for each image and are differentiable in image and factor.
"""

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Fill = Literal["reflect", "black"]
TAPS = 13
"""Length of the blur's kernel: 3 sigma at the largest sigma of 2 px, at every image size (less would cap R²)."""

_LUMA = (0.2989, 0.587, 0.114)


def crop_matrix(theta: Tensor, size: int) -> Tensor:
    """(N, 4) centre_x, centre_y, width, height as fractions of the image -> (N, 3, 3)."""
    centre = (theta[:, :2] - 0.5) * size
    return _matrix(theta[:, 2], 0, centre[:, 0], 0, theta[:, 3], centre[:, 1])


def flip_matrix(theta: Tensor, size: int) -> Tensor:
    """(N, 1) 1 = mirrored left to right, 0 = as it is -> (N, 3, 3)."""
    return _matrix(1 - 2 * theta[:, 0], 0, 0, 0, 1, 0)


def rotation_matrix(theta: Tensor, size: int) -> Tensor:
    """(N, 1) degrees, counter-clockwise as seen on the screen, about the image's centre -> (N, 3, 3)."""
    angle = torch.deg2rad(theta[:, 0])
    cos, sin = angle.cos(), angle.sin()
    return _matrix(cos, -sin, 0, sin, cos, 0)


def translation_matrix(theta: Tensor, size: int) -> Tensor:
    """(N, 2) pixels by which the content moves to the right and down -> (N, 3, 3)."""
    return _matrix(1, 0, -theta[:, 0], 0, 1, -theta[:, 1])


def warp(images: Tensor, matrix: Tensor, fill: Fill) -> Tensor:
    """Resample images (N, C, S, S) of any float range under output-to-input matrices (N, 3, 3) in centred pixels.

    `fill` is what stands outside the image: its mirror image, or zeros.
    """
    size = images.shape[-1]
    # grid_sample wants coordinates in [-1, 1]: only the shift changes with the unit
    unit = torch.tensor([1, 1, 2 / size], dtype=matrix.dtype, device=matrix.device)
    grid = F.affine_grid(matrix[:, :2] * unit, list(images.shape), align_corners=False)
    padding = "reflection" if fill == "reflect" else "zeros"
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _matrix(*entries: Tensor | float) -> Tensor:
    """The six entries of an affine map's upper rows, at least one of them a tensor (N,) -> (N, 3, 3)."""
    like = next(e for e in entries if isinstance(e, Tensor))
    columns = [e if isinstance(e, Tensor) else torch.full_like(like, e) for e in (*entries, 0, 0, 1)]
    return torch.stack(columns, dim=1).view(-1, 3, 3)


def adjust_color(images: Tensor, theta: Tensor) -> Tensor:
    """Apply brightness, contrast, saturation and hue, in this order, to images (N, 3, H, W) in [0, 1].

    θ (N, 4) are the changes of brightness, contrast and saturation (factor - 1) and of hue in turns; 0 is identity.
    """
    brightness, contrast, saturation, hue = (theta[:, i, None, None, None] for i in range(4))
    images = (images * (1 + brightness)).clamp(0, 1)
    mean = _gray(images).mean(dim=(-2, -1), keepdim=True)
    images = (mean + (1 + contrast) * (images - mean)).clamp(0, 1)
    gray = _gray(images)
    images = (gray + (1 + saturation) * (images - gray)).clamp(0, 1)
    return shift_hue(images, hue)


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue of RGB images (N, 3, H, W) in [0, 1] by turns (broadcastable), keeping HSV value and saturation."""
    value, argmax = images.max(dim=1, keepdim=True)
    chroma = value - images.min(dim=1, keepdim=True).values
    # hue in sixths of a turn: 2 * (index of the largest channel) + signed difference of the two others
    before, after = images.gather(1, (argmax + 2) % 3), images.gather(1, (argmax + 1) % 3)
    sixths = 2 * argmax + (after - before) / chroma.clamp_min(1e-8)
    offset = images.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    k = (offset + sixths + 6 * turns) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur images (N, C, S, S) with sigma (N, 1) pixels; borders are mirrored without repeating the edge.

    The blur along one axis is a banded S x S matrix per sample, so the whole batch takes two batched matrix products.
    """
    offsets = torch.arange(TAPS, device=images.device) - TAPS // 2
    weights = torch.exp(-0.5 * (offsets / sigma.clamp_min(1e-3)) ** 2)
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(images.dtype)
    band = _tap_positions(images.shape[-1], images.device).to(images.dtype)
    operator = torch.einsum("nt,tij->nij", weights, band).unsqueeze(1)
    return operator @ images @ operator.transpose(-1, -2)


def _gray(images: Tensor) -> Tensor:
    return (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


@lru_cache(maxsize=8)
def _tap_positions(size: int, device: torch.device) -> Tensor:
    """(TAPS, S, S) with a 1 at [t, i, j] where tap t of output pixel i reads input pixel j."""
    period = 2 * (size - 1)
    position = (torch.arange(size)[None, :] + (torch.arange(TAPS) - TAPS // 2)[:, None]).remainder(period)
    return F.one_hot(torch.minimum(position, period - position), size).float().to(device)
