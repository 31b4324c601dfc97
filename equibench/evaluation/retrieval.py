"""Retrieval of the true transform among many transforms of the same image (SIE's MRR and H@k, docs/protocol.md 8.6).

SIE asks this of the embeddings that its own predictor was trained on; here W is fitted in closed form on frozen
features (see `action`), so that it can be asked of every encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equibench.evaluation.action import fitted_actions
from equibench.evaluation.context import Context, Row
from equibench.evaluation.evaluator import (
    Arrays,
    Kept,
    Measurement,
    MetricInfo,
    RatioEvaluator,
    channels,
    kept,
    pairs_of,
    register_evaluator,
)
from equibench.metrics.bootstrap import AnyFloats, Floats, Ratio, as_float, mean_of
from equibench.metrics.regression import RANDOM_RETRIEVAL_ERROR, absolute_quaternion, pose_retrieval_error
from equibench.pairs.manifest import Pairs, bank_pairs, between_views, split_objects
from equibench.task import Task

_Counts = NDArray[np.int64]

HITS = (1, 5)

TIE = 1e-9


@dataclass(frozen=True)
class Ranks:
    """Where the true transform stands among M: its rank is drawn evenly from better + 1 to better + tied.

    No single number for a tie gives an encoder that does not see the transformation, and for which all M tie, the
    scores of random guessing: the best rank gives it H@1 = 1, the worst MRR = 1/M, the mean MRR = 2/(M + 1). So the
    scores below are expectations over a fair tie-break, which give it exactly `random_baseline`.

    Attributes:
        better: (n, M) how many candidates are strictly nearer to the prediction than the true one.
        tied: (n, M) how many are as near, the true one included.
    """

    better: _Counts
    tied: _Counts


def ranks(predicted: AnyFloats, bank: AnyFloats, *, cosine: bool = False) -> Ranks:
    """Rank of the true transform j of each image by distance of its prediction to the bank of the same image.

    By Euclidean distance, since P is fitted by least squares and lengths may carry θ (a blurred image's features often
    shrink). SIE compares embeddings that a loss has normalised, by normalised dot product: that is `cosine`.
    Differences below 1e-9 of the vectors' squares are ties, as rounding must not decide.

    Args:
        predicted: (n, M, d) P(θ_j, f(x)).
        bank: (n, M, d) f(g_j x).
        cosine: rank by normalised dot product instead.
    """
    compare = _cosine_order if cosine else _euclidean_order
    pairs = [compare(as_float(p), as_float(b)) for p, b in zip(predicted, bank, strict=True)]
    better, tied = zip(*pairs, strict=True)
    return Ranks(np.stack(better), np.stack(tied))


def retrieval_ratios(found: Ranks, hits: Sequence[int] = HITS) -> dict[str, Ratio]:
    """`mrr` and `hit_at_<k>`, each image with the mean over its M transforms; higher is better."""
    last = found.better + found.tied
    ratios = {"mrr": mean_of(((_harmonic(last) - _harmonic(found.better)) / found.tied).mean(axis=1))}
    for k in hits:
        hit = np.clip(k - found.better, 0, found.tied) / found.tied
        ratios[f"hit_at_{k}"] = mean_of(hit.mean(axis=1))
    return ratios


def random_baseline(candidates: int, hits: Sequence[int] = HITS) -> dict[str, float]:
    """Expected scores of guessing among M: H_M / M with H_M = 1 + 1/2 + ... + 1/M, and k / M."""
    found = {f"hit_at_{k}": min(k, candidates) / candidates for k in hits}
    return {"mrr": float(_harmonic(np.array(candidates))) / candidates, **found}


def _harmonic(count: NDArray[Any]) -> Floats:
    """1 + 1/2 + ... + 1/count, 0 for 0."""

    from scipy.special import digamma

    return as_float(digamma(as_float(count) + 1) + np.euler_gamma)


def _euclidean_order(predicted: Floats, bank: Floats) -> tuple[_Counts, _Counts]:
    centre = bank.mean(axis=0)  # distances stay, and squares lose no digits to a common offset
    predicted, bank = predicted - centre, bank - centre
    squares = np.square(bank).sum(axis=1)
    distance = squares - 2 * predicted @ bank.T  # short of ||predicted||², which all candidates share
    rounding = TIE * np.square(centre).sum()  # what is left of an offset where nothing else is there
    scale = np.square(predicted).sum(axis=1) + squares.max() + rounding
    return _count(distance, TIE * scale)


def _cosine_order(predicted: Floats, bank: Floats) -> tuple[_Counts, _Counts]:
    return _count(-_unit(predicted) @ _unit(bank).T, np.full(len(predicted), TIE))


def _count(distance: Floats, tolerance: Floats) -> tuple[_Counts, _Counts]:
    """Candidates nearer than, and as near as, the true one, from distances (M, M) and tolerances (M,)."""
    gap = distance - np.diag(distance)[:, None]
    better = gap < -tolerance[:, None]
    return better.sum(axis=1), (np.abs(gap) <= tolerance[:, None]).sum(axis=1)


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


@register_evaluator
class RetrievalEvaluator(RatioEvaluator):
    """Is the transform that W(θ) f(x) predicts the nearest one among many transforms of the same image?"""

    name, title, main_metric = "retrieval", "Retrieval among transforms of the same image", "mrr"
    metrics = {
        "mrr": MetricInfo("MRR", "higher", "mean reciprocal rank of the true transform among those of the same image"),
        "hit_at_1": MetricInfo("H@1", "higher", "how often the true transform is the nearest"),
        "hit_at_5": MetricInfo("H@5", "higher", "how often it is among the five nearest"),
    }
    transformations = ("rotation", "color", "blur", "translation", "crop")  # of a flip there are two transforms only
    note = "rank of the predicted transform among the transforms of the same image: MRR, H@1, H@5"

    def pairs(self, task: Task, context: Context) -> tuple[Pairs, ...]:
        sizes = context.metric_sizes
        return pairs_of(task, context), bank_pairs(context.dataset, task, sizes.retrieval_images, sizes.bank)

    def measure(self, row: Row, task: Task, context: Context) -> Measurement:
        """Rank every transform of an image's bank by its distance to the prediction, in the action's components."""
        bank = context.metric_sizes.bank
        pairs = bank_pairs(context.dataset, task, context.metric_sizes.retrieval_images, bank)
        first = context.encode(row, context.views.first(pairs))
        second = context.encode(row, context.views.second(pairs))
        arrays: Kept = {"bank": np.array(bank)}
        for name, (action, _) in fitted_actions(row, task, context).items():
            start = action.project(channels(row, first, name))
            end = action.project(channels(row, second, name))
            predicted = action.predict(pairs.theta, start)
            shape = (-1, bank, end.shape[1])
            arrays |= kept(retrieval_ratios(ranks(predicted.reshape(shape), end.reshape(shape))), name)
        return Measurement(arrays)

    def floors(self, arrays: Arrays) -> Mapping[str, float]:
        return random_baseline(int(arrays["bank"]))


OBJECT_HITS = (1, 2, 5, 10)


@register_evaluator
class ObjectRetrievalEvaluator(RatioEvaluator):
    """Is the view that W(q) f(x) predicts the nearest one of the object? MRR, H@k, PRE (docs/protocol.md 8.7)."""

    name, title, main_metric = "object_retrieval", "Retrieval among the views of an object", "mrr"
    metrics = {
        **RetrievalEvaluator.metrics,
        "pose_retrieval_error": MetricInfo("PRE", "lower", "1 - <q, q'>² of the pose asked for and the pose found"),
        "hit_at_2": MetricInfo("H@2", "higher", "how often the true view is among the two nearest"),
        "hit_at_10": MetricInfo("H@10", "higher", "how often it is among the ten nearest"),
    }

    def pairs(self, task: Task, context: Context) -> tuple[Pairs, ...]:
        return pairs_of(task, context), object_bank(task, context)[0]

    def measure(self, row: Row, task: Task, context: Context) -> Measurement:
        """Rank each object's views by their distance to the prediction, and find the nearest view of all objects."""
        pairs, views = object_bank(task, context)
        latents = context.dataset.test.latents
        assert pairs.other is not None
        assert latents is not None
        poses = absolute_quaternion(np.asarray(latents)[pairs.other])
        first = context.encode(row, context.views.first(pairs))
        second = context.encode(row, context.views.second(pairs))
        arrays: Kept = {"bank": np.array(views)}
        for name, (action, _) in fitted_actions(row, task, context).items():
            end = action.project(channels(row, second, name))
            predicted = action.predict(pairs.theta, action.project(channels(row, first, name)))
            shape = (-1, views, end.shape[1])
            ratios = retrieval_ratios(ranks(predicted.reshape(shape), end.reshape(shape)), OBJECT_HITS)
            error = pose_retrieval_error(poses, poses[_nearest(end, predicted)])
            ratios["pose_retrieval_error"] = mean_of(error.reshape(-1, views).mean(axis=1))
            arrays |= kept(ratios, name)
        return Measurement(arrays)

    def floors(self, arrays: Arrays) -> Mapping[str, float]:
        return {**random_baseline(int(arrays["bank"]), OBJECT_HITS), "pose_retrieval_error": RANDOM_RETRIEVAL_ERROR}


def object_bank(task: Task, context: Context) -> tuple[Pairs, int]:
    """From the first view of each test object to each of its views, the first included; and how many views that is.

    As many views of each object as the one with fewest has.
    """
    objects = split_objects(context.dataset, "test")[: context.metric_sizes.retrieval_images]
    views = min(len(rows) for rows in objects)
    first = np.concatenate([np.repeat(rows[:1], views) for rows in objects])
    second = np.concatenate([rows[:views] for rows in objects])
    sizes = (0, 0, len(first))
    name = f"{task.name} bank"
    pairs = between_views(
        context.dataset, task.transformation, first, second, sizes, task=name, version=task.version, cluster=views
    )
    return pairs, views


def _nearest(bank: NDArray[np.float64], predicted: NDArray[np.float64]) -> NDArray[np.int64]:
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(bank)
    return np.asarray(search.kneighbors(predicted, return_distance=False)[:, 0])
