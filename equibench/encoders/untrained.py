"""Untrained networks as controls: BatchNorm needs to have seen data before its network says anything in eval mode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equibench.encoders.adapter import ImageEncoder


@torch.no_grad()
def settle_batch_norm(encoder: ImageEncoder, batches: Sequence[Tensor]) -> int:
    """Give an untrained network the BatchNorm statistics of some images; its weights stay.

    As initialised, BatchNorm in eval mode is the identity, and a deep network's features shrink or grow from layer to
    layer: those of an untrained MobileNetV2 are of the order of 1e-10, which is no fair control.

    Args:
        encoder: changed in place, before its `identity` is asked for.
        batches: images (N, 3, S, S) in [0, 1].

    Returns:
        How many BatchNorm layers there are.
    """
    norms = [m for m in encoder.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [m for m in norms if m.track_running_stats]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for batch in batches if norms else ():
        if len(batch) > 1:  # one image has no variance
            encoder.represent(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return len(norms)
