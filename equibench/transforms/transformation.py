"""The transformations g(x, θ): how θ is drawn, coded as a regression target and applied, and what all views share.

Ranges and codings (docs/protocol.md 4.3 to 4.8) are those of P2's Table 2 for rotation, color, blur and translation,
EquiMod's random resized crop, and a fair coin for the flip.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equibench.errors import UserError
from equibench.registry import watch
from equibench.transforms import operations
from equibench.transforms.operations import Fill

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, per channel, with which all views are normalised."""

RENDER_BATCH_PIXELS = 1000 * 32 * 32
"""Pixels of one image times images rendered at once: 1,000 images of 32 px, 20 of 224 px."""
MAX_ANGLE = 45.0
COLOR_RANGE = (0.4, 0.4, 0.4, 0.1)
BLUR_RANGE = (0.1, 2.0)
CROP_SCALE, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)

ANGLES, HUES = slice(0, 3), [3, 6]
"""Columns of 3DIEBench's latents (N, 7): the object's three angles; the hues of floor and light."""

SO3 = "SO(3)"
RENDERED = "rendered"

_CROP_TRIES = 10
_ANY_SIZE = 32  # of an image: coded targets do not depend on it
_COLOR = np.array(COLOR_RANGE)
_Array = NDArray[np.float64]


@dataclass(frozen=True)
class ViewSpec:
    """What every view has in common: what fills it beyond the image, and the disc outside which it is blank.

    By name: "headline" (mirrored fill, and a disc in which no transformation alone shows a filled pixel; the composed
    views of pretraining show some, 0.06 % of the disc), "paper_like" (black fill, no disc), or "rendered" for pictures
    that the data bring along, of which nothing is filled or hidden.
    """

    name: str
    fill: Fill
    radius: float | None  # of the disc in pixels; None: no disc


def view_spec(variant: str, size: int) -> ViewSpec:
    """Fill and mask (docs/protocol.md 4.2); the radius leaves room for the largest shift and half a pixel."""
    if variant in ("paper_like", RENDERED):
        return ViewSpec(variant, "black", None)
    return ViewSpec("headline", "reflect", size / 2 - max_shift(size) - 0.5)


def visible_disc(size: int, radius: float, device: torch.device | None = None) -> Tensor:
    """(S, S) float mask, 1 where a pixel's centre lies within radius px of the image's centre."""
    axis = torch.arange(size, device=device) + 0.5 - size / 2
    return (axis[:, None] ** 2 + axis[None, :] ** 2 <= radius**2).float()


def max_shift(size: int) -> float:
    """Largest translation in pixels: the field's 4 px at 32 px, P2's 10 px at 224 px (docs/protocol.md 4.4)."""
    return size / 8 if size <= 64 else 10 * size / 224


def _scaled_by(scale: float | _Array) -> Callable[[int], tuple[_Array, _Array]]:
    return lambda size: (np.zeros(1), np.atleast_1d(np.float64(scale)))


@dataclass(frozen=True)
class Transformation:
    """One parametric transformation g(x, θ), for θ (N, P) and images (N, 3, S, S) in [0, 1].

    One with neither matrix nor pixels is observed: data bring both views along, and `draw` tells how θ is distributed.
    """

    name: str  # its id; also the id of its regression task
    parameters: tuple[str, ...]  # a name for each column of θ, with the unit
    group: str  # the group (or set) that θ lives in
    uniforms: int  # how many uniform numbers one draw of θ uses
    draw: Callable[[_Array, int], _Array]  # (N, uniforms) numbers in [0, 1) and the image size -> θ
    identity: tuple[float, ...]  # the θ that leaves the image as it is
    # image size -> (offset, scale), the regression target being (θ - offset) / scale; θ itself unless given
    code: Callable[[int], tuple[_Array, _Array]] = _scaled_by(1)
    # θ and the image size -> the coding in which the field takes its pooled R² (docs/protocol.md 4.10); else θ itself
    publish: Callable[[_Array, int], _Array] = lambda theta, size: theta
    # if geometric: θ and the image size -> the affine map (N, 3, 3) from output to input in centred pixels
    matrix: Callable[[Tensor, int], Tensor] | None = None
    pixels: Callable[[Tensor, Tensor], Tensor] | None = None  # if not: images and θ -> images
    inverse: Callable[[_Array], _Array] | None = None  # θ -> that of the inverse; None where there is none
    periods: tuple[float, ...] = ()  # by parameter, after what change g is the same again; 0: never; (): never for all
    discrete: bool = False  # whether θ has no values between the identity and a drawn one

    @property
    def observed(self) -> bool:
        """Whether it cannot be applied, but stands between pictures that the data bring along."""
        return self.matrix is None and self.pixels is None

    def encode(self, theta: _Array, size: int) -> _Array:
        """θ (N, P) -> regression targets (N, P)."""
        offset, scale = self.code(size)
        return (theta - offset) / scale

    def decode(self, target: _Array, size: int) -> _Array:
        """Regression targets (N, P) -> θ (N, P)."""
        offset, scale = self.code(size)
        return target * scale + offset


