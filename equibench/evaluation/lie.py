"""Lie derivatives of an encoder, by central differences (LEE, docs/protocol.md 8.12).

L f(x) = d/dt at 0 of ρ_out(-t) f(ρ_in(t) x). For a pooled vector ρ_out does nothing, and the derivative is one of
invariance; for a token map ρ_out moves the map as ρ_in moves the image, and the derivative is one of equivariance.
Hence the two go by different names. All are per squared unit of t, so t should be coded alike for all encoders.
"""

from collections.abc import Callable, Iterator
from math import sqrt

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from equibench.data.dataset import image_source
from equibench.errors import UserError
from equibench.evaluation.context import Context, Row
from equibench.evaluation.evaluator import Kept, Measurement, MetricInfo, RatioEvaluator, kept, register_evaluator
from equibench.evaluation.features import outputs_of
from equibench.metrics.bootstrap import AnyFloats, Floats, Ratio, as_float, squared_norms
from equibench.pairs.manifest import Pairs, image_pairs
from equibench.task import Task
from equibench.transforms.operations import warp
from equibench.transforms.transformation import TRANSFORMATIONS, Transformation, transform, visible_disc

_RADIUS = 0.7
_STEP = 0.01
"""Of the coded parameter: 0.45 degrees, 0.04 px at 32 px, 0.8 % of brightness."""

_Maps = Tensor | AnyFloats
_Undo = Callable[[Tensor], Tensor]


def pooled_derivative(plus: AnyFloats, minus: AnyFloats, step: float) -> Floats:
    """||L f(x)||² / D (N,) from f(ρ(step) x) and f(ρ(-step) x), both (N, D): the central difference, error O(step²)."""
    derivative = (as_float(plus) - as_float(minus)) / (2 * step)
    return squared_norms(derivative) / derivative.shape[1]


def pooled_spread(features: AnyFloats) -> Floats:
    """||f(x) - mean||² / D (N,) of features (N, D): what `lie_ratios` compares a pooled derivative with."""
    values = as_float(features)
    return squared_norms(values - values.mean(axis=0)) / values.shape[1]


def token_derivative(
    plus_map: _Maps, minus_map: _Maps, undo_plus: _Undo, undo_minus: _Undo, step: float, *, radius: float = _RADIUS
) -> Floats:
    """||L f(x)||² / D (N,), the mean over the tokens of a central disc, which what enters at the border leaves alone.

    Maps are the tokens (N, D, h, h) of ρ_in(step) x and of ρ_in(-step) x, which `undo_plus` and `undo_minus` resample
    by ρ_out(-step) and ρ_out(step); see `undo`. The disc's radius is a share of half the map's side; no disc is without
    its innermost tokens.
    """
    plus, minus = undo_plus(torch.as_tensor(plus_map).double()), undo_minus(torch.as_tensor(minus_map).double())
    return _disc_mean(((plus - minus) / (2 * step)).square(), radius)


def token_spread(maps: _Maps, *, radius: float = _RADIUS) -> Floats:
    """||f - mean||² / D (N,), the mean over the tokens (N, D, h, h) of the disc, with one mean for all places.

    One mean, since tokens that only say where they are vary from place to place: that counts as something that a
    translation could have moved.
    """
    tokens = torch.as_tensor(maps).double()
    inside = _disc(tokens, radius)
    mean = (tokens * inside).sum(dim=(0, 2, 3), keepdim=True) / (inside.sum() * len(tokens))
    return _disc_mean((tokens - mean).square(), radius)


def undo(matrix: Tensor, size: int) -> _Undo:
    """A callable that resamples token maps (N, D, h, h) by the inverse of a geometric transformation of the image,
    with the map's mirror image outside it.

    `matrix` (1 or N, 3, 3) is from `operations.rotation_matrix`, `translation_matrix` and the like, as the image was
    moved: from output to input, in image pixels. `size` is the image's side S; a shift by S pixels is one by h tokens.
    """

    def resample(maps: Tensor) -> Tensor:
        unit = torch.tensor([1, 1, maps.shape[-1] / size], dtype=maps.dtype, device=maps.device)
        inverse = torch.linalg.inv(matrix.to(maps))
        tokens = torch.cat([inverse[:, :2] * unit, inverse[:, 2:]], dim=1)
        return warp(maps, tokens.expand(len(maps), 3, 3), "reflect")

    return resample


def lie_ratios(squares: ArrayLike, spread: ArrayLike, kind: str = "pooled") -> dict[str, Ratio]:
    """LEE over images and generators; lower is better (for `pooled`: more invariant, which is not better as such).

    `lee_<kind>`           E ||L f||² / dim, as published; it grows with the square of the features' scale.
    `lee_<kind>_relative`  Σ ||L f||² / Σ ||f - mean||², which does not: encoders compare by this one.

    `squares` (G, N), one row per generator, are from `pooled_derivative` or `token_derivative`, `spread` (N,), of the
    untransformed images, from `pooled_spread` or `token_spread`; kinds are "pooled" and "tokens".
    """
    squares = np.atleast_2d(as_float(squares))
    top, generators = squares.sum(axis=0), np.full(squares.shape[1], float(len(squares)))
    return {f"lee_{kind}": Ratio(top, generators), f"lee_{kind}_relative": Ratio(top, generators * as_float(spread))}


