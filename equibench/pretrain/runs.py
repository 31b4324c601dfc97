"""A pretraining run's folder: what a finished run wrote, its encoder, and the encoders that it kept on its way.

`checkpoint.pt` is there while a run goes on, `encoder.safetensors`, `method.safetensors` and `run.json` when it is
done, `log.jsonl` throughout, `snapshots/` where the profile asks for them.
"""

import json
import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from equibench.encoders.vit import ViTEncoder, state_sha256, weights_sha256
from equibench.errors import UserError
from equibench.pretrain.method import BASELINES
from equibench.profiles import PROFILES, Profile, get_profile
from equibench.transforms.transformation import ViewSpec, view_spec
from equibench.utils.files import write_atomically

if TYPE_CHECKING:
    from equibench.encoders.open import Opened

WEIGHTS, FACTS = "encoder.safetensors", "run.json"
"""What a finished run's folder holds."""


@dataclass(frozen=True)
class Run:
    """A finished pretraining run."""

    folder: Path
    encoder: ViTEncoder
    encoder_sha256: str
    seconds: float
    collapsed: bool


def build_encoder(profile: Profile, variant: str, seed: int) -> ViTEncoder:
    """The encoder as every method of that seed starts with it."""
    torch.manual_seed(seed)
    return ViTEncoder(profile.encoder, profile.image_size, view_spec(variant, profile.image_size))


def read_run(folder: Path, digest: str) -> dict[str, Any] | None:
    """What a finished run of this recipe wrote beside its encoder; None if it is absent, unfinished or of another."""
    if not (folder / FACTS).exists() or not (folder / WEIGHTS).exists():
        return None
    facts: dict[str, Any] = json.loads((folder / FACTS).read_text())
    return facts if facts["recipe_sha256"] == digest else None


def finished_run(profile: Profile, folder: Path, variant: str, seed: int, digest: str) -> Run | None:
    """The finished run of this recipe in a folder, with its encoder; None if there is none.

    A UserError if the weights are not those that the run wrote.
    """
    if (facts := read_run(folder, digest)) is None:
        return None
    encoder = build_encoder(profile, variant, seed)
    encoder.load_state_dict(load_file(folder / WEIGHTS))
    _check_weights(folder, encoder, facts["encoder_sha256"], f"remove {folder} and run again")
    return Run(folder, encoder.eval(), facts["encoder_sha256"], facts["seconds"], facts["collapsed"])


def open_run(
    source: str | Path,
    *,
    runs: Path,
    profile: str,
    data: str,
    variant: str,
    seed: int,
    views: ViewSpec,
    pooling: str = "default",
) -> "Opened | None":
    """The encoder of a run of our own, or None if the source is neither a run's folder nor a baseline's name.

    The source is a folder with encoder.safetensors and run.json, or a baseline's id, whose run is looked for by `runs`,
    `profile`, `data`, `variant` and `seed`; `views` has the mask of the views that will be encoded. For `pooling` see
    `ImageEncoder`; the default is the mean of the patch tokens, as in tables. A UserError if a baseline has not been
    run, or a folder is damaged.
    """
    from equibench.encoders.open import Opened, adapted

    folder = Path(source)
    if folder.is_dir():
        if not (folder / FACTS).exists() or not (folder / WEIGHTS).exists():
            problem = f"{folder} is not the folder of a finished run: it lacks {FACTS} or {WEIGHTS}"
            raise UserError(problem, "a run's folder is runs/PROFILE/DATA-VARIANT/pretraining/BASELINE/seedN")
    elif str(source) in BASELINES.names():
        folder = runs / profile / f"{data}-{variant}" / "pretraining" / str(source) / f"seed{seed}"
        if not (folder / FACTS).exists():
            own_data = get_profile(profile).dataset
            fix = f"equibench pretrain {source} --profile {profile} --seed {seed}"
            fix += f" --variant {variant}" if variant != "headline" else ""
            fix += f" --runs {shlex.quote(str(runs))}" if runs != Path("runs") else ""
            fix += f"; to score a run on other data than {own_data}, give its folder" if data != own_data else ""
            problem = f"the baseline {str(source)!r} has not been pretrained here ({folder} is not a finished run)"
            raise UserError(problem, fix)
    else:
        return None
    network, found = _read_run(folder, views)
    row, own_seed, size = folder.parent.name, folder.name.removeprefix("seed"), found.encoder
    architecture = f"equibench:vit_w{size.width}_d{size.depth}_p{size.patch} ({found.name})"
    adapt = partial(adapted, arch=architecture, views=views, pooling=pooling, given={"size": found.image_size})
    splits = row in BASELINES.names() and BASELINES.get(row).splits_features
    return Opened(
        adapt(network), row, architecture, pretrained=True, coverage=None,
        notes=(f"{row}, seed {own_seed}, of the profile {found.name}",),
        fresh=lambda seed: adapt(_network(found, views, seed)),
        half=network.invariant if splits else None,
        seed=int(own_seed) if own_seed.isdigit() else None,
    )  # fmt: skip