def pose_between(first: _Array, second: _Array) -> _Array:
    """Latents (N, 7) of both views -> R1⁻¹ R2 as quaternions x, y, z, w (N, 4); extrinsic xyz angles."""
    from scipy.spatial.transform import Rotation

    one, other = (Rotation.from_euler("xyz", latents[:, ANGLES]) for latents in (first, second))
    return np.asarray((one.inv() * other).as_quat())


def hues_between(first: _Array, second: _Array) -> _Array:
    """Latents (N, 7) of both views -> differences of the two hues in turns (N, 2), in (-1, 1), not wrapped."""
    return np.asarray(second[:, HUES] - first[:, HUES])


BETWEEN = {"pose": pose_between, "hues": hues_between}
"""θ of each observed transformation from the latents of two views."""


def _draw_crop(u: _Array, size: int) -> _Array:
    """Random resized crop as torchvision draws it: area and log-ratio until they fit, else the whole image."""
    area = CROP_SCALE[0] + (CROP_SCALE[1] - CROP_SCALE[0]) * u[:, 0:_CROP_TRIES]
    low, high = np.log(CROP_RATIO)
    ratio = np.exp(low + (high - low) * u[:, _CROP_TRIES : 2 * _CROP_TRIES])
    width, height = np.sqrt(area * ratio), np.sqrt(area / ratio)
    fits = (width <= 1) & (height <= 1)
    rows, first = np.arange(len(u)), fits.argmax(axis=1)
    width, height = (np.where(fits.any(axis=1), side[rows, first], 1.0) for side in (width, height))
    x, y = width / 2 + (1 - width) * u[:, -2], height / 2 + (1 - height) * u[:, -1]
    return np.stack([x, y, width, height], axis=1)


def _corner_and_size(theta: _Array, size: int) -> _Array:
    """(centre_x, centre_y, w, h) -> (top, left, h, w) over the side, the field's published crop parameters."""
    x, y, width, height = theta.T
    return np.stack([y - height / 2, x - width / 2, height, width], axis=1)


def _inverse_color(theta: _Array) -> _Array:
    """Exact but for clamping at black and white, and for the order of hue and saturation."""
    return np.concatenate([1 / (1 + theta[:, :3]) - 1, -theta[:, 3:]], axis=1)


def _draw_pose(u: _Array, size: int) -> _Array:
    """Between two objects with angles uniform in ±π/2."""
    first, second = np.zeros((2, len(u), 7))
    first[:, ANGLES], second[:, ANGLES] = (np.pi / 2 * (2 * half - 1) for half in (u[:, :3], u[:, 3:]))
    return pose_between(first, second)


TRANSFORMATIONS: dict[str, Transformation] = {
    t.name: t
    for t in [
        Transformation(
            name="crop", group="axis-aligned affine maps",
            parameters=("centre x / side", "centre y / side", "width / side", "height / side"),
            uniforms=2 * _CROP_TRIES + 2, draw=_draw_crop, identity=(0.5, 0.5, 1.0, 1.0),
            publish=_corner_and_size, matrix=operations.crop_matrix,
        ),
        Transformation(
            name="flip", group="Z2", parameters=("mirrored",),
            uniforms=1, draw=lambda u, size: (u >= 0.5).astype(np.float64), identity=(0.0,), discrete=True,
            matrix=operations.flip_matrix, inverse=lambda theta: theta,
        ),
        Transformation(
            name="rotation", group="SO(2)", parameters=("degrees, counter-clockwise",), periods=(360.0,),
            uniforms=1, draw=lambda u, size: MAX_ANGLE * (2 * u - 1), identity=(0.0,),
            code=_scaled_by(MAX_ANGLE), matrix=operations.rotation_matrix, inverse=lambda theta: -theta,
        ),
        Transformation(
            name="translation", group="R2", parameters=("pixels to the right", "pixels down"),
            uniforms=2, draw=lambda u, size: max_shift(size) * (2 * u - 1), identity=(0.0, 0.0),
            code=lambda size: (np.zeros(1), np.full(1, max_shift(size))),
            matrix=operations.translation_matrix, inverse=lambda theta: -theta,
        ),
        Transformation(
            name="color", group="scalings, and a circle for the hue", periods=(0.0, 0.0, 0.0, 1.0),
            parameters=("brightness factor - 1", "contrast factor - 1", "saturation factor - 1", "hue in turns"),
            uniforms=4, draw=lambda u, size: _COLOR * (2 * u - 1), identity=(0.0, 0.0, 0.0, 0.0),
            code=_scaled_by(2 * _COLOR), publish=lambda theta, size: theta + np.array([1.0, 1.0, 1.0, 0.0]),
            pixels=operations.adjust_color, inverse=_inverse_color,
        ),
        Transformation(
            name="blur", group="semigroup of Gaussian blurs", parameters=("sigma in pixels",),
            uniforms=1, draw=lambda u, size: BLUR_RANGE[0] + (BLUR_RANGE[1] - BLUR_RANGE[0]) * u, identity=(0.0,),
            code=_scaled_by(BLUR_RANGE[1]), pixels=operations.gaussian_blur,
        ),
        Transformation(
            name="pose", group=SO3, parameters=("quaternion x", "quaternion y", "quaternion z", "quaternion w"),
            uniforms=6, draw=_draw_pose, identity=(0.0, 0.0, 0.0, 1.0),
            inverse=lambda theta: theta * np.array([-1.0, -1.0, -1.0, 1.0]),
        ),
        Transformation(
            name="hues", group="torus", parameters=("hue of the floor in turns", "hue of the light in turns"),
            uniforms=4, draw=lambda u, size: u[:, 2:] - u[:, :2], identity=(0.0, 0.0), periods=(1.0, 1.0),
            inverse=lambda theta: -theta,
        ),
    ]
}  # fmt: skip
"""In the one fixed order in which they are applied (docs/protocol.md 4.1); registered ones come last."""

