"""CARE's measures: does a fixed transformation a turn all features by one rotation (docs/protocol.md 8.10 and 8.11)?

Both are taken over fixed transformations a, each applied to all images. f(x) and f(a x) are each centred by their own
mean (if f(a x) = R f(x), so do the means) and scaled to length 1.
"""

from itertools import chain

import numpy as np

from equibench.evaluation.context import Context, Row
from equibench.evaluation.evaluator import Measurement, MetricInfo, RatioEvaluator, channels, kept, register_evaluator
from equibench.metrics.bootstrap import AnyFloats, Floats, Ratio, as_float, gain, mean_of, squared_norms
from equibench.pairs.manifest import Pairs, fixed_pairs
from equibench.task import Task

_COMPONENTS = 64
_IMAGES_PER_COMPONENT = 4


def wahba_ratios(first: AnyFloats, moved: AnyFloats, *, components: int = _COMPONENTS) -> dict[str, Ratio]:
    """One rotation R_a per transformation, fitted on every other image (rows 0, 2, ...), scored on the other N // 2.

    `wahba`           Σ ||R_a F - F_a||² / Σ ||F_a||²; 0 is best, 2 is what unrelated features get.
    `wahba_identity`  the same for R = I: 0 if invariant.
    `wahba_gain`      share of the identity's residual that the rotations take away; 1 is best, 0 for an exactly
                      invariant encoder (see `gain` for 0/0).
    These are ratios of sums of squares over images and a; CARE's W_f / ||F_a|| is the square root of the first.

    A rotation of D dimensions turns any D images or fewer into any others without error, so that with many dimensions
    the fit half says nothing, and the scored half too little. Hence the features are first reduced to the leading
    principal components of F and all F_a together (a rotation may lead out of F's own span), four images for each
    component at least. The components, too, come from the fit half only: otherwise those directions would be
    preferred in which the scored half happens to move. Features are (N, D) f(x) and (A, N, D) f(a x).
    """
    fit, scored = slice(0, None, 2), slice(1, None, 2)
    axes = _axes(first, moved, fit, components)
    start = _prepared(first) @ axes.T
    residual = still = total = np.zeros(len(start[scored]))
    for end in (_prepared(f) @ axes.T for f in moved):
        turned = start[scored] @ rotation(start[fit], end[fit]).T
        residual = residual + squared_norms(turned - end[scored])
        still = still + squared_norms(start[scored] - end[scored])
        total = total + squared_norms(end[scored])
    ratios = {"wahba": Ratio(residual, total), "wahba_identity": Ratio(still, total)}
    return {**ratios, "wahba_gain": gain(residual, still, total)}


def rotation(start: Floats, end: Floats) -> Floats:
    """Wahba's problem: the R (d, d) in SO(d) of least Σ ||R start_i - end_i||², for start and end (N, d).

    R = U diag(1, ..., 1, det U det V) Vᵀ with U S Vᵀ the singular value decomposition of Σ end_i start_iᵀ.
    """
    from scipy.linalg import svd

    u, _, vt = svd(end.T @ start)
    u[:, -1] *= np.sign(np.linalg.det(u) * np.linalg.det(vt))
    return as_float(u @ vt)


