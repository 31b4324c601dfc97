"""Any encoder of the suite as a backbone of mmsegmentation: `type="equibench.Encoder"` in a config."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers import Format
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from equibench.encoders.adapter import NO_MASK, ImageEncoder
from equibench.encoders.layers import layer_names, record_layers
from equibench.encoders.open import open_encoder
from equibench.encoders.vit import ViTEncoder
from equibench.errors import UserError
from equibench.pretrain.runs import open_run

Source = str | Path | nn.Module

_PROBE = 224  # pixels, for an encoder that does not say for which size it is


class Encoder(nn.Module):
    """Maps images to feature maps at several depths.

    A ViT (timm's, or the suite's own) gives its tokens behind blocks as maps; its positions are interpolated to the
    size of each image, and an image whose sides are no multiples of the patch is resized to the nearest ones.
    Networks of timm give the output of stages, other convolutional networks the last map of each resolution.

    The suite's own ViT leaves patches outside the visible disc out while it is pretrained. A dense prediction needs
    them, so here all patches are encoded, although the positions of those were never trained. P1 does not say how it
    did this.

    Args:
        encoder: what `equibench score` takes: the folder of a run, "timm:NAME", "torchvision:NAME", "hf-hub:ORG/NAME"
            or a file of weights (with `arch`); in Python also an nn.Module, of which a copy is taken.
        arch: a file's architecture.
        out_indices: depths (blocks, stages or resolutions, from 0) of the maps; None: four, evenly spaced, the last
            included (2, 5, 8, 11 of 12 blocks, as in mmsegmentation).
        frozen: no gradients, and eval mode for good: BatchNorm statistics do not move, dropout is off.
        size: side in pixels to which images are resized, for encoders that take one size only; None: as they are.
        pretrained: False: a named architecture untrained, seeded by `seed`.

    Attributes:
        channels, strides: of each map; a stride in pixels of a square image of `side` for each pixel of the map.
        source: arguments that open it again, as far as a config can name it.
        mean, std: (3,) what images must be normalised with, in units of [0, 1].

    Raises:
        UserError: the encoder cannot be opened or gives no maps; an index is out of range.
    """

    def __init__(
        self, encoder: Source, *, arch: str | None = None, out_indices: Sequence[int] | None = None,
        frozen: bool = True, size: int | None = None, pretrained: bool = True, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        opened = _open(encoder, arch, pretrained, seed)
        self.architecture, self.size, self.frozen = opened.architecture, size, frozen
        self.source: dict[str, Any] = {"encoder": self.architecture}
        if not isinstance(encoder, nn.Module):
            self.source = {"encoder": str(encoder), "arch": arch, "pretrained": pretrained}
        self.mean, self.std = opened.preprocessing.mean, opened.preprocessing.std
        self.side = size or opened.preprocessing.size or _PROBE
        depths = self._tap(opened)
        self.out_indices = spread(depths) if out_indices is None else tuple(out_indices)
        if not self.out_indices or not all(0 <= index < depths for index in self.out_indices):
            problem = f"out_indices {self.out_indices} are not all depths of {self.architecture}"
            raise UserError(problem, f"it has {depths} depths, 0 to {depths - 1}")
        cut: Any = getattr(self.network, "prune_intermediate_layers", None)
        if cut is not None:  # what lies behind the last map would be stored, and in training get no gradient
            cut(sorted(set(self.out_indices)), prune_norm=True, prune_head=True)
        self.requires_grad_(not frozen)
        self.eval()
        with torch.no_grad():
            maps = self(torch.zeros(1, 3, self.side, self.side))
        self.channels, self.strides = tuple(m.shape[1] for m in maps), tuple(self.side / m.shape[-1] for m in maps)
        self.train()

    def _tap(self, opened: ImageEncoder) -> int:
        """Find where maps are taken out of the network; returns from how many depths."""
        network: Any = opened.model.vit if isinstance(opened.model, ViTEncoder) else opened.model
        self.network, self.multiple, self._channels_last = network, 1, opened.channels_last
        self._layers: list[str] | None = None
        if isinstance(opened.model, ViTEncoder | VisionTransformer):
            # what timm decides when it builds a ViT with dynamic_img_size=True is decided here
            embed, network.dynamic_img_size = network.patch_embed, True
            embed.strict_img_size, embed.flatten = False, False  # the grid stays one until positions are added
            embed.output_fmt = Format.NHWC
            self.multiple = max(embed.patch_size)
            return len(network.blocks)
        if hasattr(network, "forward_intermediates") and hasattr(network, "feature_info"):
            return len(network.feature_info)
        self._layers = self._last_of_each_resolution()
        return len(self._layers)

    def _last_of_each_resolution(self) -> list[str]:
        """Names of the layers that give the last map of each resolution, from a pass over a blank image."""
        try:
            with torch.no_grad():
                blank = torch.zeros(1, 3, self.side, self.side)
                outputs = record_layers(self.network, layer_names(self.network), lambda: self.network(blank))
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            problem = f"{self.architecture} failed on a blank image of {self.side} px: {error}"
            raise UserError(problem, "give the size it is for") from error
        height = 1 if self._channels_last else 2
        last = {output.shape[height]: layer for layer, output in outputs.items() if output.ndim == 4}
        if not last:
            problem = f"{self.architecture} gives no feature maps: none of its layers has an output (N, C, h, w)"
            raise UserError(problem, "segmentation needs a ViT of timm or of this suite, or a convolutional network")
        return list(last.values())

    def train(self, mode: bool = True) -> Encoder:
        """Stays in eval mode while it is frozen, whatever is asked."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images (N, 3, H, W) -> a map (N, C, h, w) for each of `out_indices`.

        A UserError says so if the network cannot take images of this size.
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
                problem = f"{self.architecture} failed on images of {tuple(images.shape[-2:])} px: {error}"
                raise UserError(problem, f"if it takes one size only, give that as size (size={self.side})") from error
        return tuple(maps[index] for index in self.out_indices)

    def _maps(self, images: Tensor, indices: list[int]) -> list[Tensor]:
        if self._layers is None:
            forward = self.network.forward_intermediates
            return forward(images, indices=indices, output_fmt="NCHW", intermediates_only=True)
        names = [self._layers[index] for index in indices]
        outputs = record_layers(self.network, names, lambda: self.network(images))
        return [outputs[name].permute(0, 3, 1, 2) if self._channels_last else outputs[name] for name in names]


