"""Opening an encoder: from timm, torchvision or the Hugging Face hub by name, from a file, or from Python."""

from __future__ import annotations

import copy
import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from equibench.encoders.adapter import NO_MASK, ImageEncoder, Preprocessing
from equibench.encoders.checkpoint import Checkpoint, read_checkpoint
from equibench.encoders.coverage import Coverage, check_finite, complete, load_strictly
from equibench.encoders.vit import ViTEncoder, weights_sha256
from equibench.encoders.zoo import (
    build,
    candidates,
    classifier_of,
    drop_classifier,
    own_preprocessing,
    seeded,
    torchvision_names,
)
from equibench.errors import UserError, closest
from equibench.profiles import PROFILES, Profile, get_profile
from equibench.registry import BASELINES
from equibench.transforms.transformation import ViewSpec, view_spec

LIBRARIES = ("timm", "torchvision", "hf-hub")
SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".tar")
OBVIOUS = 0.99
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Opened:
    """An encoder that is ready, and how it came to be.

    Attributes:
        encoder: frozen, in eval mode, on the CPU unless it was elsewhere.
        name: for a table: "timm:resnet50", a file's name, a class.
        architecture: "timm:NAME", "torchvision:NAME", "hf-hub:ORG/NAME" or "python:MODULE.CLASS".
        pretrained: False where the weights are those of an untrained network.
        coverage: how the loaded weights fitted; None where none were loaded (untrained, or from Python).
        notes: what was done, a sentence each.
        fresh: seed -> the same architecture, untrained, with the same preprocessing; None where that cannot be built.
        half: channels of the invariant half, for an encoder of the suite's own that has two.
        seed: pretraining seed of such an encoder.
    """

    encoder: ImageEncoder
    name: str
    architecture: str
    pretrained: bool
    coverage: Coverage | None
    notes: tuple[str, ...]
    fresh: Callable[[int], ImageEncoder] | None
    half: int | None = None
    seed: int | None = None


def open_encoder(
    source: str | Path | nn.Module | Callable[[Tensor], Tensor],
    *,
    arch: str | None = None,
    views: ViewSpec | None = None,
    pretrained: bool = True,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
    pooling: str = "default",
    allow_partial: bool = False,
    allow_random: bool = False,
    seed: int = 0,
) -> Opened:
    """Open any encoder, with its own preprocessing unless told otherwise.

    Args:
        source: "timm:NAME", "torchvision:NAME", "hf-hub:ORG/NAME"; a weights file (with `arch`); in Python an
            nn.Module, of which a copy is taken, or any function, both on normalised images (N, 3, s, s).
        arch: a file's architecture, "timm:NAME" or "torchvision:NAME".
        views: the views' mask; None: no mask.
        pretrained: False builds the architecture untrained, seeded by `seed`; no effect on files and Python objects.
        size, mean, std, interpolation: override the preprocessing (pixels; units of [0, 1]).
        pooling: see `ImageEncoder`.
        allow_partial, allow_random: see `load_strictly`.

    Raises:
        UserError: an unknown name, weights that cannot be had, do not fit, are unsafe or not finite.
    """
    asked = _Asked(views or NO_MASK, pooling, size, _triple("mean", mean), _triple("std", std), interpolation)
    if not isinstance(source, (str, Path)):
        return _open_object(source, asked)
    text = str(source)
    if text.split(":")[0] in LIBRARIES and ":" in text:
        return _open_named(text, asked, pretrained, seed)
    path = Path(text).expanduser()
    if not path.exists() and path.suffix not in SUFFIXES and os.sep not in text:
        known = [*(f"timm:{n}" for n in timm.list_models()), *(f"torchvision:{n}" for n in torchvision_names())]
        near = closest(f"timm:{text}", known) or closest(f"torchvision:{text}", known)
        raise UserError(
            f"{text!r} is neither a model's name nor a file{near}",
            "give timm:NAME, torchvision:NAME, hf-hub:ORG/NAME or the path of a weights file",
        )
    checkpoint = read_checkpoint(path)
    if arch is None:
        raise _no_arch(checkpoint)
    return _open_file(checkpoint, arch, asked, allow_partial, allow_random, seed)


@dataclass(frozen=True)
class _Asked:
    """What the caller wants of the encoder."""

    views: ViewSpec
    pooling: str
    size: int | None
    mean: Triple | None
    std: Triple | None
    interpolation: str | None

    def over(self, own: Preprocessing) -> Preprocessing:
        """The model's own preprocessing with what was asked for in its place."""
        return Preprocessing(
            self.size or own.size, self.mean or own.mean, self.std or own.std, self.interpolation or own.interpolation
        )

    def encoder(self, model: nn.Module | Callable[[Tensor], Tensor], arch: str, own: Preprocessing) -> ImageEncoder:
        """The encoder; of a network that this suite has built, the classifier is dropped."""
        classifier = classifier_of(model) if isinstance(model, nn.Module) else ()
        if isinstance(model, nn.Module) and not arch.startswith("python:"):
            drop_classifier(model)
        return ImageEncoder(
            model, architecture=arch, preprocessing=self.over(own), views=self.views, pooling=self.pooling,
            classifier=classifier,
        )  # fmt: skip


