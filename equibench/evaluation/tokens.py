"""Patch tokens on disk, made small: at most 8 x 8 places of at most 64 whitened numbers, float16, by encoder and views.

They are whitened by the tokens of untransformed training images, whichever task asks, so that tasks share the tokens of
their first views. The forward pass that gives them gives the features of `FeatureStore` too, if these are not stored.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from equibench.encoders.adapter import ImageEncoder
from equibench.encoders.vit import ViTEncoder
from equibench.errors import UserError
from equibench.evaluation.context import Context, Row
from equibench.evaluation.features import ENCODER
from equibench.pairs.manifest import Pairs
from equibench.pairs.views import Views
from equibench.probes.whitening import Features
from equibench.utils.arrays import Gathered
from equibench.utils.digests import code_digest
from equibench.utils.files import digest_of, write_atomically

MOST_SIDE, MOST_WIDTH = 8, 64
"""Places on a side to which a larger map is averaged, and directions that are kept of its channels."""

_FIT_IMAGES, _FIT_FLOATS, _SIGN_IMAGES = 512, 2**26, 64
"""Training images whose tokens are looked at to whiten, numbers of these at most, and images of them for the signs."""
_SMALLEST_VARIANCE = 1e-6
"""Of a direction, as a share of the largest one's; what is below is left out, for it may be bfloat16's rounding."""
_MOST_DEVIATIONS = 1000.0
"""To which a whitened number is cut, so that no outlier leaves float16's range."""

Maps = NDArray[np.float32]
"""Averaged maps (n, P', D): place by place, at most 8 x 8."""


@dataclass(frozen=True)
class TokenWhitening:
    """What makes averaged maps small.

    Attributes:
        places: (P,) the places at which there is something to see.
        mean: (D,) of the tokens there.
        directions: (D, k) principal directions over their standard deviation, by falling variance; k is at most 64.
    """

    places: NDArray[np.int64]
    mean: NDArray[np.float32]
    directions: NDArray[np.float32]

    @classmethod
    def of(cls, maps: Maps) -> TokenWhitening:
        """From averaged maps of training images; a place that is 0 in all of them is hidden.

        A direction points to where its third moment is positive, so that it does not depend on the features' basis.

        Raises:
            UserError: no token varies.
        """
        from scipy.linalg import eigh

        seen = np.abs(maps).max(axis=(0, 2)) > 0
        tokens = maps[:, seen].reshape(-1, maps.shape[2])
        mean = tokens.mean(axis=0, dtype=np.float64) if len(tokens) else np.zeros(maps.shape[2])
        moments = np.zeros((len(mean), len(mean)))
        for part in np.array_split(tokens, len(tokens) // 4096 + 1):
            moments += (part - mean).T @ (part - mean) / max(1, len(tokens))
        largest = (max(0, len(mean) - MOST_WIDTH), len(mean) - 1)
        variances, directions = eigh(moments, subset_by_index=largest)
        kept = variances > max(_SMALLEST_VARIANCE * variances[-1], np.finfo(np.float32).tiny)
        if not kept.any():
            raise UserError("the encoder's tokens are the same in every image and place", "has the encoder collapsed?")
        directions = (directions[:, kept] / np.sqrt(variances[kept]))[:, ::-1]
        some = (tokens[: _SIGN_IMAGES * int(seen.sum())] - mean) @ directions
        directions = directions * np.where((some**3).sum(axis=0) < 0, -1, 1)
        return cls(np.flatnonzero(seen), mean.astype(np.float32), directions.astype(np.float32))

    def __call__(self, maps: Maps) -> NDArray[np.float16]:
        """Averaged maps (n, P', D) -> whitened tokens (n, P k), place by place."""
        white = (maps[:, self.places] - self.mean) @ self.directions
        return white.clip(-_MOST_DEVIATIONS, _MOST_DEVIATIONS).reshape(len(white), -1).astype(np.float16)


def encode_tokens(row: Row, pairs: Pairs, context: Context) -> tuple[Features, Features, int]:
    """Whitened tokens of both views (N, P k), memory-mapped, and their number of places P.

    Raises:
        UserError: the encoder has neither tokens nor a map, or none that varies.
    """
    if "grid" not in row.token_sets():
        fix = "leave the attentive tasks out, or choose an encoder that does not pool early"
        raise UserError(f"{row.name} has neither patch tokens nor a feature map", fix)
    first, second = context.views.first(pairs), context.views.second(pairs)
    batch = row.batch or context.profile.encode_batch
    key = [row.identity, first.digest, context.bf16, context.device.type, batch, code_digest(encode_tokens, ENCODER)]
    distinct = pairs.sizes[0] if first.row is None else int(first.row[pairs.rows("train")].max()) + 1
    path = context.work / "tokens" / f"{digest_of([*key, pairs.sizes[0]])[:32]}.npz"
    if not path.exists():
        found = vars(_whitening(row, first, distinct, context))
        write_atomically(path, lambda temporary: np.savez(temporary, **found))
    with np.load(path) as stored:
        whitening = TokenWhitening(**stored)
    one, other = (_stored(row, views, whitening, path, context) for views in (first, second))
    return one, other, len(whitening.places)


def _whitening(row: Row, first: Views, distinct: int, context: Context) -> TokenWhitening:
    """Of the first of the distinct training images, which are a random sample of them."""
    found: list[Maps] = []
    tap = _Tap(row.encoder, found.append)
    for start in range(0, min(_FIT_IMAGES, distinct), step := row.batch or context.profile.encode_batch):
        _forward(tap, first, slice(start, min(start + step, distinct, _FIT_IMAGES)), context)
        if sum(part.size for part in found) > _FIT_FLOATS:
            break
    return TokenWhitening.of(np.concatenate(found))


def _stored(row: Row, views: Views, whitening: TokenWhitening, of: Path, context: Context) -> Features:
    path = of.with_name(f"{digest_of([of.stem, views.digest])[:32]}.npy")
    if not path.exists():
        write_atomically(path, partial(_fill, row, views, whitening, context))
    array = np.load(path, mmap_mode="r")
    return array if views.row is None else Gathered(array, views.row)


def _fill(row: Row, views: Views, whitening: TokenWhitening, context: Context, path: Path) -> None:
    """Write the tokens of all views, batch by batch, in the pass that gives the other features if there is one."""
    width, filled = len(whitening.places) * whitening.directions.shape[1], 0
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(len(views.images), width))

    def take(maps: Maps) -> None:
        nonlocal filled
        array[filled : filled + len(maps)] = whitening(maps)
        filled += len(maps)

    tap = _Tap(row.encoder, take)
    context.encode(replace(row, open=lambda: tap), views, (*row.layers, *row.token_sets()))
    if not filled:  # the other features were there
        step = row.batch or context.profile.encode_batch
        for start in range(0, len(array), step):
            _forward(tap, views, slice(start, min(start + step, len(array))), context)
    array.flush()


