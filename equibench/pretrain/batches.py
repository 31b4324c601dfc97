"""Batches of view pairs for pretraining: step t of a run is the same pairs whatever the machine or the process."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from equibench.data.datasets import Dataset
from equibench.data.pairs import pretraining_epoch, split_indices, uniforms
from equibench.encoders.vit import ViewSpec, ViTEncoder
from equibench.pretrain.baseline import Baseline, Views
from equibench.transforms import TRANSFORMATIONS, transform


class PairStream:
    """The pairs of one pretraining run, or of held-out images, by position.

    Args:
        dataset: where the images come from.
        split: "train" for the run itself, "val" for diagnostics on held-out images.
        method: says which transformations stand between the views and whether one at a time.
        views: fill and mask.
        seed: the pretraining seed.
    """

    def __init__(self, dataset: Dataset, split: str, method: Baseline, views: ViewSpec, seed: int) -> None:
        self.images, self.labels = dataset.train.images, dataset.train.labels
        self.indices = split_indices(dataset)[split]
        self.names, self.one_at_a_time = tuple(method.transformations), method.one_at_a_time
        self.views, self.seed, self.size = views, seed, self.images.shape[-1]
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def batch(self, start: int, count: int, encoder: ViTEncoder) -> Views:
        """Pairs start to start + count - 1 of the stream, made on the encoder's device."""
        device = encoder.mean.device
        index, theta, drawn = self._rows(start, count)
        images = torch.from_numpy(self.images[index]).to(device).float().div_(255)
        coded, known, applied = {}, {}, {}
        for name, values in theta.items():
            on = drawn == name if self.one_at_a_time else np.ones(len(drawn), dtype=bool)
            used = np.where(on[:, None], values, TRANSFORMATIONS[name].identity)
            known[name] = torch.from_numpy(on).to(device)
            applied[name] = torch.from_numpy(used).float().to(device)
            coded[name] = torch.from_numpy(TRANSFORMATIONS[name].encode(used, self.size)).float().to(device)
        second = transform(images, applied, self.views.fill)
        labels = torch.from_numpy(self.labels[index]).to(device)
        return Views(encoder.normalise(images), encoder.normalise(second), coded, known, encoder.mask, labels)

    def _rows(
        self, start: int, count: int
    ) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]], NDArray[np.str_]]:
        """Image indices, θ, and the one transformation to apply if not all are; the range may cross epochs."""
        parts = []
        while count:
            epoch, first = divmod(start, len(self.indices))
            take = min(count, len(self.indices) - first)
            index, theta, active = self._epoch(epoch)
            rows = slice(first, first + take)
            parts.append((index[rows], {k: v[rows] for k, v in theta.items()}, active[rows]))
            start, count = start + take, count - take
        theta = {name: np.concatenate([p[1][name] for p in parts]) for name in self.names}
        return np.concatenate([p[0] for p in parts]), theta, np.concatenate([p[2] for p in parts])

    def _draw_epoch(self, epoch: int) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]], NDArray[np.str_]]:
        index, theta = pretraining_epoch(self.indices, self.size, self.names, self.seed, epoch)
        u = uniforms((len(index), 1), "which", self.seed, epoch)[:, 0]
        return index, theta, np.array(self.names)[(u * len(self.names)).astype(int)]