def _disc(maps: Tensor, radius: float) -> Tensor:
    side = maps.shape[-1]
    return visible_disc(side, max(radius * side / 2, sqrt(0.5)), maps.device).to(maps)


def _disc_mean(values: Tensor, radius: float) -> Floats:
    """Mean over dimensions and over the disc's tokens: (N, D, h, h) -> (N,)."""
    inside = _disc(values, radius)
    mean = (values.mean(dim=1) * inside).sum(dim=(1, 2)) / inside.sum()
    return as_float(mean.cpu().numpy())


@register_evaluator
class LieEvaluator(RatioEvaluator):
    """Lie derivatives (LEE) at the identity: of the pooled features an error of invariance, of the token map, moved
    back as the image was moved, an error of equivariance.

    Central differences need nothing of an encoder but two forward passes. They are taken in float32, since the rounding
    of bfloat16 is larger than the differences.
    """

    name, title, main_metric = "lie", "Lie derivative at the identity (LEE)", "lee_pooled_relative"
    metrics = {
        "lee_pooled": MetricInfo("LEE pooled", "neither", "squared derivative of the pooled features, per dimension"),
        "lee_pooled_relative": MetricInfo(
            "relative", "neither", "the same over the features' variance: 0 is invariant"
        ),
        "lee_tokens": MetricInfo(
            "LEE tokens", "lower", "squared derivative of the token map, moved back, per dimension"
        ),
        "lee_tokens_relative": MetricInfo("relative (tokens)", "lower", "the same over the tokens' variance"),
    }
    # a derivative needs a neighbourhood of the identity within the range, which flip, blur and crop lack
    transformations = ("rotation", "color", "translation")
    note = "derivative along each parameter at the identity, of pooled features and of the token map"

    def pairs(self, task: Task, context: Context) -> tuple[Pairs, ...]:
        return (image_pairs(context.dataset, task, context.metric_sizes.lie_images),)

    def measure(self, row: Row, task: Task, context: Context) -> Measurement:
        """The derivative along each parameter, in units of the coded target (the whole range is about 2)."""
        pairs = image_pairs(context.dataset, task, context.metric_sizes.lie_images)
        images = torch.from_numpy(image_source(context.dataset, "test").images[pairs.image]).float() / 255
        still = _encoded(images, row, context)
        pooled: dict[str, list[Floats]] = {name: [] for name in row.feature_sets()}
        tokens: list[Floats] = []
        for (plus, undo_plus), (minus, undo_minus) in _steps(TRANSFORMATIONS[task.transformation], images, context):
            one, other = _encoded(plus, row, context), _encoded(minus, row, context)
            for name, values in pooled.items():
                values.append(pooled_derivative(one[name], other[name], _STEP))
            if "tokens" in still:
                tokens.append(token_derivative(one["tokens"], other["tokens"], undo_plus, undo_minus, _STEP))
        arrays: Kept = {}
        for name, squares in pooled.items():
            arrays |= kept(lie_ratios(np.stack(squares), pooled_spread(still[name])), name)
        if tokens:
            arrays |= kept(lie_ratios(np.stack(tokens), token_spread(still["tokens"]), "tokens"), "full")
        return Measurement(arrays)


def _steps(transformation: Transformation, images: Tensor, context: Context) -> Iterator[list[tuple[Tensor, _Undo]]]:
    """For each parameter, the images moved by a step and by its opposite, and what moves their token maps back."""
    identity = transformation.encode(np.array([transformation.identity]), context.size)
    for number in range(len(transformation.parameters)):
        moved: list[tuple[Tensor, _Undo]] = []
        for sign in (1, -1):
            coded = identity.copy()
            coded[0, number] += sign * _STEP
            theta = torch.from_numpy(transformation.decode(coded, context.size)).float()
            steps = {transformation.name: theta.expand(len(images), -1)}
            matrix = transformation.matrix(theta, context.size) if transformation.matrix else None
            back = undo(matrix, context.size) if matrix is not None else (lambda maps: maps)
            moved.append((transform(images, steps, context.spec.fill), back))
        yield moved


@torch.inference_mode()
def _encoded(images: Tensor, row: Row, context: Context) -> dict[str, np.ndarray]:
    """float32 features by feature set, and the token map as "tokens" where the encoder has one."""
    encoder = row.encoder
    encoder.eval().to(context.device)
    batch = row.batch or context.profile.encode_batch
    parts: dict[str, list[np.ndarray]] = {}
    for chunk in images.split(batch):
        outputs = outputs_of(encoder, chunk.to(context.device), row.layers)
        for name, (layer, columns) in row.feature_sets().items():
            parts.setdefault(name, []).append(outputs[layer][:, columns].float().cpu().numpy())
        try:
            tokens = encoder.token_map(chunk.to(context.device))  # type: ignore[operator]
        except (UserError, AttributeError):  # it has none: a callable, or a network that pools early
            continue
        parts.setdefault("tokens", []).append(tokens.float().cpu().numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}
