"""Encoders as they were during pretraining, copied out of the checkpoints as these come, for learning curves."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from equibench.encoders.vit import ViTEncoder
from equibench.errors import UserError
from equibench.files import write_atomically
from equibench.pretrain.loop import build_encoder
from equibench.profiles import Profile


def snapshot_path(folder: Path, step: int) -> Path:
    """Where a run's folder keeps the encoder of a step."""
    return folder / "snapshots" / f"step{step:06d}.safetensors"


def keep_snapshot(folder: Path, profile: Profile, step: int) -> None:
    """Copy the encoder out of a run's checkpoint, if the profile asks for it.

    To be called at each line of the log: the first one after a checkpoint finds it still there.

    Args:
        folder: of the run.
        step: of the log line.

    Raises:
        UserError: the folder cannot be written.
    """
    last_line = step - profile.pretraining.log_every
    due = [kept for kept in profile.snapshots if last_line <= kept < step]
    checkpoint = folder / "checkpoint.pt"
    if not due or not checkpoint.exists():
        return
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if state["step"] in due:
        prefix = "encoder."
        weights = {k.removeprefix(prefix): v.contiguous() for k, v in state["module"].items() if k.startswith(prefix)}
        facts = {"recipe_sha256": state["digest"]}
        path = snapshot_path(folder, state["step"])
        write_atomically(path, lambda file: save_file(weights, file, metadata=facts))


def read_snapshot(folder: Path, profile: Profile, variant: str, seed: int, step: int, recipe_sha256: str) -> ViTEncoder:
    """The encoder of a run after so many steps.

    Raises:
        UserError: the profile keeps none of that step, the run kept none, or it is one of another recipe.
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
    if facts.get("recipe_sha256") != recipe_sha256:
        raise UserError(f"{path} is of another recipe than the run beside it", again)
    encoder = build_encoder(profile, variant, seed)
    encoder.load_state_dict(load_file(path))
    return encoder.eval()
