"""Scores of a classification: top-1 and mean per class, their bootstrap over test images, and what guessing reaches.

Targets are labels (N,), predictions labels (N,) or, for several seeds, (seeds, N); scores are then means over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equibench.data.dataset import SPLITS, image_source, split_indices
from equibench.data.load import root_of_cifar10
from equibench.data.transfer import TransferData, load_transfer
from equibench.encoders.adapter import NO_MASK, ImageEncoder
from equibench.encoders.vit import ViTEncoder
from equibench.evaluation.context import Features, Setting, Subject
from equibench.evaluation.controls import single_features
from equibench.evaluation.evaluator import Arrays, DataFacts, Family, Kept, Measurement, setting_data
from equibench.metrics.bootstrap import RESAMPLES, Array, Ratio, draw_counts, mean_of, resampled
from equibench.pairs.manifest import Pairs
from equibench.pairs.views import Views
from equibench.probes.logistic import GRID, fit_logistic
from equibench.records import Metric
from equibench.task import Task
from equibench.utils.arrays import Gathered
from equibench.utils.files import digest_of


def hits(targets: ArrayLike, predictions: ArrayLike) -> Array:
    """For each image (N,) the share of seeds that say its label: 0 or 1 for a single one."""
    return np.asarray(np.atleast_2d(predictions) == np.asarray(targets)).mean(axis=0)


def top1_ratio(targets: ArrayLike, predictions: ArrayLike) -> Ratio:
    """Top-1 as a mean over images, from which its interval and paired differences are taken."""
    return mean_of(hits(targets, predictions))


def top1(targets: ArrayLike, predictions: ArrayLike) -> float:
    """Share of images whose label is predicted, in [0, 1]; nan without images."""
    return top1_ratio(targets, predictions).value


def mean_per_class(targets: ArrayLike, predictions: ArrayLike) -> float:
    """The mean, over the classes that occur in the targets, of the share of their images that are found, in [0, 1].

    This is balanced accuracy, and the metric of Pets and Aircraft (PROTOCOL 5); nan without images.
    """
    _, image, counts = np.unique(np.asarray(targets), return_inverse=True, return_counts=True)
    found = np.bincount(image, weights=hits(targets, predictions)) / counts
    return float(found.mean()) if len(found) else float("nan")


def resampled_top1(
    targets: ArrayLike, predictions: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0, cluster: int = 1
) -> Array:
    """Bootstrap distribution (resamples,) of `top1`; equal seeds and N draw equal images, for pairing.

    `cluster` images that follow each other, as the views of one object, are drawn together.
    """
    return resampled(top1_ratio(targets, predictions), resamples=resamples, seed=seed, cluster=cluster)


def resampled_mean_per_class(
    targets: ArrayLike, predictions: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0, cluster: int = 1
) -> Array:
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


def uniform_chance(classes: int) -> float:
    """What guessing every class equally often reaches in the mean: 1 / classes, of top-1 and of mean per class."""
    return 1 / classes


def majority_share(targets: ArrayLike) -> float:
    """Share of the most frequent class among targets (N,): the top-1 of the best constant answer, the floor.

    The same answer's mean per class is 1 / (number of classes that occur).
    """
    return float(np.unique(np.asarray(targets), return_counts=True)[1].max() / np.size(targets))


GENERATED = "-generated"
SCORES = {"top1": (top1, resampled_top1), "mean_per_class": (mean_per_class, resampled_mean_per_class)}
"""Each score with its bootstrap distribution."""


@dataclass(frozen=True)
class LabelledImages:
    """Images of each split with their classes.

    Attributes:
        views: the images, by split.
        labels: (N,) int64 by split.
        classes: how many there are.
        cluster: so many test images that follow each other show one object.
    """

    views: dict[str, Views]
    labels: dict[str, NDArray[np.int64]]
    classes: int
    cluster: int = 1


def measure(subject: Subject, task: Task, setting: Setting) -> Measurement:
    """Fit the classifier on every feature set, of transfer data on the whole features; keep what it says of test."""
    images = labelled_images(task, setting)
    majority = int(np.bincount(images.labels["train"], minlength=images.classes).argmax())
    arrays: Kept = {
        "labels": images.labels["test"],
        "classes": np.array(images.classes),
        "cluster": np.array(images.cluster),
        "headline": np.array(task.headline or "top1"),
    }
    names = ("full",) if task.data or subject.encoder is None else tuple(subject.feature_sets())
    if subject.name == "constant":
        arrays["full/predictions"] = np.full(len(images.labels["test"]), majority)
        return Measurement(arrays, features=names)
    layers = _features(subject, images, setting)
    for name in names:
        layer, channels = subject.feature_sets()[name]
        parts = {split: np.asarray(found[layer])[:, channels] for split, found in layers.items()}
        train, val = ((parts[split], images.labels[split]) for split in ("train", "val"))
        fitted = fit_logistic(
            train, val, parts["test"], classes=images.classes, select=task.headline or "top1", device=setting.device
        )
        arrays[f"{name}/predictions"] = fitted.predictions
        arrays |= {f"{name}/penalty": np.array(fitted.penalty), f"{name}/converged": np.array(fitted.converged)}
    return Measurement(arrays, features=names)


def labelled_images(task: Task, setting: Setting) -> LabelledImages:
    """The images that a task asks the class of."""
    if task.data is None:
        return _of_pairs(setting.pairs(task), setting)
    if _takes_the_place_of_cifar10(task, setting):
        dataset = setting.dataset
        index = {split: np.asarray(rows) for split, rows in split_indices(dataset).items()}
        images = {s: Gathered(image_source(dataset, s).images, index[s]) for s in SPLITS}
        labels = {s: np.asarray(image_source(dataset, s).labels)[index[s]] for s in SPLITS}
        views = {s: Views(digest_of(["classes", dataset.sha256, s]), images[s]) for s in SPLITS}  # type: ignore[arg-type]
        return LabelledImages(views, labels, len(dataset.class_names))
    data = _transfer_data(task, setting)
    sets = {"train": data.train, "val": data.val, "test": data.test}
    return LabelledImages(
        {s: Views(digest_of(["classes", data.sha256, s]), one.images) for s, one in sets.items()},
        {s: np.asarray(one.labels) for s, one in sets.items()},
        len(data.class_names),
    )


def _of_pairs(pairs: Pairs, setting: Setting) -> LabelledImages:
    first, views, labels = setting.views.first(pairs), {}, {}
    row = np.arange(len(pairs.image)) if first.row is None else first.row
    for split in SPLITS:
        rows = pairs.rows(split)
        views[split] = Views(first.digest, first.images, row[rows])
        labels[split] = np.asarray(image_source(setting.dataset, split).labels)[pairs.image[rows]]
    return LabelledImages(views, labels, len(setting.dataset.class_names), pairs.cluster)


def _features(subject: Subject, images: LabelledImages, setting: Setting) -> Mapping[str, Mapping[str, Features]]:
    """By split and layer."""
    if subject.encoder is not None:
        subject = whole_pictures(subject)
        return {split: setting.encode(subject, views) for split, views in images.views.items()}
    spec = setting.spec if setting.own_data.size is None else NO_MASK
    return {s: {"default": f} for s, f in single_features(subject.name, images.views, spec).items()}


def whole_pictures(subject: Subject) -> Subject:
    """The subject without the disc that hides what resampling fills in: nothing is filled in single images.

    The suite's own encoders keep it, since they were never trained on what lies outside.
    """
    encoder = subject.encoder
    if not isinstance(encoder, ImageEncoder) or isinstance(encoder.model, ViTEncoder) or encoder.views.radius is None:
        return subject
    whole = copy(encoder)
    whole.views = NO_MASK
    whole.__dict__.pop("identity", None)  # which is taken once, and names the disc
    return replace(subject, encoder=whole, identity={**(subject.identity or {}), "mask_radius": None})


def scores(arrays: Arrays, features: str) -> dict[str, Any]:
    """Top-1 and mean per class, each with its interval and what guessing scores."""
    predictions, labels = np.asarray(arrays[f"{features}/predictions"]), np.asarray(arrays["labels"])
    chance, metrics = uniform_chance(int(arrays["classes"])), {}
    for name, (value, draw) in SCORES.items():
        low, high = np.quantile(draw(labels, predictions, cluster=int(arrays["cluster"])), [0.025, 0.975])
        metrics[name] = Metric(value=value(labels, predictions), low=float(low), high=float(high), chance=chance)
    return {"metrics": metrics}


def resampled_headline(arrays: Arrays, features: str) -> NDArray[np.float64]:
    """Bootstrap distribution of the task's headline."""
    predictions, labels = np.asarray(arrays[f"{features}/predictions"]), np.asarray(arrays["labels"])
    _, draw = SCORES[str(arrays["headline"])]
    return draw(labels, predictions, cluster=int(arrays["cluster"]))


