"""Brightness, contrast, saturation and hue with one factor per sample.

The definitions are torchvision's (`adjust_brightness` and its siblings), which take one factor for a whole batch;
these take one for each image and are differentiable in image and factor.
"""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)


def adjust_color(images: Tensor, theta: Tensor) -> Tensor:
    """Apply brightness, contrast, saturation and hue, in this order.

    Args:
        images: (N, 3, H, W) in [0, 1].
        theta: (N, 4) changes of brightness, contrast and saturation (factor - 1) and of hue in turns; 0 is identity.
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
    offset = torch.tensor([5.0, 3.0, 1.0], dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    k = (offset + sixths + 6 * turns) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def _gray(images: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)
