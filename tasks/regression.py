"""Transformation regression (P1 Table 2): predict θ from the frozen representations of I and g(I), one g at a time.

Ranges and codings stand in `equibench.transforms`; the pairs, the probe's sizes and the splits are the profile's.
Whether a task is clean is measured: `equibench certify` trains a small CNN on view 2 alone, and the result is kept
in certificates.json beside this file.
"""

from __future__ import annotations

from equibench.task import Task, register_task

ROTATION = register_task(
    Task("rotation", "Rotation", 1, "rotation", False, "degrees in ±45; real pictures have an upright, so view 2 tells")
)
COLOR = register_task(
    Task(
        "color", "Color", 1, "color", False, "brightness, contrast, saturation ±0.4, hue ±0.1; view 2 alone tells some"
    )
)
BLUR = register_task(
    Task("blur", "Blur radius", 1, "blur", False, "sigma 0.1 to 2 px; a blurred picture looks blurred, so view 2 tells")
)
TRANSLATION = register_task(
    Task(
        "translation",
        "Translation",
        1,
        "translation",
        False,
        "±1/8 of the side at 32 px (4 px), ±10 px at 224 px; objects stand in the middle, so view 2 tells some",
    )
)
CROP = register_task(
    Task(
        "crop", "Crop", 1, "crop", False, "random resized crop, area 0.08 to 1; detail and blur in view 2 tell its size"
    )
)
FLIP = register_task(Task("flip", "Flip", 1, "flip", True, "mirrored or not, a fair coin; R² on 0 and 1"))