def gamma_ratios(first: AnyFloats, moved: AnyFloats) -> dict[str, Ratio]:
    """Does a keep distances, and so inner products, between images, relative to how far it moves them? 0 is best.

    With D the squared distances, (D(ax', ax) - D(x', x))² over (D(ax', x') + D(ax, x))²:
    `gamma_f`         CARE's mean of this quotient over a and pairs; 0/0, where nothing moves, counts as 0.
    `gamma_f_pooled`  the two sums' quotient: pairs that hardly move, whose quotients may be huge, weigh little in it.
                      nan if no image moves.

    Unrelated features get about 1 / (2 D + 1), since in many dimensions all distances are alike: so the measure says
    little for large D, and compares encoders of equal D only. Each image is paired with the next one in order, the
    last with the first. Features are (N, D) f(x) and (A, N, D) f(a x).
    """
    start = _prepared(first)
    apart = squared_norms(np.roll(start, -1, axis=0) - start)
    quotients = tops = bottoms = np.zeros(len(start))
    for end in map(_prepared, moved):
        shift = squared_norms(end - start)
        top = np.square(squared_norms(np.roll(end, -1, axis=0) - end) - apart)
        bottom = np.square(np.roll(shift, -1) + shift)
        quotients = quotients + np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0) / len(moved)
        tops, bottoms = tops + top, bottoms + bottom
    return {"gamma_f": mean_of(quotients), "gamma_f_pooled": Ratio(tops, bottoms)}


def _prepared(features: AnyFloats) -> Floats:
    """Features (N, D), centred by the mean of the fit half (to leave the scored half out) and of length 1."""
    centred = as_float(features) - as_float(features[::2]).mean(axis=0)
    lengths = np.sqrt(squared_norms(centred))[:, None]
    return centred / np.where(lengths > 0, lengths, 1)


def _axes(first: AnyFloats, moved: AnyFloats, fit: slice, components: int) -> Floats:
    """Leading principal axes (d, D) of F and all F_a on the fit half, from their covariance, one view at a time."""
    from scipy.linalg import eigh

    views = (_prepared(features)[fit] for features in chain([first], moved))
    covariance = sum(view.T @ view for view in views)
    dimensions, images = first.shape[1], len(first[fit])
    kept = max(1, min(components, dimensions, images // _IMAGES_PER_COMPONENT))
    _, vectors = eigh(covariance, subset_by_index=(dimensions - kept, dimensions - 1))
    return as_float(vectors[:, ::-1].T)


@register_evaluator
class WahbaEvaluator(RatioEvaluator):
    """Does a fixed transformation turn all features by one rotation (W_f of CARE), and keep their distances (γ_f)?"""

    name, title, main_metric = "wahba", "Rotation of features (Wahba) and γ_f", "wahba"
    metrics = {
        "wahba": MetricInfo(
            "Wahba", "lower", "residual of the best rotation R_g f(x) = f(gx) on other images, squared"
        ),
        "wahba_identity": MetricInfo("Wahba, R = I", "neither", "the same without a rotation"),
        "wahba_gain": MetricInfo("Wahba gain", "higher", "share of the residual that the rotation takes away", True),
        "gamma_f": MetricInfo("γ_f", "lower", "do distances between images stay, relative to how far g moves them?"),
        "gamma_f_pooled": MetricInfo("γ_f, pooled", "lower", "the same as a quotient of sums"),
    }
    transformations = ("rotation", "color", "blur", "translation", "crop", "flip")
    note = "residual of the best rotation of features for fixed g (W_f), and whether distances stay (γ_f)"

    def pairs(self, task: Task, context: Context) -> tuple[Pairs, ...]:
        sizes = context.metric_sizes
        return (fixed_pairs(context.dataset, task, sizes.fixed_images, sizes.fixed)[0],)

    def measure(self, row: Row, task: Task, context: Context) -> Measurement:
        """A few fixed transformations, each of all images; the rotation is fitted on half of the images."""
        sizes = context.metric_sizes
        pairs, count = fixed_pairs(context.dataset, task, sizes.fixed_images, sizes.fixed)
        first = context.encode(row, context.views.first(pairs))
        second = context.encode(row, context.views.second(pairs))
        arrays: dict[str, Floats] = {}
        for name in row.feature_sets():
            moved = channels(row, second, name).reshape(count, len(pairs.image) // count, -1)
            still = channels(row, first, name)[: moved.shape[1]]
            arrays |= kept(wahba_ratios(still, moved), name) | kept(gamma_ratios(still, moved), name)
        return Measurement(arrays)
