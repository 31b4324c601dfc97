"""Batches of view pairs for pretraining: step t of a run is the same pairs whatever the machine or the process."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equibench.data.dataset import Dataset, known_indices, split_indices
from equibench.encoders.vit import ViTEncoder
from equibench.errors import UserError
from equibench.pairs.manifest import pretraining_epoch, pretraining_views, split_objects
from equibench.pretrain.method import Baseline, Pictures, Theta, ViewPair
from equibench.transforms.transformation import BETWEEN, TRANSFORMATIONS, ViewSpec, transform
from equibench.utils.random import uniforms


class PairStream:
    """The pairs of one pretraining run, or of held-out images, by position.

    The split is "train" for the run itself, "val" for diagnostics on held-out images. The method says which
    transformations stand between the views, and whether one at a time. Of `known_fraction` of the training images θ
    is known.
    """

    def __init__(
        self, dataset: Dataset, split: str, method: Baseline, views: ViewSpec, seed: int, known_fraction: float = 1.0
    ) -> None:
        self.images, self.labels = dataset.train.images, dataset.train.labels
        self.names, self.one_at_a_time = tuple(method.transformations), method.one_at_a_time
        self.views, self.seed, self.size, self.split = views, seed, self.images.shape[-1], split
        self.all_rows = split_indices(dataset)[split]
        self.known = np.zeros(len(self.images), dtype=bool)
        self.known[known_indices(dataset, known_fraction) if split == "train" else self.all_rows] = True
        self.count = self._choose(dataset, split, only_known=method.use_of_theta == "required")
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def batch(self, start: int, count: int, encoder: ViTEncoder) -> ViewPair:
        """Pairs start to start + count - 1 of the stream, made on the encoder's device."""
        device = encoder.mean.device
        index, drawn, *theta = self._rows(start, count)
        images = self._images(index, device)
        coded, known, applied = Theta(), {}, {}
        for name, values in zip(self.names, theta, strict=True):
            on = drawn == name if self.one_at_a_time else np.ones(len(drawn), dtype=bool)
            used = np.where(on[:, None], values, TRANSFORMATIONS[name].identity)
            known[name] = torch.from_numpy(on & self.known[index]).to(device)
            applied[name] = torch.from_numpy(used).float().to(device)
            coded[name] = self._coded(name, used, device)
        second = transform(images, applied, self.views.fill)
        labels = torch.from_numpy(self.labels[index]).to(device)
        pictures = Pictures(images, self.views.fill, list(self._places(start, count)), (self.split, self.seed))
        first, second = encoder.normalise(images), encoder.normalise(second)
        return ViewPair(first, second, coded, known, encoder.mask, labels, pictures)

    def spread_rows(self, count: int) -> NDArray[np.int64]:
        """Rows of the split's images, at most so many, evenly spaced over all of them."""
        return self.all_rows[np.linspace(0, len(self.all_rows) - 1, min(count, len(self.all_rows))).astype(np.int64)]

    def pictures(self, rows: NDArray[np.int64], encoder: ViTEncoder) -> Tensor:
        """Images of these rows, untransformed and normalised."""
        return encoder.normalise(self._images(rows, encoder.mean.device))

    def _choose(self, dataset: Dataset, split: str, only_known: bool) -> int:
        """Keep what an epoch's pairs are drawn from, and return how many they are."""
        indices = split_indices(dataset)[split]
        self.indices = indices[self.known[indices]] if only_known else indices
        return len(self.indices)

    def _draw(self, epoch: int) -> tuple[NDArray[Any], ...]:
        """Image indices, the one transformation to apply if not all are, and θ of each."""
        index, theta = pretraining_epoch(self.indices, self.size, self.names, self.seed, epoch)
        u = uniforms((len(index), 1), "which", self.seed, epoch)[:, 0]
        which = np.array(self.names or [""])[(u * len(self.names)).astype(int)]
        return index, which, *theta.values()

    def _places(self, start: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Any range of pairs, which may cross epochs, as (epoch, first row, rows)."""
        while count:
            epoch, first = divmod(start, self.count)
            taken = min(count, self.count - first)
            yield epoch, first, taken
            start, count = start + taken, count - taken

    def _rows(self, start: int, count: int) -> list[NDArray[Any]]:
        """What `_draw` draws, of any range of pairs."""
        places = self._places(start, count)
        parts = [[drawn[first : first + n] for drawn in self._epoch(epoch)] for epoch, first, n in places]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def _images(self, rows: NDArray[np.int64], device: torch.device) -> Tensor:
        return torch.from_numpy(self.images[rows]).to(device).float().div_(255)

    def _coded(self, name: str, theta: NDArray[np.float64], device: torch.device) -> Tensor:
        return torch.from_numpy(TRANSFORMATIONS[name].encode(theta, self.size)).float().to(device)


class ObjectStream(PairStream):
    """Two views of each object, once in an epoch, of data that bring their views along.

    A method has no say in what lies between the views.
    """

    def batch(self, start: int, count: int, encoder: ViTEncoder) -> ViewPair:
        device = encoder.mean.device
        first, second = self._rows(start, count)
        one, other = (encoder.normalise(self._images(rows, device)) for rows in (first, second))
        coded, known = Theta(), {}
        for name, between in BETWEEN.items():
            coded[name] = self._coded(name, between(self.latents[first], self.latents[second]), device)
            known[name] = torch.from_numpy(self.known[first]).to(device)
        labels = torch.from_numpy(self.labels[first]).to(device)
        return ViewPair(one, other, coded, known, encoder.mask, labels)

    def _choose(self, dataset: Dataset, split: str, only_known: bool) -> int:
        assert dataset.train.latents is not None
        self.latents = np.asarray(dataset.train.latents)
        objects = split_objects(dataset, split)
        self.objects = [rows for rows in objects if self.known[rows[0]]] if only_known else objects
        return len(self.objects)

    def _draw(self, epoch: int) -> tuple[NDArray[Any], ...]:
        """Rows of both views."""
        return pretraining_views(self.objects, self.seed, epoch)


def open_stream(
    dataset: Dataset, split: str, method: Baseline, views: ViewSpec, seed: int, known_fraction: float = 1.0
) -> PairStream:
    """The pairs of a run: transformed images, or the data's own views where several show one object.

    A UserError if the method needs labels and there are none, or θ of what does not stand between these data's views.
    """
    if method.uses_labels and len(dataset.class_names) < 2:
        raise UserError(f"{dataset.name} has no classes to train a supervised method on", "choose labelled data")
    observed = [name for name in method.transformations if TRANSFORMATIONS[name].observed]
    if observed and not dataset.has_objects:
        problem = f"the method needs views with {' and '.join(observed)} between them, and {dataset.name} has none"
        raise UserError(problem, "run it on data in 3DIEBench's layout, as table1 does")
    kind = ObjectStream if dataset.has_objects else PairStream
    return kind(dataset, split, method, views, seed, known_fraction)
