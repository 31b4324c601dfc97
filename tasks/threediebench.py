"""3DIEBench (P1 Table 1): what can be read of a 3-D object's class, of its rotation and of its hues between two views.

The views come with the data, as does θ, from the latents of each picture. Targets and coding are SIE's
(docs/protocol.md 4.9); `r2_pooled` is the R² that SIE and P1 report, of which a constant predictor has 0.229 on
rotations.
"""

from __future__ import annotations

from equibench.task import Task, register_task

_SIE = "Garrido, Najman, LeCun, ICML 2023"

register_task(
    Task(
        name="object_class",
        title="Classification",
        version=1,
        transformation="pose",
        note="which object is it? logistic regression on one view",
        evaluator="classification",
        reference=_SIE,
    )
)
register_task(
    Task(
        name="object_rotation",
        title="Rotation prediction",
        version=1,
        transformation="pose",
        note="relative rotation of two views of an object as a quaternion, angles in ±90°",
        reference=_SIE,
    )
)
register_task(
    Task(
        name="object_color",
        title="Color prediction",
        version=1,
        transformation="hues",
        note="differences of the hues of floor and light between two views; view 2 alone tells half of them",
        reference=_SIE,
    )
)
register_task(
    Task(
        name="object_retrieval",
        title="Retrieval of views",
        version=1,
        transformation="pose",
        note="is the view that W(q) f(x) predicts the nearest among those of the object? and PRE among all",
        evaluator="object_retrieval",
        reference=_SIE,
    )
)
