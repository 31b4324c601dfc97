"""Scores of a semantic segmentation from four areas per image and class, so that they can be verified and resampled."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equibench.metrics.bootstrap import RESAMPLES, Floats, as_float, draw_counts

_Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Areas:
    """Pixels by image and class, (N, C) int64 each; pixels that are annotated as "other" are in none of them."""

    intersect: _Counts  # predicted as the class and annotated as it
    union: _Counts  # predicted as the class or annotated as it
    predicted: _Counts
    label: _Counts  # annotated as the class

    def arrays(self) -> dict[str, _Counts]:
        """The four arrays by name, in the order in which they stand above."""
        return dict(vars(self))


@dataclass(frozen=True)
class SegmentationScores:
    """Scores in [0, 1], as mmsegmentation's IoUMetric defines them (it prints percent, rounded to two digits)."""

    miou: float  # mean intersection over union of the classes that occur, annotated or predicted
    macc: float  # mean share of each annotated class's pixels that are predicted as it
    aacc: float  # share of all annotated pixels that are predicted rightly
    iou: Floats  # (C,) the classes' own; nan for one that does not occur


def scores_from_areas(areas: Areas) -> SegmentationScores:
    """Scores of all images together; nan where no class occurs.

    Pixels are added as integers: mmsegmentation adds them in float32, which from 2**24 on drops some.
    """
    sums = [as_float(part.sum(axis=0)) for part in (areas.intersect, areas.union, areas.label)]
    miou, macc, aacc = map(float, _means(*sums))
    return SegmentationScores(miou, macc, aacc, _ratio(sums[0], sums[1]))


def resampled_scores(areas: Areas, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Floats]:
    """Bootstrap distributions (resamples,) of mIoU, mAcc and aAcc over images.

    Equal seeds and N draw equal images, for pairing. A class that occurs in none of the images drawn does not count in
    that resample.
    """
    columns = [as_float(part) for part in (areas.intersect, areas.union, areas.label)]
    draws = [_means(*(counts @ part for part in columns)) for counts in draw_counts(len(areas.label), resamples, seed)]
    return dict(zip(("mIoU", "mAcc", "aAcc"), map(np.concatenate, zip(*draws, strict=True)), strict=True))


def constant_areas(label: _Counts, predicted_class: int) -> Areas:
    """What a prediction of one class everywhere gives on annotations with these areas (N, C): the floor of mIoU."""
    predicted = np.zeros_like(label)
    predicted[:, predicted_class] = label.sum(axis=1)
    intersect = np.zeros_like(label)
    intersect[:, predicted_class] = label[:, predicted_class]
    return Areas(intersect, predicted + label - intersect, predicted, label)


def _means(intersect: Floats, union: Floats, label: Floats) -> tuple[Floats, Floats, Floats]:
    """mIoU, mAcc and aAcc (...) from areas (..., C) of all images together."""
    accuracy = _ratio(intersect.sum(axis=-1), label.sum(axis=-1))
    return _mean_of_defined(_ratio(intersect, union)), _mean_of_defined(_ratio(intersect, label)), accuracy


def _ratio(top: Floats, bottom: Floats) -> Floats:
    return np.asarray(top / np.where(bottom == 0, np.nan, bottom))


def _mean_of_defined(values: Floats) -> Floats:
    """Mean over the last axis of what is not nan, as numpy's nanmean but without its warning."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))
