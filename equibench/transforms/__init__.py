"""Parametric transformations: batched, one θ per sample, device-agnostic, differentiable."""

from __future__ import annotations

from equibench.transforms.transformation import (
    BETWEEN,
    BUILT_IN,
    TRANSFORMATIONS,
    Transformation,
    max_shift,
    register_transformation,
    transform,
    transform_sequence,
    visible_disc,
)

__all__ = [
    "BETWEEN",
    "BUILT_IN",
    "TRANSFORMATIONS",
    "Transformation",
    "max_shift",
    "register_transformation",
    "transform",
    "transform_sequence",
    "visible_disc",
]
