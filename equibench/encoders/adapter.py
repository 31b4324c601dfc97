"""Any network, or function, as an encoder: its preprocessing, the views' mask, one pooled vector an image, a digest."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equibench.encoders.layers import final_features, first_bad_layer, first_tensor, layer_names, pool, record_layers
from equibench.encoders.vit import TOKEN_SETS, ViTEncoder, quarters, weights_sha256
from equibench.errors import UserError, closest
from equibench.transforms.transformation import MEAN, STD, ViewSpec, visible_disc

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
POOLINGS = ("default", "cls", "mean")
NO_MASK = ViewSpec("paper_like", "black", None)

_LIBRARIES = {"torch", "torchvision", "timm", "equibench"}  # their code is named by a version, or digested elsewhere


@dataclass(frozen=True)
class Preprocessing:
    """What an encoder wants done to images in [0, 1]; a UserError where a value makes no sense."""

    size: int | None = None  # side in pixels to which images are resized; None leaves them at the data's own
    mean: tuple[float, float, float] = MEAN  # per channel, in units of [0, 1]
    std: tuple[float, float, float] = STD
    interpolation: str = "bilinear"  # or "bicubic" or "nearest"; the first two are antialiased

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            problem = f"unknown interpolation {self.interpolation!r}{closest(self.interpolation, INTERPOLATIONS)}"
            raise UserError(problem, f"choose from {', '.join(INTERPOLATIONS)}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise UserError(f"mean {self.mean} and std {self.std} are not those of RGB images", "give 3 numbers each")
        if not all(0 <= m <= 1 for m in self.mean) or max(self.std) > 1:
            scaled = [
                ",".join(f"{v / 255 if max(all_) > 1 else v:.4g}" for v in all_) for all_ in (self.mean, self.std)
            ]
            problem = f"mean {self.mean} and std {self.std} are not in units of [0, 1], which images have here"
            raise UserError(problem, f"if they are of 0 to 255, give --mean {scaled[0]} --std {scaled[1]}")
        if self.size is not None and self.size < 1:
            raise UserError(f"an image size of {self.size} px is not possible", "give a positive number of pixels")


class ImageEncoder(nn.Module):
    """A frozen network in eval mode that maps images in [0, 1] to representations.

    Args:
        model: maps normalised images (N, 3, s, s) to features. A module is put in eval mode and its parameters stop
            requiring gradients: pass a copy of one that is still being trained.
        architecture: its name in records, such as "timm:resnet50".
        preprocessing: size and normalisation.
        views: the views' mask (`radius` in pixels at the data's own resolution; None: no mask).
        pooling: "default": what precedes the classifier (timm's `forward_head(pre_logits=True)`, the input of the
            module named by `classifier`), or else the output, pooled; "cls": the class token; "mean": the mean of the
            patch tokens or of the last map; "layer:NAME" or NAME: the pooled output of that module.
        classifier: prefixes of the classifier's names, such as "fc.".

    Raises:
        UserError: the pooling names no layer of the model.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module | Callable[[Tensor], Tensor], *, architecture: str, preprocessing: Preprocessing,
        views: ViewSpec = NO_MASK, pooling: str = "default", classifier: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = model if isinstance(model, nn.Module) else _Function(model)
        self.architecture, self.preprocessing, self.views = architecture, preprocessing, views
        self.classifier = classifier
        one = isinstance(model, ViTEncoder) or _is_torchvisions(model, "VisionTransformer")
        self.prefix_tokens = 1 if one else int(getattr(self.model, "num_prefix_tokens", 0))
        self.channels_last = _is_torchvisions(model, "SwinTransformer")
        self.channels_last |= str(getattr(self.model, "output_fmt", "")).endswith("NHWC")
        self.pooling = self._known(pooling)
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(3, 1, 1), persistent=False)
        if not self.channels_last and any(isinstance(m, nn.BatchNorm2d) for m in self.model.modules()):
            self.model.to(memory_format=torch.channels_last)  # a convolutional network is up to twice as fast so
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> ImageEncoder:
        """Stays in eval mode whatever is asked: BatchNorm statistics must not drift while features are taken."""
        super().train(False)
        return self

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the blocks in order of depth; none for a bare function."""
        return () if isinstance(self.model, _Function) else layer_names(self.model)

    @cached_property
    def identity(self) -> dict[str, object] | None:
        """What tells this encoder from all others, as JSON values; None if that cannot be known, so nothing is cached.

        The weights' digest is taken once: the weights of an encoder do not change. A bare function has none, and a
        class of the user's whose source cannot be found (typed into a notebook) may compute anything.
        """
        code = None if isinstance(self.model, _Function) else _code_sha256(self.model)
        if code is None:
            return None
        import timm
        import torchvision

        return {
            "weights": weights_sha256(self.model),
            "structure": _structure_sha256(self.model),
            "code": code,
            "libraries": [f"timm {timm.__version__}", f"torchvision {torchvision.__version__}"],
            "architecture": self.architecture,
            "preprocessing": json.loads(json.dumps(asdict(self.preprocessing))),
            "pooling": self.pooling,
            "prefix_tokens": self.prefix_tokens,
            "mask_radius": self.views.radius,
        }

    def prepare(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) in [0, 1] -> normalised (N, 3, s, s), 0 outside the mask.

        The mask is laid on before the resize: interpolation would otherwise carry hidden pixels into visible ones.
        """
        x = (images - self.mean) / self.std
        if self.views.radius is not None:
            x = x * visible_disc(images.shape[-1], self.views.radius, images.device)
        size = self.preprocessing.size
        if size is None or tuple(images.shape[-2:]) == (size, size):
            return x
        from torchvision.transforms.v2 import InterpolationMode, functional

        mode = InterpolationMode(self.preprocessing.interpolation)
        return functional.resize(x, [size, size], interpolation=mode, antialias=mode != InterpolationMode.NEAREST)

    def forward(self, images: Tensor) -> Tensor:
        return self.represent(images)

    def represent(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) in [0, 1] -> representations (N, D) float32.

        Raises:
            UserError: the model cannot take them, or its output is not finite (the message names the layer).
        """
        return self.outputs(images)["default"]

    @cached_property
    def token_sets(self) -> tuple[str, ...]:
        """Which of "cls" and "grid" its tokens or map give; found out with one blank image of its size."""
        try:
            with torch.no_grad():
                _, final = self._with_final(self.prepare(torch.zeros(1, 3, *[self.preprocessing.size or 32] * 2)))
                self._grid(final)
        except (UserError, RuntimeError):
            return ()
        return TOKEN_SETS if final.ndim == 3 and self.prefix_tokens else ("grid",)

    @torch.no_grad()
    def outputs(self, images: Tensor, layers: Sequence[str] = ()) -> dict[str, Tensor]:
        """Pooled outputs (N, D) float32 by layer name, and the representation as "default", from one forward pass.

        "cls" and "grid" are the class token and the means of the map's quarters. A UserError is raised as by
        `represent`, and for a layer that does not exist or cannot be pooled.
        """
        x, sets, found = self.prepare(images), [name for name in layers if name in TOKEN_SETS], {}

        def run() -> None:
            found["default"], final = self._with_final(x) if sets else (self._pooled(x), x)
            if "cls" in sets:
                found["cls"] = final[:, 0].float()
            if "grid" in sets:
                found["grid"] = quarters(self._grid(final))

        with self._explained():
            inner = record_layers(self.model, [name for name in layers if name not in sets], run, keep=self._pool)
        for name, values in (found | inner).items():
            self._check_finite("its representation" if name == "default" else f"the output of {name}", values, x)
        return {"default": found["default"], **{name: (found | inner)[name] for name in layers}}

    @torch.no_grad()
    def token_map(self, images: Tensor) -> Tensor:
        """The final map, or patch tokens folded to their grid, (N, D, h, w) float32; a UserError if it has neither."""
        x = self.prepare(images)
        with self._explained():
            final = self._grid(self._final(x))
        self._check_finite("the final map", final, x)
        return final

    def _grid(self, final: Tensor) -> Tensor:
        """Final tokens or map -> (N, D, h, w) float32."""
        final = final.float()
        if final.ndim == 4:
            return final.permute(0, 3, 1, 2) if self.channels_last else final
        patches = final[:, self.prefix_tokens :].transpose(1, 2)
        if isinstance(self.model, ViTEncoder):  # it leaves hidden patches out: they are 0 in the map
            whole = patches.new_zeros(*patches.shape[:2], self.model.mask.numel() // self.model.patch**2)
            whole[..., self.model.visible] = patches
            patches = whole
        side = math.isqrt(patches.shape[-1])
        if side**2 != patches.shape[-1]:
            problem = f"the {patches.shape[-1]} patch tokens of {self.architecture} are not those of a square grid"
            raise UserError(problem, "choose an encoder with a token map")
        return patches.unflatten(-1, (side, side))

    def _known(self, pooling: str) -> str:
        if pooling in POOLINGS:
            return pooling
        name, known = pooling.removeprefix("layer:"), [n for n, _ in self.model.named_modules() if n]
        if name not in known:
            near = closest(name, [*POOLINGS, *known])
            raise UserError(f"unknown pooling {pooling!r}{near}", "choose default, cls, mean or the name of a layer")
        return f"layer:{name}"

    def _pool(self, output: Tensor) -> Tensor:
        return pool(output, self.prefix_tokens, self.channels_last)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pooling == "default":
            return self._pool(self._before_classifier(x))
        if self.pooling == "mean":
            return self._pool(self._final(x))
        if self.pooling == "cls":
            tokens = self._final(x)
            if tokens.ndim != 3 or self.prefix_tokens < 1:
                raise UserError(f"{self.architecture} has no class token", "choose --pooling default or mean")
            return tokens[:, 0].float()
        name = self.pooling.removeprefix("layer:")
        return record_layers(self.model, [name], lambda: self.model(x), keep=self._pool)[name]

    def _with_final(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The representation and the final tokens or map, from one forward pass."""
        model: Any = self.model
        if _is_timm(model) and self.pooling == "default":
            final = model.forward_features(x)
            return self._pool(model.forward_head(final, pre_logits=True)), self._checked(first_tensor(final))
        taken: list[Tensor] = []
        final = final_features(model, lambda: taken.append(self._pooled(x)), self._beside_classifier())
        return taken[0], self._checked(final)

    def _before_classifier(self, x: Tensor) -> Tensor:
        model: Any = self.model
        if _is_timm(model):
            output = model.forward_head(model.forward_features(x), pre_logits=True)
        elif self.classifier:
            taken: list[Tensor] = []
            part = model.get_submodule(self.classifier[0].rstrip("."))
            with part.register_forward_pre_hook(lambda _module, inputs: taken.append(inputs[0])):
                model(x)
            output = taken[-1]
        else:
            output = model(x)
        tensor = first_tensor(output)
        if tensor is None:
            raise UserError(f"the encoder returned a {type(output).__name__}, not a tensor", "return features (N, D)")
        return tensor

    def _final(self, x: Tensor) -> Tensor:
        """Final tokens (N, L, D) or map, before any pooling."""
        model: Any = self.model
        if _is_timm(model):
            final = first_tensor(model.forward_features(x))
        else:
            final = final_features(model, lambda: model(x), self._beside_classifier())
        return self._checked(final)

    def _beside_classifier(self) -> tuple[str, ...]:
        """Prefixes of what is no feature map: what stands beside the classifier (its own norm or pooling)."""
        skip = tuple(f"{prefix.split('.')[0]}." for prefix in self.classifier)
        return skip + (("permute.",) if self.channels_last else ())

    def _checked(self, final: Tensor | None) -> Tensor:
        if final is None or final.ndim not in (3, 4):
            raise UserError(f"{self.architecture} has neither a feature map nor tokens", "choose --pooling default")
        return final

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say which encoder failed, and on what, when its forward pass raises."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
            size = self.preprocessing.size or "the data's own size"
            problem = f"{self.architecture} failed on images of {size}: {type(error).__name__}: {error}"
            fix = "give the size that it was built for (--size, size=), or look at its forward pass"
            raise UserError(problem, fix) from error

    def _check_finite(self, what: str, features: Tensor, x: Tensor) -> None:
        if torch.isfinite(features).all():
            return
        layer = first_bad_layer(self.model, lambda: self.model(x))
        where = f"; the first layer to give one is {layer!r}" if layer else ""
        fix = "look at its weights and at the precision that it runs in; such features are never scored"
        raise UserError(f"{what} holds NaN or infinite values in {self.architecture}{where}", fix)