@torch.inference_mode()
def _forward(tap: _Tap, views: Views, rows: slice, context: Context) -> None:
    """Pass a range of the views through the encoder, as `FeatureStore` does."""
    images = torch.from_numpy(np.array(views.images[rows])).to(context.device)
    with torch.autocast(context.device.type, dtype=torch.bfloat16, enabled=context.bf16):
        tap.to(context.device).eval().outputs(images.float().div_(255))
    if context.on_images:
        context.on_images(len(images))


class _Tap(nn.Module):
    """An encoder that hands on the averaged map of every batch, from the pass that gives its features."""

    def __init__(self, encoder: nn.Module, take: Callable[[Maps], None]) -> None:
        super().__init__()
        self.take, self.encoder = take, encoder
        if isinstance(encoder, ImageEncoder):
            self.encoder, to_grid = copy.copy(encoder), encoder._grid
            # what it makes of its final tokens or map is seen nowhere else
            self.encoder._grid = lambda final: self._hand_on(to_grid(final))  # type: ignore[assignment]

    def represent(self, images: Tensor) -> Tensor:
        return self.outputs(images)["default"]

    def outputs(self, images: Tensor, layers: Sequence[str] = ()) -> dict[str, Tensor]:
        """As the encoder's own."""
        encoder, wanted = self.encoder, (*layers, *(() if "grid" in layers else ("grid",)))
        if isinstance(encoder, ViTEncoder):
            with encoder.register_forward_hook(lambda _module, _inputs, tokens: self._fold(tokens[:, 1:])):
                found = encoder.outputs(images, wanted)
        else:
            found = encoder.outputs(images, wanted)  # type: ignore[operator]
        return {name: found[name] for name in ("default", *layers)}

    def _fold(self, patches: Tensor) -> None:
        """Visible patches (N, L, D) to their grid, in which the others are 0."""
        assert isinstance(self.encoder, ViTEncoder)
        side = self.encoder.mask.shape[-1] // self.encoder.patch
        whole = patches.new_zeros(len(patches), side**2, patches.shape[2], dtype=torch.float32)
        whole[:, self.encoder.visible] = patches.float()
        self._hand_on(whole.mT.unflatten(2, (side, side)))

    def _hand_on(self, grid: Tensor) -> Tensor:
        """A map (N, D, h, w), averaged to at most 8 x 8, to whom it is for; the map itself is returned."""
        height, width = (min(MOST_SIDE, side) for side in grid.shape[2:])
        self.take(adaptive_avg_pool2d(grid, (height, width)).flatten(2).mT.float().cpu().numpy())
        return grid
