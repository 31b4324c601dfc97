"""Networks that timm and torchvision know by name: building them, and their preprocessing."""

import ast
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torchvision import models

from equibench.encoders.adapter import INTERPOLATIONS, ImageEncoder, Preprocessing
from equibench.encoders.coverage import load_strictly
from equibench.encoders.own import build_from_file, build_open_clip, build_transformers, is_python_file
from equibench.encoders.weightfile import Checkpoint
from equibench.errors import UserError, closest

_NOT_OPTIONS = ("pretrained", "checkpoint", "cache", "features", "num_classes", "scriptable", "exportable", "no_jit")


def build_network(arch: str, pretrained: bool, size: int | None, seed: int) -> nn.Module:
    """The named architecture with its classifier, its initial weights drawn from `seed`.

    A name of timm's may be followed by options of the network, as in "timm:vit_small_patch16_224,reg_tokens=4". Of
    "FILE.py:FUNCTION" the file is run, whatever `pretrained` and `size` are. A UserError is raised for an unknown name,
    a size that it cannot have, and weights that cannot be had.
    """
    if is_python_file(arch):  # code that is trusted may load its weights as it likes
        with seeded(seed):
            return build_from_file(arch)
    library, _, name = arch.partition(":")
    if library in ("timm", "torchvision"):
        _check_name(library, name)
    elif library == "hf-hub":
        name = arch  # timm takes the whole of hf-hub:ORG/NAME
    make = _MAKERS[library]
    asks = pretrained or library in ("hf-hub", "hf")  # whose configuration is on the hub
    with seeded(seed), _weights_only(), _quick_when_offline() if asks else nullcontext():
        try:
            return make(name, pretrained, size)
        except UserError:
            raise
        except Exception as error:
            raise _cannot_build(arch, pretrained, error) from error


def own_preprocessing(arch: str, model: object) -> Preprocessing:
    """What the model's own configuration says, else ImageNet's values, at 224 px for a network of torchvision."""
    if arch.startswith("torchvision:"):
        try:
            own = models.get_model_weights(arch.partition(":")[2]).DEFAULT.transforms()
        except (AttributeError, ValueError):
            return Preprocessing(224)
        return Preprocessing(own.crop_size[0], tuple(own.mean), tuple(own.std), own.interpolation.value)
    if not getattr(model, "pretrained_cfg", None):  # no network of a library's
        return Preprocessing()
    config = resolve_model_data_config(model)
    mode = config["interpolation"] if config["interpolation"] in INTERPOLATIONS else "bicubic"  # others: PIL's alone
    return Preprocessing(config["input_size"][-1], tuple(config["mean"]), tuple(config["std"]), mode)


def classifier_of(model: object) -> tuple[str, ...]:
    """Prefixes of the names of a timm or torchvision model's classifier; none for other modules."""
    names: Any = ()
    if config := getattr(model, "pretrained_cfg", None):
        names = config.get("classifier") or ()
    elif isinstance(model, nn.Module) and type(model).__module__.startswith("torchvision.models"):
        if type(model).__name__ == "SqueezeNet":
            names = "classifier.1"
        else:  # the last layer, if it is still a linear one
            name, last = [(n, m) for n, m in model.named_modules() if next(m.children(), None) is None][-1]
            names = name if isinstance(last, nn.Linear) else ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


@lru_cache
def known_names(library: str) -> tuple[str, ...]:
    """The image classifiers of "torchvision", or the models of "timm"."""
    return tuple(timm.list_models() if library == "timm" else models.list_models(module=models))


def is_known(arch: str) -> bool:
    """Whether timm has an architecture of that name ("timm:NAME", options may follow)."""
    return timm.is_model(split_options(arch.partition(":")[2])[0].partition(".")[0])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from `seed`, and leave the caller's random numbers as they were."""
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed: that would seed every GPU's generator too, which nothing here forks
        torch.random.default_generator.manual_seed(seed)
        yield


