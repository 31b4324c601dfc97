"""Any encoder of the suite as a backbone of mmsegmentation: `type="equibench.Encoder"` in a config."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equibench.encoders.adapter import NO_MASK, ImageEncoder
from equibench.encoders.native import open_native
from equibench.encoders.sources import open_encoder
from equibench.errors import UserError
from equibench.segmentation.levels import fitted, open_taps, prune, spread

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
        native = open_native(folder, runs=folder, profile="", data="", variant="headline", seed=0, views=NO_MASK)
        assert native is not None, "a folder is opened or refused"
        return native.encoder
    return open_encoder(encoder, arch=arch, pretrained=pretrained, seed=seed).encoder.cpu()
