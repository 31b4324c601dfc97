"""The class token and the quarters of the grid against what tokens and maps give by hand, from one forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from equibench.encoders.adapter import ImageEncoder, Preprocessing
from equibench.encoders.vit import TOKEN_SETS, ViTEncoder, quarters
from equibench.profiles import EncoderSize
from equibench.transforms.transformation import view_spec

PLAIN = Preprocessing(None, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def images(count: int = 3, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def own(variant: str = "headline") -> ViTEncoder:
    torch.manual_seed(0)
    size = EncoderSize(width=24, depth=2, heads=2, patch=4, features=16)
    return ViTEncoder(size, 32, view_spec(variant, 32)).eval()  # type: ignore[arg-type]


def wrapped(model: nn.Module, **options: Any) -> ImageEncoder:
    return ImageEncoder(model, architecture="x", preprocessing=PLAIN, **options)


def timms(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **options).eval()


def means_of_quarters(grid: np.ndarray) -> np.ndarray:
    """Of maps (N, D, h, w) with even sides: each channel's four, row by row."""
    h, w = (side // 2 for side in grid.shape[2:])
    four = [grid[:, :, :h, :w], grid[:, :, :h, w:], grid[:, :, h:, :w], grid[:, :, h:, w:]]
    return np.stack([part.mean(axis=(2, 3)) for part in four], axis=2).reshape(len(grid), -1)


def counting(module: nn.Module) -> list[int]:
    passes: list[int] = []
    module.register_forward_hook(lambda *_: passes.append(1))
    return passes


@pytest.mark.parametrize("variant", ["headline", "paper_like"])
@torch.no_grad()
def test_the_suites_own_vit(variant: str) -> None:
    encoder = own(variant)
    tokens = encoder.tokens(encoder.normalise(images()))
    whole = np.zeros((3, 16, 64), np.float32)
    whole[:, :, encoder.visible.numpy()] = tokens.patches.numpy().transpose(0, 2, 1)
    assert (len(encoder.visible) < 64) == (variant == "headline")
    passes = counting(encoder.vit.blocks)
    found = encoder.outputs(images(), TOKEN_SETS)
    assert list(found) == ["default", "cls", "grid"]
    assert len(passes) == 1
    torch.testing.assert_close(found["default"], encoder.represent(images()))
    torch.testing.assert_close(found["cls"], tokens.cls)
    np.testing.assert_allclose(found["grid"], means_of_quarters(whole.reshape(3, 16, 8, 8)), atol=1e-5)
    assert list(encoder.outputs(images())) == ["default"]
    assert list(encoder.outputs(images(), ["grid"])) == ["default", "grid"]


@torch.no_grad()
def test_the_suites_vit_gives_the_same_when_it_is_opened_as_any_other() -> None:
    encoder = own()
    adapter = ImageEncoder(encoder, architecture="x", preprocessing=Preprocessing(), views=view_spec("headline", 32))
    assert adapter.token_sets == TOKEN_SETS
    mine, theirs = encoder.outputs(images(), TOKEN_SETS), adapter.outputs(images(), TOKEN_SETS)
    for name in ("cls", "grid"):
        torch.testing.assert_close(theirs[name], mine[name])


@torch.no_grad()
def test_a_vit_of_timm() -> None:
    model = timms("test_vit", img_size=64)
    encoder = wrapped(model)
    x = encoder.prepare(images(side=64))
    tokens = model.forward_features(x)
    side = int((tokens.shape[1] - 1) ** 0.5)
    assert side > 2
    passes = counting(model.blocks)
    found = encoder.outputs(images(side=64), TOKEN_SETS)
    assert len(passes) == 1
    torch.testing.assert_close(found["cls"], tokens[:, 0])
    torch.testing.assert_close(found["default"], model.forward_head(tokens, pre_logits=True))
    grid = tokens[:, 1:].reshape(3, side, side, -1).permute(0, 3, 1, 2).numpy()
    np.testing.assert_allclose(found["grid"], means_of_quarters(grid), atol=1e-5)


@pytest.mark.parametrize("pooling", ["default", "mean", "layer:layer2"])
@torch.no_grad()
def test_a_convolutional_network_has_a_grid_and_no_class_token(pooling: str) -> None:
    model = timms("test_resnet")
    encoder = wrapped(model, pooling=pooling)
    final = model.forward_features(encoder.prepare(images(side=128)))
    assert final.shape[-1] % 2 == 0
    assert encoder.token_sets == ("grid",)
    passes = counting(model.layer1)
    found = encoder.outputs(images(side=128), ["grid", "layer1"])
    assert len(passes) == 1
    assert list(found) == ["default", "grid", "layer1"]
    np.testing.assert_allclose(found["grid"], means_of_quarters(final.numpy()), atol=1e-5)
    torch.testing.assert_close(found["default"], encoder.represent(images(side=128)))


@torch.no_grad()
def test_vits_of_torchvision_and_channels_that_come_last() -> None:
    torch.manual_seed(0)
    vit = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32).eval()
    taken: list[Tensor] = []
    vit.encoder.ln.register_forward_hook(lambda _module, _inputs, output: taken.append(output))
    sizes = Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    encoder = ImageEncoder(vit, architecture="x", preprocessing=sizes, classifier=("heads.head.",))
    assert encoder.token_sets == TOKEN_SETS
    found = encoder.outputs(images(), TOKEN_SETS)
    torch.testing.assert_close(found["cls"], taken[-1][:, 0])
    grid = taken[-1][:, 1:].reshape(3, 4, 4, 16).permute(0, 3, 1, 2).numpy()
    np.testing.assert_allclose(found["grid"], means_of_quarters(grid), atol=1e-5)

    swin = torchvision.models.SwinTransformer([2, 2], 16, [1, 1], [2, 2], [4, 4], num_classes=3).eval()
    last: list[Tensor] = []
    swin.norm.register_forward_hook(lambda _module, _inputs, output: last.append(output))
    encoder = ImageEncoder(swin, architecture="x", preprocessing=sizes, classifier=("head.",))
    assert encoder.token_sets == ("grid",)
    found = encoder.outputs(images(), ["grid"])
    np.testing.assert_allclose(found["grid"], means_of_quarters(last[-1].permute(0, 3, 1, 2).numpy()), atol=1e-5)


def test_what_has_neither_tokens_nor_a_map_has_no_sets() -> None:
    assert ImageEncoder(lambda x: x.mean((2, 3)), architecture="x", preprocessing=PLAIN).token_sets == ()
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    assert wrapped(linear).token_sets == ()


def test_quarters_of_a_map_with_odd_sides_overlap_and_are_float32() -> None:
    grid = torch.arange(9.0).reshape(1, 1, 3, 3)
    np.testing.assert_array_equal(quarters(grid), [[2, 3, 5, 6]])  # means of the four 2 x 2 corners
    assert quarters(grid.bfloat16()).dtype == torch.float32
