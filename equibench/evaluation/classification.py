"""Which class is it? Logistic regression on frozen features of single images: linear transfer, and 3DIEBench's classes.

A task that names its data brings them along (P1 Table 5); one on views of objects looks at the first views of the pairs
that the other tasks on these data use (P1 Table 1). Labels are (N,), predictions (N,) or, for several seeds, (seeds,
N).
"""

from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from equibench.data.dataset import SPLITS, image_source
from equibench.data.load import root_of_cifar10
from equibench.data.transfer import TransferData, load_transfer, missing_transfer
from equibench.encoders.adapter import NO_MASK
from equibench.evaluation.context import Context, Row
from equibench.evaluation.controls import single_features
from equibench.evaluation.evaluator import (
    Arrays,
    DataFacts,
    Evaluator,
    Kept,
    Measurement,
    MetricInfo,
    channels,
    metric_of,
    register_evaluator,
)
from equibench.metrics.bootstrap import RESAMPLES, Floats, draw_counts, mean_of, resampled
from equibench.pairs.manifest import Pairs
from equibench.pairs.views import Views
from equibench.probes.logistic import GRID, fit_logistic
from equibench.records import Metric
from equibench.task import Task
from equibench.utils.files import digest_of


def hits(targets: ArrayLike, predictions: ArrayLike) -> Floats:
    """For each image (N,) the share of seeds that say its label: 0 or 1 for a single one."""
    return np.asarray(np.atleast_2d(predictions) == np.asarray(targets)).mean(axis=0)


def top1(targets: ArrayLike, predictions: ArrayLike) -> float:
    """Share of images whose label is predicted, in [0, 1]; nan without images."""
    return mean_of(hits(targets, predictions)).value


def mean_per_class(targets: ArrayLike, predictions: ArrayLike) -> float:
    """The mean, over the classes that occur in the targets, of the share of their images that are found, in [0, 1].

    This is balanced accuracy, and the metric of Pets and Aircraft (docs/protocol.md 8.4); nan without images.
    """
    _, image, counts = np.unique(np.asarray(targets), return_inverse=True, return_counts=True)
    found = np.bincount(image, weights=hits(targets, predictions)) / counts
    return float(found.mean()) if len(found) else float("nan")


def resampled_top1(
    targets: ArrayLike, predictions: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0, cluster: int = 1
) -> Floats:
    """Bootstrap distribution (resamples,) of `top1`; equal seeds and N draw equal images, for pairing.

    `cluster` images that follow each other, as the views of one object, are drawn together.
    """
    return resampled(mean_of(hits(targets, predictions)), resamples=resamples, seed=seed, cluster=cluster)


