"""`equibench doctor`: what is wrong with a file of weights is found and said, and nothing in it is ever run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from equibench.audit import doctor as module
from equibench.audit.doctor import Findings, doctor
from equibench.cli import app
from equibench.cli.encoders import _print_findings
from equibench.data.dataset import Dataset
from equibench.errors import UserError

ARCH = "timm:test_resnet"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, solids_dataset: Dataset) -> None:
    """Generated images, and few pairs of them."""
    monkeypatch.setattr(module, "load_dataset", lambda *_, **__: solids_dataset)
    monkeypatch.setattr(module, "QUICK_PAIRS", ((64, 16, 32),))


def network(name: str = "test_resnet") -> nn.Module:
    """An untrained network of timm's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return timm.create_model(name)


def seen(model: nn.Module, dataset: Dataset, mean: float, std: float) -> nn.Module:
    """The network after its BatchNorms have seen these images, normalised so, and weights that are no fresh ones."""
    images = torch.from_numpy(np.array(dataset.train.images[:64])).float() / 255
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
    with torch.no_grad():
        for name, values in model.named_parameters():
            if values.ndim >= 2 and name.startswith("layer"):
                values.pow_(3).div_(values.abs().amax() ** 2)  # heavy tails, as training leaves them
        model.train()((nn.functional.interpolate(images, size=(160, 160), mode="bilinear") - mean) / std)
    return model


def saved(model: nn.Module, file: Path) -> Path:
    save_file(model.state_dict(), file)
    return file


def text_of(found: Findings) -> str:
    console = Console(record=True, width=160, file=open(os.devnull, "w"))  # noqa: SIM115
    _print_findings(found, console)
    return console.export_text()


def test_a_good_file_is_told_what_it_is_and_what_comes_next(solids_dataset: Dataset, tmp_path: Path) -> None:
    model = seen(network(), solids_dataset, 0.5, 0.5)
    file = saved(model, tmp_path / "good.safetensors")
    found = doctor(file, arch=ARCH)
    assert (found.problems, found.hints) == ([], [])
    assert found.usable
    assert (found.format, found.safe, found.architecture) == ("safetensors", True, ARCH)
    assert (found.tensors, found.bytes) == (len(model.state_dict()), file.stat().st_size)
    assert "100" in found.coverage
    assert "160 px" in found.preprocessing
    assert found.from_untrained is not None
    assert found.from_untrained > 0.1
    assert "its own config" in found.normalisation
    assert set(found.rotation) == {"good.safetensors", "untrained"}
    for value, low, high in found.rotation.values():
        assert low <= value <= high
    assert found.rotation_pairs == (64, 16, 32)
    text = text_of(found)
    assert f"next: equibench score {file} --arch {ARCH}" in text
    assert "from 64 training, 16 validation and 32 test pairs" in text


def test_an_untrained_net_is_said_to_look_untrained(tmp_path: Path) -> None:
    found = doctor(saved(network(), tmp_path / "new.safetensors"), arch=ARCH, score=False)
    assert found.usable  # it can be scored, and somebody may want that
    assert found.from_untrained is not None
    assert found.from_untrained < module.LOOKS_UNTRAINED
    assert any("untrained" in hint for hint in found.hints)
    assert any("never seen data" in hint for hint in found.hints)
    assert found.rotation == {}


@pytest.mark.parametrize(("mean", "std", "best"), [(0.0, 1.0, "none (0, 1)"), (0.0, 1 / 255, "none, in 0 to 255")])
def test_another_normalisation_than_its_own_is_noticed(
    mean: float, std: float, best: str, solids_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUICK_PAIRS", ())  # no score
    model = seen(network(), solids_dataset, mean, std)
    found = doctor(saved(model, tmp_path / "other.safetensors"), arch=ARCH)
    (hint,) = [hint for hint in found.hints if "normalisation" in hint]
    assert best in hint
    assert "--mean" in hint


def test_an_architecture_is_guessed(tmp_path: Path) -> None:
    found = doctor(saved(network("resnet18"), tmp_path / "guess.safetensors"), score=False)
    assert found.architecture == found.guesses[0][0] == "torchvision:resnet18"
    assert found.usable
    unknown = doctor(saved(nn.Linear(3, 4), tmp_path / "linear.safetensors"), score=False)
    assert not unknown.usable
    assert "no known architecture" in unknown.problems[0]
    assert unknown.architecture is None


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ("timm:test_vit", "does not fit the architecture"),
        ("timm:test_resnett", "did you mean 'test_resnet'"),
        ("keras:resnet", "unknown architecture"),
    ],
)
def test_a_wrong_architecture_is_a_problem(arch: str, said: str, tmp_path: Path) -> None:
    found = doctor(saved(network(), tmp_path / "some.safetensors"), arch=arch)
    assert not found.usable
    assert any(said in problem for problem in found.problems), found.problems
    assert found.tensors > 0  # what could be seen is said all the same