def _takes_the_place_of_cifar10(task: Task, setting: Setting) -> bool:
    """Whether generated pictures that an encoder was pretrained on stand in for CIFAR-10 here too."""
    return task.data == "cifar10" and setting.own_data.stand_ins and setting.dataset.name == "solids"


def _transfer_data(task: Task, setting: Setting) -> TransferData:
    own = setting.own_data
    return _load(task.data or "", own.size or setting.size, own.root, own.stand_ins, own.skip_bad)


@lru_cache(maxsize=16)  # a table asks for the same data for every row
def _load(name: str, size: int, root: Path | None, stand_ins: bool, skip_bad: bool) -> TransferData:
    if name == "cifar10":
        return load_transfer(name, size=size, data_root=root_of_cifar10(root, others=True), skip_bad=skip_bad)
    return load_transfer(name, size=size, data_root=root, stand_in=stand_ins, skip_bad=skip_bad)


def _facts(task: Task, setting: Setting) -> DataFacts:
    if task.data is None:
        return setting_data(task, setting)
    if _takes_the_place_of_cifar10(task, setting):
        train, val, test = (len(rows) for rows in split_indices(setting.dataset).values())
        return DataFacts(f"{task.data}{GENERATED}", setting.dataset.sha256, 0, (train, val, test))
    data = _transfer_data(task, setting)
    sizes = (len(data.train.labels), len(data.val.labels), len(data.test.labels))
    return DataFacts(data.name, data.sha256, data.bad, sizes)


CLASSIFICATION = Family(
    name="classification",
    title="Classes, by logistic regression on frozen features",
    headline="top1",
    code=(
        "controls.py",
        "data/cifar100.py",
        "data/transfer.py",
        "data/transfer_lists.py",
        "data/transfer_sources.py",
        "families/classification.py",
        "metrics/classification.py",
        "probes/logistic.py",
        "probes/softmax.py",
    ),
    pairs=lambda task, setting: () if task.data else (setting.pairs(task),),
    measure=measure,
    scores=scores,
    resampled=resampled_headline,
    data=_facts,
    recipe=lambda task, setting: {"classifier": "logistic regression", "penalties": len(GRID)},
)
