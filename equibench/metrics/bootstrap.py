"""Ratios of sums over test images: the one form in which the metrics beyond regression are reported.

Σ top / Σ bottom (or one minus that) can be verified from two stored numbers per image and resampled over images, so
that intervals, and differences between encoders on the same images, are taken alike for every metric.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000

Floats = NDArray[np.float64]
AnyFloats = NDArray[np.floating[Any]]
"""Features as they are stored, float16 to float64; every metric computes in float64."""

_CHUNK_BYTES = 2**26
_FLOOR = 1e-4


@dataclass(frozen=True)
class Ratio:
    """Σ top / Σ bottom over images, or 1 - Σ top / Σ bottom."""

    top: Floats  # (N,) one number per test image
    bottom: Floats  # (N,) likewise; ones for a plain mean
    complement: bool = False  # whether one minus the quotient is meant, as in R²

    @property
    def value(self) -> float:
        """The ratio; nan where the bottom sums to zero, since nothing was there to compare with (even for 0/0)."""
        return float(self.of_sums(self.top.sum(), self.bottom.sum()))

    def of_sums(self, top: Floats, bottom: Floats) -> Floats:
        """The ratio for sums of tops and of bottoms, of any one shape."""
        bottom = as_float(bottom)
        quotient = np.asarray(top) / np.where(bottom == 0, np.nan, bottom)
        return 1 - quotient if self.complement else quotient


def as_float(values: ArrayLike) -> Floats:
    """Anything like an array, in float64 as all metrics compute."""
    return np.asarray(values, dtype=np.float64)


def squared_norms(vectors: Floats) -> Floats:
    """||v||² of each vector (..., D) -> (...)."""
    return np.asarray(np.einsum("...d,...d->...", vectors, vectors))


def mean_of(values: ArrayLike) -> Ratio:
    """A plain mean over images of values (N,)."""
    top = as_float(values)
    return Ratio(top, np.ones(len(top)))


def gain(residual: Floats, baseline: Floats, scale: Floats) -> Ratio:
    """1 - Σ residual / Σ baseline, where residuals far below the scale count as nothing: 0 = no gain, 1 = all of it.

    Both sums get 1e-4 of the scale's on top. Where the baseline is already exact up to rounding and
    regularisation, 0/0, the gain is then 0, and not whatever the quotient of two rounding errors happens to be.

    `residual` (N,) are the squared residuals of the better informed predictor, `baseline` those of the predictor that
    it is compared with, `scale` the squares of what is predicted.
    """
    return Ratio(residual + _FLOOR * scale, baseline + _FLOOR * scale, complement=True)


def resampled(ratio: Ratio, *, resamples: int = RESAMPLES, seed: int = 0, cluster: int = 1) -> Floats:
    """The bootstrap distribution (resamples,) over test images; equal seeds and N draw equal images, for pairing.

    `cluster` images that follow each other, as the views of one object, are drawn together.
    """
    return resampled_each({"": ratio}, resamples=resamples, seed=seed, cluster=cluster)[""]


def resampled_each(
    ratios: Mapping[str, Ratio], *, resamples: int = RESAMPLES, seed: int = 0, cluster: int = 1
) -> dict[str, Floats]:
    """`resampled` of several ratios over the same N images in one pass of drawing, which is what takes the time."""
    columns = np.stack([column for ratio in ratios.values() for column in (ratio.top, ratio.bottom)], axis=1)
    sums = resampled_sums(columns, resamples=resamples, seed=seed, cluster=cluster)
    return {name: ratio.of_sums(sums[:, 2 * i], sums[:, 2 * i + 1]) for i, (name, ratio) in enumerate(ratios.items())}


def resampled_sums(columns: Floats, *, resamples: int = RESAMPLES, seed: int = 0, cluster: int = 1) -> Floats:
    """Sums of columns (N, C) over each resample of the N images -> (resamples, C)."""
    each = columns.reshape(-1, cluster, columns.shape[1]).sum(axis=1) if cluster > 1 else columns
    return np.concatenate([counts @ each for counts in draw_counts(len(each), resamples, seed)])


def draw_counts(count: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each image is drawn, in chunks (rows, count) of the (resamples, count) that multinomial draws give.

    Chunks, of 64 MiB at most (or one row), bound the memory for a million images. For fewer images the draws are kept
    for the next metric on them, as bytes: no image is ever drawn 256 times out of N draws of chance 1/N.
    """
    few = count * resamples <= _CHUNK_BYTES
    for counts in _kept_draws(count, resamples, seed) if few else _draws(count, resamples, seed):
        yield counts.astype(np.float64)


def _draws(count: int, resamples: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    rng, chances, rows = np.random.default_rng(seed), np.full(count, 1 / count), max(1, _CHUNK_BYTES // (8 * count))
    for start in range(0, resamples, rows):
        yield rng.multinomial(count, chances, size=min(rows, resamples - start)).astype(np.uint8)


@lru_cache(maxsize=2)  # all test images, and the half of them on which rotations are scored
def _kept_draws(count: int, resamples: int, seed: int) -> tuple[NDArray[np.uint8], ...]:
    return tuple(_draws(count, resamples, seed))
