"""What a representation does under each transformation, beyond whether θ can be read: PROTOCOL 3.1.

One task for each family and transformation, named like "rotation.retrieval". `equibench.metrics.catalogue` says what
the metrics are. Retrieval needs more than two transforms of an image, so a flip has none; a Lie derivative needs a
neighbourhood of the identity within the range, which flip, blur (sigma ≥ 0) and crop (inside the image) lack.
"""

from __future__ import annotations

from equibench.task import Task, register_task

TITLES = {
    "rotation": "Rotation",
    "color": "Color",
    "blur": "Blur radius",
    "translation": "Translation",
    "crop": "Crop",
    "flip": "Flip",
}
NOTES = {
    "action": "R² of f(gx) from f(x) and θ by a ridge-fitted W(θ), with composition, inverse and identity errors",
    "retrieval": "rank of the predicted transform among the transforms of the same image: MRR, H@1, H@5",
    "invariance": "how far g moves features against the distance of two images, and whether predictions stay",
    "wahba": "residual of the best rotation of features for fixed g (W_f), and whether distances stay (γ_f)",
    "lie": "derivative along each parameter at the identity, of pooled features and of the token map",
}
WITHOUT = {"retrieval": {"flip"}, "lie": {"flip", "blur", "crop"}}
VERSION = 1

for family, note in NOTES.items():
    for transformation, title in TITLES.items():
        if transformation not in WITHOUT.get(family, set()):
            register_task(
                Task(f"{transformation}.{family}", title, VERSION, transformation, False, note, family=family)
            )
