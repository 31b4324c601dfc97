"""Encoders that equibench has pretrained: a run's folder, or the name of a baseline that has been run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from equibench.encoders.adapter import ImageEncoder, Preprocessing
from equibench.encoders.sources import Opened
from equibench.encoders.vit import ViewSpec, ViTEncoder, view_spec, weights_sha256
from equibench.errors import UserError
from equibench.profiles import PROFILES, Profile, get_profile
from equibench.registry import BASELINES

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
