"""Transformations of pixel values, with parameters of its own for each sample: colour and blur.

The colour changes are torchvision's (`adjust_brightness` and its siblings), which take one factor for a whole batch;
these take one for each image and are differentiable in image and factor.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = 13
"""Length of the blur's kernel: 3 sigma at the largest sigma of 2 px, at every image size (less would cap R²)."""

_LUMA = (0.2989, 0.587, 0.114)


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
