"""`equibench score`: any kind of encoder, nothing done twice, nothing scored that is broken, and files that agree."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file
from scored import PAIRS, Pixels, quick
from torch import Tensor, nn
from typer.testing import CliRunner

import equibench.evaluation.controls
import equibench.runner.open
import equibench.runner.plan
from equibench.audit import find
from equibench.cli import app
from equibench.data.dataset import Dataset
from equibench.errors import UserError
from equibench.evaluation.controls import CONTROLS
from equibench.evaluation.evaluator import evaluate
from equibench.records import Record, read_records
from equibench.runner import table as api
from equibench.runner.score import ScoreResult

RESNET = {"pretrained": False, "size": 32}
SEEN: list[int] = []
"""Images in each forward pass of a counted network."""


def counted(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    SEEN.append(len(inputs[0]))


@pytest.fixture
def network() -> nn.Module:
    """A network of timm's that counts what it sees; a copy counts in the same list."""
    SEEN.clear()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = timm.create_model("test_resnet")
    model.conv1.register_forward_pre_hook(counted)
    return model


@pytest.fixture(scope="module", autouse=True)
def _small_data(solids_dataset: Dataset) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equibench.runner.open, "load_dataset", lambda *_, **__: solids_dataset)
        patch.setattr(equibench.evaluation.controls, "LARGEST_SIDE", 16)  # few pixels, whose components are had at once
        patch.setattr(equibench.evaluation.controls, "POOLED_SIDE", 8)
        yield


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[ScoreResult, Path]:
    folder = tmp_path_factory.mktemp("vit")
    return quick("timm:test_vit", folder, tasks=["rotation", "flip.wahba"], **RESNET), folder


def without_seconds(records: list[Record]) -> list[dict[str, Any]]:
    return [record.model_dump(exclude={"seconds"}) for record in records]


def journal(folder: Path) -> list[Record]:
    return read_records(folder / "runs/score/solids-headline/records.jsonl")


def test_an_encoder_stands_beside_its_controls(vit: tuple[ScoreResult, Path]) -> None:
    result, _ = vit
    controls = [c for c in CONTROLS if c != "random_init"]  # an untrained encoder is its own
    full = [(r.baseline, r.task) for r in result.records if r.features == "full"]
    assert full == [(n, "rotation") for n in ["timm:test_vit", *controls]] + [("timm:test_vit", "flip.wahba")]
    assert result.frame.query("row == 'oracle' and metric == 'r2'")["value"].item() > 0.9
    assert result.records[0].encoder is not None
    assert "untrained" in result.records[0].encoder


def test_files_and_frame_agree_with_the_records(vit: tuple[ScoreResult, Path]) -> None:
    result, _ = vit
    assert [f.name for f in result.files] == ["records.jsonl", "score.csv", "score.md"]
    assert read_records(result.files[0]) == result.records
    pd.testing.assert_frame_equal(pd.read_csv(result.files[1]), result.frame, check_dtype=False)
    way = result.frame.query("metric == 'r2'").set_index("row")["fraction"]
    assert (way["oracle"], way["constant"]) == (1, pytest.approx(0, abs=0.1))
    text = result.files[2].read_text()
    for record in result.records:
        if record.baseline == result.name and (found := record.interval()):
            assert record.signature in text
            line = result.frame.query("signature == @record.signature and metric == @record.main_metric")
            assert line["value"].item() == pytest.approx(found[0], abs=1e-6)


def test_the_command_in_a_record_gives_the_same_signature(vit: tuple[ScoreResult, Path], tmp_path: Path) -> None:
    record = next(r for r in vit[0].records if r.task == "rotation")
    assert record.command.startswith("equibench score timm:test_vit --tasks rotation ")
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--no-controls", "--json"]
    said = CliRunner().invoke(app, [*shlex.split(record.command)[1:], *places])
    assert said.exit_code == 0, said.output
    again = next(r for r in json.loads(said.stdout)["records"] if r["features"] == "full")
    assert (again["signature"], again["metrics"]["r2"]["value"]) == (record.signature, record.metrics["r2"].value)


def test_what_is_done_is_not_done_again(network: nn.Module, tmp_path: Path) -> None:
    options: dict[str, Any] = {"tasks": ["flip", "flip.wahba"], "size": 32, "controls": False}
    first = quick(network, tmp_path, **options)
    SEEN.clear()
    second = quick(network, tmp_path, **options)
    assert not SEEN
    assert second.records == first.records
    assert len(journal(tmp_path)) == len(first.records)