def _read_run(folder: Path, views: ViewSpec) -> tuple[ViTEncoder, Profile]:
    """Its network, and the profile whose encoder has these shapes: first of all the one that the path names."""
    try:
        expected = json.loads((folder / FACTS).read_text(encoding="utf-8"))["encoder_sha256"]
        state = load_file(folder / WEIGHTS)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"the run in {folder} is damaged: {error}", "pretrain it again") from error
    shapes = {name: value.shape for name, value in state.items()}
    for profile in sorted(PROFILES.values(), key=lambda p: p.name not in folder.resolve().parts):
        network = _network(profile, views, 0)
        if {name: value.shape for name, value in network.state_dict().items()} == shapes:
            network.load_state_dict(state)
            _check_weights(folder, network, expected, "pretrain again")
            return network, profile
    fix = f"pretrain it in one of: {', '.join(PROFILES)}"
    raise UserError(f"the encoder in {folder} has the sizes of no profile", fix)


def _check_weights(folder: Path, network: ViTEncoder, expected: str, fix: str) -> None:
    if weights_sha256(network) != expected:
        raise UserError(f"{folder / WEIGHTS} is not what the run wrote (expected digest {expected})", fix)


def _network(profile: Profile, views: ViewSpec, seed: int) -> ViTEncoder:
    """Of the profile, untrained, for views of this kind in the profile's own size."""
    from equibench.encoders.zoo import seeded

    with seeded(seed):
        return ViTEncoder(profile.encoder, profile.image_size, view_spec(views.name, profile.image_size)).eval()


def snapshot_path(folder: Path, step: int) -> Path:
    """Where a run's folder keeps the encoder of a step."""
    return folder / "snapshots" / f"step{step:06d}.safetensors"


def keep_snapshot(folder: Path, profile: Profile, step: int) -> None:
    """Copy the encoder out of a run's checkpoint, if the profile asks for it; a UserError if it cannot be written.

    To be called at each line of the log, of this step: the first one after a checkpoint finds it still there.
    """
    due = [kept for kept in profile.snapshots if step - profile.pretraining.log_every <= kept < step]
    checkpoint = folder / "checkpoint.pt"
    if not due or not checkpoint.exists():
        return
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if state["step"] in due:
        prefix = state["kept"] + "."
        weights = {k.removeprefix(prefix): v.contiguous() for k, v in state["module"].items() if k.startswith(prefix)}
        facts = {"recipe_sha256": state["digest"], "encoder_sha256": state_sha256(weights)}
        write_atomically(snapshot_path(folder, state["step"]), partial(save_file, weights, metadata=facts))


def snapshot_sha256(folder: Path, profile: Profile, step: int, recipe_sha256: str) -> str:
    """Digest of the encoder that a run kept after so many steps.

    A UserError if the profile keeps none of that step, the run kept none, or it is one of another recipe.
    """
    path = snapshot_path(folder, step)
    again = f"move {folder} away and run the same command again"
    if step not in profile.snapshots:
        kept = ", ".join(map(str, profile.snapshots)) or "none"
        raise UserError(f"the profile {profile.name} keeps no encoder of step {step}", f"steps kept: {kept}")
    if not path.exists():
        raise UserError(f"the run in {folder} kept no encoder of step {step}, so it has no learning curve", again)
    with safe_open(path, framework="pt") as file:
        facts = file.metadata() or {}
    if facts.get("recipe_sha256") != recipe_sha256 or "encoder_sha256" not in facts:
        raise UserError(f"{path} is of another recipe than the run beside it", again)
    return str(facts["encoder_sha256"])


def read_snapshot(folder: Path, profile: Profile, variant: str, seed: int, step: int) -> ViTEncoder:
    """The encoder of a run after so many steps."""
    encoder = build_encoder(profile, variant, seed)
    encoder.load_state_dict(load_file(snapshot_path(folder, step)))
    return encoder.eval()
