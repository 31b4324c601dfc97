"""What tells one network from another beside its name: weights, settings, and the code that is no library's."""

from __future__ import annotations

import hashlib
import inspect
import json

import timm
import torchvision
from torch import nn

from equibench.encoders.vit import weights_sha256

LIBRARIES = {"torch", "torchvision", "timm", "equibench"}  # their code is named by a version, or digested elsewhere


def module_identity(model: nn.Module) -> dict[str, object] | None:
    """Digests of a network's weights, settings and code as JSON values; None where its code cannot be found.

    A class typed into a prompt has no source: it may compute anything from the same weights.
    """
    code = _code_sha256(model)
    if code is None:
        return None
    return {
        "weights": weights_sha256(model),
        "structure": _structure_sha256(model),
        "code": code,
        "libraries": [f"timm {timm.__version__}", f"torchvision {torchvision.__version__}"],
    }


def _structure_sha256(model: nn.Module) -> str:
    """Digest of every part's class and plain settings: a stride or a scale is no weight, yet it changes features."""
    parts = [
        [name, f"{type(part).__module__}.{type(part).__qualname__}"]
        + [[key, value] for key, value in sorted(vars(part).items()) if key != "training" and _is_plain(value)]
        for name, part in model.named_modules()
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _code_sha256(model: nn.Module) -> str | None:
    """Digest of the source of the classes that are no library's; None where one has no source to be found."""
    kinds = {type(part) for part in model.modules()}
    own = sorted((k for k in kinds if k.__module__.split(".")[0] not in LIBRARIES), key=lambda k: k.__qualname__)
    try:
        sources = [inspect.getsource(kind) for kind in own]
    except (OSError, TypeError):
        return None
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()
