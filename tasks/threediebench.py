"""3DIEBench (P1 Table 1): what can be read of a 3-D object's class, of its rotation and of its hues between two views.

The views come with the data, as does θ, from the latents of each picture. Targets and coding are SIE's
(docs/protocol.md 4.9); `r2_pooled` is the R² that SIE and P1 report, of which a constant predictor has 0.229 on
rotations.
"""

from equibench.task import Task, register_task

_CLASS = "which object is it? logistic regression on one view"
_ROTATION = "relative rotation of two views of an object as a quaternion, angles in ±90°"
_COLOR = "differences of the hues of floor and light between two views; view 2 alone tells half of them"
_VIEWS = "is the view that W(q) f(x) predicts the nearest among those of the object? and PRE among all"

for _name, _title, _transformation, _evaluator, _note in [
    ("object_class", "Classification", "pose", "classification", _CLASS),
    ("object_rotation", "Rotation prediction", "pose", "regression", _ROTATION),
    ("object_color", "Color prediction", "hues", "regression", _COLOR),
    ("object_retrieval", "Retrieval of views", "pose", "object_retrieval", _VIEWS),
]:
    register_task(
        Task(name=_name, title=_title, version=1, transformation=_transformation, evaluator=_evaluator, note=_note,
             reference="Garrido, Najman, LeCun, ICML 2023")
    )  # fmt: skip
