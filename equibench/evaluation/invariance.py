"""How much a transformation moves features, and whether it changes predictions (docs/protocol.md 8.9)."""

import numpy as np
from numpy.typing import ArrayLike

from equibench.data.dataset import image_source
from equibench.evaluation.context import Context, Row
from equibench.evaluation.evaluator import (
    Kept,
    Measurement,
    MetricInfo,
    RatioEvaluator,
    Triple,
    encoded,
    kept,
    pairs_of,
    register_evaluator,
)
from equibench.metrics.bootstrap import AnyFloats, Floats, Ratio, as_float, mean_of, squared_norms
from equibench.pairs.manifest import Pairs
from equibench.task import Task

FIT_IMAGES = 5000
"""Training images that the classifier is fitted on at most."""


def invariance_ratios(first: AnyFloats, second: AnyFloats) -> dict[str, Ratio]:
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


def _cosines(one: Floats, other: Floats) -> Floats:
    """Cosines (N,); 0 for a vector of no length, which has no direction in common with any."""
    lengths = np.sqrt(squared_norms(one) * squared_norms(other))
    return np.einsum("nd,nd->n", one, other) / np.where(lengths > 0, lengths, 1)


@register_evaluator
class InvarianceEvaluator(RatioEvaluator):
    """How far does g move the features, and does it change what a linear classifier says?"""

    name, title, main_metric = "invariance", "Invariance, and consistency of predictions", "invariance_ratio"
    metrics = {
        "invariance_ratio": MetricInfo(
            "invariance ratio", "neither", "E|f(x)-f(gx)|² over E|f(x)-f(x')|²: 0 invariant, 1 like another image"
        ),
        "cosine": MetricInfo("cosine", "neither", "E cos(f(x), f(gx))"),
        "cosine_centred": MetricInfo("centred cosine", "neither", "the same without the features' common part"),
        "consistency": MetricInfo("consistency", "higher", "how often a linear classifier says the same of x and gx"),
        "accuracy_first": MetricInfo("accuracy x", "higher", "of that classifier on x"),
        "accuracy_second": MetricInfo("accuracy gx", "higher", "of that classifier on gx"),
    }
    transformations = ("rotation", "color", "blur", "translation", "crop", "flip")
    note = "how far g moves features against the distance of two images, and whether predictions stay"

    def pairs(self, task: Task, context: Context) -> tuple[Pairs, ...]:
        return (pairs_of(task, context),)

    def measure(self, row: Row, task: Task, context: Context) -> Measurement:
        """Distances on the regression test pairs; consistency where the data have classes."""
        pairs = pairs_of(task, context)
        arrays: Kept = {}
        for name, triples in encoded(row, task, context).items():
            test = triples["test"]
            ratios = invariance_ratios(test.first, test.second)
            if len(context.dataset.class_names) > 1:
                ratios |= consistency_ratios(*_classified(triples["train"], test, pairs, context))
            arrays |= kept(ratios, name)
        return Measurement(arrays)


def _classified(train: Triple, test: Triple, pairs: Pairs, context: Context) -> tuple[np.ndarray, ...]:
    """What logistic regression, fitted on untransformed training images, says of x and of gx; and the truth."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = {s: image_source(context.dataset, s).labels[pairs.image[pairs.rows(s)]] for s in ("train", "test")}
    _, rows = np.unique(pairs.image[pairs.rows("train")], return_index=True)
    rows = np.sort(rows)[:FIT_IMAGES]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    classifier.fit(np.asarray(train.first[rows], dtype=np.float32), labels["train"][rows])
    one, other = (classifier.predict(np.asarray(f, dtype=np.float32)) for f in (test.first, test.second))
    return one, other, labels["test"]
