"""Views that methods make of single images: two augmented ones, small crops, and a path of transformations.

"all" is DINOv2's pipeline (facebookresearch/dinov2, data/augmentations.py, b8931f7) in this suite's operations: crop,
flip, color, grey, blur and solarisation. "rotation" is a rotation alone (P2, section 4.1: A is rot or all).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from equibench.errors import UserError
from equibench.pretrain.method import Pictures, ViewPair, standardise
from equibench.transforms.operations import Fill
from equibench.transforms.transformation import CROP_RATIO, TRANSFORMATIONS, transform

Pipeline = Literal["all", "rotation"]
GLOBAL_SCALE, LOCAL_SCALE = (0.32, 1.0), (0.05, 0.32)
"""Share of the image's area that a large and a small crop show."""
COLOR_JITTER = (0.4, 0.4, 0.2, 0.1)
"""Largest change of brightness, contrast, saturation and hue."""
BLUR_CHANCE = {"view 1": 1.0, "view 2": 0.1}
LOCAL_BLUR_CHANCE, COLOR_CHANCE, GREY_CHANCE, SOLARISE_CHANCE = 0.5, 0.8, 0.2, 0.2


def two_views(views: ViewPair, pipeline: Pipeline | None) -> ViewPair:
    """The batch with two augmented views of each image; as it is for the pipeline None.

    A UserError where the data bring two views of each object along, so that there is nothing to augment.
    """
    if pipeline is None:
        return views
    one, other = (views.normalise(augmented(pictures_of(views), pipeline, name)) for name in BLUR_CHANCE)
    return replace(views, v1=one, v2=other)


def pictures_of(views: ViewPair) -> Pictures:
    """What the views are made of; a UserError where the data bring their views along."""
    if views.pictures is None:
        problem = "the method makes its own views of single images, and these data bring two views of each object"
        raise UserError(problem, "pretrain it on images, for example with `equibench table p2_table4`")
    return views.pictures


def augmented(pictures: Pictures, pipeline: Pipeline, name: str) -> Tensor:
    """One augmented view of each image, (N, 3, S, S) in [0, 1]; `name` is "view 1" or "view 2"."""
    if pipeline == "rotation":
        return transform(pictures.images, {"rotation": pictures.theta("rotation", name)}, pictures.fill)
    view = _cropped(pictures, name, GLOBAL_SCALE, BLUR_CHANCE[name])
    if name == "view 2":
        solarised = _chosen(pictures, SOLARISE_CHANCE, name, "solarise")[:, None, None]
        view = torch.where(solarised & (view >= 0.5), 1 - view, view)
    return view


def local_crops(pictures: Pictures, count: int, size: int) -> tuple[Tensor, ...]:
    """So many small crops of each image, (N, 3, size, size) each, normalised; nothing of them is masked."""
    crops = []
    for number in range(count):
        crop = _cropped(pictures, f"local {number}", LOCAL_SCALE, LOCAL_BLUR_CHANCE)
        crops.append(standardise(F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True)))
    return tuple(crops)


def moved(images: Tensor, theta: Mapping[str, Tensor], share: float, fill: Fill) -> Tensor:
    """g at a share of the way from the identity to θ: g_{share θ}(images), all transformations together."""
    applied = {}
    for name, values in theta.items():
        identity = values.new_tensor(TRANSFORMATIONS[name].identity)
        applied[name] = identity + share * (values - identity)
    return transform(images, applied, fill)


def _cropped(pictures: Pictures, name: str, scale: tuple[float, float], blur_chance: float) -> Tensor:
    """Crop, flip, color, grey and blur, of which the last three happen by chance."""
    color = pictures.tensor(2 * pictures.uniforms(4, "jitter", name) - 1)
    color = color * color.new_tensor(COLOR_JITTER) * _chosen(pictures, COLOR_CHANCE, name, "color")
    color[:, 2:3].masked_fill_(_chosen(pictures, GREY_CHANCE, name, "grey"), -1.0)  # no saturation is left
    theta = {
        "crop": _crop(pictures, name, scale),
        "flip": pictures.theta("flip", name),
        "color": color,
        "blur": pictures.theta("blur", name) * _chosen(pictures, blur_chance, name, "blurred"),
    }
    return transform(pictures.images, theta, pictures.fill)


def _crop(pictures: Pictures, name: str, scale: tuple[float, float]) -> Tensor:
    """θ of crops with these areas, sides cut to the image's: (N, 4)."""
    area, ratio, x, y = pictures.tensor(pictures.uniforms(4, "area", name)).unbind(dim=1)
    low, high = torch.tensor(CROP_RATIO).log().tolist()
    area, ratio = scale[0] + (scale[1] - scale[0]) * area, (low + (high - low) * ratio).exp()
    width, height = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
    return torch.stack([width / 2 + (1 - width) * x, height / 2 + (1 - height) * y, width, height], dim=1)


def _chosen(pictures: Pictures, chance: float, *key: object) -> Tensor:
    """Which images are hit by chance: (N, 1) bool."""
    return pictures.tensor(pictures.uniforms(1, *key)) < chance