@torch.no_grad()
def settle_batch_norm(encoder: ImageEncoder, batches: Sequence[Tensor]) -> int:
    """Give an untrained network the BatchNorm statistics of some images; its weights stay.

    As initialised, BatchNorm in eval mode is the identity, and a deep network's features shrink or grow from layer to
    layer: those of an untrained MobileNetV2 are of the order of 1e-10, which is no fair control. The encoder is changed
    in place, before its `identity` is asked for, by batches of images (N, 3, S, S) in [0, 1].

    Returns how many BatchNorm layers there are.
    """
    parts = encoder.model.modules()
    norms = [m for m in parts if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for batch in batches if norms else ():
        if len(batch) > 1:  # one image has no variance
            encoder.represent(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return len(norms)


def split_options(name: str) -> tuple[str, dict[str, Any]]:
    """("vit_small_patch16_224", {"reg_tokens": 4}) of "vit_small_patch16_224,reg_tokens=4".

    A UserError is raised for what is no option of a network.
    """
    name, *given = re.split(r",(?=\w+=)", name)
    options: dict[str, Any] = {}
    for one in given:
        key, _, text = one.partition("=")
        if key.startswith(_NOT_OPTIONS):
            raise UserError(f"{key!r} is no option of a network", "such as --arch timm:NAME,reg_tokens=4")
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[key] = text
    return name, options


def _check_name(library: str, name: str) -> None:
    name = split_options(name)[0] if library == "timm" else name
    base, _, tag = name.partition(".") if library == "timm" else (name, "", "")
    if not (timm.is_model(base) if library == "timm" else name in known_names(library)):
        code = "import timm; print(timm.list_models())"
        code = code if library == "timm" else "from torchvision import models; print(models.list_models(models))"
        near = closest(base, known_names(library))
        raise UserError(f"{library} has no image model {base!r}{near}", f"`python -c '{code}'` lists those that it has")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")] if tag else []
    if tag and tag not in tags:
        problem = f"timm:{base} has no weights called {tag!r}{closest(tag, tags)}"
        raise UserError(problem, f"choose from: {', '.join(tags) or 'none'}")


def _build_timm(name: str, pretrained: bool, size: int | None) -> nn.Module:
    name, own = split_options(name)
    options: list[dict[str, Any]] = [{}]
    if size is not None and name.startswith("hf-hub:"):  # of what kind it is, only its configuration will say
        options = [{"img_size": size}, {"dynamic_img_size": True}, {}]
    elif size is not None:
        config = timm.get_pretrained_cfg(name)
        if config is None or (config.fixed_input_size and tuple(config.input_size[1:]) != (size, size)):
            options = [{"img_size": size}, {"dynamic_img_size": True}]
    for option in options:
        try:
            return timm.create_model(name, pretrained=pretrained, **own, **option)
        except (TypeError, AssertionError) as error:
            # it does not know the option, or cannot be cut into patches at that size
            if not option:
                if own and isinstance(error, TypeError):
                    raise UserError(f"timm:{name} does not take {', '.join(own)} ({error})", "leave it out") from error
                raise
    raise UserError(f"timm:{name} cannot be built for images of {size} px", "leave --size at the model's own")


def _build_torchvision(name: str, pretrained: bool, size: int | None) -> nn.Module:
    weights = models.get_model_weights(name).DEFAULT if pretrained else None
    options: dict[str, Any] = {}
    if name in {"googlenet", "inception_v3"}:  # they renormalise inside, as their weights need
        options = {"transform_input": True} | ({} if pretrained else {"init_weights": True})
    if not name.startswith("vit_") or size is None:
        return models.get_model(name, weights=weights, **options)
    model = models.get_model(name, weights=None, image_size=size)
    if weights is not None:
        own = models.get_model(name, weights=weights)
        checkpoint = Checkpoint(Path(name), "torchvision", 0, "", own.state_dict())
        load_strictly(model, checkpoint, classifier=classifier_of(model))
    return model


_MAKERS = {
    "timm": _build_timm, "hf-hub": _build_timm, "torchvision": _build_torchvision, "hf": build_transformers,
    "open_clip": build_open_clip,
}  # fmt: skip


def skeleton(library: str, name: str) -> nn.Module | None:
    """The architecture without memory for its weights; None where this version of the library has none such."""
    make = timm.create_model if library == "timm" else models.get_model
    name, options = split_options(name) if library == "timm" else (name, {})
    try:
        with torch.device("meta"):
            return make(name, **options)
    except NotImplementedError:  # torchvision's RegNet reads tensors while it is built
        with seeded(0):
            return make(name, **options)
    except (RuntimeError, ValueError, TypeError, AssertionError):
        return None


@contextmanager
def _weights_only() -> Iterator[None]:
    """No pickle runs inside a library's own loading: torchvision does not ask for that, torch can be told to."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        del os.environ[names[0]]
        os.environ.update(before)


@contextmanager
def _quick_when_offline() -> Iterator[None]:
    """Without a network the hub's library tries for 46 s before it says so; what it has stored it finds at once."""
    from huggingface_hub import constants as hub

    before = hub.HF_HUB_OFFLINE
    if not before and not any(name.lower().endswith("_proxy") for name in os.environ):
        try:
            socket.getaddrinfo(urlsplit(hub.ENDPOINT).hostname, 443)
        except OSError:
            hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


def _cannot_build(arch: str, pretrained: bool, error: Exception) -> UserError:
    text = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
    untrained = "--no-pretrained (pretrained=False) builds it untrained; a file of its weights goes with --arch"
    if "No pretrained weights exist" in str(error):
        return UserError(f"{arch} has no pretrained weights", untrained)
    if isinstance(error, OSError) or "offline" in str(error).lower() or "connect" in str(error).lower():
        return UserError(f"the weights of {arch} could not be downloaded ({text})", f"check the network; {untrained}")
    what = "weights could not be loaded" if pretrained else "network could not be built"
    return UserError(f"{arch}: its {what} ({text})", untrained if pretrained else "choose another architecture or size")
