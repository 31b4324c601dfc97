"""Views on disk: each view of the evaluation pairs is rendered once, when it is first read."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from equibench.data.dataset import SPLITS, Dataset, image_source
from equibench.pairs.manifest import Pairs
from equibench.transforms.transformation import RENDER_BATCH_PIXELS, ViewSpec, transform_sequence
from equibench.utils.digests import code_digest
from equibench.utils.files import digest_of, write_atomically

STORE_LIMIT = 4 * 2**30
"""A set of views of more bytes than this is rendered again whenever it is needed instead of being kept."""


_Make = Callable[[NDArray[np.uint8], NDArray[np.int64]], NDArray[np.uint8]]
"""Views from first images and from which pairs they are of."""


class Images(Protocol):
    """uint8 images (N, 3, S, S): an array, or views that are rendered when a range of them is asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Views:
    """One view of each pair."""

    digest: str  # of everything that the images depend on
    images: Images  # the different ones, each once
    row: NDArray[np.int64] | None = None  # (N,) which of them each pair sees; None if pair n sees image n


@dataclass(frozen=True)
class _Rendered:
    """Views that are rendered when a range of them is first read: nobody reads those whose features are stored.

    The file `path` then keeps all of them; without one they are rendered again whenever they are read.
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
        keep, rank = np.unique(position, return_inverse=True)
        digest = digest_of(["first", pairs.images_sha256])
        images = self._stored(digest, pairs, keep, lambda images, rows: images)
        return Views(digest, images, None if len(keep) == len(row) else rank[row.ravel()])

    def second(self, pairs: Pairs) -> Views:
        """The views g(I), or the data's own second views; these, too, once where several pairs use them."""
        if pairs.other is not None:
            digest = digest_of([pairs.images_sha256, pairs.other.tolist()])
            return self.first(replace(pairs, image=pairs.other, images_sha256=digest))
        digest = digest_of(["second", pairs.sha256, self.spec.fill, code_digest(Pairs, transform_sequence)])

        def render(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
            moved = transform_sequence(torch.from_numpy(images).float().div_(255), pairs.steps(rows), self.spec.fill)
            return moved.mul_(255).round_().clamp_(0, 255).to(torch.uint8).numpy()

        return Views(digest, self._stored(digest, pairs, np.arange(len(pairs.image)), render))

    def discard(self, pairs: Pairs) -> None:
        """Remove the second views of these pairs from the disk."""
        (self.folder / f"{self.second(pairs).digest[:32]}.npy").unlink(missing_ok=True)

    def _stored(self, digest: str, pairs: Pairs, keep: NDArray[np.int64], make: _Make) -> Images:
        """The views of the pairs `keep` (ascending), from the disk if they are or can be there."""
        shape = (len(keep), *self.dataset.train.images.shape[1:])
        sets = [image_source(self.dataset, split).images for split in SPLITS]
        split = np.repeat(np.arange(3), pairs.sizes)[keep]

        def render(rows: slice) -> NDArray[np.uint8]:
            by_split = [(number, keep[rows][split[rows] == number]) for number in np.unique(split[rows])]
            return np.concatenate([make(sets[number][pairs.image[mine]], mine) for number, mine in by_split])

        large = np.prod(shape, dtype=float) > STORE_LIMIT
        return _Rendered(shape, render, None if large else self.folder / f"{digest[:32]}.npy")
