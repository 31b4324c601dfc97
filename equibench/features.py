"""Views and features on disk: each view is rendered once, each view is encoded once per encoder.

Both stores are addressed by a digest of everything that their content depends on, code included, so that one
encoder's features can never be taken for another's. Files appear whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equibench.data.datasets import Dataset
from equibench.data.pairs import SPLITS, Pairs, image_source
from equibench.encoders.vit import ViewSpec
from equibench.errors import UserError
from equibench.files import digest_of, write_atomically
from equibench.transforms import transform
from equibench.version import code_sha256

RENDER_BATCH = 1000


@dataclass(frozen=True)
class ViewStore:
    """Rendered views of the evaluation pairs, as uint8 images of the data's own size.

    The mask is not in the pixels: an encoder blanks what lies outside it after its own normalisation.
    """

    folder: Path
    dataset: Dataset
    spec: ViewSpec

    def first(self, pairs: Pairs) -> tuple[str, NDArray[np.uint8]]:
        """Digest and images (N, 3, S, S) of the untransformed views, which tasks share."""
        digest = digest_of(["first", pairs.images_sha256])
        return digest, self._stored(digest, pairs, lambda images, rows: images)

    def second(self, pairs: Pairs) -> tuple[str, NDArray[np.uint8]]:
        """Digest and images (N, 3, S, S) of g(I)."""
        digest = digest_of(["second", pairs.sha256, self.spec.fill, code_sha256("transforms")])

        def render(images: NDArray[np.uint8], rows: slice) -> NDArray[np.uint8]:
            theta = {pairs.transformation: torch.from_numpy(pairs.theta[rows]).float()}
            floats = torch.from_numpy(images).float() / 255
            moved = transform(floats, theta, self.spec.fill)
            return (moved * 255).round().clamp(0, 255).to(torch.uint8).numpy()

        return digest, self._stored(digest, pairs, render)

    def _stored(
        self,
        digest: str,
        pairs: Pairs,
        make: Callable[[NDArray[np.uint8], slice], NDArray[np.uint8]],
    ) -> NDArray[np.uint8]:
        path = self.folder / f"{digest[:32]}.npy"
        if not path.exists():
            shape = (len(pairs.image), *self.dataset.train.images.shape[1:])

            def fill(temporary: Path) -> None:
                array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
                for split in SPLITS:
                    images, span = image_source(self.dataset, split).images, pairs.rows(split)
                    for start in range(span.start, span.stop, RENDER_BATCH):
                        rows = slice(start, min(start + RENDER_BATCH, span.stop))
                        array[rows] = make(images[pairs.image[rows]], rows)
                array.flush()

            write_atomically(path, fill)
        return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


@dataclass(frozen=True)
class FeatureStore:
    """Representations of stored views, float16, one file per encoder and set of views.

    Args:
        folder: where they are kept.
        batch: images per forward pass.
        device: where the encoder runs.
        bf16: run it under bfloat16 autocast.
    """

    folder: Path
    batch: int
    device: torch.device
    bf16: bool

    def encode(
        self,
        encoder: nn.Module,
        identity: Mapping[str, object],
        views_digest: str,
        views: NDArray[np.uint8],
    ) -> NDArray[np.float16]:
        """Representations (N, D) of uint8 views (N, 3, S, S), memory-mapped.

        Args:
            encoder: has a method `represent`.
            identity: what tells this encoder from all others: digest of its weights, architecture, preprocessing.
            views_digest: digest of the views.

        Raises:
            UserError: a feature is not finite, or beyond float16's range.
        """
        key = ["mean of patch tokens", dict(identity), views_digest, self.bf16, self.device.type, self.batch]
        digest = digest_of([*key, code_sha256("encoders", "features.py")])
        path = self.folder / f"{digest[:32]}.npy"
        if not path.exists():
            features = self._forward(encoder, views)
            write_atomically(path, lambda temporary: np.save(temporary, features))
        return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]

    @torch.inference_mode()
    def _forward(self, encoder: nn.Module, views: NDArray[np.uint8]) -> NDArray[np.float16]:
        encoder.eval()
        parts = []
        for start in range(0, len(views), self.batch):
            images = torch.from_numpy(np.array(views[start : start + self.batch])).to(self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                parts.append(_as_float16(encoder.represent(images.float().div_(255))))  # type: ignore[operator]
        return np.concatenate(parts)


def _as_float16(features: Tensor) -> NDArray[np.float16]:
    half = features.to(torch.float16)
    if not torch.isfinite(half).all():
        raise UserError(
            f"the encoder's features are not finite, or exceed 65,504 (largest: {features.abs().max():.3g})",
            "look at the run's log: training has diverged",
        )
    return half.cpu().numpy()
