"""Retrieval of the true transform among many transforms of the same image (SIE's MRR and H@k, PROTOCOL 1.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma

from equibench.evaluation.action import fitted_actions
from equibench.evaluation.context import Setting, Subject
from equibench.evaluation.evaluator import (
    Arrays,
    Family,
    Kept,
    Measurement,
    channels,
    kept,
    metrics_of,
    pairs_of,
    ratio_headline,
    ratios_of,
)
from equibench.metrics.bootstrap import Array, Features, Ratio, as_float, mean_of
from equibench.pairs.manifest import Pairs, bank_pairs
from equibench.task import Task

Counts = NDArray[np.int64]

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

    better: Counts
    tied: Counts


def ranks(predicted: Features, bank: Features, *, cosine: bool = False) -> Ranks:
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


def _harmonic(count: NDArray[Any]) -> Array:
    """1 + 1/2 + ... + 1/count, 0 for 0."""
    return as_float(digamma(as_float(count) + 1) + np.euler_gamma)


def _euclidean_order(predicted: Array, bank: Array) -> tuple[Counts, Counts]:
    centre = bank.mean(axis=0)  # distances stay, and squares lose no digits to a common offset
    predicted, bank = predicted - centre, bank - centre
    squares = np.square(bank).sum(axis=1)
    distance = squares - 2 * predicted @ bank.T  # short of ||predicted||², which all candidates share
    rounding = TIE * np.square(centre).sum()  # what is left of an offset where nothing else is there
    scale = np.square(predicted).sum(axis=1) + squares.max() + rounding
    return _count(distance, TIE * scale)


def _cosine_order(predicted: Array, bank: Array) -> tuple[Counts, Counts]:
    return _count(-_unit(predicted) @ _unit(bank).T, np.full(len(predicted), TIE))


def _count(distance: Array, tolerance: Array) -> tuple[Counts, Counts]:
    """Candidates nearer than, and as near as, the true one, from distances (M, M) and tolerances (M,)."""
    gap = distance - np.diag(distance)[:, None]
    better = gap < -tolerance[:, None]
    return better.sum(axis=1), (np.abs(gap) <= tolerance[:, None]).sum(axis=1)


def _unit(vectors: Array) -> Array:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def measure(subject: Subject, task: Task, setting: Setting) -> Measurement:
    """Rank every transform of an image's bank by its distance to the prediction, in the action's components."""
    bank = setting.metric_sizes.bank
    pairs = bank_pairs(setting.dataset, task, setting.metric_sizes.retrieval_images, bank)
    first = setting.encode(subject, setting.views.first(pairs))
    second = setting.encode(subject, setting.views.second(pairs))
    arrays: Kept = {"bank": np.array(bank)}
    for name, (action, _) in fitted_actions(subject, task, setting).items():
        start = action.project(channels(subject, first, name))
        end = action.project(channels(subject, second, name))
        predicted = action.predict(pairs.theta, start)
        shape = (-1, bank, end.shape[1])
        arrays |= kept(retrieval_ratios(ranks(predicted.reshape(shape), end.reshape(shape))), name)
    return Measurement(arrays)


def scores(arrays: Arrays, features: str) -> dict[str, Any]:
    """Each metric with what guessing scores."""
    return {"metrics": metrics_of(ratios_of(arrays, features), random_baseline(int(arrays["bank"])))}


def _pairs(task: Task, setting: Setting) -> tuple[Pairs, ...]:
    sizes = setting.metric_sizes
    return pairs_of(task, setting), bank_pairs(setting.dataset, task, sizes.retrieval_images, sizes.bank)


RETRIEVAL = Family(
    name="retrieval",
    title="Retrieval among transforms of the same image",
    headline="mrr",
    code=("families/retrieval.py", "families/regression_pairs.py", "metrics/action.py", "metrics/retrieval.py"),
    pairs=_pairs,
    measure=measure,
    scores=scores,
    resampled=ratio_headline("mrr"),
)
