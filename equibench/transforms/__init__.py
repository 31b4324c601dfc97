"""Parametric transformations: batched, one θ per sample, device-agnostic, differentiable."""

from equibench.transforms.families import (
    BUILT_IN,
    TRANSFORMATIONS,
    Transformation,
    max_shift,
    register_transformation,
    transform,
    transform_sequence,
    visible_disc,
)
from equibench.transforms.observed import BETWEEN

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
