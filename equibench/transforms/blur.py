"""Gaussian blur with one sigma per sample."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

TAPS = 13  # covers 3 sigma at the largest sigma of 2 px, at every image size (a shorter kernel would cap R²)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur images (N, C, S, S) with sigma (N, 1) pixels; borders are mirrored without repeating the edge.

    A blur of one axis is a banded S x S matrix per sample, so the whole batch is two batched matrix products.
    """
    offsets = torch.arange(TAPS, device=images.device) - TAPS // 2
    weights = torch.exp(-0.5 * (offsets / sigma.clamp_min(1e-3)) ** 2)
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(images.dtype)
    band = _tap_positions(images.shape[-1], images.device).to(images.dtype)
    operator = torch.einsum("nt,tij->nij", weights, band).unsqueeze(1)
    return operator @ images @ operator.transpose(-1, -2)


@lru_cache(maxsize=8)
def _tap_positions(size: int, device: torch.device) -> Tensor:
    """(TAPS, S, S) with a 1 at [t, i, j] where tap t of output pixel i reads input pixel j."""
    position = torch.arange(size)[None, :] + (torch.arange(TAPS) - TAPS // 2)[:, None]
    period = 2 * (size - 1)
    position = position.remainder(period)
    position = torch.minimum(position, period - position)
    return torch.nn.functional.one_hot(position, size).float().to(device)
