"""The ViT encoder against timm's own forward pass; what it skips, what it never changes, and its digest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from equibench.encoders.vit import Tokens, ViTEncoder, weights_sha256
from equibench.profiles import EncoderSize
from equibench.transforms.transformation import MEAN, STD, view_spec

SIZE = EncoderSize(width=24, depth=2, heads=2, patch=4, features=16)


@pytest.fixture
def encoder() -> ViTEncoder:
    torch.manual_seed(0)
    return ViTEncoder(SIZE, 32, view_spec("headline", 32)).eval()


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def disc(radius: float) -> np.ndarray:
    return np.array([[(x - 15.5) ** 2 + (y - 15.5) ** 2 <= radius**2 for x in range(32)] for y in range(32)])


def plain_timm(encoder: ViTEncoder) -> VisionTransformer:
    vit = VisionTransformer(img_size=32, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=0)
    vit.load_state_dict(encoder.vit.state_dict(), strict=False)  # no pooling there: its norm is its last layer
    return vit.eval()


@torch.no_grad()
def test_without_a_mask_it_is_timms_forward_pass() -> None:
    torch.manual_seed(0)
    whole = ViTEncoder(SIZE, 32, view_spec("paper_like", 32)).eval()
    expected = whole.head(plain_timm(whole).forward_features(images()))
    torch.testing.assert_close(whole(images()), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_with_a_mask_it_is_timms_blocks_on_the_tokens_that_are_kept(encoder: ViTEncoder) -> None:
    patches = disc(11.5).reshape(8, 4, 8, 4).any(axis=(1, 3)).ravel()
    assert encoder.visible.tolist() == np.flatnonzero(patches).tolist()
    assert 0 < len(encoder.visible) < 64
    vit, x = plain_timm(encoder), encoder.normalise(images())
    tokens = vit._pos_embed(vit.patch_embed(x))
    kept = tokens[:, torch.from_numpy(np.concatenate([[True], patches]))]
    expected = encoder.head(vit.norm(vit.blocks(kept)))
    torch.testing.assert_close(encoder(x), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.represent(images()), expected[:, 1:].mean(dim=1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_what_lies_outside_the_disc_is_not_seen(encoder: ViTEncoder) -> None:
    inside = torch.from_numpy(disc(11.5))
    one, other = images(), torch.where(inside, images(), 1 - images())
    assert torch.equal(encoder.represent(one), encoder.represent(other))
    moved = torch.where(inside, 1 - images(), images())
    assert (encoder.represent(one) - encoder.represent(moved)).abs().max() > 1e-3


def test_normalisation_is_torchvisions_inside_and_zero_outside(encoder: ViTEncoder) -> None:
    inside = torch.from_numpy(disc(11.5))
    ours, theirs = encoder.normalise(images()), tv.normalize(images(), list(MEAN), list(STD))
    torch.testing.assert_close(ours[..., inside], theirs[..., inside])
    assert (ours[..., ~inside] == 0).all()


def test_view_specs() -> None:
    assert view_spec("headline", 32).radius == 11.5
    assert view_spec("headline", 224).radius == 224 / 2 - 10 - 0.5
    assert view_spec("headline", 32).fill == "reflect"
    paper = view_spec("paper_like", 32)
    assert (paper.fill, paper.radius) == ("black", None)


@torch.no_grad()
def test_representing_changes_no_weight_and_no_buffer(encoder: ViTEncoder) -> None:
    def everything() -> dict[str, Tensor]:
        # named_buffers lists those as well that a state dict leaves out
        both = dict(encoder.state_dict()) | dict(encoder.named_buffers())
        return {name: value.clone() for name, value in both.items()}

    before = everything()
    assert "mask" in before
    first = encoder.represent(images())
    encoder.represent(images() * 0.1)
    after = everything()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(first, encoder.represent(images()))


def test_mean_is_of_the_patches_in_float32() -> None:
    tokens = Tokens(torch.full((2, 4), 100.0), torch.arange(24.0).view(2, 3, 4).bfloat16())
    assert tokens.mean.dtype == torch.float32
    np.testing.assert_array_equal(tokens.mean, np.arange(24.0).reshape(2, 3, 4).mean(axis=1))


def test_digest_changes_with_every_weight(encoder: ViTEncoder) -> None:
    digests = {weights_sha256(encoder)}
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.view(-1)[-1] += 1e-3
            digests.add(weights_sha256(encoder))
    assert len(digests) == 1 + len(list(encoder.parameters()))


def test_digest_does_not_depend_on_the_order_of_layers_or_memory() -> None:
    class Named(nn.Module):
        def __init__(self, names: str, transposed: bool = False) -> None:
            super().__init__()
            for name in names:
                weight = torch.arange(6.0).view(2, 3) + ord(name)
                if transposed:
                    weight = weight.T.contiguous().T
                self.register_parameter(name, nn.Parameter(weight))

    digest = weights_sha256(Named("ab"))
    assert digest == weights_sha256(Named("ba")) == weights_sha256(Named("ab", transposed=True))
    assert digest != weights_sha256(Named("ac"))
    swapped = Named("ab")
    swapped.a, swapped.b = swapped.b, swapped.a
    assert digest != weights_sha256(swapped)
    reshaped = Named("ab")
    reshaped.a = nn.Parameter(reshaped.a.detach().reshape(3, 2))
    assert digest != weights_sha256(reshaped)
