"""Control rows: what a table's numbers must be held against (docs/protocol.md 9.1).

constant: always the training mean; its R² is 0, its pooled R² the floor of the published version. Where classes are
    asked for, the most frequent one.
pixels: principal components of each view's visible pixels, through the same probe.
image_statistics: mean, standard deviation and gradient energy of each channel, through the same probe.
random_init: the table's encoder before any training.
oracle: the parameters themselves with a little noise; it shows that the pipeline can reach 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d

from equibench.probes.whitening import Features, Split
from equibench.transforms.transformation import RENDER_BATCH_PIXELS, ViewSpec, visible_disc

if TYPE_CHECKING:
    from sklearn.decomposition import PCA

    from equibench.pairs.manifest import Pairs
    from equibench.pairs.views import Views

Array = NDArray[Any]

COMPONENTS = 512
_PAIRS_AT_ONCE = 8192
ORACLE_NOISE = 0.05
LARGEST_SIDE, POOLED_SIDE = 64, 32
"""Images of a larger side are averaged down to the second number before their pixels are taken."""


@dataclass(frozen=True)
class Control:
    """A row that no pretraining stands behind; `evaluators` are those that it says something about."""

    name: str
    title: str
    has_encoder: bool
    description: str
    evaluators: tuple[str, ...] = ("regression",)


PROBED, GUESSED = ("regression", "classification"), ("regression", "classification", "segmentation")
CONTROLS = {
    c.name: c
    for c in [
        Control("random_init", "random init", True, "the same encoder, untrained"),
        Control(
            "pixels", "pixels (512 PCs)", False, "principal components of each view through the same probe", PROBED
        ),
        Control(
            "image_statistics", "image statistics", False, "mean, std, gradient energy through the same probe", PROBED
        ),
        Control("constant", "constant", False, "the training mean or most frequent class, whatever the image", GUESSED),
        Control("oracle", "oracle", False, "the parameters with 5 % noise through the same probe"),
    ]
}
RIVALS = ("random_init", "pixels", "image_statistics")
"""The controls that a row must beat before its score says anything about its training."""


def pixel_features(first: Views, second: Views, train: slice, spec: ViewSpec) -> tuple[Array, Array]:
    """Principal components (N, at most 512) of both views' visible pixels, fitted on the training pairs' views.

    Images of more than 64 px are averaged down to 32 px first, for which a covariance matrix can still be had.
    """
    flat_first, flat_second = _of_pairs(first, _visible_pixels, spec), _of_pairs(second, _visible_pixels, spec)
    pca = _components(np.concatenate([flat_first[train], flat_second[train]]))
    return pca.transform(flat_first), pca.transform(flat_second)


def single_features(control: str, parts: Mapping[str, Views], spec: ViewSpec) -> dict[str, Array]:
    """Features by split where one image is looked at and not a pair: of "pixels" or of "image_statistics"."""
    if control == "image_statistics":
        return {split: _of_pairs(views, _statistics, spec) for split, views in parts.items()}
    flat = {split: _of_pairs(views, _visible_pixels, spec) for split, views in parts.items()}
    pca = _components(flat["train"])
    return {split: pca.transform(pixels) for split, pixels in flat.items()}


def _components(fit: Array) -> PCA:
    # with few images, components beyond an eighth of them are noise that standardising would blow up
    from sklearn.decomposition import PCA

    return PCA(min(COMPONENTS, max(1, len(fit) // 8), fit.shape[1]), svd_solver="covariance_eigh").fit(fit)


def statistics_features(first: Views, second: Views, spec: ViewSpec) -> tuple[Array, Array]:
    """Per channel: mean, standard deviation and mean squared gradient inside the mask; (N, 9) each."""
    return _of_pairs(first, _statistics, spec), _of_pairs(second, _statistics, spec)


def oracle_features(pairs: Pairs, coded: NDArray[np.float64]) -> tuple[Array, Array]:
    """Nothing for the first view; standardised coded parameters plus noise for the second."""
    train = coded[pairs.rows("train")]
    standard = (coded - train.mean(axis=0)) / train.std(axis=0)
    noise = np.random.default_rng(int(pairs.sha256[:8], 16)).normal(0, ORACLE_NOISE, coded.shape)
    return np.zeros_like(coded), standard + noise


def distance_features(first: Features, second: Features) -> tuple[Array, Array]:
    """Nothing for the first view; |f2 - f1| (N, 1) for the second: what any encoder that is not invariant knows."""
    rows = [slice(at, at + _PAIRS_AT_ONCE) for at in range(0, len(first), _PAIRS_AT_ONCE)]
    parts = [np.asarray(second[r], dtype=np.float32) - np.asarray(first[r], dtype=np.float32) for r in rows]
    distance = np.concatenate([np.linalg.norm(part, axis=1, keepdims=True) for part in parts])
    return np.zeros_like(distance), distance


def constant_prediction(splits: dict[str, Split], split: str = "test") -> NDArray[np.float64]:
    """The training mean for every pair of a split: (N, K)."""
    return np.broadcast_to(splits["train"].targets.mean(axis=0), splits[split].targets.shape).copy()


def _of_pairs(views: Views, features: Callable[[NDArray[np.uint8], ViewSpec], Array], spec: ViewSpec) -> Array:
    """Features of each pair's view, computed in batches of images."""
    batch = max(1, RENDER_BATCH_PIXELS // views.images.shape[-1] ** 2)
    starts = range(0, len(views.images), batch)
    parts = [features(np.array(views.images[slice(start, start + batch)]), spec) for start in starts]
    each = np.concatenate(parts)
    return each if views.row is None else each[views.row]


def _visible_pixels(images: NDArray[np.uint8], spec: ViewSpec) -> NDArray[np.float32]:
    mask = torch.from_numpy(_mask(images.shape[-1], spec))
    if images.shape[-1] > LARGEST_SIDE:
        # blanked before averaging, so that no hidden pixel enters a visible one
        seen = torch.from_numpy(images).float() / 255 * mask
        small, share = adaptive_avg_pool2d(seen, POOLED_SIDE), adaptive_avg_pool2d(mask[None], POOLED_SIDE)[0]
        return small[:, :, share > 0.5].flatten(1).numpy()
    visible = mask.bool().numpy()
    pixels: NDArray[np.float32] = images[:, :, visible].reshape(len(images), -1).astype(np.float32)
    return pixels / np.float32(255)


def _statistics(images: NDArray[np.uint8], spec: ViewSpec) -> Array:
    mask = _mask(images.shape[-1], spec)
    inside = mask.astype(bool)
    pixels = images[:, :, inside].astype(np.float32) / 255
    energy: Array = np.zeros(images.shape[:2])
    for axis in (2, 3):  # differences between neighbours of which both are visible
        step = np.diff(images.astype(np.float32) / 255, axis=axis)
        both = np.minimum(np.delete(mask, 0, axis - 2), np.delete(mask, -1, axis - 2))
        energy = energy + (np.square(step) * both).sum(axis=(2, 3)) / both.sum()
    return np.concatenate([pixels.mean(axis=2), pixels.std(axis=2), energy], axis=1)


def _mask(size: int, spec: ViewSpec) -> NDArray[np.float32]:
    mask = torch.ones(size, size) if spec.radius is None else visible_disc(size, spec.radius)
    return mask.numpy()


def row_title(row: str) -> str:
    """The name of a row in print."""
    from equibench.pretrain.method import BASELINES

    return CONTROLS[row].title if row in CONTROLS else BASELINES.get(row).title