def check_varies(features: Mapping[str, Tensor | NDArray[Any]]) -> None:
    """Raise a UserError if in some layer no dimension of its features (N, D) varies over the images beyond rounding."""
    for name, values in features.items():
        array = values.detach().cpu().float().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float32)
        if len(array) < 2:
            continue
        spread = np.ptp(array, axis=0)
        if not (spread > 1e-6 * np.maximum(np.abs(array).max(axis=0), 1e-12)).any():
            problem = (
                f"the features of {name!r} are the same for every image ({array.shape[1]} dimensions, none varies)"
            )
            fix = "the encoder has collapsed, or its input is blank: look at its preprocessing, or leave this layer out"
            raise UserError(problem, fix)


class _Function(nn.Module):
    """A bare function as a module, so that there is one kind of model."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def _is_timm(model: nn.Module) -> bool:
    return hasattr(model, "forward_features") and hasattr(model, "forward_head")


def _is_torchvisions(model: object, name: str) -> bool:
    """Whether it is of torchvision's class of that name, found out without importing torchvision."""
    return any(k.__name__ == name and k.__module__.startswith("torchvision.models.") for k in type(model).__mro__)


def _structure_sha256(model: nn.Module) -> str:
    """Digest of every part's class and plain settings: a stride or a scale is no weight, yet it changes features."""
    parts = [
        [name, f"{type(part).__module__}.{type(part).__qualname__}"]
        + [[key, value] for key, value in sorted(vars(part).items()) if key != "training" and _is_plain(value)]
        for name, part in model.named_modules()
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _is_plain(value: object) -> bool:
    return (
        all(map(_is_plain, value)) if isinstance(value, tuple | list) else isinstance(value, int | float | str | None)
    )


def _code_sha256(model: nn.Module) -> str | None:
    """Digest of the source of the classes that are no library's; None where one has no source to be found."""
    kinds = {type(part) for part in model.modules()}
    own = sorted((k for k in kinds if k.__module__.split(".")[0] not in _LIBRARIES), key=lambda k: k.__qualname__)
    try:
        sources = [inspect.getsource(kind) for kind in own]
    except (OSError, TypeError):
        return None
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()
