"""The closed-form action: how well f(g x) follows from f(x) and θ, by ridge regression on frozen features.

An encoder that comes without a predictor gets one that has no training of its own (docs/protocol.md 7.4,
(b)): P(θ, f) = W(θ) [f; 1] with W(θ) = Σ_k φ_k(θ) H_k. It is linear in f, so an encoder on which it fails may still
be equivariant in a curved way; it is exact wherever g acts by matrices whose entries the basis φ spans.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from equibench.evaluation.context import Context, Row
from equibench.evaluation.evaluator import (
    Arrays,
    Kept,
    Measurement,
    MetricInfo,
    RatioEvaluator,
    Triple,
    channels,
    encoded,
    kept,
    pairs_of,
    register_evaluator,
)
from equibench.metrics.bootstrap import AnyFloats, Floats, Ratio, as_float, gain, squared_norms
from equibench.pairs.manifest import Pairs, composed_pairs
from equibench.records import Metric
from equibench.task import Task
from equibench.transforms.transformation import TRANSFORMATIONS

_COMPONENTS = 64
_ALPHAS = tuple(10.0**power for power in range(-6, 5))
_PCA_ROWS = 20_000  # of each view: the leading components of some hundred dimensions are settled long before
_ROWS = 4096  # at a time, so that no intermediate array grows with the number of pairs


@dataclass(frozen=True)
class Projection:
    """Leading principal components, divided by one number so that the geometry stays."""

    centre: Floats  # (D,)
    axes: Floats  # (d, D)
    scale: float  # so that the components' mean variance over training views becomes 1
    explained: float  # share of the training views' variance that the d components hold

    def __call__(self, features: AnyFloats) -> Floats:
        """Features (N, D) -> (N, d)."""
        parts = [as_float(features[i : i + _ROWS]) - self.centre for i in range(0, len(features), _ROWS)]
        return np.concatenate([part @ self.axes.T for part in parts]) / self.scale


@dataclass(frozen=True)
class Action:
    """P(θ, f) on projected features."""

    project: Projection
    periods: tuple[float, ...]  # as a Transformation has them, in the unit of θ
    basis_mean: Floats  # (K,) with basis_std they standardise the basis functions; 0 and 1 for the constant
    basis_std: Floats
    weights: Floats  # (K, d + 1, d) the H_k, biases last
    weights_without_theta: Floats  # (1, d + 1, d) the best predictor that is not told θ
    first_mean: Floats  # (d,) training means of the projected f(x) and f(g x)
    second_mean: Floats

    def predict(self, theta: ArrayLike, projected: Floats) -> Floats:
        """P(θ, f) for θ (N, P), or one θ (P,) for all, and projected features (N, d) -> (N, d)."""
        phi = (basis(np.atleast_2d(as_float(theta)), self.periods) - self.basis_mean) / self.basis_std
        return _apply(self.weights, np.broadcast_to(phi, (len(projected), phi.shape[1])), projected)


def basis(theta: Floats, periods: Sequence[float] = ()) -> Floats:
    """φ(θ): θ (N, P) -> (N, K), the first function being 1.

    A parameter t of period p gives cos and sin of 2π k t / p for k = 1, 2; one without gives t and t²; and two
    parameters give the products of their first-order terms. `periods` has one for each parameter, in the unit of θ,
    and 0 where there is none; () is for none at all.
    """
    first_order, second_order = [], []
    for t, period in zip(theta.T, periods or (0.0,) * theta.shape[1], strict=True):
        angle = 2 * np.pi * t / period if period else t
        first_order.append([np.cos(angle), np.sin(angle)] if period else [t])
        second_order += [np.cos(2 * angle), np.sin(2 * angle)] if period else [t**2]
    products = [a * b for one, other in combinations(first_order, 2) for a in one for b in other]
    linear = [term for terms in first_order for term in terms]
    return np.stack([np.ones(len(theta)), *linear, *second_order, *products], axis=1)


def fit_action(train: Triple, val: Triple, periods: Sequence[float] = (), *, components: int = _COMPONENTS) -> Action:
    """Fit P on training pairs, its penalties chosen on validation pairs.

    First the predictor without θ is fitted, then basis(θ) ⊗ [f; 1] to what it leaves. The sum has the form of P, and
    the second penalty shrinks it towards the predictor without θ instead of towards zero, so that an encoder that
    shows nothing of θ gets no worse by being told θ.

    The number of components is `components` at most, and so small that there are no more coefficients per output
    than training pairs; it thus depends on the data and the transformation, and on the encoder only by its rank.
    """
    phi, val_phi = basis(as_float(train.theta), periods), basis(as_float(val.theta), periods)
    mean, std = phi.mean(axis=0), phi.std(axis=0)
    mean[0], std[std <= 1e-9 * np.abs(phi).max(axis=0)] = 0, 1
    phi, val_phi = (phi - mean) / std, (val_phi - mean) / std
    project = _projection(train, min(components, max(1, len(phi) // phi.shape[1] - 1)))
    first, second = project(train.first), project(train.second)
    val_first, val_second = project(val.first), project(val.second)
    one, val_one, target = phi[:, :1], val_phi[:, :1], second.mean(axis=0)
    without, _ = _ridge((one, first, second - target), (val_one, val_first, val_second - target), _ALPHAS)
    without[0, -1] += target
    left, val_left = second - _apply(without, one, first), val_second - _apply(without, val_one, val_first)
    weights, _ = _ridge((phi, first, left), (val_phi, val_first, val_left), _ALPHAS)
    weights[0] += without[0]
    return Action(project, tuple(periods), mean, std, weights, without, first.mean(axis=0), target)


def action_ratios(
    action: Action, test: Triple, *, identity: ArrayLike | None = None, inverse: Floats | None = None
) -> dict[str, Ratio]:
    """How well P predicts, and whether it acts as a group does. All on projected features, of the test images.

    `equivariance_r2`   1 - Σ ||f(gx) - P(θ, f(x))||² / Σ ||f(gx) - m||², m the training mean; 1 is best.
    `identity_r2`       the same for the guess f(x): 1 for an invariant encoder.
    `r2_without_theta`  the same for the best guess from f(x) alone.
    `theta_gain`        share of what that leaves which θ explains: 0 for an exactly invariant encoder (see `gain`
                        for 0/0), 1 for an exactly equivariant one.
    `identity_error`    Σ ||P(e, f(x)) - f(x)||² / Σ ||f(x) - mean f(x)||²; 0 is best. Given with `identity`.
    `inverse_error`     Σ ||P(g⁻¹, P(g, f(x))) - f(x)||² / Σ ||f(gx) - f(x)||²; 0 is best. Given with `inverse`. This
                        is the composition error of docs/protocol.md 8.8 with what g moves as its unit, since
                        g⁻¹ g x = x itself moves nothing; nan if g moves no feature. A P that only says the mean
                        gets about 1/2.

    Where the identity's θ (P,) is not among the drawn ones (blur), P has to extrapolate; where the θ (N, P) of a pair's
    inverse is not, too (color: 1 / 0.6 is beyond 1.4).
    """
    first, second = action.project(test.first), action.project(test.second)
    predicted = action.predict(test.theta, first)
    total = squared_norms(second - action.second_mean)
    residual = squared_norms(second - predicted)
    without = squared_norms(second - _apply(action.weights_without_theta, np.ones((len(first), 1)), first))
    moved = squared_norms(second - first)
    ratios = {
        "equivariance_r2": Ratio(residual, total, complement=True),
        "identity_r2": Ratio(moved, total, complement=True),
        "r2_without_theta": Ratio(without, total, complement=True),
        "theta_gain": gain(residual, without, total),
    }
    if identity is not None:
        error = squared_norms(action.predict(identity, first) - first)
        ratios["identity_error"] = Ratio(error, squared_norms(first - action.first_mean))
    if inverse is not None:
        ratios["inverse_error"] = Ratio(squared_norms(action.predict(inverse, predicted) - first), moved)
    return ratios


def composition_error(action: Action, first: AnyFloats, theta1: Floats, theta2: Floats, composed: AnyFloats) -> Ratio:
    """Σ ||P(g2, P(g1, f(x))) - f(g2 g1 x)||² / Σ ||f(x) - f(g2 g1 x)||² (docs/protocol.md 8.8, squared); 0 is best.

    1 is as good as leaving f(x) as it is; a P that only says the mean gets about 1/2 if the views are unrelated.
    `first` is f(x) (N, D), `composed` f(g2 g1 x) (N, D), and the steps θ (N, P) stand in the order in which they are
    applied.
    """
    start, end = action.project(first), action.project(composed)
    predicted = action.predict(theta2, action.predict(theta1, start))
    return Ratio(squared_norms(predicted - end), squared_norms(start - end))


def _projection(train: Triple, components: int) -> Projection:
    """From both views of (evenly chosen) training pairs; d is smaller than asked for where the rank is."""
    from sklearn.decomposition import PCA

    rows = np.unique(np.linspace(0, len(train.first) - 1, _PCA_ROWS).astype(int))
    views = np.concatenate([as_float(train.first[rows]), as_float(train.second[rows])])
    centre = views.mean(axis=0)
    views -= centre  # before the covariance is taken, against cancellation
    total = np.square(views).sum() / (len(views) - 1)
    with np.errstate(invalid="ignore"):  # PCA divides by the total, which a constant encoder does not have
        pca = PCA(min(components, views.shape[1], len(views)), svd_solver="covariance_eigh").fit(views)
    variances = pca.explained_variance_
    kept = max(1, int((variances > 1e-10 * variances[0]).sum()))
    share = variances[:kept].sum()
    scale = float(np.sqrt(share / kept)) or 1.0
    return Projection(centre, pca.components_[:kept], scale, float(share / total if total else 1))


def _ridge(
    train: tuple[Floats, Floats, Floats], val: tuple[Floats, Floats, Floats], alphas: Sequence[float]
) -> tuple[Floats, float]:
    """Ridge on φ ⊗ [z; 1], for (φ (n, K), z (n, d), y (n, d)) of each split -> weights (K, d + 1, d) and the α taken.

    One eigendecomposition of the normal equations serves every α; a Ridge per α would decompose each anew.
    """
    from scipy.linalg import eigh

    (phi, z, y), (val_phi, val_z, val_y) = train, val
    size = phi.shape[1] * (z.shape[1] + 1)
    gram, cross = np.zeros((size, size)), np.zeros((size, y.shape[1]))
    for rows in (slice(i, i + _ROWS) for i in range(0, len(phi), _ROWS)):
        design = (phi[rows, :, None] * _with_one(z[rows])[:, None]).reshape(-1, size)
        gram += design.T @ design
        cross += design.T @ y[rows]
    values, vectors = eigh(gram, overwrite_a=True)
    rotated = vectors.T @ cross
    best, chosen = np.inf, (np.empty(0), 0.0)
    for alpha in alphas:
        solution = vectors @ (rotated / (np.maximum(values, 0) + alpha * len(phi))[:, None])
        weights = solution.reshape(phi.shape[1], -1, y.shape[1])
        error = float(np.square(val_y - _apply(weights, val_phi, val_z)).sum())
        if error < best:
            best, chosen = error, (weights, alpha)
    return chosen


def _apply(weights: Floats, phi: Floats, z: Floats) -> Floats:
    """Σ_k φ_k [z; 1] H_k, function by function so that no (n, K, d) array arises."""
    extended, result = _with_one(z), np.zeros((len(z), weights.shape[2]))
    for column, matrix in zip(phi.T, weights, strict=True):
        result += column[:, None] * (extended @ matrix)
    return result


def _with_one(z: Floats) -> Floats:
    return np.concatenate([z, np.ones((len(z), 1))], axis=1)


def fitted_actions(row: Row, task: Task, context: Context) -> dict[str, tuple[Action, Triple]]:
    """The closed-form action of each feature set, and the test pairs."""
    periods = TRANSFORMATIONS[task.transformation].periods
    sets = encoded(row, task, context)
    return {name: (fit_action(t["train"], t["val"], periods), t["test"]) for name, t in sets.items()}


@register_evaluator
class ActionEvaluator(RatioEvaluator):
    """Does a matrix W(θ) act on the features as g acts on images, and do these matrices compose as the g do?"""

    name, title, main_metric = "action", "Closed-form action: f(gx) = W(θ) f(x)", "equivariance_r2"
    metrics = {
        "equivariance_r2": MetricInfo("R² of f(gx)", "higher", "f(gx) predicted from f(x) and θ by W(θ)", True),
        "theta_gain": MetricInfo("gain by θ", "higher", "share of the residual without θ that θ explains", True),
        "r2_without_theta": MetricInfo("R² without θ", "neither", "the best linear guess that is not told θ", True),
        "identity_r2": MetricInfo("R² of f(x)", "neither", "the guess that g changes nothing", True),
        "identity_error": MetricInfo("identity error", "lower", "W(e) f(x) against f(x), over the spread of f"),
        "inverse_error": MetricInfo("inverse error", "lower", "W(g⁻¹) W(g) f(x) against f(x), over what g moves"),
        "composition_error": MetricInfo(
            "composition error", "lower", "W(g₂) W(g₁) f(x) against f(g₂g₁x), over the move"
        ),
        "explained_variance": MetricInfo("variance kept", "neither", "of the features by the action's components"),
    }
    transformations = ("rotation", "color", "blur", "translation", "crop", "flip")
    note = "R² of f(gx) from f(x) and θ by a ridge-fitted W(θ), with composition, inverse and identity errors"

    def pairs(self, task: Task, context: Context) -> tuple[Pairs, ...]:
        return pairs_of(task, context), _composed(task, context)

    def measure(self, row: Row, task: Task, context: Context) -> Measurement:
        """Fit W(θ) by ridge on the regression pairs; test it on theirs and on two-step pairs.

        The inverse is tested where it lies in the range that W was fitted on, as it does for all but some colors.
        """
        transformation = TRANSFORMATIONS[task.transformation]
        pairs = _composed(task, context)
        assert pairs.then is not None
        first = context.encode(row, context.views.first(pairs))
        composed = context.encode(row, context.views.second(pairs))
        arrays: Kept = {}
        for name, (action, test) in fitted_actions(row, task, context).items():
            ratios = action_ratios(action, test, identity=np.array(transformation.identity))
            before, after = channels(row, first, name), channels(row, composed, name)
            ratios["composition_error"] = composition_error(action, before, pairs.theta, pairs.then, after)
            if transformation.inverse:
                inverse = transformation.inverse(test.theta)
                inside = ((inverse >= test.theta.min(axis=0)) & (inverse <= test.theta.max(axis=0))).all(axis=1)
                if inside.any():
                    near = Triple(test.first[inside], test.second[inside], test.theta[inside])
                    ratios["inverse_error"] = action_ratios(action, near, inverse=inverse[inside])["inverse_error"]
            arrays |= kept(ratios, name) | {f"{name}/explained": np.array(action.project.explained)}
        return Measurement(arrays)

    def scores(self, arrays: Arrays, features: str) -> dict[str, Metric]:
        """The ratios, and how much of the features' variance the components hold in which all of them are taken."""
        share = Metric(value=float(arrays[f"{features}/explained"]))
        return {**super().scores(arrays, features), "explained_variance": share}


def _composed(task: Task, context: Context) -> Pairs:
    return composed_pairs(context.dataset, task, context.metric_sizes.composition_images)
