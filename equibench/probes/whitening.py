"""What a probe sees of a pair: the sum and the difference of its representations, whitened with shrinkage.

The features of most encoders have a few directions that hold nearly all of the variance, and what tells a
transformation may lie in the others. A probe that is trained by gradient steps on features that are standardised column
by column hardly reaches those, so it reads the coordinates that the features happen to come in. Here every direction of
the sum and of the difference is divided by sqrt(variance + shrinkage * mean variance): with little shrinkage all
directions count alike, with much they keep their sizes. How much is right differs between encoders and transformations,
so it is chosen on the validation pairs (docs/protocol.md 7.1). Rotations and a common scale of the features change
nothing.
"""

import mmap
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from equibench.utils.arrays import Gathered

SHRINKAGES = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0)
"""In units of the mean variance of a direction, for the sum and the difference each."""
STD_FLOOR = 1e-4
"""A column that varies less than this share of the features' typical size is left as small as it is."""

_SMALLEST_VARIANCE = 1e-9
"""Of a direction, as a share of the largest one's; what is below is rounding."""
_MOST_COLUMNS, _MOST_DIRECTIONS, _SAMPLE = 2048, 1024, 16_384
"""Of wider features the largest directions of a sample of the pairs are found by random projections."""
_BLOCK_FLOATS = 2**26
"""Numbers of a block of pairs that is read into memory at once: 256 MiB in float32, 65,536 pairs of 512 features."""

Features = NDArray[np.floating] | Gathered
Block = NDArray[np.float32]
Conditioning = Callable[[Block], Block]
"""Representations of both views (n, 2, D) -> what the probe sees (n, inputs)."""


@dataclass(frozen=True)
class Split:
    """Representations of both views (N, D) each, in memory or on disk, and coded targets (N, K)."""

    first: Features
    second: Features
    targets: NDArray[np.float64]
    columns: slice = field(default_factory=lambda: slice(None))

    @property
    def width(self) -> int:
        """Number of columns of one view."""
        return len(range(*self.columns.indices(self.first.shape[1])))

    def blocks(self) -> list[slice]:
        """Ranges of pairs of which each fits in memory."""
        rows = max(1, _BLOCK_FLOATS // (2 * self.first.shape[1]))
        return [slice(start, min(start + rows, len(self.targets))) for start in range(0, len(self.targets), rows)]

    def read(self, rows: slice) -> Block:
        """Representations of both views (n, 2, D)."""
        block = np.empty((rows.stop - rows.start, 2, self.width), dtype=np.float32)
        for view, array in enumerate((self.first, self.second)):
            block[:, view] = np.asarray(array[rows])[:, self.columns]
            if len(self.blocks()) > 1:
                _forget(array)
        return block

    def head(self, count: int) -> "Split":
        """Its first pairs, which are a random sample of them: a manifest's pairs are in random order."""
        rows = slice(0, count)
        return Split(self.first[rows], self.second[rows], self.targets[rows], self.columns)


@dataclass(frozen=True)
class Whitening:
    """Principal directions of the sum and of the difference of the training pairs' representations."""

    means: NDArray[np.float64]  # (2, D)
    directions: tuple[NDArray[np.float64], NDArray[np.float64]]  # (D, k) each, by falling variance
    variances: tuple[NDArray[np.float64], NDArray[np.float64]]  # (k,) each

    @classmethod
    def of(cls, train: Split) -> "Whitening":
        """From all training pairs, block by block."""
        total = sum(_sum_and_difference(train.read(rows)).sum(axis=0, dtype=np.float64) for rows in train.blocks())
        means = np.asarray(total) / len(train.targets)
        found = [_principal(train, part, means[part]) for part in (0, 1)]
        return cls(means, (found[0][0], found[1][0]), (found[0][1], found[1][1]))

    def shrunk(self, shrinkage: float) -> Conditioning:
        """The map from a block of pairs (n, 2, D) to the whitened sum and difference (n, k + k'), of mean square 1."""
        scales = [1 / np.sqrt(v + shrinkage * v.mean()) if len(v) else v for v in self.variances]
        kept = np.concatenate([v * np.square(s) for v, s in zip(self.variances, scales, strict=True)])
        size = np.sqrt(kept.mean()) if len(kept) else 1.0
        maps = [d * (s / size) for d, s in zip(self.directions, scales, strict=True)]
        shifts = [(mean @ m).astype(np.float32) for mean, m in zip(self.means, maps, strict=True)]
        maps = [m.astype(np.float32) for m in maps]

        def condition(block: Block) -> Block:
            parts = _sum_and_difference(block)
            return np.concatenate([parts[:, i] @ maps[i] - shifts[i] for i in (0, 1)], axis=1)

        return condition


def standardised(train: Split) -> Conditioning:
    """P1's literal conditioning: each view's columns by their mean and standard deviation, side by side."""
    count, shape = len(train.targets), (2, train.width)
    total, squares = np.zeros(shape), np.zeros(shape)
    for rows in train.blocks():
        total += train.read(rows).sum(axis=0, dtype=np.float64)
    mean = total / count
    for rows in train.blocks():
        block = train.read(rows)
        block -= mean.astype(np.float32)
        squares += np.square(block, out=block).sum(axis=0, dtype=np.float64)
    size = np.sqrt(np.mean(squares / count + np.square(mean)))
    std = np.maximum(np.sqrt(squares / count), STD_FLOOR * size + 1e-12).astype(np.float32)
    centre = mean.astype(np.float32)
    return lambda block: ((block - centre) / std).reshape(len(block), -1)


def _sum_and_difference(block: Block) -> Block:
    return np.stack([block[:, 0] + block[:, 1], block[:, 1] - block[:, 0]], axis=1)


def _principal(train: Split, part: int, mean: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Directions (D, k) and variances (k,) of the sum (part 0) or the difference (part 1), the largest first."""
    if train.width > _MOST_COLUMNS:
        from sklearn.utils.extmath import randomized_svd

        sample = train.read(slice(0, min(len(train.targets), _SAMPLE)))
        centred = _sum_and_difference(sample)[:, part] - mean.astype(np.float32)
        _, sizes, axes = randomized_svd(centred, min(_MOST_DIRECTIONS, *centred.shape), random_state=0)
        variances, directions = np.square(sizes.astype(np.float64)) / len(centred), axes.T.astype(np.float64)
    else:
        moments = np.zeros((train.width, train.width))
        for rows in train.blocks():
            exact = _sum_and_difference(train.read(rows))[:, part] - mean
            moments += exact.T @ exact
            del exact  # before the next one is read
        variances, directions = np.linalg.eigh(moments / len(train.targets))
        variances, directions = variances[::-1], directions[:, ::-1]
    keep = variances > max(_SMALLEST_VARIANCE * variances[0], np.finfo(np.float32).tiny)
    directions, variances = directions[:, keep], variances[keep]
    # of either sign; the one whose largest entry is positive, lest a change in the last digit act like another seed
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    return directions * np.sign(largest), variances


def _forget(array: Features) -> None:
    """Give the pages of a mapped file back, which otherwise count as this process's memory until it ends."""
    mapped = getattr(array.array if isinstance(array, Gathered) else array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)  # they are read-only, and stay in the system's cache
