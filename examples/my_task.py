"""A new column in one file: how far was the picture sheared? A transformation of one's own, and its regression task.

Measure what it gives away:  equibench certify examples/my_task.py
"""

import numpy as np
import torch

from equibench import Task, Transformation, register_task, register_transformation

MOST = 0.3


def shear_matrix(theta, size):
    """(N, 1) pixels to the right per pixel down -> (N, 3, 3), from a point of the output to the one that it shows."""
    matrix = torch.eye(3).to(theta).repeat(len(theta), 1, 1)
    matrix[:, 0, 1] = -theta[:, 0]
    return matrix


register_transformation(
    Transformation(
        name="shear",
        parameters=("pixels to the right per pixel down",),
        group="R",
        uniforms=1,
        draw=lambda u, size: MOST * (2 * u - 1),
        identity=(0.0,),
        code=lambda size: (np.zeros(1), np.full(1, MOST)),
        publish=lambda theta, size: theta,
        matrix=shear_matrix,
        inverse=lambda theta: -theta,
    )
)

register_task(
    Task(
        name="shear",
        title="Shear",
        version=1,
        transformation="shear",
        claims_clean=False,
        # a point of the disc's rim comes from as far out as r * sqrt(1 + 0.3²) = 12.0 px at r = 11.5 px
        note="±0.3 px to the right per px down; at 32 px it reaches 12.0 of 15.5 px: no filled pixel shows in the disc",
    )
)
