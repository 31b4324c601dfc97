"""Killed anywhere and started again, a run gives what an undisturbed one gives."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from equibench.data.dataset import Dataset
from equibench.encoders.vit import weights_sha256
from equibench.errors import UserError
from equibench.pretrain.loop import learning_rate, run_pretraining
from equibench.pretrain.method import BASELINES
from equibench.profiles import PROFILES, Profile

TINY = PROFILES["tiny"]


def short(profile: Profile = TINY, **changes: object) -> Profile:
    settings = {"pairs": 160, "checkpoint_every": 3, "log_every": 2, **changes}
    return dataclasses.replace(profile, pretraining=dataclasses.replace(profile.pretraining, **settings))  # type: ignore[arg-type]


class Killed(Exception):
    """Stands for a kill at a moment that the test chooses."""


@pytest.mark.parametrize("name", ["vicreg", "sie_all_single", "reconstruction", "simclr", "ibot", "dinov2_all_rot"])
def test_a_resumed_run_has_the_same_losses_and_weights(name: str, solids_dataset: Dataset, tmp_path: Path) -> None:
    entry = BASELINES.get(name)
    whole = run_pretraining(entry, short(), solids_dataset, tmp_path / "whole")

    def die(step: int, steps: int, scalars: dict[str, float]) -> None:
        if step >= 8:
            raise Killed

    with pytest.raises(Killed):
        run_pretraining(entry, short(), solids_dataset, tmp_path / "parts", report=die)
    resumed = run_pretraining(entry, short(), solids_dataset, tmp_path / "parts")
    assert resumed.encoder_sha256 == whole.encoder_sha256
    logs = []
    for folder in ("whole", "parts"):
        lines = [json.loads(line) for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]
        logs.append([{k: v for k, v in line.items() if k != "pairs_per_second"} for line in lines])
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0]] == [2, 4, 6, 8, 10]


def test_a_finished_run_is_not_run_again_and_another_recipe_is(solids_dataset: Dataset, tmp_path: Path) -> None:
    entry = BASELINES.get("vicreg")
    first = run_pretraining(entry, short(), solids_dataset, tmp_path)
    stamp = (tmp_path / "encoder.safetensors").stat().st_mtime_ns
    assert run_pretraining(entry, short(), solids_dataset, tmp_path).encoder_sha256 == first.encoder_sha256
    assert (tmp_path / "encoder.safetensors").stat().st_mtime_ns == stamp
    assert run_pretraining(entry, short(lr=2e-3), solids_dataset, tmp_path).encoder_sha256 != first.encoder_sha256


def test_tampered_weights_are_refused(solids_dataset: Dataset, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    entry = BASELINES.get("vicreg")
    run = run_pretraining(entry, short(), solids_dataset, tmp_path)
    assert weights_sha256(run.encoder) == run.encoder_sha256
    state = load_file(tmp_path / "encoder.safetensors")
    state["head.bias"] = state["head.bias"] + 1
    save_file(state, tmp_path / "encoder.safetensors")
    with pytest.raises(UserError, match="not what the run wrote"):
        run_pretraining(entry, short(), solids_dataset, tmp_path)


def test_a_damaged_checkpoint_is_named(solids_dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="checkpoint.pt"):
        run_pretraining(BASELINES.get("vicreg"), short(), solids_dataset, tmp_path)


def test_a_diverging_run_says_so(solids_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="loss is"):
        run_pretraining(BASELINES.get("vicreg"), short(lr=float("inf")), solids_dataset, tmp_path)


def test_a_collapsed_encoder_is_reported(
    solids_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from equibench.encoders.vit import Tokens, ViTEncoder

    healthy = run_pretraining(BASELINES.get("vicreg"), short(), solids_dataset, tmp_path / "healthy")
    original = ViTEncoder.tokens

    def constant(self: ViTEncoder, images: torch.Tensor) -> Tokens:
        tokens = original(self, images)
        return Tokens(tokens.cls * 0 + 1, tokens.patches * 0 + 1)

    monkeypatch.setattr(ViTEncoder, "tokens", constant)
    collapsed = run_pretraining(BASELINES.get("vicreg"), short(), solids_dataset, tmp_path / "collapsed")
    assert (healthy.collapsed, collapsed.collapsed) == (False, True)


def test_the_schedule_warms_up_and_ends_near_zero() -> None:
    rates = [learning_rate(1.0, step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)  # half of the cosine
    assert rates[-1] < 0.001


def test_kill_minus_nine_then_the_same_table(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "equibench.cli", "table", "--profile", "tiny", "--rows", "reconstruction"),
        *("--columns", "flip,blur", "--out", "results"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def folder(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    undisturbed, killed = folder("undisturbed"), folder("killed")
    subprocess.run(command, cwd=undisturbed, env=environment, check=True, capture_output=True, timeout=120)
    work = killed / "runs/tiny/solids-headline"
    for landmark in ("pretraining/reconstruction/seed0/checkpoint.pt", "features/*.npy", "records.jsonl"):
        process = subprocess.Popen(
            command, cwd=killed, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while not list(work.glob(landmark)) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=killed, env=environment, check=True, capture_output=True, timeout=120)
    for name in ("table2.csv", "table2.md"):
        assert (killed / "results" / name).read_bytes() == (undisturbed / "results" / name).read_bytes()
