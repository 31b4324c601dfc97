"""Parametric transformations: batched, one θ per sample, device-agnostic, differentiable."""

from equibench.transforms.families import TRANSFORMATIONS, Transformation, max_shift, transform, visible_disc

__all__ = ["TRANSFORMATIONS", "Transformation", "max_shift", "transform", "visible_disc"]
