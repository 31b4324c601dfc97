"""Decode heads, the metric, the draws of samples and configs of one's own, as mmsegmentation builds them."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from equibench.metrics.segmentation import scores_from_areas
from equibench.segmentation import missing_packages

if missing_packages():
    pytest.skip(f"needs {', '.join(missing_packages())}", allow_module_level=True)

from mmengine import Config
from mmengine.registry import init_default_scope
from mmseg.evaluation import IoUMetric
from mmseg.registry import MODELS

from equibench.segmentation.engine import AreaMetric, HyperNetHead, KeyedDataset, KeyedSampler, LinearHead

# The heads


def test_the_hypernet_head_follows_its_formula() -> None:
    torch.manual_seed(0)
    head = HyperNetHead([6, 4], 5, upsample=2, channels_per_level=7, channels=8).eval()
    maps = [torch.randn(2, 6, 4, 6), torch.randn(2, 4, 2, 3)]
    levels = []
    for x, conv in zip(maps, head.reduce, strict=True):
        x = F.interpolate(x, size=(8, 12), mode="bilinear", align_corners=False)
        x = F.conv2d(x, conv.weight, conv.bias, padding=2)
        squares = F.pad(x.square(), (0, 0, 0, 0, 2, 2))
        window = sum(squares[:, shift : shift + 7] for shift in range(5))
        levels.append(x / (1 + 1e-4 * window / 5) ** 0.75)
    torch.testing.assert_close(head.hyper_feature(maps), torch.cat(levels, dim=1))
    assert conv.weight.shape[-2:] == (5, 5)
    assert head(maps).shape == (2, 5, 8, 12)
    assert head.dropout is not None
    assert head.dropout.p == 0.1


def test_the_literal_hypernet_has_42_channels_a_level() -> None:
    head = HyperNetHead([16] * 4, 150)
    assert head.hyper_feature([torch.randn(1, 16, 2, 2)] * 4).shape == (1, 4 * 42, 8, 8)
    assert any(isinstance(m, nn.LocalResponseNorm) for m in head.modules())
    other = HyperNetHead([16] * 4, 150, channels_per_level=128, level_norm="batch")
    assert other.hyper_feature([torch.randn(1, 16, 2, 2)] * 4).shape == (1, 512, 8, 8)
    assert not any(isinstance(m, nn.LocalResponseNorm) for m in other.modules())


def test_the_linear_head_is_a_norm_and_a_matrix() -> None:
    head = LinearHead([6, 4], 5).eval()
    maps = [torch.randn(2, 6, 4, 6), torch.randn(2, 4, 2, 3)]
    x = torch.cat([maps[0], F.interpolate(maps[1], size=(4, 6), mode="bilinear", align_corners=False)], dim=1)
    expected = F.conv2d(x / (1 + head.norm.eps) ** 0.5, head.conv_seg.weight, head.conv_seg.bias)
    torch.testing.assert_close(head(maps), expected, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in head.parameters()) == 2 * 10 + 5 * 10 + 5


# The metric and the draws


def test_areas_added_up_are_mmsegmentations_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(5):
        label = torch.randint(0, 5, (1, 20, 30), generator=generator)
        label[torch.rand(label.shape, generator=generator) < 0.1] = 255
        guess = torch.randint(0, 4, label.shape, generator=generator)
        samples.append({"pred_sem_seg": {"data": guess}, "gt_sem_seg": {"data": label}})
    ours, theirs = AreaMetric(), IoUMetric()
    results = {}
    for metric in (ours, theirs):
        metric.dataset_meta = {"classes": list("abcdef")}
        metric.process({}, samples)
        results[metric] = {key.split("/")[-1]: value for key, value in metric.evaluate(5).items()}
    assert ours.areas is not None
    assert ours.areas.label.shape == (5, 6)
    assert ours.areas.label.dtype == np.int64
    scores = scores_from_areas(ours.areas)
    for name, value in (("mIoU", scores.miou), ("mAcc", scores.macc), ("aAcc", scores.aacc)):
        assert results[ours][name] == pytest.approx(100 * value)
        assert results[theirs][name] == pytest.approx(100 * value, abs=0.006)  # it rounds to two digits


def test_each_sample_depends_on_its_number_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Drawing:
        metainfo: dict[str, str] = {}

        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> tuple[int, float, float]:
            return index, random.random(), float(np.random.random())

    monkeypatch.setattr(KeyedDataset, "__init__", lambda self, seed: self.__dict__.update(dataset=Drawing(), seed=seed))
    stream = KeyedDataset(7)  # type: ignore[call-arg, arg-type]
    samples = [stream[number] for number in range(15)]
    assert [stream[number] for number in (13, 2)] == [samples[13], samples[2]]
    for epoch in range(3):
        assert sorted(index for index, _, _ in samples[5 * epoch : 5 * epoch + 5]) == list(range(5))
    assert len({draw for _, draw, _ in samples}) == 15
    assert KeyedDataset(8)[2] != samples[2]  # type: ignore[call-arg, arg-type]


def test_processes_share_each_iterations_samples() -> None:
    numbers = []
    for rank in range(2):
        sampler = KeyedSampler(range(10), batch=2)  # type: ignore[arg-type]
        assert list(sampler) == []  # nothing before the loop has said where to start
        sampler.rank, sampler.world, sampler.start = rank, 2, 3
        numbers.append([number for number, _ in zip(sampler, range(4), strict=False)])
    assert numbers == [[12, 13, 16, 17], [14, 15, 18, 19]]


# Configs of one's own


CONFIG = """
custom_imports = dict(imports=["equibench.segmentation"], allow_failed_imports=False)
default_scope = "mmseg"
norm = dict(type="BN")
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", size=(64, 64)),
    backbone=dict(type="equibench.Encoder", encoder="timm:vit_tiny_patch16_224", pretrained=False),
    decode_head=dict(type="UPerHead", in_channels=[192] * 4, in_index=[0, 1, 2, 3], pool_scales=(1, 2), channels=8,
                     num_classes=5, norm_cfg=norm, align_corners=False),
    auxiliary_head=dict(type="equibench.HyperNetHead", in_channels=[192] * 4, num_classes=5, channels_per_level=4),
    train_cfg=dict(), test_cfg=dict(mode="whole"))
"""


def test_a_config_of_ones_own_takes_the_encoder() -> None:
    config = Config.fromstring(CONFIG, file_format=".py")
    init_default_scope(config.default_scope)
    model = MODELS.build(config.model).eval()
    assert model.backbone.out_indices == (2, 5, 8, 11)
    assert model(torch.zeros(1, 3, 64, 48), mode="tensor").shape == (1, 5, 4, 3)
    assert not any(p.requires_grad for p in model.backbone.parameters())


def test_a_fresh_process_knows_the_encoder_from_the_config_alone() -> None:
    script = f"""if True:
        from mmengine import Config
        Config.fromstring({CONFIG!r}, file_format=".py")
        from mmseg.registry import MODELS
        print(MODELS.get("equibench.Encoder").__name__)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["Encoder"], done.stderr


def test_a_pretrained_encoder_survives_mmengines_initialisation() -> None:
    config = Config.fromstring(CONFIG, file_format=".py")
    init_default_scope(config.default_scope)
    model = MODELS.build(config.model)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
