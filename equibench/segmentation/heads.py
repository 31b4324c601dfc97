"""Decode heads on an encoder's maps: P1's "HyperNet on top", and a linear classifier of every position."""

# ruff: noqa: E402  (mmseg cannot be imported before mmcv's compiled operations are there, or a stub in their place)
from __future__ import annotations

from equibench.segmentation.stub import require_mmseg

require_mmseg()

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import build_norm_layer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn
from torch.nn import functional as F


class HyperNetHead(BaseDecodeHead):
    """The Hyper Feature of Kong et al. (2016, section 3.1) on an encoder's maps (docs/protocol.md 7.5).

    Every map is resized (bilinear) to one resolution, a quarter of the image's, convolved (5 x 5) to few channels and
    normalised across channels (LRN); the concatenation goes through a 3 x 3 convolution, BatchNorm and ReLU, dropout
    and a 1 x 1 convolution to the classes. No official code is public: what follows the concatenation is ours.

    Args:
        in_channels: of each map.
        upsample: factor from the first map's resolution to the common one: its stride / 4.
        channels_per_level: 42 in the paper, which makes 126 of three levels; 128 is a practical choice.
        channels: between the 3 x 3 and the 1 x 1 convolution.
        level_norm: "lrn" (size 5, alpha 1e-4, beta 0.75), or "batch" for `norm_cfg` in its place.
        norm_cfg, others: as mmsegmentation's BaseDecodeHead; over several GPUs the norm is "SyncBN".
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, upsample: float = 4.0, channels_per_level: int = 42,
        channels: int = 256, level_norm: str = "lrn", norm_cfg: dict[str, Any] | None = None, **others: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            list(in_channels), channels, num_classes=num_classes, in_index=list(range(len(in_channels))),
            input_transform="multiple_select", norm_cfg=norm_cfg or {"type": "BN"}, **others,
        )  # fmt: skip
        self.upsample = upsample
        self.reduce = nn.ModuleList(nn.Conv2d(c, channels_per_level, 5, padding=2) for c in in_channels)
        assert level_norm in ("lrn", "batch"), f"level_norm is 'lrn' or 'batch', not {level_norm!r}"
        if level_norm == "lrn":
            self.norms = nn.ModuleList(nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75) for _ in in_channels)
        else:
            self.norms = nn.ModuleList(build_norm_layer(self.norm_cfg, channels_per_level)[1] for _ in in_channels)
        self.mix = nn.Sequential(
            nn.Conv2d(len(in_channels) * channels_per_level, channels, 3, padding=1, bias=False),
            build_norm_layer(self.norm_cfg, channels)[1],
            nn.ReLU(inplace=True),
        )

    def hyper_feature(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (N, C_l, h_l, w_l) -> (N, levels * channels_per_level, h, w) at the common resolution."""
        size = [max(round(side * self.upsample), 1) for side in maps[0].shape[-2:]]
        same = (F.interpolate(m, size=size, mode="bilinear", align_corners=self.align_corners) for m in maps)
        levels = zip(same, self.reduce, self.norms, strict=True)
        return torch.cat([norm(reduce(level)) for level, reduce, norm in levels], dim=1)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps -> logits (N, classes, h, w)."""
        return self.cls_seg(self.mix(self.hyper_feature(self._transform_inputs(inputs))))


class LinearHead(BaseDecodeHead):
    """BatchNorm and a 1 x 1 convolution on the maps, resized to the first's size: DINOv2's frozen protocol."""

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, norm_cfg: dict[str, Any] | None = None, **others: Any
    ) -> None:
        super().__init__(
            list(in_channels), sum(in_channels), num_classes=num_classes, in_index=list(range(len(in_channels))),
            input_transform="resize_concat", norm_cfg=norm_cfg or {"type": "BN"}, dropout_ratio=0, **others,
        )  # fmt: skip
        self.norm = build_norm_layer(self.norm_cfg, sum(in_channels))[1]

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps -> logits (N, classes, h, w) at the first map's resolution."""
        return self.cls_seg(self.norm(self._transform_inputs(inputs)))
