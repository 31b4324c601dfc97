"""Scores of a semantic segmentation from four areas per image and class, so that they can be verified and resampled."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equibench.data.ade20k import GENERATED_NAME as GENERATED
from equibench.data.ade20k import CheckedTree, check_tree, find_ade20k, label_areas, stand_in_folder
from equibench.errors import UserError
from equibench.evaluation.context import Setting, Subject
from equibench.evaluation.evaluator import Arrays, DataFacts, Family, Kept, Measurement
from equibench.metrics.bootstrap import RESAMPLES, Array, as_float, draw_counts
from equibench.records import Metric
from equibench.segmentation.config import SegmentationSettings
from equibench.task import Task
from equibench.utils.files import digest_of

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Areas:
    """Pixels by image and class, (N, C) int64 each; pixels that are annotated as "other" are in none of them.

    Attributes:
        intersect: predicted as the class and annotated as it.
        union: predicted as the class or annotated as it.
        predicted: predicted as the class.
        label: annotated as the class.
    """

    intersect: Counts
    union: Counts
    predicted: Counts
    label: Counts

    def arrays(self) -> dict[str, Counts]:
        """The four arrays by name, in the order in which they stand above."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class SegmentationScores:
    """Scores in [0, 1], as mmsegmentation's IoUMetric defines them (it prints percent, rounded to two digits).

    Attributes:
        miou: mean intersection over union of the classes that occur, annotated or predicted.
        macc: mean share of each annotated class's pixels that are predicted as it.
        aacc: share of all annotated pixels that are predicted rightly.
        iou: (C,) the classes' own; nan for one that does not occur.
    """

    miou: float
    macc: float
    aacc: float
    iou: Array


def count_areas(predicted: NDArray[np.integer], label: NDArray[np.integer], classes: int, ignore: int = 255) -> Areas:
    """The areas of one image, (1, C) each.

    Args:
        predicted: class of each pixel, in [0, classes).
        label: the annotation, of the same shape; pixels that are `ignore` do not count.
    """
    valid = label != ignore
    predicted, label = predicted[valid], label[valid]
    of = lambda values: np.bincount(values, minlength=classes)[None].astype(np.int64)  # noqa: E731
    intersect, first, second = of(predicted[predicted == label]), of(predicted), of(label)
    return Areas(intersect, first + second - intersect, first, second)


def scores_from_areas(areas: Areas) -> SegmentationScores:
    """Scores of all images together; nan where no class occurs.

    Pixels are added as integers: mmsegmentation adds them in float32, which from 2**24 on drops some.
    """
    intersect, union, label = (as_float(part.sum(axis=0)) for part in (areas.intersect, areas.union, areas.label))
    iou = _ratio(intersect, union)
    accuracy = _ratio(intersect, label)
    aacc = float(_ratio(intersect.sum(), label.sum()))
    return SegmentationScores(float(_mean_of_defined(iou)), float(_mean_of_defined(accuracy)), aacc, iou)


def resampled_scores(areas: Areas, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Array]:
    """Bootstrap distributions (resamples,) of mIoU, mAcc and aAcc over images.

    Equal seeds and N draw equal images, for pairing. A class that occurs in none of the images drawn does not count in
    that resample.
    """
    columns = [as_float(part) for part in (areas.intersect, areas.union, areas.label)]
    draws: dict[str, list[Array]] = {"mIoU": [], "mAcc": [], "aAcc": []}
    for counts in draw_counts(len(areas.label), resamples, seed):
        intersect, union, label = (counts @ part for part in columns)
        draws["mIoU"].append(_mean_of_defined(_ratio(intersect, union)))
        draws["mAcc"].append(_mean_of_defined(_ratio(intersect, label)))
        draws["aAcc"].append(_ratio(intersect.sum(axis=1), label.sum(axis=1)))
    return {name: np.concatenate(values) for name, values in draws.items()}


def constant_areas(label: Counts, predicted_class: int) -> Areas:
    """What a prediction of one class everywhere gives on annotations with these areas (N, C): the floor of mIoU."""
    predicted = np.zeros_like(label)
    predicted[:, predicted_class] = label.sum(axis=1)
    intersect = np.zeros_like(label)
    intersect[:, predicted_class] = label[:, predicted_class]
    return Areas(intersect, predicted + label - intersect, predicted, label)


def _ratio(top: Array, bottom: Array) -> Array:
    return np.asarray(top / np.where(bottom == 0, np.nan, bottom))