def resampled_mean_per_class(
    targets: ArrayLike, predictions: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0, cluster: int = 1
) -> Floats:
    """Bootstrap distribution (resamples,) of `mean_per_class`; equal seeds and N draw equal images, for pairing.

    A class of which a resample holds no image is left out of that resample's mean.
    """
    truth = np.asarray(targets)
    order = np.argsort(truth, kind="stable")
    starts = np.flatnonzero(np.diff(truth[order], prepend=truth[order[:1]] - 1))
    right, parts = hits(truth, predictions)[order], []
    for drawn_counts in draw_counts(len(truth) // cluster, resamples, seed):
        counts = np.repeat(drawn_counts, cluster, axis=1)[:, order]
        drawn = np.add.reduceat(counts, starts, axis=1)
        found = np.add.reduceat(counts * right, starts, axis=1)
        parts.append((found / np.maximum(drawn, 1)).sum(axis=1) / (drawn > 0).sum(axis=1))
    return np.concatenate(parts)


_SCORES = {"top1": (top1, resampled_top1), "mean_per_class": (mean_per_class, resampled_mean_per_class)}
"""Each score with its bootstrap distribution."""


@dataclass(frozen=True)
class LabelledImages:
    """Images with their labels (N,), by split, and the number of classes."""

    views: dict[str, Views]
    labels: dict[str, NDArray[np.int64]]
    classes: int
    cluster: int = 1  # so many test images that follow each other show one object


@register_evaluator
class ClassificationEvaluator(Evaluator):
    """Which class is it? Logistic regression on frozen features of single images."""

    name, title, main_metric = "classification", "Classes, by logistic regression on frozen features", "top1"
    metrics = {
        "top1": MetricInfo("top-1 accuracy", "higher", "share of images of which the class is found"),
        "mean_per_class": MetricInfo("mean per class", "higher", "that share within each class, averaged over classes"),
    }

    def pairs(self, task: Task, context: Context) -> tuple[Pairs, ...]:
        return () if task.data else (context.pairs(task),)

    def data(self, task: Task, context: Context) -> DataFacts:
        if task.data is None:
            return super().data(task, context)
        data = _transfer_data(task, context)
        sizes = (len(data.train.labels), len(data.val.labels), len(data.test.labels))
        return DataFacts(data.name, data.sha256, data.bad, sizes)

    def missing_data(self, task: Task, context: Context) -> str:
        return missing_transfer(task.data, context.data_root) if task.data else ""

    def recipe(self, task: Task, context: Context) -> dict[str, Any]:
        return {"classifier": "logistic regression", "penalties": len(GRID)}

    def measure(self, row: Row, task: Task, context: Context) -> Measurement:
        """Fit the classifier on every feature set, of transfer data on all features; keep its test predictions."""
        images, select = labelled_images(task, context), task.main_metric or self.main_metric
        arrays: Kept = {"labels": images.labels["test"]}
        facts = {"classes": images.classes, "cluster": images.cluster, "headline": select}
        arrays |= {name: np.array(value) for name, value in facts.items()}
        names = ("full",) if task.data or not row.has_encoder else tuple(row.feature_sets())
        if row.name == "constant":
            majority = int(np.bincount(images.labels["train"], minlength=images.classes).argmax())
            arrays["full/predictions"] = np.full(len(images.labels["test"]), majority)
            return Measurement(arrays, features=names)
        if row.has_encoder:
            whole = whole_pictures(row)
            layers = {split: context.encode(whole, views) for split, views in images.views.items()}
        else:
            spec = context.spec if context.data_size is None else NO_MASK
            layers = {s: {"default": f} for s, f in single_features(row.name, images.views, spec).items()}
        options: dict[str, Any] = {"classes": images.classes, "select": _SCORES[select][0], "device": context.device}
        for name in names:
            parts = {split: channels(row, found, name) for split, found in layers.items()}
            train, val = ((parts[split], images.labels[split]) for split in ("train", "val"))
            fitted = fit_logistic(train, val, parts["test"], **options)
            arrays[f"{name}/predictions"] = fitted.predictions
            arrays |= {f"{name}/penalty": np.array(fitted.penalty), f"{name}/converged": np.array(fitted.converged)}
        return Measurement(arrays, features=names)

    def scores(self, arrays: Arrays, features: str) -> dict[str, Metric]:
        """Top-1 and mean per class, each with its interval and what guessing scores."""
        found, cluster = (arrays["labels"], arrays[f"{features}/predictions"]), int(arrays["cluster"])
        guessing = 1 / int(arrays["classes"])  # in the mean, of top-1 and of mean per class
        return {
            name: metric_of(value(*found), draw(*found, cluster=cluster), guessing)
            for name, (value, draw) in _SCORES.items()
        }

    def resampled(self, arrays: Arrays, features: str) -> NDArray[np.float64]:
        """Bootstrap distribution of the task's main metric."""
        _, draw = _SCORES[str(arrays["headline"])]
        return draw(arrays["labels"], arrays[f"{features}/predictions"], cluster=int(arrays["cluster"]))


def labelled_images(task: Task, context: Context) -> LabelledImages:
    """The images that a task asks the class of."""
    views, labels = {}, {}
    if task.data is not None:
        data = _transfer_data(task, context)
        for split, part in {"train": data.train, "val": data.val, "test": data.test}.items():
            views[split] = Views(digest_of(["classes", data.sha256, split]), part.images)
            labels[split] = np.asarray(part.labels)
        return LabelledImages(views, labels, len(data.class_names))
    pairs = context.pairs(task)
    first = context.views.first(pairs)
    row = np.arange(len(pairs.image)) if first.row is None else first.row
    for split in SPLITS:
        rows = pairs.rows(split)
        views[split] = Views(first.digest, first.images, row[rows])
        labels[split] = np.asarray(image_source(context.dataset, split).labels)[pairs.image[rows]]
    return LabelledImages(views, labels, len(context.dataset.class_names), pairs.cluster)


def whole_pictures(row: Row) -> Row:
    """The row without the disc that hides what resampling fills in: nothing is filled in single images.

    The suite's own encoders keep it, since they were never trained on what lies outside.
    """
    identity = row.identity or {}
    architecture = identity.get("architecture")
    own = not isinstance(architecture, str) or architecture.startswith("equibench:")
    if own or identity.get("mask_radius") is None:
        return row

    def whole() -> nn.Module:
        encoder = copy(row.encoder)
        encoder.views = NO_MASK  # type: ignore[assignment]
        encoder.__dict__.pop("identity", None)  # which is taken once, and names the disc
        return encoder

    return replace(row, open=whole, identity={**identity, "mask_radius": None})


def _transfer_data(task: Task, context: Context) -> TransferData:
    return _load(task.data or "", context.data_size or context.size, context.data_root, context.skip_bad)


@lru_cache(maxsize=16)  # a table asks for the same data for every row
def _load(name: str, size: int, root: Path | None, skip_bad: bool) -> TransferData:
    root = root_of_cifar10(root, others=True) if name == "cifar10" else root
    return load_transfer(name, size=size, data_root=root, skip_bad=skip_bad)
