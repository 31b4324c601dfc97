"""Losses as pure functions of tensors.

Sources: VICReg (Bardes, Ponce, LeCun 2022, eqs. 1 to 6) in the weighting of SIE (Garrido et al. 2023); PROTOCOL 1.5.
All embeddings are (N, D); all return a scalar.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
import torch.nn.functional as F
from torch import Tensor

VARIANCE_EPS = 1e-4


def full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compute a loss in float32 also under bf16 autocast, where batch statistics would lose their small terms."""

    @wraps(loss)
    def in_float32(*tensors: Tensor) -> Tensor:
        with torch.autocast(tensors[0].device.type, enabled=False):
            return loss(*(t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors))

    return in_float32


@full_precision
def invariance(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference of two embeddings."""
    return F.mse_loss(x, y)


@full_precision
def variance(x: Tensor) -> Tensor:
    """Hinge that keeps each dimension's standard deviation over the batch at 1 or more."""
    return F.relu(1 - torch.sqrt(x.var(dim=0) + VARIANCE_EPS)).mean()


@full_precision
def covariance(x: Tensor) -> Tensor:
    """Sum of the squared off-diagonal entries of the covariance matrix, over the number of dimensions."""
    centred = x - x.mean(dim=0)
    matrix = centred.T @ centred / (len(x) - 1)
    # all entries minus the diagonal: no mask of D x D is needed
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / x.shape[1]


def both(loss_of_one: Tensor, loss_of_other: Tensor) -> Tensor:
    """Mean over the two views, as SIE takes of its variance terms."""
    return 0.5 * (loss_of_one + loss_of_other)


@full_precision
def masked_pixel_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the visible pixels and the channels.

    Args:
        prediction, target: (N, L, pixels) patches of normalised RGB.
        mask: (L, pixels) 1 where a pixel is visible.
    """
    error = (prediction - target).square() * mask
    return error.sum() / (mask.sum() * len(prediction))