def _open_named(arch: str, asked: _Asked, pretrained: bool, seed: int) -> Opened:
    model = build(arch, pretrained, asked.size, seed)
    coverage, notes = None, ["untrained: random weights"]
    if pretrained:
        check_finite(model, arch, classifier_of(model))
        coverage, notes = complete(model, classifier_of(model)), ["all weights are the library's own"]
    own = own_preprocessing(arch, model)
    fresh = partial(_fresh, arch, asked)
    return Opened(asked.encoder(model, arch, own), arch, arch, pretrained, coverage, tuple(notes), fresh)


def _open_file(
    checkpoint: Checkpoint, arch: str, asked: _Asked, allow_partial: bool, allow_random: bool, seed: int
) -> Opened:
    if arch.split(":")[0] not in LIBRARIES[:2]:
        raise UserError(f"unknown architecture {arch!r}", "give --arch timm:NAME or --arch torchvision:NAME")
    model = build(arch, False, asked.size, seed)
    coverage, notes = load_strictly(
        model, checkpoint, classifier=classifier_of(model), allow_partial=allow_partial, allow_random=allow_random
    )
    own = own_preprocessing(arch, model)
    fresh = partial(_fresh, arch, asked)
    return Opened(asked.encoder(model, arch, own), checkpoint.path.name, arch, True, coverage, notes, fresh)


def _open_object(source: nn.Module | Callable[[Tensor], Tensor], asked: _Asked) -> Opened:
    if not callable(source):
        raise UserError(f"a {type(source).__name__} is no encoder", "give a name, a file, an nn.Module or a function")
    own = Preprocessing()
    if not isinstance(source, nn.Module):
        name = f"python:{getattr(source, '__qualname__', type(source).__qualname__)}"
        note = "a function's weights are unknown, so nothing is cached"
        return Opened(asked.encoder(source, name, own), name, name, True, None, (note,), None)
    source = _unwrapped(source)
    try:
        # it may be trained further: its mode, gradients and weights must not change here, nor ours with it
        model = copy.deepcopy(source)
    except Exception as error:
        raise UserError(
            f"the module cannot be copied: {error}", "pass a function, or a module without a graph"
        ) from error
    name = f"python:{type(source).__module__}.{type(source).__qualname__}"
    notes = ["a copy was taken; it may have been trained or not"]
    if getattr(source, "pretrained_cfg", None):
        own = own_preprocessing("timm:", source)
        notes.append("preprocessing from the model's own timm configuration")
    check_finite(model, name)
    resettable = all(_reset(part) for part in model.modules() if next(part.parameters(recurse=False), None) is not None)
    fresh = partial(_fresh_copy, model, name, asked, own) if resettable else None
    return Opened(asked.encoder(model, name, own), name, name, True, None, tuple(notes), fresh)


def _fresh(arch: str, asked: _Asked, seed: int) -> ImageEncoder:
    model = build(arch, False, asked.size, seed)
    return asked.encoder(model, arch, own_preprocessing(arch, model))


def _fresh_copy(model: nn.Module, name: str, asked: _Asked, own: Preprocessing, seed: int) -> ImageEncoder:
    blank = copy.deepcopy(model)
    with seeded(seed):
        for part in blank.modules():
            if reset := _reset(part):
                reset()
    return asked.encoder(blank, name, own)


def _reset(part: nn.Module) -> Callable[[], object] | None:
    # nn.MultiheadAttention calls it with an underscore
    return getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)


