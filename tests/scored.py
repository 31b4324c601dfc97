"""Encoders of which theory says what they score, and a quick score, for the tests of the commands on a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from equibench.runner.score import ScoreResult, score

PAIRS = (128, 32, 64)


class Pixels(nn.Module):
    """The image averaged to 4 x 4: a flip, like every linear map of images that keeps the grid, is linear in it."""

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool2d(x, x.shape[-1] // 4).flatten(1)


class FlipInvariant(nn.Module):
    """The left half of the image plus its mirror image: to the last bit the same for both."""

    def forward(self, x: Tensor) -> Tensor:
        both = (x + x.flip(-1))[..., : x.shape[-1] // 2]
        return avg_pool2d(both, x.shape[-1] // 8).flatten(1)


class Hash(nn.Module):
    """Random numbers seeded by the image: features of two views have nothing to do with each other."""

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x[0].numel(), dtype=torch.float64).sin().view(x.shape[1:])  # a mirror image is another one
        seeds = ((x * place).sum(dim=(1, 2, 3)).abs() * 1e9).long() % 2**31
        return torch.stack([torch.randn(16, generator=torch.Generator().manual_seed(int(s))) for s in seeds])


def quick(source: Any, folder: Path, **options: Any) -> ScoreResult:
    """A tiny score below `folder`, without a word."""
    given = {"profile": "tiny", "pairs": PAIRS, "out": folder / "out", "runs": folder / "runs", **options}
    return score(source, console=Console(quiet=True), **given)
