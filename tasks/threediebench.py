"""3DIEBench (P1 Table 1): what can be read of a 3-D object's class, of its rotation and of its hues between two views.

The views come with the data, as does θ, from the latents of each picture. Targets and coding are SIE's (PROTOCOL 1.2);
`r2_pooled` is the R² that SIE and P1 report, of which a constant predictor has 0.229 on rotations.
"""

from __future__ import annotations

from equibench.task import Task, register_task

OBJECT_CLASS = register_task(
    Task(
        "object_class",
        "Classification",
        1,
        "pose",
        False,
        "which object is it? logistic regression on one view",
        family="classification",
    )
)
OBJECT_ROTATION = register_task(
    Task(
        "object_rotation",
        "Rotation prediction",
        1,
        "pose",
        False,
        "relative rotation of two views of an object as a quaternion, angles in ±90°",
    )
)
OBJECT_COLOR = register_task(
    Task(
        "object_color",
        "Color prediction",
        1,
        "hues",
        False,
        "differences of the hues of floor and light between two views; view 2 alone tells half of them",
    )
)
OBJECT_RETRIEVAL = register_task(
    Task(
        "object_retrieval",
        "Retrieval of views",
        1,
        "pose",
        False,
        "is the view that W(q) f(x) predicts the nearest among those of the object? and PRE among all",
        family="object_retrieval",
    )
)
