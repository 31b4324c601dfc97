"""Views and features on disk: each view is rendered once, each view is encoded once per encoder.

Both stores are addressed by a digest of everything that their content depends on, code included, so that one
encoder's features can never be taken for another's. Files appear whole or not at all, and are written and read in
batches, so that memory does not grow with the number of pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equibench.data.datasets import Dataset
from equibench.data.pairs import SPLITS, Pairs, image_source
from equibench.encoders.vit import ViewSpec
from equibench.errors import UserError
from equibench.files import digest_of, write_atomically, write_together
from equibench.transforms.families import transform_sequence
from equibench.version import code_sha256

RENDER_BATCH_PIXELS = 1000 * 32 * 32
"""Pixels of one image times images rendered at once: 1,000 images of 32 px, 20 of 224 px."""
STORE_LIMIT = 4 * 2**30
"""A set of views of more bytes than this is rendered again whenever it is needed instead of being kept."""

DEFAULT = ("default",)
FEATURE_CODE = ("encoders/adapter.py", "encoders/layers.py", "encoders/vit.py", "features.py")
SMALLEST = 1e-4
"""Features that are all smaller would lose their digits in float16."""


class Images(Protocol):
    """uint8 images (N, 3, S, S): an array, or views that are rendered when a range of them is asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Views:
    """One view of each pair.

    Attributes:
        digest: of everything that the images depend on.
        images: the different images, each once.
        row: (N,) which of them each pair sees; None if pair n sees image n.
    """

    digest: str
    images: Images
    row: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Gathered:
    """Rows of an array by index, read when they are asked for: features of images that several pairs share."""

    array: NDArray[Any]
    row: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.row), *self.array.shape[1:])

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Any:
        """A range of rows stays unread; rows by index are an array."""
        return Gathered(self.array, self.row[rows]) if isinstance(rows, slice) else self.array[self.row[rows]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.array[self.row], dtype=dtype)


@dataclass(frozen=True)
class _Rendered:
    """Views that are rendered when a range of them is first read: nobody reads those whose features are stored.

    Args:
        path: the file that then keeps all of them; None: they are rendered again whenever they are read.
    """

    shape: tuple[int, ...]
    render: Callable[[slice], NDArray[np.uint8]]
    path: Path | None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[np.uint8]:
        return self.render(rows) if self.path is None else self._stored[rows]

    @cached_property
    def _stored(self) -> NDArray[np.uint8]:
        assert self.path is not None
        if not self.path.exists():
            write_atomically(self.path, self._fill)
        return np.load(self.path, mmap_mode="r")  # type: ignore[no-any-return]

    def _fill(self, temporary: Path) -> None:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=self.shape)
        batch = max(1, RENDER_BATCH_PIXELS // (self.shape[-1] * self.shape[-2]))
        for start in range(0, len(self), batch):
            rows = slice(start, min(start + batch, len(self)))
            array[rows] = self.render(rows)
        array.flush()


@dataclass(frozen=True)
class ViewStore:
    """Rendered views of the evaluation pairs, as uint8 images of the data's own size.

    The mask is not in the pixels: an encoder blanks what lies outside it after its own normalisation.
    """

    folder: Path
    dataset: Dataset
    spec: ViewSpec

    def first(self, pairs: Pairs) -> Views:
        """The untransformed views, which tasks share; an image that several pairs use is there once."""
        keys = np.stack([np.repeat(np.arange(3), pairs.sizes), pairs.image], axis=1)
        _, position, row = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        keep = np.sort(position)
        rank = np.empty(len(position), dtype=np.int64)
        rank[np.argsort(position)] = np.arange(len(position))
        digest = digest_of(["first", pairs.images_sha256])
        images = self._stored(digest, pairs, keep, lambda images, rows: images)
        return Views(digest, images, None if len(keep) == len(row) else rank[row.ravel()])

    def second(self, pairs: Pairs) -> Views:
        """The views g(I), or the data's own second views; these, too, once where several pairs use them."""
        if pairs.other is not None:
            digest = digest_of([pairs.images_sha256, pairs.other.tolist()])
            return self.first(replace(pairs, image=pairs.other, images_sha256=digest))
        digest = digest_of(["second", pairs.sha256, self.spec.fill, code_sha256("transforms")])

        def render(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
            steps = [{pairs.transformation: torch.from_numpy(pairs.theta[rows]).float()}]
            if pairs.then is not None:
                steps.append({pairs.transformation: torch.from_numpy(pairs.then[rows]).float()})
            moved = transform_sequence(torch.from_numpy(images).float().div_(255), steps, self.spec.fill)
            return moved.mul_(255).round_().clamp_(0, 255).to(torch.uint8).numpy()

        return Views(digest, self._stored(digest, pairs, np.arange(len(pairs.image)), render))

    def discard(self, pairs: Pairs) -> None:
        """Remove the second views of these pairs from the disk."""
        (self.folder / f"{self.second(pairs).digest[:32]}.npy").unlink(missing_ok=True)

    def _stored(
        self,
        digest: str,
        pairs: Pairs,
        keep: NDArray[np.int64],
        make: Callable[[NDArray[np.uint8], NDArray[np.int64]], NDArray[np.uint8]],
    ) -> Images:
        """The views of the pairs `keep` (ascending), from the disk if they are or can be there."""
        shape = (len(keep), *self.dataset.train.images.shape[1:])
        sets = [image_source(self.dataset, split).images for split in SPLITS]
        split = np.repeat(np.arange(3), pairs.sizes)[keep]

        def render(rows: slice) -> NDArray[np.uint8]:
            parts = []
            for number in np.unique(split[rows]):
                mine = keep[rows][split[rows] == number]
                parts.append(make(sets[number][pairs.image[mine]], mine))
            return np.concatenate(parts)

        large = np.prod(shape, dtype=float) > STORE_LIMIT
        return _Rendered(shape, render, None if large else self.folder / f"{digest[:32]}.npy")


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
        encoder: nn.Module,
        identity: Mapping[str, object],
        views: Views,
        layers: Sequence[str] = DEFAULT,
    ) -> dict[str, NDArray[np.float16] | Gathered]:
        """Representations (N, D) of each layer, memory-mapped; one forward pass for all that are not there yet.

        Args:
            encoder: has a method `represent`, and `outputs` where layers other than the default are asked for.
            identity: what tells this encoder from all others: digest of its weights, architecture, preprocessing.
            views: what is encoded.
            layers: "default" is what `represent` returns.

        Raises:
            UserError: a feature is not finite, or beyond float16's range.
        """
        paths = {layer: self._path(identity, views.digest, layer) for layer in layers}
        missing = [layer for layer, path in paths.items() if not path.exists()]
        if missing:
            self._write(encoder, views.images, {layer: paths[layer] for layer in missing})
        arrays = {layer: np.load(path, mmap_mode="r") for layer, path in paths.items()}
        if views.row is None:
            return arrays  # type: ignore[return-value]
        return {layer: Gathered(array, views.row) for layer, array in arrays.items()}

    def _path(self, identity: Mapping[str, object], views_digest: str, layer: str) -> Path:
        key = [layer, dict(identity), views_digest, self.bf16, self.device.type, self.batch]
        return self.folder / f"{digest_of([*key, code_sha256(*FEATURE_CODE)])[:32]}.npy"

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
