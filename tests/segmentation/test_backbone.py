"""Encoders as backbones of a segmentation: maps at several depths, of images of any size, without a change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from equibench.encoders.layers import record_layers
from equibench.encoders.vit import ViTEncoder, weights_sha256
from equibench.encoders.zoo import build_network
from equibench.errors import UserError
from equibench.pretrain.runs import FACTS, WEIGHTS
from equibench.profiles import EncoderSize, get_profile
from equibench.segmentation.backbone import Encoder, fitted, spread
from equibench.transforms.transformation import view_spec


def small_vit(size: int = 32, depth: int = 4) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=size, patch_size=8, embed_dim=16, depth=depth, num_heads=2, num_classes=0, global_pool=""
    )


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    stages = [(nn.Conv2d(c, c + 5, 3, 2, 1), nn.BatchNorm2d(c + 5), nn.ReLU()) for c in (3, 8, 13, 18)]
    return nn.Sequential(*[layer for stage in stages for layer in stage])


@pytest.mark.parametrize(("depth", "expected"), [(12, (2, 5, 8, 11)), (24, (5, 11, 17, 23)), (2, (0, 0, 1, 1))])
def test_four_depths_evenly_spaced(depth: int, expected: tuple[int, ...]) -> None:
    assert spread(depth) == expected


def test_maps_are_the_tokens_behind_the_blocks() -> None:
    vit = small_vit().eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = record_layers(vit, ["blocks.0", "blocks.3"], lambda: vit(images))
        before = vit(images)
        maps = Encoder(vit, out_indices=(0, 3))(images)
    for one, name in zip(maps, ("blocks.0", "blocks.3"), strict=True):
        expected = tokens[name][:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        torch.testing.assert_close(one, expected)
    torch.testing.assert_close(vit(images), before)  # the caller's own network is left as it was


@pytest.mark.parametrize("size", [(32, 32), (64, 40), (33, 50)])
def test_a_vit_takes_any_size(size: tuple[int, int]) -> None:
    maps = Encoder(small_vit())(torch.randn(1, 3, *size))
    assert [tuple(m.shape[1:]) for m in maps] == [(16, round(size[0] / 8), round(size[1] / 8))] * 4


def test_an_image_between_two_sizes_is_stretched_and_not_padded() -> None:
    ramp = torch.linspace(0, 1, 33).expand(1, 3, 40, 33)
    out = fitted(ramp, 8)
    assert out.shape[-2:] == (40, 32)
    assert out[0, 0, 0, -1] > 0.98
    assert fitted(out, 8) is out


def test_the_suites_own_encoder_sees_all_patches_here() -> None:
    encoder = ViTEncoder(EncoderSize(16, 2, 2, 4, features=8), 32, view_spec("headline", 32)).eval()
    assert len(encoder.visible) < 64
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        positions, first = encoder.vit.pos_embed, encoder.vit.cls_token
        assert positions is not None
        assert first is not None
        tokens = encoder.vit.patch_embed(images) + positions[:, 1:]
        tokens = encoder.vit.blocks(torch.cat([first + positions[:, :1], tokens], dim=1))
        expected = tokens[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
        maps = Encoder(encoder)(images)
    torch.testing.assert_close(maps[-1], expected)


def test_a_convolutional_network_gives_its_resolutions() -> None:
    encoder = Encoder(convolutions(), size=64)
    assert (encoder.channels, encoder.strides) == ((8, 13, 18, 23), (2, 4, 8, 16))
    other = Encoder("timm:resnet10t", pretrained=False, size=224)
    assert (other.channels, other.strides) == ((64, 128, 256, 512), (4, 8, 16, 32))


def test_a_frozen_encoder_stays_in_eval_mode_without_gradients() -> None:
    encoder = Encoder(convolutions())
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.train()
    maps = encoder(torch.randn(4, 3, 32, 32))
    assert not any(m.requires_grad for m in maps)
    assert not any(module.training for module in encoder.modules())
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    free = Encoder(convolutions(), frozen=False).train()
    assert all(m.requires_grad for m in free(torch.randn(4, 3, 32, 32)))
    assert int(free.state_dict()["network.1.num_batches_tracked"]) == 1


def test_all_that_is_trained_gets_a_gradient() -> None:
    encoder = Encoder(small_vit(depth=6), out_indices=(0, 2), frozen=False)
    sum(m.square().sum() for m in encoder(torch.randn(1, 3, 32, 32))).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_errors_of_an_encoder_name_what_is_wrong() -> None:
    with pytest.raises(UserError, match="4 depths, 0 to 3"):
        Encoder(small_vit(), out_indices=(3, 4))
    with pytest.raises(UserError, match="no feature maps"):
        Encoder(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.Linear(8, 8)), size=16)
    with pytest.raises(UserError, match="size=224"):
        Encoder("timm:swin_tiny_patch4_window7_224", pretrained=False)(torch.zeros(1, 3, 100, 100))


def test_an_encoder_of_one_size_is_given_it() -> None:
    encoder = Encoder("timm:swin_tiny_patch4_window7_224", pretrained=False, size=224)
    assert [m.shape[-1] for m in encoder(torch.zeros(1, 3, 64, 64))] == [56, 28, 14, 7]


def test_the_folder_of_a_run_and_a_file_of_weights_are_opened(tmp_path: Path) -> None:
    profile = get_profile("tiny")
    own = ViTEncoder(profile.encoder, profile.image_size, view_spec("headline", profile.image_size)).eval()
    folder = tmp_path / "reconstruction" / "seed0"
    folder.mkdir(parents=True)
    save_file(own.state_dict(), folder / WEIGHTS)
    (folder / FACTS).write_text(json.dumps({"encoder_sha256": weights_sha256(own)}))
    images = torch.randn(1, 3, 40, 32)
    opened, given = Encoder(str(folder)), Encoder(own)
    torch.testing.assert_close(opened(images)[-1], given(images)[-1], rtol=0, atol=0)
    other = Encoder("timm:resnet10t", pretrained=False, size=64, seed=3)
    torch.save(build_network("timm:resnet10t", False, None, 3).state_dict(), tmp_path / "weights.pth")
    filed = Encoder(tmp_path / "weights.pth", arch="timm:resnet10t", size=64)
    torch.testing.assert_close(filed(images)[-1], other(images)[-1], rtol=0, atol=0)
