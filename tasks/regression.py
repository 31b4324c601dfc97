"""Transformation regression (P1 Table 2): predict θ from the frozen representations of I and g(I), one g at a time.

Ranges and codings stand in `equibench.transforms`; the pairs, the probe's sizes and the splits are the profile's.
Whether a task is clean is measured: `equibench certify` trains a small CNN on view 2 alone, and the result is kept
in leakage.json beside this file.

What a representation does under each transformation, beyond whether θ can be read (docs/protocol.md 8.6 to 8.12), is
one task for each evaluator and transformation, named like "rotation.retrieval". The evaluators register them, with the
metrics that they report: see `equibench.evaluation` for one file each.
"""

from equibench.evaluation.evaluator import EVALUATORS
from equibench.task import Task, register_task

_SHAKE = (("translation", 1 / 2), ("rotation", 1 / 9))
"""±2 px at 32 px, then ±5°; why so much, and in this order: docs/protocol.md 4.6."""
_TRANSLATION = "±1/8 of the side at 32 px (4 px), ±10 px at 224 px; objects stand in the middle, so view 2 tells some"

for _name, _title, _note in [
    ("rotation", "Rotation", "degrees in ±45; real pictures have an upright, so view 2 tells"),
    ("color", "Color", "brightness, contrast, saturation ±0.4, hue ±0.1; view 2 alone tells some"),
    ("blur", "Blur radius", "sigma 0.1 to 2 px; a blurred picture looks blurred, so view 2 tells"),
    ("translation", "Translation", _TRANSLATION),
    ("crop", "Crop", "random resized crop, area 0.08 to 1; detail and blur in view 2 tell its size"),
    ("flip", "Flip", "mirrored or not, a fair coin, then always shifted a little and turned by ±5°; R² on 0 and 1"),
]:
    register_task(
        Task(name=_name, title=_title, version=2 if _name == "flip" else 1, transformation=_name, note=_note,
             claims_clean=_name == "flip", nuisance=_SHAKE if _name == "flip" else (), reference="arXiv 2412.03314")
    )  # fmt: skip

EVALUATORS.discover()  # their tasks come after these, which lend them their titles