@pytest.mark.parametrize("layers", [None, ["layer1", "layer3"]])
def test_views_are_encoded_once_for_all_tasks_and_layers(
    layers: list[str] | None, network: nn.Module, tmp_path: Path
) -> None:
    tasks = ["rotation", "rotation.action", "rotation.invariance"]
    result = quick(network, tmp_path, tasks=tasks, layers=layers, size=32, controls=False)
    # a forward pass is timed, 32 images show that the features vary, and one shows which token sets there are
    looks = 2 * 392 + 32 + 1
    composed = 60 + 60
    assert sum(SEEN) == looks + 2 * sum(PAIRS) + composed
    expected = {"full", *(f"layer:{name}" for name in layers or ())}
    for task in tasks:
        beside = {"grid", "distance"} if task == "rotation" else set()
        assert expected | beside == {r.features for r in result.records if r.task == task and r.interval()}


def test_all_layers_have_a_record_each(network: nn.Module, tmp_path: Path) -> None:
    result = quick(network, tmp_path, tasks=["rotation.wahba"], layers=["all"], size=32, controls=False)
    assert [r.features for r in result.records][0] == "full"
    assert len(result.records) > 3
    assert all(r.features.startswith("layer:") for r in result.records[1:])


def test_of_a_function_nothing_is_kept_but_the_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    pixels, calls = Pixels(), []

    def encoder(x: Tensor) -> Tensor:
        calls.append(len(x))
        return pixels(x)

    results = [quick(encoder, tmp_path, tasks=["flip.invariance"]) for _ in range(2)]
    assert not list((tmp_path / "scratch").iterdir())
    assert not (tmp_path / "runs").exists()
    assert calls[: len(calls) // 2] == calls[len(calls) // 2 :]  # the second time is like the first
    assert any("nothing" in note for note in results[0].notes)
    one, other = (r.records[0] for r in results)
    assert one.metrics == other.metrics
    assert one.signature != other.signature  # nobody can know that it was the same function


def test_a_module_whose_code_is_unknown_has_a_control_of_its_own(tmp_path: Path) -> None:
    scope: dict[str, Any] = {}
    exec("from torch import nn\nclass Typed(nn.Sequential): pass", scope)  # as at a prompt
    typed = scope["Typed"](nn.Flatten(), nn.Linear(3 * 32 * 32, 8))
    result = quick(typed, tmp_path, tasks=["flip.wahba"])
    values = {r.baseline: r.metrics["wahba"].value for r in result.records}
    assert len(set(values.values())) == 2
    assert all(r.encoder_sha256 is None for r in result.records)


def test_a_file_of_weights_with_its_architecture(network: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "my weights.safetensors"
    save_file(network.state_dict(), file)
    with pytest.raises(UserError, match="architecture"):
        quick(file, tmp_path, tasks=["flip.wahba"])
    options = {"tasks": ["flip.wahba"], "size": 32, "layers": ["layer2"], "mean": (0, 0, 0.5)}
    result = quick(file, tmp_path, arch="timm:test_resnet", **options)
    digest = result.records[0].encoder_sha256 or ""
    assert {r.baseline for r in result.records} == {f"my weights.safetensors.{digest[:8]}", "random_init"}
    command = shlex.split(result.records[0].command)
    assert command[2] == str(file)
    assert command[command.index("--mean") + 1] == "0,0,0.5"


def test_files_of_one_name_have_results_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"arch": "timm:test_resnet", "tasks": ["flip.wahba"], "size": 32, "controls": False}
    found = {}
    for seed, place in enumerate(("expA", "expB", "expA")):
        (tmp_path / place).mkdir(exist_ok=True)
        torch.manual_seed(seed)
        torch.save(timm.create_model("test_resnet").state_dict(), f"{place}/checkpoint.pth")
        result = quick(f"{place}/checkpoint.pth", tmp_path, out=None, **options)
        found[result.name] = result.files[0].parent.name
        assert result.name in result.files[0].parent.name
        assert f"|{result.name}|" in result.records[0].signature
    assert len(set(found)) == len(set(found.values())) == 3, "of an overwritten file, too, both results are there"
    for name in found:
        assert {r.baseline for r in find.select(name, [tmp_path / "results"])} == {name}
    with pytest.raises(UserError, match="'checkpoint.pth' stands for 3 networks"):
        find.select("checkpoint.pth", [tmp_path / "results"])
    named = quick("expA/checkpoint.pth", tmp_path, out=None, name="my net", **options)
    assert named.name == "my net"
    assert named.files[0].parent.name.startswith("my-net.")
    pooled = quick("expA/checkpoint.pth", tmp_path, out=None, name="my net", pooling="mean", **options)
    assert pooled.files[0].parent != named.files[0].parent
    with pytest.raises(UserError, match="cannot be printed in one line"):
        quick("timm:test_resnet", tmp_path, name="a\nb", **RESNET)


# Encoders that equibench has pretrained


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    api.pretrain("reconstruction", profile="tiny", runs=folder / "runs")
    return folder


def test_a_run_is_scored_by_name_or_folder_with_its_halves(pretrained: Path) -> None:
    options: dict[str, Any] = {"tasks": ["rotation", "flip.wahba"], "controls": False}
    result = quick("reconstruction", pretrained, **options)
    scored = {(r.task, r.features) for r in result.records if r.baseline == "reconstruction" and r.interval()}
    halves = ("full", "invariant", "equivariant")
    beside = {("rotation", features) for features in ("cls", "grid", "distance")}
    assert scored == {(task, half) for task in ("rotation", "flip.wahba") for half in halves} | beside
    assert {r.seeds.pretraining for r in result.records if r.baseline == "reconstruction"} == {0}
    folder = pretrained / "runs/tiny/solids-headline/pretraining/reconstruction/seed0"
    again = quick(folder, pretrained, **options)
    assert again.records == result.records


def test_a_baseline_that_has_not_been_run_is_said_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has not been pretrained") as raised:
        quick("vicreg", tmp_path, seed=2, variant="paper_like")
    command = raised.value.fix
    assert command == f"equibench pretrain vicreg --profile tiny --seed 2 --variant paper_like --runs {tmp_path}/runs"
    with pytest.raises(UserError, match="run.json"):
        quick(tmp_path, tmp_path)


# What is broken is not scored


def test_an_encoder_that_says_nothing_is_refused(tmp_path: Path, network: nn.Module) -> None:
    with pytest.raises(UserError, match="'default' are the same for every image"):
        quick(lambda x: torch.ones(len(x), 4), tmp_path)
    nn.init.zeros_(network.layer3[0].conv1.weight)
    nn.init.zeros_(network.layer3[0].bn1.bias)
    with pytest.raises(UserError, match="'layer3.0.conv1' are the same for every image"):
        quick(network, tmp_path, layers=["layer3.0.conv1"], size=32)
    with pytest.raises(UserError, match="holds NaN"):
        quick(lambda x: x.flatten(1) * torch.nan, tmp_path)
    with torch.no_grad():
        network.layer2[0].conv2.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="layer2.0.conv2"):
        quick(network, tmp_path, size=32)
    assert not list(tmp_path.rglob("records.jsonl"))


