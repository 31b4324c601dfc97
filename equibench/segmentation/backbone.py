"""Any encoder of the suite as a backbone of mmsegmentation: `type="equibench.Encoder"` in a config."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.layers import Format
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from equibench.encoders.adapter import NO_MASK, ImageEncoder
from equibench.encoders.layers import layer_names, record_layers
from equibench.encoders.open import open_encoder, open_run
from equibench.encoders.vit import ViTEncoder
from equibench.errors import UserError

LEVELS = 4
PROBE = 224  # pixels, for an encoder that does not say for which size it is
Source = str | Path | nn.Module


class Encoder(nn.Module):
    """Maps images to feature maps at several depths.

    A ViT (timm's, or the suite's own) gives its tokens behind blocks as maps; its positions are interpolated to the
    size of each image, and an image whose sides are no multiples of the patch is resized to the nearest ones.
    Networks of timm give the output of stages, other convolutional networks the last map of each resolution.

    The suite's own ViT leaves patches outside the visible disc out while it is pretrained. A dense prediction needs
    them, so here all patches are encoded, without a mask; the positions of those outside the disc were never trained.
    P1 does not say how it did this.

    Args:
        encoder: what `equibench score` takes: the folder of a run, "timm:NAME", "torchvision:NAME", "hf-hub:ORG/NAME"
            or a file of weights (with `arch`); in Python also an nn.Module, of which a copy is taken.
        arch: a file's architecture.
        out_indices: depths (blocks, stages or resolutions, from 0) of the maps; None: four, evenly spaced, the last
            included (2, 5, 8, 11 of 12 blocks, as in mmsegmentation).
        frozen: no gradients, and eval mode for good: BatchNorm statistics do not move, dropout is off.
        size: side in pixels to which every image is resized; None leaves images as they are. For encoders that take
            one size only.
        pretrained: False: a named architecture untrained, seeded by `seed`.

    Attributes:
        channels: of each map.
        strides: pixels of the image for each pixel of the map, for square images of `side`.
        mean, std: (3,) what images must be normalised with, in units of [0, 1].

    Raises:
        UserError: the encoder cannot be opened or gives no maps; an index is out of range.
    """

    def __init__(
        self,
        encoder: Source,
        *,
        arch: str | None = None,
        out_indices: tuple[int, ...] | list[int] | None = None,
        frozen: bool = True,
        size: int | None = None,
        pretrained: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        opened = _open(encoder, arch, pretrained, seed)
        self.architecture, self.size, self.frozen = opened.architecture, size, frozen
        self.mean, self.std = opened.preprocessing.mean, opened.preprocessing.std
        self.side = size or opened.preprocessing.size or PROBE
        taps = open_taps(opened.model, self.architecture, opened.channels_last, self.side)
        self.out_indices = spread(taps.depths) if out_indices is None else tuple(out_indices)
        if not self.out_indices or not all(0 <= index < taps.depths for index in self.out_indices):
            raise UserError(
                f"out_indices {self.out_indices} are not all depths of {self.architecture}",
                f"it has {taps.depths} depths, 0 to {taps.depths - 1}",
            )
        prune(taps, self.out_indices)
        self.network, self.multiple, self._maps = taps.network, taps.multiple, taps.maps
        self.requires_grad_(not frozen)
        self.eval()
        self.channels, self.strides = self._measured()
        self.train()

    def train(self, mode: bool = True) -> Encoder:
        """Stays in eval mode while it is frozen, whatever is asked."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images (N, 3, H, W) -> a map (N, C, h, w) for each of `out_indices`.

        Raises:
            UserError: the network cannot take images of this size.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            if self.size is not None:
                images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", align_corners=False)
            images = fitted(images, self.multiple)
            wanted = sorted(set(self.out_indices))
            try:
                maps = dict(zip(wanted, self._maps(images, wanted), strict=True))
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, AssertionError, ValueError) as error:
                raise UserError(
                    f"{self.architecture} failed on images of {tuple(images.shape[-2:])} px: {error}",
                    f"if it takes one size only, give that as size (size={self.side})",
                ) from error
        return tuple(maps[index] for index in self.out_indices)

    def _measured(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        with torch.no_grad():
            maps = self(torch.zeros(1, 3, self.side, self.side))
        return tuple(m.shape[1] for m in maps), tuple(self.side / m.shape[-1] for m in maps)


def _open(encoder: Source, arch: str | None, pretrained: bool, seed: int) -> ImageEncoder:
    if isinstance(encoder, ImageEncoder):
        return copy.deepcopy(encoder).cpu()
    if not isinstance(encoder, nn.Module) and Path(encoder).expanduser().is_dir():
        folder = Path(encoder).expanduser()
        # all but the folder says where a baseline's run lies, which is known here
        run = open_run(folder, runs=folder, profile="", data="", variant="headline", seed=0, views=NO_MASK)
        assert run is not None, "a folder is opened or refused"
        return run.encoder
    return open_encoder(encoder, arch=arch, pretrained=pretrained, seed=seed).encoder.cpu()


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
