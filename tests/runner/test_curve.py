"""Learning curves: the encoders kept on the way are those of the run at that step, and their scores are scores."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from equibench.data.dataset import Dataset
from equibench.encoders.vit import weights_sha256
from equibench.errors import UserError
from equibench.pretrain.loop import run_pretraining
from equibench.pretrain.method import BASELINES
from equibench.pretrain.runs import keep_snapshot, open_run, snapshot_path, snapshot_sha256
from equibench.profiles import PROFILES
from equibench.runner import table as api
from equibench.runner.curve import CurveResult, curve
from equibench.transforms.transformation import view_spec

TINY = PROFILES["tiny"]
BATCH = TINY.pretraining.batch
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> tuple[Path, CurveResult]:
    folder = tmp_path_factory.mktemp("curve")
    return folder, curve(
        rows=["vicreg"], columns=["flip"], profile="tiny", runs=folder / "runs", out=folder / "out", console=QUIET
    )


def run_folder(folder: Path) -> Path:
    return next((folder / "runs").glob("tiny/*/pretraining/vicreg/seed0"))


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)
def test_steps_that_a_profile_keeps_are_steps_at_which_it_writes_checkpoints(profile) -> None:
    settings = profile.pretraining
    for step in profile.snapshots:
        assert step % settings.checkpoint_every == 0
        assert step < settings.steps
    assert settings.log_every <= settings.checkpoint_every, "or a checkpoint is replaced before it is looked at"


class Killed(Exception):
    """Stands for a kill at a moment that the test chooses."""


def test_a_kept_encoder_is_that_of_the_run_at_that_step(solids_dataset: Dataset, tmp_path: Path) -> None:
    """The reference is the checkpoint of a run that was killed right after it; a resumed run keeps the same one."""
    step, entry = TINY.snapshots[0], BASELINES.get("reconstruction")

    def die(now: int, steps: int, scalars: dict[str, float]) -> None:
        if now > step:
            raise Killed

    with pytest.raises(Killed):
        run_pretraining(entry, TINY, solids_dataset, tmp_path, report=die)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == step
    reference = {k.removeprefix("encoder."): v for k, v in state["module"].items() if k.startswith("encoder.")}
    assert not snapshot_path(tmp_path, step).exists()

    run_pretraining(entry, TINY, solids_dataset, tmp_path, report=lambda now, *_: keep_snapshot(tmp_path, TINY, now))
    kept = [load_file(snapshot_path(tmp_path, s)) for s in TINY.snapshots]
    assert kept[0].keys() == reference.keys()
    assert all(torch.equal(kept[0][name], reference[name]) for name in reference)
    assert any(not torch.equal(kept[0][name], kept[1][name]) for name in reference)


def test_a_curve_goes_from_the_untrained_encoder_to_the_finished_run(finished: tuple[Path, CurveResult]) -> None:
    folder, result = finished
    frame = result.frame
    steps = [0, *TINY.snapshots, TINY.pretraining.steps]
    assert list(frame.step) == steps
    assert list(frame.pairs) == [step * BATCH for step in steps]
    # nine tenths of the 800 training images are pretrained on
    assert list(frame.epochs) == [pytest.approx(step * BATCH / 720, abs=1e-3) for step in steps]
    assert len({record.encoder_sha256 for record in result.records}) == len(steps)
    assert [record.baseline for record in result.records] == ["random_init", "vicreg@10", "vicreg@20", "vicreg"]
    commands = [record.command.partition(" --seeds")[0] for record in result.records]
    assert commands == [
        "equibench table table2 --profile tiny --rows random_init --columns flip",
        *["equibench curve --profile tiny --rows vicreg --columns flip"] * 2,
        "equibench table table2 --profile tiny --rows vicreg --columns flip",
    ]
    assert len(pd.read_csv(folder / "out" / "curve.csv")) == len(steps)
    assert (folder / "out" / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_its_ends_are_the_scores_of_the_table(finished: tuple[Path, CurveResult]) -> None:
    folder, result = finished
    table = api.table(
        "table2", profile="tiny", rows=["vicreg"], columns=["flip"], runs=folder / "runs", out=folder / "table",
        console=QUIET,
    )  # fmt: skip
    scores = {r.baseline: r for r in table.records if r.features == "full"}
    assert {r.baseline for r in table.records} & {"vicreg@10", "vicreg@20"} == set()
    for end in (0, -1):
        record = result.records[end]
        assert scores[record.baseline].signature == record.signature
        assert scores[record.baseline].metrics == record.metrics


def test_nothing_is_scored_twice(finished: tuple[Path, CurveResult]) -> None:
    folder, first = finished
    journal = next((folder / "runs").rglob("records.jsonl"))
    before = journal.read_bytes()
    second = curve(
        rows=["vicreg"], columns=["flip"], profile="tiny", runs=folder / "runs", out=folder / "again", console=QUIET,
        plot=False,
    )  # fmt: skip
    assert journal.read_bytes() == before
    assert second.frame.equals(first.frame)
    assert not (folder / "again" / "curve.png").exists()


def test_a_run_that_kept_nothing_is_named(finished: tuple[Path, CurveResult], tmp_path: Path) -> None:
    shutil.copytree(finished[0] / "runs", tmp_path / "runs")
    shutil.rmtree(run_folder(tmp_path) / "snapshots")
    with pytest.raises(UserError, match="kept no encoder of step 10") as raised:
        curve(rows=["vicreg"], columns=["flip"], profile="tiny", runs=tmp_path / "runs", out=tmp_path, console=QUIET)
    assert "run the same command again" in raised.value.fix


def test_an_encoder_of_another_recipe_or_step_is_refused(finished: tuple[Path, CurveResult]) -> None:
    folder = run_folder(finished[0])
    with pytest.raises(UserError, match="another recipe"):
        snapshot_sha256(folder, TINY, 10, "0" * 64)
    with pytest.raises(UserError, match="keeps no encoder of step 11"):
        snapshot_sha256(folder, TINY, 11, "0" * 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"columns": ["linear_cifar10"]}, "no regression"), ({"rows": ["vicrek"]}, "did you mean 'vicreg'")],
)
def test_names_that_have_no_curve_are_refused(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        curve(profile="tiny", runs=tmp_path, out=tmp_path, console=QUIET, **options)


def test_a_profile_without_kept_steps_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "bare", dataclasses.replace(TINY, name="bare", snapshots=()))
    with pytest.raises(UserError, match="the profile bare keeps no encoders"):
        curve(profile="bare", runs=tmp_path, out=tmp_path, console=QUIET)


@torch.no_grad()
def test_an_own_encoder_can_be_scored_on_its_class_token(finished: tuple[Path, CurveResult]) -> None:
    """The reference is the encoder's own forward pass: the class token comes first, the mean leaves it out."""
    folder = run_folder(finished[0])
    spec = view_spec("headline", 32)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    facts = {"runs": folder, "profile": "", "data": "", "variant": "headline", "seed": 0, "views": spec}
    plain = open_run(folder, **facts)
    tokens = plain.encoder.model.forward(plain.encoder.model.normalise(images))
    for pooling, expected in (("default", tokens[:, 1:].mean(dim=1)), ("cls", tokens[:, 0])):
        encoder = open_run(folder, **facts, pooling=pooling).encoder
        torch.testing.assert_close(encoder.represent(images), expected)
        assert weights_sha256(encoder.model) == weights_sha256(plain.encoder.model)


def test_a_run_is_said_to_be_of_the_profile_in_its_path(finished: tuple[Path, CurveResult], tmp_path: Path) -> None:
    """demo and cifar10_cpu have encoders of one shape, so that the weights alone cannot tell."""
    from safetensors.torch import save_file

    from equibench.encoders.vit import ViTEncoder

    for profile in ("demo", "cifar10_cpu"):
        folder = tmp_path / profile / "data" / "pretraining" / "vicreg" / "seed0"
        folder.mkdir(parents=True)
        encoder = ViTEncoder(PROFILES[profile].encoder, 32, view_spec("headline", 32))
        save_file(encoder.state_dict(), folder / "encoder.safetensors")
        (folder / "run.json").write_text(f'{{"encoder_sha256": "{weights_sha256(encoder)}"}}')
        opened = open_run(
            folder, runs=folder, profile="", data="", variant="headline", seed=0, views=view_spec("headline", 32)
        )
        assert opened.notes == (f"vicreg, seed 0, of the profile {profile}",)
