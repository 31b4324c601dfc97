"""Lie derivatives (LEE) at the identity: of the pooled features, an error of invariance, and of the token map, moved
back as the image was moved, an error of equivariance.

Central differences need nothing of an encoder but two forward passes. They are taken in float32, since the rounding
of bfloat16 is larger than the differences.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from equibench.data.pair_sets import image_pairs
from equibench.data.pairs import image_source
from equibench.errors import UserError
from equibench.families.base import Family, Kept, Measurement, kept, ratio_headline, ratio_scores
from equibench.features import outputs_of
from equibench.metrics.lie import (
    lie_ratios,
    pooled_derivative,
    pooled_spread,
    token_derivative,
    token_spread,
    undo,
)
from equibench.metrics.ratio import Array
from equibench.setting import Setting, Subject
from equibench.task import Task
from equibench.transforms import TRANSFORMATIONS, Transformation, transform

STEP = 0.01
"""Of the coded parameter: 0.45 degrees, 0.04 px at 32 px, 0.8 % of brightness."""


def measure(subject: Subject, task: Task, setting: Setting) -> Measurement:
    """The derivative along each parameter, in units of the coded target (the whole range is about 2)."""
    transformation = TRANSFORMATIONS[task.transformation]
    encoder = subject.encoder
    assert encoder is not None
    pairs = image_pairs(setting.dataset, task, setting.metric_sizes.lie_images)
    images = torch.from_numpy(image_source(setting.dataset, "test").images[pairs.image]).float() / 255
    still = _encoded(encoder, images, subject, setting)
    pooled: dict[str, list[Array]] = {name: [] for name in subject.feature_sets()}
    tokens: list[Array] = []
    for plus, minus, matrices in _steps(transformation, images, setting):
        one, other = _encoded(encoder, plus, subject, setting), _encoded(encoder, minus, subject, setting)
        for name, values in pooled.items():
            values.append(pooled_derivative(one[name], other[name], STEP))
        if "tokens" in still:
            back = [undo(matrix, setting.size) if matrix is not None else _as_it_is for matrix in matrices]
            tokens.append(token_derivative(one["tokens"], other["tokens"], back[0], back[1], STEP))
    arrays: Kept = {}
    for name, squares in pooled.items():
        arrays |= kept(lie_ratios(np.stack(squares), pooled_spread(still[name])), name)
    if tokens:
        arrays |= kept(lie_ratios(np.stack(tokens), token_spread(still["tokens"]), "tokens"), "full")
    return Measurement(arrays)


def _steps(
    transformation: Transformation, images: Tensor, setting: Setting
) -> Iterator[tuple[Tensor, Tensor, list[Tensor | None]]]:
    """For each parameter, the images moved by a step and by its opposite, and the maps by which they were moved."""
    identity = transformation.encode(np.array([transformation.identity]), setting.size)
    for number in range(len(transformation.parameters)):
        moved, matrices = [], []
        for sign in (1, -1):
            coded = identity.copy()
            coded[0, number] += sign * STEP
            theta = torch.from_numpy(transformation.decode(coded, setting.size)).float()
            steps = {transformation.name: theta.expand(len(images), -1)}
            moved.append(transform(images, steps, setting.spec.fill))
            matrices.append(transformation.matrix(theta, setting.size) if transformation.matrix else None)
        yield moved[0], moved[1], matrices


@torch.inference_mode()
def _encoded(encoder: nn.Module, images: Tensor, subject: Subject, setting: Setting) -> dict[str, np.ndarray]:
    """float32 features by feature set, and the token map as "tokens" where the encoder has one."""
    encoder.eval().to(setting.device)
    batch = subject.batch or setting.profile.encode_batch
    parts: dict[str, list[np.ndarray]] = {}
    for chunk in images.split(batch):
        outputs = outputs_of(encoder, chunk.to(setting.device), subject.layers)
        for name, (layer, columns) in subject.feature_sets().items():
            parts.setdefault(name, []).append(outputs[layer][:, columns].float().cpu().numpy())
        try:
            tokens = encoder.token_map(chunk.to(setting.device))  # type: ignore[operator]
        except (UserError, AttributeError):  # it has none: a callable, or a network that pools early
            continue
        parts.setdefault("tokens", []).append(tokens.float().cpu().numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def _as_it_is(maps: Tensor) -> Tensor:
    return maps


LIE = Family(
    name="lie",
    title="Lie derivative at the identity (LEE)",
    headline="lee_pooled_relative",
    code=("families/lie.py", "metrics/lie.py"),
    pairs=lambda task, setting: (image_pairs(setting.dataset, task, setting.metric_sizes.lie_images),),
    measure=measure,
    scores=ratio_scores,
    resampled=ratio_headline("lee_pooled_relative"),
)