def _unwrapped(module: nn.Module) -> nn.Module:
    """The network inside torch.compile, DataParallel or DistributedDataParallel."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def _triple(name: str, values: Sequence[float] | None) -> Triple | None:
    if values is None:
        return None
    if len(values) != 3:
        raise UserError(f"{name} has {len(values)} values, for 3 channels", f"give three numbers for --{name}")
    return cast(Triple, tuple(float(value) for value in values))


def _no_arch(checkpoint: Checkpoint) -> UserError:
    """What to say of a file whose architecture was not named; the names inside may make it obvious."""
    best = candidates(checkpoint.state, limit=1)
    problem = f"{checkpoint.path} holds weights and not the architecture that they belong to"
    doctor = f"`equibench doctor {checkpoint.path}` shows which ones fit"
    if best and best[0].share >= OBVIOUS:
        return UserError(f"{problem}; its names fit {best[0].arch}", f"give --arch {best[0].arch}; {doctor}")
    return UserError(problem, f"give --arch timm:NAME or --arch torchvision:NAME; {doctor}")


WEIGHTS, FACTS = "encoder.safetensors", "run.json"


def open_native(
    source: str | Path,
    *,
    runs: Path,
    profile: str,
    data: str,
    variant: str,
    seed: int,
    views: ViewSpec,
    pooling: str = "default",
) -> Opened | None:
    """An encoder of the suite's own, or None if the source is neither a run's folder nor a baseline's name.

    Args:
        source: a folder with encoder.safetensors and run.json, or a baseline's id.
        runs, profile, data, variant, seed: where the run of a baseline is looked for.
        views: mask of the views that will be encoded.
        pooling: see `ImageEncoder`; the default is the mean of the patch tokens, as in tables.

    Raises:
        UserError: a baseline that has not been run, or a folder that is damaged.
    """
    folder = Path(source)
    if not folder.is_dir():
        if str(source) not in BASELINES.names():
            return None
        folder = runs / profile / f"{data}-{variant}" / "pretraining" / str(source) / f"seed{seed}"
        if not (folder / FACTS).exists():
            command = f"equibench pretrain {source} --profile {profile} --seed {seed}"
            command += f" --variant {variant}" if variant != "headline" else ""
            command += f" --runs {shlex.quote(str(runs))}" if runs != Path("runs") else ""
            elsewhere = f"; to score a run on other data than {get_profile(profile).dataset}, give its folder"
            raise UserError(
                f"the baseline {source!r} has not been pretrained here ({folder} is not a finished run)",
                command + (elsewhere if data != get_profile(profile).dataset else ""),
            )
    elif not (folder / FACTS).exists() or not (folder / WEIGHTS).exists():
        raise UserError(
            f"{folder} is not the folder of a finished run: it lacks {FACTS} or {WEIGHTS}",
            "a run's folder is runs/PROFILE/DATA-VARIANT/pretraining/BASELINE/seedN",
        )
    return _open_run(folder, views, pooling)


def _open_run(folder: Path, views: ViewSpec, pooling: str) -> Opened:
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        state = load_file(folder / WEIGHTS)
        expected = facts["encoder_sha256"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"the run in {folder} is damaged: {error}", "pretrain it again") from error
    profile = _profile_of(state, folder)
    encoder = _build(profile, views, 0)
    encoder.load_state_dict(state)
    if weights_sha256(encoder) != expected:
        raise UserError(f"{folder / WEIGHTS} is not what the run wrote (expected digest {expected})", "pretrain again")
    row, seed = folder.parent.name, folder.name.removeprefix("seed")
    entry = BASELINES.get(row) if row in BASELINES.names() else None
    size = profile.encoder
    architecture = f"equibench:vit_w{size.width}_d{size.depth}_p{size.patch} ({profile.name})"

    def fresh(seed: int) -> ImageEncoder:
        return _adapted(_build(profile, views, seed), architecture, views, pooling)

    return Opened(
        encoder=_adapted(encoder, architecture, views, pooling),
        name=row,
        architecture=architecture,
        pretrained=True,
        coverage=None,
        notes=(f"{row}, seed {seed}, of the profile {profile.name}",),
        fresh=fresh,
        half=encoder.invariant if entry and entry.splits_features else None,
        seed=int(seed) if seed.isdigit() else None,
    )


def _build(profile: Profile, views: ViewSpec, seed: int) -> ViTEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViTEncoder(profile.encoder, profile.image_size, view_spec(views.name, profile.image_size)).eval()


def _adapted(encoder: ViTEncoder, architecture: str, views: ViewSpec, pooling: str) -> ImageEncoder:
    size = int(encoder.mask.shape[-1])
    return ImageEncoder(
        encoder, architecture=architecture, preprocessing=Preprocessing(size), views=views, pooling=pooling
    )


def _profile_of(state: dict[str, torch.Tensor], folder: Path) -> Profile:
    """The profile whose encoder has these shapes, first of all the one that the folder's path names."""
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    fitting: Callable[[Profile], bool] = lambda p: (  # noqa: E731
        {n: tuple(v.shape) for n, v in _build(p, view_spec("headline", p.image_size), 0).state_dict().items()} == shapes
    )
    for profile in sorted(PROFILES.values(), key=lambda p: p.name not in folder.resolve().parts):
        if fitting(profile):
            return profile
    raise UserError(f"the encoder in {folder} has the sizes of no profile", f"profiles: {', '.join(PROFILES)}")