def test_nan_is_found_and_named(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model.layer2[0].conv1.weight[0, 0, 0, 0] = torch.nan
    found = doctor(saved(model, tmp_path / "nan.safetensors"), arch=ARCH)
    assert not found.usable
    assert "1 tensors hold NaN" in found.problems[0]
    assert "layer2.0.conv1.weight" in found.problems[0]


class Trap:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.rand(3)}, "extra": Trap(tmp_path / "marker")}, tmp_path / "evil.pth")
    found = doctor(tmp_path / "evil.pth", arch=ARCH)
    assert not (tmp_path / "marker").exists()
    assert found.safe  # it was read, and nothing in it was called
    assert not found.usable
    assert any("system" in name for name in found.inert)
    assert any("system" in hint for hint in found.hints)
    assert "not looked up" in text_of(found)
    (tmp_path / "noise.pth").write_bytes(bytes(range(256)) * 4)
    noise = doctor(tmp_path / "noise.pth")
    assert not noise.usable
    assert not noise.safe


def test_the_architecture_that_names_fit_is_said_where_another_was_given(tmp_path: Path) -> None:
    found = doctor(saved(network("resnet18"), tmp_path / "w.safetensors"), arch=ARCH, score=False)
    assert any("--arch torchvision:resnet18" in hint for hint in found.hints)


def test_two_networks_are_a_problem_until_one_is_named(tmp_path: Path) -> None:
    one, other = network().state_dict(), network().state_dict()
    other["bn1.bias"] = other["bn1.bias"] + 1
    file = tmp_path / "w.pth"
    torch.save({"model": one, "model_ema": other}, file)
    asked = doctor(file, arch=ARCH, score=False)
    assert "'model', 'model_ema'" in asked.problems[0]
    found = doctor(file, arch=ARCH, branch="model_ema", score=False)
    assert found.usable, found.problems
    assert any("'model_ema'" in note for note in found.notes)
    assert "--branch model_ema" in text_of(found)


def test_without_images_there_is_a_hint_and_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> Dataset:
        raise UserError("CIFAR-10 is not here", "download it")

    file = saved(network(), tmp_path / "w.safetensors")
    monkeypatch.setattr(module, "load_dataset", missing)
    found = doctor(file, arch=ARCH)
    assert found.usable
    assert found.rotation == {}
    assert "no quick score: CIFAR-10 is not here" in found.hints


def test_too_few_images_are_no_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from equibench.data.load import load_dataset

    monkeypatch.setattr(module, "load_dataset", load_dataset)
    folder = tmp_path / "photographs"
    rng = np.random.default_rng(0)
    for number in range(20):
        place = folder / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(place / f"{number}.png")
    found = doctor(saved(network(), tmp_path / "w.safetensors"), arch=ARCH, data=folder)
    assert found.usable, found.problems
    assert any("too few images" in hint for hint in found.hints)


def test_on_the_command_line(tmp_path: Path) -> None:
    file = saved(network(), tmp_path / "w.safetensors")
    good = CliRunner().invoke(app, ["doctor", str(file), "--arch", ARCH, "--no-score", "--json"])
    assert good.exit_code == 0, good.output
    assert json.loads(good.stdout)["architecture"] == ARCH
    bad = CliRunner().invoke(app, ["doctor", str(file), "--arch", "timm:test_vit", "--no-score"])
    assert bad.exit_code == 1
    assert "problem:" in bad.stdout
    missing = CliRunner().invoke(app, ["doctor", str(tmp_path / "nothing.pth")])
    assert isinstance(missing.exception, UserError)
