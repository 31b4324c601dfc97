"""Heads shared by several methods."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def projector(input_size: int, widths: Sequence[int]) -> nn.Sequential:
    """Linear-BatchNorm-ReLU blocks and a last linear layer without bias (SIE's Projector; P1's g_inv).

    Args:
        input_size: width of the representation.
        widths: width of each layer; the last one is the embedding's.
    """
    sizes = [input_size, *widths]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1], bias=False))