def _mean_of_defined(values: Array) -> Array:
    """Mean over the last axis of what is not nan, as numpy's nanmean but without its warning."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))


HEADS = {"ade20k": "hypernet", "ade20k_linear": "linear"}
STAND_IN_CLASSES = 12
MOST_WARMUP = 1500
SMALL_CROP = 128
"""Up to this side, crops are so small that loading them in processes of their own would cost more than it gains."""


def settings_of(task: Task, setting: Setting) -> SegmentationSettings:
    """The recipe of PROTOCOL 4 in the profile's size."""
    size = setting.profile.segmentation
    return SegmentationSettings(
        iterations=size.iterations,
        batch=size.batch,
        crop=size.crop,
        lr=size.lr,
        warmup=min(MOST_WARMUP, size.iterations // 10),
        classes=STAND_IN_CLASSES if setting.own_data.stand_ins else SegmentationSettings.classes,
        head=HEADS[task.name],
        workers=0 if size.crop <= SMALL_CROP else SegmentationSettings.workers,
        checkpoint_every=max(1, min(1000, size.iterations // 4)),
    )


def measure(subject: Subject, task: Task, setting: Setting) -> Measurement:
    """Train the head, which goes on where it was interrupted; keep the areas of every validation image."""
    tree, settings = _tree(task, setting), settings_of(task, setting)
    if subject.name == "constant":
        areas = constant_areas(label_areas(tree), int(tree.pixels.argmax()))
        return Measurement(_kept(areas), features=("full",))
    from equibench.segmentation.run import train_and_score

    assert subject.encoder is not None
    identity = dict(subject.identity or {})
    name = digest_of([identity, asdict(settings), tree.sha256])[:16]
    found = train_and_score(
        subject.encoder,
        tree.root,
        setting.work / "segmentation" / f"{subject.name}-{task.name}-{name}",
        settings,
        report=setting.on_progress,
        skip_bad=setting.own_data.skip_bad,
    )
    return Measurement(_kept(found.areas), features=("full",))


def _kept(areas: Areas) -> Kept:
    return {f"full/{name}": values for name, values in areas.arrays().items()}


def _areas(arrays: Arrays, features: str) -> Areas:
    return Areas(**{name: np.asarray(arrays[f"{features}/{name}"]) for name in Areas.__dataclass_fields__})


def scores(arrays: Arrays, features: str) -> dict[str, Any]:
    """mIoU, mAcc and aAcc with their intervals."""
    areas = _areas(arrays, features)
    found, draws = scores_from_areas(areas), resampled_scores(areas)
    values = {"mIoU": found.miou, "mAcc": found.macc, "aAcc": found.aacc}
    metrics = {}
    for name, value in values.items():
        low, high = np.nanquantile(draws[name], [0.025, 0.975])
        metrics[name] = Metric(value=value, low=float(low), high=float(high))
    return {"metrics": metrics}


def resampled(arrays: Arrays, features: str) -> NDArray[np.float64]:
    """Bootstrap distribution of mIoU over validation images."""
    return resampled_scores(_areas(arrays, features))["mIoU"]


def _tree(task: Task, setting: Setting) -> CheckedTree:
    own, size = setting.own_data, setting.profile
    if own.stand_ins:
        assert size.stand_ins is not None
        root = stand_in_folder(size.stand_ins.scenes, size=size.segmentation.crop * 3 // 2)
    else:
        root = find_ade20k(own.root)
    return _checked(root, settings_of(task, setting).classes, own.skip_bad)


@lru_cache(maxsize=4)  # a table asks for the same tree for every row
def _checked(root: Path, classes: int, skip_bad: bool) -> CheckedTree:
    return check_tree(root, classes=classes, skip_bad=skip_bad)


def _facts(task: Task, setting: Setting) -> DataFacts:
    if task.name not in HEADS:
        raise UserError(f"the segmentation task {task.name!r} has no head", f"one of {', '.join(HEADS)}")
    tree = _tree(task, setting)
    sizes = (len(tree.names["training"]), 0, len(tree.names["validation"]))
    return DataFacts(GENERATED if setting.own_data.stand_ins else "ade20k", tree.sha256, len(tree.bad), sizes)


SEGMENTATION = Family(
    name="segmentation",
    title="Semantic segmentation with a frozen encoder",
    headline="mIoU",
    code=("families/segmentation.py", "metrics/segmentation.py", "segmentation"),
    pairs=lambda task, setting: (),
    measure=measure,
    scores=scores,
    resampled=resampled,
    data=_facts,
    recipe=lambda task, setting: asdict(settings_of(task, setting)),
)
