"""Training with mmsegmentation on rendered scenes: floors, frozen encoders, interruption, several processes."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from equibench.errors import UserError
from equibench.segmentation import missing_packages

if missing_packages():
    pytest.skip(f"needs {', '.join(missing_packages())}", allow_module_level=True)

from mmengine import Config

from equibench.data.ade20k import rendered_scenes_folder
from equibench.segmentation.config import SegmentationSettings
from equibench.segmentation.run import SegmentationResult, train_and_score_head

SETTINGS = SegmentationSettings(
    iterations=12, batch=4, crop=32, lr=2e-3, warmup=2, classes=12, head="linear", workers=0, checkpoint_every=4
)


def tiny_vit(patch: int = 8) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=32, patch_size=patch, embed_dim=64, depth=2, num_heads=2, num_classes=0, global_pool=""
    )


@pytest.fixture(scope="module")
def tree() -> Path:
    return rendered_scenes_folder(images=(12, 6), size=32)


def trained(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder / "iter_12.pth", weights_only=False)
    assert checkpoint["meta"]["iter"] == 12
    return checkpoint["state_dict"]


# Training


def test_training_on_rendered_scenes_beats_the_floor(tmp_path: Path) -> None:
    root = rendered_scenes_folder(images=(160, 40), size=64)
    told: list[float] = []
    settings = SegmentationSettings(
        iterations=200, batch=8, crop=64, lr=2e-3, warmup=20, classes=12, channels=64, channels_per_level=16,
        frozen=False, workers=0,
    )  # fmt: skip
    result = train_and_score_head(
        tiny_vit(4), root, tmp_path, settings, report=lambda fraction, _note: told.append(fraction)
    )
    assert result.scores.miou > 2 * result.floor.miou
    assert result.scores.aacc > result.floor.aacc + 0.1
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(result.names) == len(result.areas.label) == 40
    # the floor as a constant prediction gives it: the share of the class among all pixels, over the classes that occur
    label = result.areas.label.sum(axis=0)
    assert result.floor.miou == pytest.approx(label[result.most_frequent] / label.sum() / (label > 0).sum())


def test_a_frozen_encoder_is_the_same_after_training(tree: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()
    )
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train_and_score_head(network, tree, tmp_path / "frozen", SETTINGS)
    state = trained(tmp_path / "frozen")
    for name, value in before.items():
        assert torch.equal(state[f"backbone.network.{name}"], value), name
    assert state["decode_head.conv_seg.weight"].abs().sum() > 0
    train_and_score_head(network, tree, tmp_path / "free", replace(SETTINGS, frozen=False))
    state = trained(tmp_path / "free")
    assert not any(torch.equal(state[f"backbone.network.{name}"], value) for name, value in before.items())
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())  # the caller's own


class Interrupted(Exception):
    """In the place of a kill."""


def interrupted(tree: Path, folder: Path, settings: SegmentationSettings) -> SegmentationResult:
    def stop(fraction: float, note: str) -> None:
        raise Interrupted(note)

    with pytest.raises(Interrupted, match="iteration 10"):
        train_and_score_head(tiny_vit(), tree, folder, settings, report=stop)
    assert (folder / "iter_8.pth").exists()
    return train_and_score_head(tiny_vit(), tree, folder, settings)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupted_run_gives_what_it_would_have_given(tree: Path, tmp_path: Path, workers: int) -> None:
    settings = replace(SETTINGS, head="hypernet", channels=8, channels_per_level=4)
    whole = train_and_score_head(tiny_vit(), tree, tmp_path / "whole", settings)
    settings = replace(settings, workers=workers)
    resumed = interrupted(tree, tmp_path / "resumed", settings)
    first, second = trained(tmp_path / "whole"), trained(tmp_path / "resumed")
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name, array in whole.areas.arrays().items():
        np.testing.assert_array_equal(resumed.areas.arrays()[name], array)


def test_a_run_stopped_in_its_validation_validates(tree: Path, tmp_path: Path) -> None:
    whole = train_and_score_head(tiny_vit(), tree, tmp_path, SETTINGS)
    (tmp_path / "areas.npz").unlink()
    again = train_and_score_head(tiny_vit(), tree, tmp_path, SETTINGS)
    np.testing.assert_array_equal(again.areas.intersect, whole.areas.intersect)


def test_a_finished_run_is_read_and_another_refused(tree: Path, tmp_path: Path) -> None:
    whole = train_and_score_head(tiny_vit(), tree, tmp_path, SETTINGS)
    (tmp_path / "iter_12.pth").unlink()
    told: list[str] = []
    again = train_and_score_head(tiny_vit(), tree, tmp_path, SETTINGS, report=lambda _fraction, note: told.append(note))
    assert again.scores.miou == whole.scores.miou
    assert not told
    with pytest.raises(UserError, match="a run with other settings"):
        train_and_score_head(tiny_vit(), tree, tmp_path, replace(SETTINGS, lr=1e-2))
    with pytest.raises(UserError, match="a run with other encoder"):
        train_and_score_head(tiny_vit(4), tree, tmp_path, SETTINGS)


def test_bad_images_are_left_out_of_both_splits(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "ade")
    root = tmp_path / "ade" / "ADEChallengeData2016"
    (root / "images/training/000003.jpg").write_bytes(b"no picture")
    (root / "annotations/validation/000002.png").unlink()
    with pytest.raises(UserError, match=r"images/training/000003\.jpg: it cannot be decoded"):
        train_and_score_head(tiny_vit(), root, tmp_path / "run", SETTINGS)
    result = train_and_score_head(tiny_vit(), root, tmp_path / "run", SETTINGS, skip_bad=True)
    assert [path for path, _ in result.left_out] == ["images/training/000003.jpg", "images/validation/000002.jpg"]
    assert result.names == tuple(f"{n:06d}" for n in (1, 3, 4, 5, 6))
    assert "000003" not in (tmp_path / "run" / "training.txt").read_text().split()


def test_the_callers_random_numbers_are_left_alone(tree: Path, tmp_path: Path) -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.random(), torch.rand(1)
    vit = tiny_vit()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    train_and_score_head(vit, tree, tmp_path, SETTINGS)
    assert (random.random(), np.random.random(), torch.rand(1)) == expected


def test_a_loss_that_is_no_number_stops_the_run(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the loss is nan at iteration"):
        train_and_score_head(tiny_vit(), tree, tmp_path, replace(SETTINGS, lr=1e30, frozen=False))


# Several processes, and the config that is written


def test_two_processes_share_a_run(tree: Path, tmp_path: Path) -> None:
    alone = train_and_score_head("timm:resnet10t", tree, tmp_path / "alone", SETTINGS, pretrained=False)
    job = {
        "encoder": "timm:resnet10t", "pretrained": False, "data_root": str(tree), "work_dir": str(tmp_path / "two"),
        "settings": {name: getattr(SETTINGS, name) for name in SETTINGS.__dataclass_fields__},
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "equibench.segmentation.run", str(tmp_path / "job.json")],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    line = json.loads(done.stdout.strip().splitlines()[-1])
    assert line["images"] == 6
    assert line["miou_floor"] == alone.floor.miou
    with np.load(tmp_path / "two" / "areas.npz") as areas:
        # what is annotated does not depend on training: images must come back in their order, each once
        np.testing.assert_array_equal(areas["label"], alone.areas.label)
    assert int(torch.load(tmp_path / "two" / "iter_12.pth", weights_only=False)["meta"]["iter"]) == 12
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_config_that_a_run_writes_can_be_read_again(tree: Path, tmp_path: Path) -> None:
    train_and_score_head("timm:resnet10t", tree, tmp_path, replace(SETTINGS, iterations=3), pretrained=False)
    config = Config.fromfile(next(tmp_path.glob("*.py")))
    assert config.model.backbone.type == "equibench.Encoder"
    assert config.model.backbone.encoder == "timm:resnet10t"
    assert config.train_dataloader.dataset.dataset.type == "equibench.ListedImages"
