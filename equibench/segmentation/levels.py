"""Feature maps at several depths of a network, for images of any size: what a decode head is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import Format
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from equibench.encoders.layers import layer_names, record_layers
from equibench.encoders.vit import ViTEncoder
from equibench.errors import UserError

LEVELS = 4


@dataclass(frozen=True)
class Taps:
    """How maps are taken out of a network.

    Attributes:
        network: what is run; parts behind the last tap are cut off where the library can do so.
        depths: from how many depths a map can be taken.
        multiple: sides of the images must be multiples of this many pixels.
        maps: images (N, 3, H, W), sorted indices without repetition -> one map (N, C, h, w) each.
    """

    network: nn.Module
    depths: int
    multiple: int
    maps: Callable[[Tensor, list[int]], list[Tensor]]


def open_taps(model: nn.Module, name: str, channels_last: bool = False, side: int = 224) -> Taps:
    """The taps of a network: blocks of a ViT, stages of timm's others, resolutions of any other convolutional network.

    Args:
        model: it is changed (a ViT is made to take any size): pass a copy of one that is used elsewhere.
        name: the architecture's, for messages.
        channels_last: whether its maps are (N, h, w, C).
        side: of the square images that it surely takes, in pixels.

    Raises:
        UserError: the network gives no maps.
    """
    if isinstance(model, ViTEncoder):
        return _vit_taps(model.vit)
    if isinstance(model, VisionTransformer):
        return _vit_taps(model)
    if hasattr(model, "forward_intermediates") and hasattr(model, "feature_info"):
        return Taps(model, len(model.feature_info), 1, partial(_intermediates, model))  # type: ignore[arg-type]
    layers = _last_of_each_resolution(model, name, channels_last, side)
    return Taps(model, len(layers), 1, partial(_hooked, model, layers, channels_last))


def spread(depths: int, levels: int = LEVELS) -> tuple[int, ...]:
    """Indices evenly spaced over the depths, the last included: 2, 5, 8, 11 of 12; repeated where there are fewer."""
    return tuple(math.ceil(depths * (level + 1) / levels) - 1 for level in range(levels))


def prune(taps: Taps, indices: Sequence[int]) -> None:
    """Cut off what lies behind the last tap: it would be stored, and in training get no gradient."""
    cut: Any = getattr(taps.network, "prune_intermediate_layers", None)
    if cut is not None:
        cut(sorted(set(indices)), prune_norm=True, prune_head=True)


def fitted(images: Tensor, multiple: int) -> Tensor:
    """Images resized (bilinear) to the nearest sides that are multiples, so that the map covers the image exactly.

    Padding would leave the map up to a patch larger than the image, and every label shifted towards its corner.
    """
    sides = [max(round(side / multiple), 1) * multiple for side in images.shape[-2:]]
    if sides == list(images.shape[-2:]):
        return images
    return F.interpolate(images, size=sides, mode="bilinear", align_corners=False)


def _vit_taps(vit: VisionTransformer) -> Taps:
    """Taps behind the blocks of a ViT that is told to interpolate its positions to whatever comes (bicubic)."""
    anything: Any = vit  # what timm decides when it builds a ViT with dynamic_img_size=True is decided here
    embed: Any = vit.patch_embed
    anything.dynamic_img_size = True
    embed.strict_img_size, embed.flatten = False, False  # the grid stays a grid until the positions are added
    embed.output_fmt = Format.NHWC
    return Taps(vit, len(vit.blocks), max(embed.patch_size), partial(_intermediates, vit))


def _intermediates(model: Any, images: Tensor, indices: list[int]) -> list[Tensor]:
    return model.forward_intermediates(images, indices=indices, output_fmt="NCHW", intermediates_only=True)


def _hooked(
    model: nn.Module, layers: list[str], channels_last: bool, images: Tensor, indices: list[int]
) -> list[Tensor]:
    names = [layers[index] for index in indices]
    outputs = record_layers(model, names, lambda: model(images))
    return [outputs[name].permute(0, 3, 1, 2) if channels_last else outputs[name] for name in names]


def _last_of_each_resolution(model: nn.Module, name: str, channels_last: bool, side: int) -> list[str]:
    """Names of the layers that give the last map of each resolution, from a pass over a blank image."""
    names = layer_names(model)
    height = 1 if channels_last else 2
    try:
        with torch.no_grad():
            blank = torch.zeros(1, 3, side, side)
            outputs = record_layers(model, names, lambda: model(blank))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise UserError(f"{name} failed on a blank image of {side} px: {error}", "give the size it is for") from error
    last = {output.shape[height]: layer for layer, output in outputs.items() if output.ndim == 4}
    if not last:
        raise UserError(
            f"{name} gives no feature maps: none of its layers has an output (N, C, h, w)",
            "segmentation needs a ViT of timm or of this suite, or a convolutional network",
        )
    return list(last.values())
