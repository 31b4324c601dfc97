"""Crop, flip, rotation and translation: one affine map and one bilinear resampling, parameters per sample.

Coordinates are pixels relative to the image's centre, x to the right and y downwards. A matrix maps a point of the
*output* to the point of the input that it shows, so composing transformations multiplies their matrices in the
order in which they are applied.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Fill = Literal["reflect", "black"]


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