BUILT_IN = tuple(name for name, one in TRANSFORMATIONS.items() if not one.observed)
watch("transformation", TRANSFORMATIONS)


def register_transformation(transformation: Transformation) -> Transformation:
    """Make a transformation of one's own known by its name, for a task to use.

    A UserError if the name is taken, or it has not exactly one of `matrix` and `pixels`.
    """
    name = transformation.name
    if name in TRANSFORMATIONS:
        raise UserError(f"the transformation {name!r} is registered twice", "choose another name")
    if (transformation.matrix is None) == (transformation.pixels is None):
        problem = f"the transformation {name!r} must have either a matrix or a pixel operation"
        raise UserError(problem, "give Transformation(matrix=...) for an affine map, else Transformation(pixels=...)")
    TRANSFORMATIONS[name] = transformation
    return transformation


def transform(images: Tensor, theta: Mapping[str, Tensor], fill: Fill = "reflect") -> Tensor:
    """g(x, θ) = blur(color(x ∘ A)) with A = A_crop A_flip A_rotation A_translation in one bilinear resampling.

    Images (N, 3, S, S) are float in [0, 1], parameters (N, P) go by transformation; one that is absent is not applied.
    A KeyError for a name that is no transformation, or one that is only observed.

    Example:
        >>> ramp = torch.tensor([0.0, 0.25, 0.5, 0.75]).expand(1, 3, 4, 4)
        >>> transform(ramp, {"translation": torch.tensor([[1.0, 0.0]])}, "black")[0, 0, 0]
        tensor([0.0000, 0.0000, 0.2500, 0.5000])
    """
    return transform_sequence(images, [theta], fill)


def transform_sequence(images: Tensor, steps: Sequence[Mapping[str, Tensor]], fill: Fill = "reflect") -> Tensor:
    """Several of `transform` after one another; geometric ones that follow each other share one resampling."""
    waiting: list[Tensor] = []

    def resampled(images: Tensor) -> Tensor:
        if not waiting:
            return images
        matrix = reduce(torch.matmul, waiting)
        waiting.clear()
        return operations.warp(images, matrix.to(images.dtype), fill)

    known = {name: one for name, one in TRANSFORMATIONS.items() if not one.observed}
    for theta in steps:
        if unknown := set(theta) - set(known):
            raise KeyError(f"transformations {sorted(unknown)} cannot be applied; known: {list(known)}")
        for name in (name for name in known if name in theta):
            one = known[name]
            if one.matrix:
                waiting.append(one.matrix(theta[name], images.shape[-1]))
            elif one.pixels:
                images = one.pixels(resampled(images), theta[name].to(images.dtype))
    return resampled(images)


@lru_cache
def standard_moments(name: str) -> tuple[_Array, _Array]:
    """Mean and standard deviation (P,) of a transformation's coded targets, which do not depend on the image size."""
    coded = _many_coded(name)
    return coded.mean(axis=0), coded.std(axis=0)


@lru_cache
def coded_width(name: str) -> _Array:
    """Width (P,) of the range of a transformation's coded targets, with the identity, in 100,000 draws."""
    transformation = TRANSFORMATIONS[name]
    identity = transformation.encode(np.array([transformation.identity]), _ANY_SIZE)
    return np.asarray(np.ptp(np.concatenate([_many_coded(name), identity]), axis=0))


def _many_coded(name: str) -> _Array:
    """Coded targets (N, P) of as many draws as their distribution needs."""
    transformation = TRANSFORMATIONS[name]
    u = np.random.default_rng(0).random((100_000, transformation.uniforms))
    return transformation.encode(transformation.draw(u, _ANY_SIZE), _ANY_SIZE)
