"""Parametric transformations: batched, one θ for each sample, on any device, differentiable."""
