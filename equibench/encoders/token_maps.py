"""The final token map of a frozen encoder, for images of any size: what dense tasks look at."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from timm.layers import Format
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode, functional

from equibench.encoders.adapter import NO_MASK, ImageEncoder, Preprocessing
from equibench.encoders.open import open_encoder
from equibench.encoders.vit import ViTEncoder
from equibench.errors import UserError

PIXELS_A_TOKEN = 16
"""Of networks that have no patches: so large an image is given for each token asked for."""
_UNTOLD = 224
"""Side in pixels of the images for an encoder that does not say for which size it is."""


class TokenMaps(nn.Module):
    """Maps images (N, 3, H, W) in [0, 1], of any size, to token maps (N, D, h, w) float32.

    The map of a ViT are its patch tokens behind the last norm (and behind the head of the suite's own), that of another
    network its last feature map. As for segmentation, no disc hides anything, the suite's own ViT encodes all patches,
    and a ViT's positions are interpolated to the grid.

    Args:
        encoder: that of a row, of which a copy is taken; it stays frozen, in eval mode.
        grid: tokens down and across. Images are resized (as the encoder wants it done) to so many patches of a ViT, or
            to 16 px a token of another network. Where a network takes one size only, or `grid` is None, they are
            resized to the encoder's own size, or 224 px where it has none.

    Attributes:
        size: height and width in pixels to which images are resized.

    Raises:
        UserError: the encoder has no token map.
    """

    def __init__(self, encoder: nn.Module, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        opened = _image_encoder(encoder)
        own = opened.preprocessing.size or _UNTOLD
        self.mode = InterpolationMode(opened.preprocessing.interpolation)
        self.encoder = opened
        opened.views, opened.preprocessing = NO_MASK, replace(opened.preprocessing, size=None)
        network: Any = opened.model.vit if isinstance(opened.model, ViTEncoder) else opened.model
        self.vit, self.patch = None, (PIXELS_A_TOKEN, PIXELS_A_TOKEN)
        if isinstance(network, VisionTransformer):
            # what timm decides when it builds a ViT with dynamic_img_size=True is decided here
            self.vit, embed = network, network.patch_embed
            setattr(network, "dynamic_img_size", True)  # noqa: B010  (typed as final)
            embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC
            self.patch = tuple(embed.patch_size)
        self.size = (own, own) if grid is None else (grid[0] * self.patch[0], grid[1] * self.patch[1])
        if grid is not None and self.vit is None and not self._takes(self.size):
            self.size = (own, own)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        x = images
        if tuple(x.shape[-2:]) != self.size:
            antialias = self.mode != InterpolationMode.NEAREST
            x = functional.resize(x, list(self.size), interpolation=self.mode, antialias=antialias)
        if self.vit is None:
            return self.encoder.token_map(x)
        tokens = self.vit.forward_features(self.encoder.prepare(x))[:, self.vit.num_prefix_tokens :]
        if isinstance(self.encoder.model, ViTEncoder):
            tokens = self.encoder.model.head(tokens)
        return tokens.mT.unflatten(2, [s // p for s, p in zip(self.size, self.patch, strict=True)]).float()

    def represent(self, images: Tensor) -> Tensor:
        """The maps as one vector an image (N, D h w), for the store of features."""
        return self(images).flatten(1)

    def _takes(self, size: tuple[int, int]) -> bool:
        """Whether the network has a map of blank images of this size."""
        device = self.encoder.mean.device
        try:
            with torch.no_grad():
                return bool(torch.isfinite(self.encoder.token_map(torch.zeros(1, 3, *size, device=device))).all())
        except UserError:
            return False


def _image_encoder(encoder: nn.Module) -> ImageEncoder:
    """A copy with preprocessing; the suite's own ViT comes without one from its pretraining run."""
    if isinstance(encoder, ImageEncoder):
        return copy.deepcopy(encoder)
    if isinstance(encoder, ViTEncoder):
        wanted = Preprocessing(encoder.mask.shape[-1])
        return ImageEncoder(copy.deepcopy(encoder), architecture="equibench:vit", preprocessing=wanted)
    return open_encoder(encoder).encoder
