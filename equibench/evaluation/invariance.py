"""How much a transformation moves features, and whether it changes predictions (PROTOCOL 3.1, invariance)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from equibench.data.dataset import image_source
from equibench.evaluation.action import Triple
from equibench.evaluation.context import Setting, Subject
from equibench.evaluation.evaluator import (
    Family,
    Kept,
    Measurement,
    encoded,
    kept,
    pairs_of,
    ratio_headline,
    ratio_scores,
)
from equibench.metrics.bootstrap import Array, Features, Ratio, as_float, mean_of, squared_norms
from equibench.pairs.manifest import Pairs
from equibench.task import Task


def invariance_ratios(first: Features, second: Features) -> dict[str, Ratio]:
    """Cosine and distance of f(x) and f(g x), both (N, D). None is better as such: they say where an encoder stands.

    `cosine`            E cos(f(x), f(gx)), in [-1, 1]; 1 if invariant. Features with a large common part, such as
                        those after a ReLU, are near 1 whatever g does.
    `cosine_centred`    the same without the common part, the mean of `first`; 1 if invariant, 0 if unrelated.
    `invariance_ratio`  E ||f(x) - f(gx)||² / E ||f(x) - f(x')||² over other images x'; 0 if invariant, 1 if g x is to
                        x as any other image. The mean over all pairs of different images is
                        2 Σ_i ||f(x_i) - mean||² / (N - 1), of which each image's share is its bottom.
    """
    first, second = as_float(first), as_float(second)
    centre, count = first.mean(axis=0), len(first)
    spread = squared_norms(first - centre)
    return {
        "cosine": mean_of(_cosines(first, second)),
        "cosine_centred": mean_of(_cosines(first - centre, second - centre)),
        "invariance_ratio": Ratio(squared_norms(first - second), 2 * spread * count / max(count - 1, 1)),
    }


def consistency_ratios(predicted_first: ArrayLike, predicted_second: ArrayLike, labels: ArrayLike) -> dict[str, Ratio]:
    """Of classes predicted for x and for g x, and the true ones, each (N,): how often they agree; higher is better.

    `consistency` (the two predictions), `accuracy_first` and `accuracy_second` (each with the label), all in [0, 1].
    """
    one, other, truth = np.asarray(predicted_first), np.asarray(predicted_second), np.asarray(labels)
    return {
        "consistency": mean_of(one == other),
        "accuracy_first": mean_of(one == truth),
        "accuracy_second": mean_of(other == truth),
    }


def _cosines(one: Array, other: Array) -> Array:
    """Cosines (N,); 0 for a vector of no length, which has no direction in common with any."""
    lengths = np.sqrt(squared_norms(one) * squared_norms(other))
    return np.einsum("nd,nd->n", one, other) / np.where(lengths > 0, lengths, 1)


FIT_IMAGES = 5000
"""Training images that the classifier is fitted on at most."""


def measure(subject: Subject, task: Task, setting: Setting) -> Measurement:
    """Distances on the regression test pairs; consistency where the data have classes."""
    pairs = pairs_of(task, setting)
    arrays: Kept = {}
    for name, triples in encoded(subject, task, setting).items():
        test = triples["test"]
        ratios = invariance_ratios(test.first, test.second)
        if len(setting.dataset.class_names) > 1:
            ratios |= consistency_ratios(*_classified(triples["train"], test, pairs, setting))
        arrays |= kept(ratios, name)
    return Measurement(arrays)


def _classified(train: Triple, test: Triple, pairs: Pairs, setting: Setting) -> tuple[np.ndarray, ...]:
    """What logistic regression, fitted on untransformed training images, says of x and of gx; and the truth."""
    labels = {s: image_source(setting.dataset, s).labels[pairs.image[pairs.rows(s)]] for s in ("train", "test")}
    _, rows = np.unique(pairs.image[pairs.rows("train")], return_index=True)
    rows = np.sort(rows)[:FIT_IMAGES]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    classifier.fit(np.asarray(train.first[rows], dtype=np.float32), labels["train"][rows])
    one, other = (classifier.predict(np.asarray(f, dtype=np.float32)) for f in (test.first, test.second))
    return one, other, labels["test"]


INVARIANCE = Family(
    name="invariance",
    title="Invariance, and consistency of predictions",
    headline="invariance_ratio",
    code=("families/invariance.py", "families/regression_pairs.py", "metrics/invariance.py"),
    pairs=lambda task, setting: (pairs_of(task, setting),),
    measure=measure,
    scores=ratio_scores,
    resampled=ratio_headline("invariance_ratio"),
)
