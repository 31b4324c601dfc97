"""Batches of view pairs for pretraining: step t of a run is the same pairs whatever the machine or the process."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from equibench.data.dataset import Dataset, known_indices, split_indices
from equibench.encoders.vit import ViTEncoder
from equibench.errors import UserError
from equibench.pairs.manifest import pretraining_epoch, pretraining_views, split_objects
from equibench.pretrain.method import Baseline, Theta, ViewPair
from equibench.transforms.transformation import BETWEEN, TRANSFORMATIONS, ViewSpec, transform
from equibench.utils.random import uniforms


def open_stream(
    dataset: Dataset, split: str, method: Baseline, views: ViewSpec, seed: int, known_fraction: float = 1.0
) -> PairStream | ObjectStream:
    """The pairs of a run: transformed images, or the data's own views where several show one object.

    Raises:
        UserError: the method needs labels and there are none, or θ of what does not stand between these data's views.
    """
    if method.uses_labels and len(dataset.class_names) < 2:
        raise UserError(f"{dataset.name} has no classes to train a supervised method on", "choose labelled data")
    observed = [name for name in method.transformations if TRANSFORMATIONS[name].observed]
    if observed and not dataset.has_objects:
        raise UserError(
            f"the method needs views with {' and '.join(observed)} between them, and {dataset.name} has none",
            "run it on data in 3DIEBench's layout, as table1 does",
        )
    kind: type[PairStream | ObjectStream] = ObjectStream if dataset.has_objects else PairStream
    return kind(dataset, split, method, views, seed, known_fraction)


class PairStream:
    """The pairs of one pretraining run, or of held-out images, by position.

    Args:
        dataset: where the images come from.
        split: "train" for the run itself, "val" for diagnostics on held-out images.
        method: says which transformations stand between the views and whether one at a time.
        views: fill and mask.
        seed: the pretraining seed.
        known_fraction: of the training images, whose θ is known.
    """

    def __init__(
        self, dataset: Dataset, split: str, method: Baseline, views: ViewSpec, seed: int, known_fraction: float = 1.0
    ) -> None:
        self.images, self.labels = dataset.train.images, dataset.train.labels
        self.indices = split_indices(dataset)[split]
        self.known = np.zeros(len(self.images), dtype=bool)
        self.known[known_indices(dataset, known_fraction) if split == "train" else self.indices] = True
        if method.use_of_theta == "required":
            self.indices = self.indices[self.known[self.indices]]
        self.names, self.one_at_a_time = tuple(method.transformations), method.one_at_a_time
        self.views, self.seed, self.size = views, seed, self.images.shape[-1]
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def batch(self, start: int, count: int, encoder: ViTEncoder) -> ViewPair:
        """Pairs start to start + count - 1 of the stream, made on the encoder's device."""
        device = encoder.mean.device
        index, theta, drawn = self._rows(start, count)
        images = torch.from_numpy(self.images[index]).to(device).float().div_(255)
        coded, known, applied = {}, {}, {}
        for name, values in theta.items():
            on = drawn == name if self.one_at_a_time else np.ones(len(drawn), dtype=bool)
            used = np.where(on[:, None], values, TRANSFORMATIONS[name].identity)
            known[name] = torch.from_numpy(on & self.known[index]).to(device)
            applied[name] = torch.from_numpy(used).float().to(device)
            coded[name] = torch.from_numpy(TRANSFORMATIONS[name].encode(used, self.size)).float().to(device)
        second = transform(images, applied, self.views.fill)
        labels = torch.from_numpy(self.labels[index]).to(device)
        return ViewPair(encoder.normalise(images), encoder.normalise(second), Theta(coded), known, encoder.mask, labels)

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


class ObjectStream:
    """Two views of each object: the counterpart of `PairStream` for data that bring their views along.

    An epoch sees each object once. Args are those of `PairStream`; a method has no say in what lies between the views.
    """

    def __init__(
        self, dataset: Dataset, split: str, method: Baseline, views: ViewSpec, seed: int, known_fraction: float = 1.0
    ) -> None:
        data = dataset.train
        assert data.latents is not None
        self.images, self.labels, self.latents = data.images, data.labels, np.asarray(data.latents)
        self.seed, self.size = seed, self.images.shape[-1]
        self.known = np.zeros(len(self.images), dtype=bool)
        objects = split_objects(dataset, split)
        self.known[known_indices(dataset, known_fraction) if split == "train" else np.concatenate(objects)] = True
        if method.use_of_theta == "required":
            objects = [rows for rows in objects if self.known[rows[0]]]
        self._epoch = lru_cache(maxsize=2)(lambda epoch: pretraining_views(objects, seed, epoch))
        self.count = len(objects)

    def batch(self, start: int, count: int, encoder: ViTEncoder) -> ViewPair:
        """Pairs start to start + count - 1 of the stream, made on the encoder's device."""
        device = encoder.mean.device
        first, second = self._rows(start, count)
        one, other = (
            encoder.normalise(torch.from_numpy(self.images[rows]).to(device).float().div_(255))
            for rows in (first, second)
        )
        coded, known = Theta(), {}
        for name, between in BETWEEN.items():
            theta = between(self.latents[first], self.latents[second])
            coded[name] = torch.from_numpy(TRANSFORMATIONS[name].encode(theta, self.size)).float().to(device)
            known[name] = torch.from_numpy(self.known[first]).to(device)
        labels = torch.from_numpy(self.labels[first]).to(device)
        return ViewPair(one, other, coded, known, encoder.mask, labels)

    def _rows(self, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of both views; the range may cross epochs."""
        parts = []
        while count:
            epoch, first = divmod(start, self.count)
            take = min(count, self.count - first)
            parts.append(tuple(rows[first : first + take] for rows in self._epoch(epoch)))
            start, count = start + take, count - take
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
