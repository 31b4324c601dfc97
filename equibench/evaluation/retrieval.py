"""Retrieval of the true transform among many transforms of the same image (SIE's MRR and H@k, docs/protocol.md 8.6).

SIE asks this of the embeddings that its own predictor was trained on; here W is fitted in closed form on frozen
features (see `action`), so that it can be asked of every encoder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

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
_HITS = (1, 5)
_TIE = 1e-9


@dataclass(frozen=True)
class Ranks:
    """Where the true transform stands among M: its rank is drawn evenly from better + 1 to better + tied.

    No single number for a tie gives an encoder that does not see the transformation, and for which all M tie, the
    scores of random guessing: the best rank gives it H@1 = 1, the worst MRR = 1/M, the mean MRR = 2/(M + 1). So the
    scores below are expectations over a fair tie-break, which give it exactly `random_baseline`.
    """

    better: _Counts  # (n, M) how many candidates are strictly nearer to the prediction than the true one
    tied: _Counts  # (n, M) how many are as near, the true one included


def ranks(predicted: AnyFloats, bank: AnyFloats, *, cosine: bool = False) -> Ranks:
    """Rank of the true transform j of each image by distance of its prediction to the bank of the same image.

    By Euclidean distance, since P is fitted by least squares and lengths may carry θ (a blurred image's features often
    shrink). SIE compares embeddings that a loss has normalised, by normalised dot product: that is `cosine`.
    Differences below 1e-9 of the vectors' squares are ties, as rounding must not decide. Given are P(θ_j, f(x)) and
    f(g_j x), both (n, M, d).
    """
    measure = _cosine_distances if cosine else _euclidean_distances
    better, tied = [], []
    for one, candidates in zip(predicted, bank, strict=True):
        distance, tolerance = measure(as_float(one), as_float(candidates))
        gap = distance - np.diag(distance)[:, None]
        better.append((gap < -tolerance).sum(axis=1))
        tied.append((np.abs(gap) <= tolerance).sum(axis=1))
    return Ranks(np.stack(better), np.stack(tied))


def retrieval_ratios(found: Ranks, hits: Sequence[int] = _HITS) -> dict[str, Ratio]:
    """`mrr` and `hit_at_<k>`, each image with the mean over its M transforms; higher is better."""
    last = found.better + found.tied
    ratios = {"mrr": mean_of(((_harmonic(last) - _harmonic(found.better)) / found.tied).mean(axis=1))}
    for k in hits:
        hit = np.clip(k - found.better, 0, found.tied) / found.tied
        ratios[f"hit_at_{k}"] = mean_of(hit.mean(axis=1))
    return ratios


def random_baseline(candidates: int, hits: Sequence[int] = _HITS) -> dict[str, float]:
    """Expected scores of guessing among M: H_M / M with H_M = 1 + 1/2 + ... + 1/M, and k / M."""
    found = {f"hit_at_{k}": min(k, candidates) / candidates for k in hits}
    return {"mrr": float(_harmonic(np.array(candidates))) / candidates, **found}


def _harmonic(count: NDArray[Any]) -> Floats:
    """1 + 1/2 + ... + 1/count, 0 for 0."""
    from scipy.special import digamma

    return as_float(digamma(as_float(count) + 1) + np.euler_gamma)


def _euclidean_distances(predicted: Floats, bank: Floats) -> tuple[Floats, Floats]:
    """Distances (M, M), and tolerances (M, 1), below which two of a row are alike."""
    centre = bank.mean(axis=0)  # distances stay, and squares lose no digits to a common offset
    predicted, bank = predicted - centre, bank - centre
    squares = np.square(bank).sum(axis=1)
    distance = squares - 2 * predicted @ bank.T  # short of ||predicted||², which all candidates share
    rounding = _TIE * np.square(centre).sum()  # what is left of an offset where nothing else is there
    scale = np.square(predicted).sum(axis=1) + squares.max() + rounding
    return distance, _TIE * scale[:, None]


def _cosine_distances(predicted: Floats, bank: Floats) -> tuple[Floats, Floats]:
    return -_unit(predicted) @ _unit(bank).T, np.full((len(predicted), 1), _TIE)


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


@register_evaluator
class RetrievalEvaluator(RatioEvaluator):
    """Is the transform that W(θ) f(x) predicts the nearest one among many transforms of the same image?"""

    name, title, main_metric = "retrieval", "Retrieval among transforms of the same image", "mrr"
    metrics: ClassVar[Mapping[str, MetricInfo]] = {
        "mrr": MetricInfo("MRR", "higher", "mean reciprocal rank of the true transform among those of the same image"),
        "hit_at_1": MetricInfo("H@1", "higher", "how often the true transform is the nearest"),
        "hit_at_5": MetricInfo("H@5", "higher", "how often it is among the five nearest"),
    }
    # of a flip there are two transforms only
    transformations: ClassVar[tuple[str, ...]] = ("rotation", "color", "blur", "translation", "crop")
    note = "rank of the predicted transform among the transforms of the same image: MRR, H@1, H@5"
    hits: ClassVar[tuple[int, ...]] = _HITS

    def bank(self, task: Task, context: Context) -> tuple[Pairs, int]:
        """Pairs whose second views are to be told apart, and how many of them follow each other for one image."""
        sizes = context.metric_sizes
        return bank_pairs(context.dataset, task, sizes.retrieval_images, sizes.bank), sizes.bank

    def pairs(self, task: Task, context: Context) -> tuple[Pairs, ...]:
        return pairs_of(task, context), self.bank(task, context)[0]

    def measure(self, row: Row, task: Task, context: Context) -> Measurement:
        """Rank every view of an image's bank by its distance to the prediction, in the action's components."""
        pairs, bank = self.bank(task, context)
        first = context.encode(row, context.views.first(pairs))
        second = context.encode(row, context.views.second(pairs))
        arrays: Kept = {"bank": np.array(bank)}
        for name, (action, _) in fitted_actions(row, task, context).items():
            end = action.project(channels(row, second, name))
            predicted = action.predict(pairs.theta, action.project(channels(row, first, name)))
            shape = (-1, bank, end.shape[1])
            ratios = retrieval_ratios(ranks(predicted.reshape(shape), end.reshape(shape)), self.hits)
            arrays |= kept(ratios | self.errors(pairs, predicted, end, context), name)
        return Measurement(arrays)

    def errors(self, pairs: Pairs, predicted: Floats, end: Floats, context: Context) -> dict[str, Ratio]:
        """Further ratios, from the projected predictions and second views (N, d)."""
        return {}

    def floors(self, arrays: Arrays) -> Mapping[str, float]:
        return random_baseline(int(arrays["bank"]), self.hits)


@register_evaluator
class ObjectRetrievalEvaluator(RetrievalEvaluator):
    """Is the view that W(q) f(x) predicts the nearest one of the object? MRR, H@k, PRE (docs/protocol.md 8.7)."""

    name, title = "object_retrieval", "Retrieval among the views of an object"
    metrics = {
        **RetrievalEvaluator.metrics,
        "pose_retrieval_error": MetricInfo("PRE", "lower", "1 - <q, q'>² of the pose asked for and the pose found"),
        "hit_at_2": MetricInfo("H@2", "higher", "how often the true view is among the two nearest"),
        "hit_at_10": MetricInfo("H@10", "higher", "how often it is among the ten nearest"),
    }
    transformations, note = (), ""
    hits = (1, 2, 5, 10)

    def bank(self, task: Task, context: Context) -> tuple[Pairs, int]:
        """From the first view of each test object to each of its views, the first included.

        As many views of each object as the one with fewest has.
        """
        data, objects = context.dataset, split_objects(context.dataset, "test")[: context.metric_sizes.retrieval_images]
        views = min(len(rows) for rows in objects)
        first = np.concatenate([np.repeat(rows[:1], views) for rows in objects])
        second = np.concatenate([rows[:views] for rows in objects])
        named: dict[str, Any] = {"task": f"{task.name} bank", "version": task.version, "cluster": views}
        return between_views(data, task.transformation, first, second, (0, 0, len(first)), **named), views

    def errors(self, pairs: Pairs, predicted: Floats, end: Floats, context: Context) -> dict[str, Ratio]:
        """Between the poses of the prediction and of the nearest view of all objects."""
        from sklearn.neighbors import NearestNeighbors

        latents = context.dataset.test.latents
        assert pairs.other is not None
        assert latents is not None
        poses = absolute_quaternion(np.asarray(latents)[pairs.other])
        search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(end)
        nearest = search.kneighbors(predicted, return_distance=False)[:, 0]
        error = pose_retrieval_error(poses, poses[nearest])
        return {"pose_retrieval_error": mean_of(error.reshape(-1, pairs.cluster).mean(axis=1))}

    def floors(self, arrays: Arrays) -> Mapping[str, float]:
        return {**super().floors(arrays), "pose_retrieval_error": RANDOM_RETRIEVAL_ERROR}
