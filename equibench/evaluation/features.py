"""Features on disk: each view is encoded once per encoder.

They are addressed by a digest of everything that they depend on, code included, so that one encoder's features can
never be taken for another's. Files appear whole or not at all, and are written and read in batches, so that memory
does not grow with the number of pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equibench.errors import UserError
from equibench.utils.arrays import Gathered
from equibench.utils.digests import code_digest
from equibench.utils.files import digest_of, write_together

if TYPE_CHECKING:
    from equibench.pairs.views import Images, Views

DEFAULT = ("default",)
ENCODER = "equibench.encoders.adapter:ImageEncoder"
"""What turns images into features, besides a network's own code, which is part of its identity. Named and not imported:
whether features are stored can be told without the libraries that encoders need."""
SMALLEST = 1e-4
"""Features that are all smaller would lose their digits in float16."""


@dataclass(frozen=True)
class FeatureStore:
    """Representations of stored views, float16, one file per encoder, layer and set of views.

    Args:
        folder: where they are kept.
        batch: images per forward pass.
        device: where the encoder runs.
        bf16: run it under bfloat16 autocast.
        report: called with the number of images after each forward pass.
    """

    folder: Path
    batch: int
    device: torch.device
    bf16: bool
    report: Callable[[int], None] | None = None

    def encode(
        self,
        open: Callable[[], nn.Module],
        identity: Mapping[str, object],
        views: Views,
        layers: Sequence[str] = DEFAULT,
    ) -> dict[str, NDArray[np.float16] | Gathered]:
        """Representations (N, D) of each layer, memory-mapped; one forward pass for all that are not there yet.

        Args:
            open: gives the encoder, which has `represent`, and `outputs` where other layers than the default are
                asked for.
            identity: what tells this encoder from all others: digest of its weights, architecture, preprocessing.
            views: what is encoded.
            layers: "default" is what `represent` returns.

        Raises:
            UserError: a feature is not finite, or beyond float16's range.
        """
        paths = {layer: self._path(identity, views.digest, layer) for layer in layers}
        missing = [layer for layer, path in paths.items() if not path.exists()]
        if missing:
            self._write(open(), views.images, {layer: paths[layer] for layer in missing})
        arrays = {layer: np.load(path, mmap_mode="r") for layer, path in paths.items()}
        if views.row is None:
            return arrays  # type: ignore[return-value]
        return {layer: Gathered(array, views.row) for layer, array in arrays.items()}

    def _path(self, identity: Mapping[str, object], views_digest: str, layer: str) -> Path:
        key = [layer, dict(identity), views_digest, self.bf16, self.device.type, self.batch]
        return self.folder / f"{digest_of([*key, code_digest(FeatureStore, ENCODER)])[:32]}.npy"

    def _write(self, encoder: nn.Module, images: Images, paths: dict[str, Path]) -> None:
        layers = list(paths)
        write_together(
            list(paths.values()), lambda files: self._forward(encoder, images, dict(zip(layers, files, strict=True)))
        )

    @torch.inference_mode()
    def _forward(self, encoder: nn.Module, images: Images, files: dict[str, Path]) -> None:
        """Encode all images once and fill each layer's file."""
        encoder.eval()
        arrays: dict[str, NDArray[np.float16]] = {}
        for start in range(0, len(images), self.batch):
            rows = slice(start, min(start + self.batch, len(images)))
            batch = torch.from_numpy(np.array(images[rows])).to(self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                outputs = outputs_of(encoder, batch.float().div_(255), list(files))
            for layer, features in outputs.items():
                half = _as_float16(features, layer)
                if layer not in arrays:
                    shape = (len(images), half.shape[1])
                    arrays[layer] = np.lib.format.open_memmap(files[layer], mode="w+", dtype=np.float16, shape=shape)
                arrays[layer][rows] = half
            if self.report:
                self.report(len(batch))
        for array in arrays.values():
            array.flush()  # type: ignore[attr-defined]


def outputs_of(encoder: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Representations (N, D) by layer; an encoder without named layers has the default one."""
    if tuple(layers) == DEFAULT:
        return {"default": encoder.represent(images)}  # type: ignore[operator]
    found = encoder.outputs(images, [layer for layer in layers if layer not in DEFAULT])  # type: ignore[operator]
    return {layer: found[layer] for layer in layers}


def _as_float16(features: Tensor, layer: str) -> NDArray[np.float16]:
    half, largest = features.to(torch.float16), features.abs().max()
    if 0 < largest < SMALLEST:
        raise UserError(
            f"the encoder's features (layer: {layer}) are too small to be told apart (largest: {largest:.3g})",
            "is it trained, with BatchNorm statistics? else multiply its output by a constant",
        )
    if not torch.isfinite(half).all():
        raise UserError(
            f"the encoder's features (layer: {layer}) are not finite, or exceed 65,504 (largest: {largest:.3g})",
            "look at the weights, or at the run's log: training may have diverged",
        )
    return half.cpu().numpy()