def _open(encoder: Source, arch: str | None, pretrained: bool, seed: int) -> ImageEncoder:
    if isinstance(encoder, ImageEncoder):
        return copy.deepcopy(encoder).cpu()
    if not isinstance(encoder, nn.Module) and (folder := Path(encoder).expanduser()).is_dir():
        # all but the folder says where a baseline's run lies, which is known here
        run = open_run(folder, runs=folder, profile="", data="", variant="headline", seed=0, views=NO_MASK)
        assert run is not None, "a folder is opened or refused"
        return run.encoder
    return open_encoder(encoder, arch=arch, pretrained=pretrained, seed=seed).encoder.cpu()


def spread(depths: int) -> tuple[int, ...]:
    """Four indices evenly spaced over the depths, the last included: 2, 5, 8, 11 of 12; of fewer some repeated."""
    return tuple(math.ceil(depths * (level + 1) / 4) - 1 for level in range(4))


def fitted(images: Tensor, multiple: int) -> Tensor:
    """Images resized (bilinear) to the nearest sides that are multiples, so that the map covers the image exactly.

    Padding would leave the map up to a patch larger than the image, and every label shifted towards its corner.
    """
    sides = [max(round(side / multiple), 1) * multiple for side in images.shape[-2:]]
    fits = sides == list(images.shape[-2:])
    return images if fits else F.interpolate(images, size=sides, mode="bilinear", align_corners=False)