def test_interrupted_it_goes_on_where_it_was(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"tasks": ["flip", "flip.wahba", "flip.invariance"], "size": 32, "controls": False}
    whole = quick(network, tmp_path / "whole", **options)

    def interrupted(row: Any, task: Any, context: Any) -> list[Record]:
        if task.name == "flip.wahba":
            raise KeyboardInterrupt
        return evaluate(row, task, context)

    with monkeypatch.context() as patch:
        patch.setattr(equibench.runner.plan, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quick(network, tmp_path / "parts", **options)
    done = journal(tmp_path / "parts")
    assert {r.task for r in done} == {"flip"}
    resumed = quick(network, tmp_path / "parts", **options)
    assert journal(tmp_path / "parts")[: len(done)] == done
    assert without_seconds(resumed.records) == without_seconds(whole.records)


def test_a_name_with_brackets_comes_out_whole(tmp_path: Path) -> None:
    name = "ckpt[bold].pth"
    given = ["score", "timm:test_vit", "--no-pretrained", "--size", "32", "--name", name, "--profile", "tiny"]
    given += ["--pairs", "128,32,64", "--tasks", "rotation", "--no-controls", "--runs", str(tmp_path / "runs")]
    out = tmp_path / "out[last]"
    shown = CliRunner().invoke(app, [*given, "--out", str(out)], env={"COLUMNS": "150"})
    assert shown.exit_code == 0, shown.output
    signature = read_records(out / "records.jsonl")[0].signature
    assert name in signature
    assert signature in shown.output.splitlines()
    assert f"report: {out / 'report.html'}" in shown.output.splitlines()
    assert "\\[" not in shown.output
    told = CliRunner().invoke(app, ["explain", signature, "--in", str(out)], env={"COLUMNS": "150"})
    assert told.exit_code == 0, told.output
    assert name in told.output
