"""Encoders against plain timm and torchvision calls on batches prepared by hand; the mask, the layers, the refusals."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from equibench.encoders.adapter import NO_MASK, ImageEncoder, Preprocessing, check_varies
from equibench.encoders.layers import first_bad_layer, layer_names, pool, record_layers
from equibench.encoders.open import open_encoder
from equibench.encoders.vit import ViTEncoder
from equibench.encoders.zoo import settle_batch_norm
from equibench.errors import UserError
from equibench.profiles import EncoderSize
from equibench.transforms.transformation import ViewSpec, view_spec

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
PLAIN = Preprocessing(None, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def images(count: int = 3, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def vit() -> Any:
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=32).eval()


def resnet() -> Any:
    torch.manual_seed(0)
    return timm.create_model("test_resnet").eval()


def mobilenet() -> Any:
    torch.manual_seed(0)
    return torchvision.models.mobilenet_v2(width_mult=0.25).eval()


def encoder(model: Any, preprocessing: Preprocessing = PLAIN, **options: Any) -> ImageEncoder:
    return ImageEncoder(model, architecture="x", preprocessing=preprocessing, **options)


def by_hand(size: int = 32) -> Tensor:
    return tv.resize(tv.normalize(images(), MEAN, STD), [size, size], antialias=True)


@torch.no_grad()
def test_timm_features_are_timms() -> None:
    x, v, r = by_hand(), vit(), resnet()
    tokens = v.forward_features(x)
    torch.testing.assert_close(encoder(v).represent(images()), v.forward_head(tokens, pre_logits=True))
    torch.testing.assert_close(encoder(v, pooling="cls").represent(images()), tokens[:, 0])
    torch.testing.assert_close(encoder(v, pooling="mean").represent(images()), tokens[:, 1:].mean(1))
    folded = tokens[:, 1:].reshape(3, 2, 2, -1).permute(0, 3, 1, 2)
    assert torch.equal(encoder(v).token_map(images()), folded)
    torch.testing.assert_close(encoder(r).represent(images()), r.forward_features(x).mean((2, 3)))
    torch.testing.assert_close(encoder(r).token_map(images()), r.forward_features(x))
    with pytest.raises(UserError, match="no class token"):
        encoder(r, pooling="cls").represent(images())


@torch.no_grad()
def test_torchvision_features_are_the_classifiers_input() -> None:
    model, x = mobilenet(), by_hand()
    wrapped = encoder(model, classifier=("classifier.1.",))
    last = model.features(x)
    torch.testing.assert_close(wrapped.represent(images()), last.mean((2, 3)))
    torch.testing.assert_close(wrapped.token_map(images()), last)
    torch.testing.assert_close(wrapped.represent(images()) @ model.classifier[1].weight.T, model(x), atol=1e-4, rtol=0)
    convnext = torchvision.models.convnext_tiny().eval()
    # beside its classifier stands a norm of a 1 x 1 map, which is no feature map
    final = encoder(convnext, classifier=("classifier.2.",)).token_map(images())
    torch.testing.assert_close(final, convnext.features(x))


@torch.no_grad()
def test_torchvision_vit_has_a_class_token_and_a_grid() -> None:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32).eval()
    wrapped, x = encoder(model, classifier=("heads.head.",)), by_hand()
    model.heads = nn.Identity()
    expected = model(x)
    model.heads = nn.Sequential()
    model.heads.head = nn.Linear(16, 10)
    torch.testing.assert_close(wrapped.represent(images()), expected)
    torch.testing.assert_close(encoder(model, pooling="cls").represent(images()), expected)
    assert wrapped.token_map(images()).shape == (3, 16, 4, 4)
    assert wrapped.layers == ("encoder.layers.encoder_layer_0",)


@torch.no_grad()
def test_our_own_vit_is_read_like_any_other() -> None:
    torch.manual_seed(0)
    views = view_spec("headline", 32)
    model = ViTEncoder(EncoderSize(width=24, depth=2, heads=2, patch=4, features=16), 32, views).eval()
    wrapped = encoder(model, Preprocessing(None), views=views)
    torch.testing.assert_close(wrapped.represent(images()), model.represent(images()))
    assert wrapped.layers == ("vit.blocks.0", "vit.blocks.1")
    folded = wrapped.token_map(images())
    assert folded.shape == (3, 16, 8, 8)
    shown = torch.zeros(64, dtype=torch.bool)
    shown[model.visible] = True
    assert (folded.flatten(2)[..., ~shown] == 0).all()
    torch.testing.assert_close(folded.flatten(2)[..., shown].mean(-1), model.represent(images()))


@torch.no_grad()
def test_functions_and_modules_that_nobody_knows() -> None:
    plain = encoder(lambda x: x.flatten(2).transpose(1, 2))
    torch.testing.assert_close(plain.represent(images()), by_hand().mean((2, 3)))
    assert plain.layers == ()
    assert plain.identity is None
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    torch.testing.assert_close(encoder(conv).represent(images()), conv(by_hand()))
    torch.testing.assert_close(encoder(conv).token_map(images()), conv[:2](by_hand()))
    with pytest.raises(UserError, match="neither a feature map nor tokens"):
        encoder(nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))).token_map(images())


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "resnet", "mobilenet"])
def test_layers_come_from_one_pass_and_are_what_the_network_computes(name: str) -> None:
    model = {"vit": vit, "resnet": resnet, "mobilenet": mobilenet}[name]()
    wrapped = encoder(model, classifier=("classifier.1.",) if name == "mobilenet" else ())
    passes = []
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(lambda *_: passes.append(1))
    outputs = wrapped.outputs(images(), wrapped.layers)
    assert len(passes) == 1
    assert list(outputs) == ["default", *wrapped.layers]
    assert torch.equal(outputs["default"], wrapped.represent(images()))
    x = by_hand()
    if name == "vit":
        expected = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
        for layer, value in zip(wrapped.layers, expected, strict=True):
            torch.testing.assert_close(outputs[layer], value.mean(1))
    elif name == "resnet":
        expected = model.forward_intermediates(x, intermediates_only=True)[1:]
        for layer, value in zip(("layer1.0", "layer2.0", "layer3.0", "layer4.0"), expected, strict=True):
            torch.testing.assert_close(outputs[layer], value.mean((2, 3)))
    else:
        for layer, part in zip(wrapped.layers, model.features, strict=True):
            x = part(x)
            torch.testing.assert_close(outputs[layer], x.mean((2, 3)))
    assert all(not module._forward_hooks for module in model.modules() if module is not first)


@torch.no_grad()
def test_an_output_is_kept_before_a_later_layer_overwrites_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
    expected = model[0](by_hand()).mean((2, 3))
    torch.testing.assert_close(encoder(model).outputs(images(), ["0"])["0"], expected)
    kept = record_layers(model, ["0"], lambda: model(by_hand()))
    torch.testing.assert_close(kept["0"].mean((2, 3)), expected)


@torch.no_grad()
def test_a_layer_can_be_the_representation() -> None:
    model = vit()
    expected = encoder(model).outputs(images(), ["blocks.2"])["blocks.2"]
    for pooling in ("layer:blocks.2", "blocks.2"):
        assert torch.equal(encoder(model, pooling=pooling).represent(images()), expected)
    with pytest.raises(UserError, match="did you mean 'blocks.2"):
        encoder(model, pooling="block.2")
    with pytest.raises(UserError, match="no layer 'block.3'; did you mean 'blocks.3"):
        encoder(model).outputs(images(), ["block.3"])


@torch.no_grad()
def test_channels_that_come_last_are_pooled_as_such() -> None:
    torch.manual_seed(0)
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, embed_dim=12, depths=(1, 1), num_heads=(2, 2),
                             window_size=4).eval()  # fmt: skip
    wrapped = encoder(swin, Preprocessing(64, PLAIN.mean, PLAIN.std))
    final = swin.forward_features(by_hand(64))
    assert final.shape == (3, 8, 8, 24)
    torch.testing.assert_close(wrapped.token_map(images()), final.permute(0, 3, 1, 2))
    torch.testing.assert_close(encoder(swin, wrapped.preprocessing, pooling="mean").represent(images()),
                               final.mean((1, 2)))  # fmt: skip
    assert wrapped.outputs(images(), ["layers.0.blocks.0"])["layers.0.blocks.0"].shape == (3, 12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm:resnet18", [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]),
        ("timm:vit_tiny_patch16_224", [f"blocks.{i}" for i in range(12)]),
        ("timm:convnext_atto", [f"stages.{i}.blocks.{j}" for i, n in enumerate((2, 2, 6, 2)) for j in range(n)]),
        ("torchvision:mobilenet_v2", [f"features.{i}" for i in range(19)]),
        ("torchvision:vit_b_16", [f"encoder.layers.encoder_layer_{i}" for i in range(12)]),
        ("torchvision:alexnet", [f"features.{i}" for i in range(13)]),
    ],
)
def test_blocks_are_found_by_structure(name: str, expected: list[str]) -> None:
    library, _, model = name.partition(":")
    with torch.device("meta"):
        network = timm.create_model(model) if library == "timm" else torchvision.models.get_model(model)
    assert list(layer_names(network)) == expected


def test_pooling_by_number_of_dimensions() -> None:
    x = torch.arange(48.0).reshape(2, 3, 8)
    assert torch.equal(pool(x[:, 0]), x[:, 0])
    torch.testing.assert_close(pool(x, 1), x[:, 1:].mean(1))
    torch.testing.assert_close(pool(x[:, :1], 1), x[:, 0])
    maps = x.reshape(2, 3, 2, 4)
    torch.testing.assert_close(pool(maps), maps.mean((2, 3)))
    torch.testing.assert_close(pool(maps, channels_last=True), maps.mean((1, 2)))
    assert pool(maps.bfloat16()).dtype == torch.float32
    with pytest.raises(UserError, match="cannot be pooled"):
        pool(maps[None])


@torch.no_grad()
@pytest.mark.parametrize("size", [None, 48, 24])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_hidden_pixels_are_never_seen(size: int | None, interpolation: str) -> None:
    wrapped = encoder(
        nn.Flatten(), Preprocessing(size, PLAIN.mean, PLAIN.std, interpolation), views=ViewSpec("x", "reflect", 11.5)
    )
    axis = np.arange(32) - 15.5
    inside = torch.from_numpy(np.hypot(axis[:, None], axis[None]) <= 11.5)
    assert torch.equal(wrapped.represent(images()), wrapped.represent(torch.where(inside, images(), 1 - images())))
    assert not torch.equal(wrapped.represent(images()), wrapped.represent(torch.where(inside, 1 - images(), images())))


def test_preprocessing_is_torchvisions() -> None:
    assert torch.equal(encoder(nn.Identity()).prepare(images()), by_hand())
    for size in (48, 20):
        wrapped = encoder(nn.Identity(), Preprocessing(size, PLAIN.mean, PLAIN.std))
        torch.testing.assert_close(wrapped.prepare(images()), by_hand(size))
    with pytest.raises(UserError, match="did you mean 'bicubic'"):
        Preprocessing(interpolation="bicubik")
    with pytest.raises(UserError, match="three channels|RGB"):
        Preprocessing(std=(1.0, 0.0, 1.0))


def test_batch_norm_never_drifts() -> None:
    wrapped = encoder(resnet())
    assert not any(parameter.requires_grad for parameter in wrapped.parameters())
    before = {name: value.clone() for name, value in wrapped.state_dict().items()}
    first = wrapped.represent(images())
    nn.Sequential(wrapped).train()
    wrapped.train()
    assert not any(module.training for module in wrapped.modules())
    wrapped.represent(images() * 0.1)
    assert all(torch.equal(before[name], value) for name, value in wrapped.state_dict().items())
    assert torch.equal(first, wrapped.represent(images()))
    # a sum over a batch of one is the same as over many: images do not see each other
    torch.testing.assert_close(wrapped.represent(images()[:1]), first[:1])


def test_identity_changes_with_all_that_features_depend_on() -> None:
    def digest(wrapped: ImageEncoder) -> str:
        return json.dumps(wrapped.identity, sort_keys=True)

    base = digest(encoder(resnet()))
    assert base == digest(encoder(resnet()))
    other = resnet()
    with torch.no_grad():
        other.bn1.running_mean[0] += 1e-3
    strided = resnet()
    strided.layer2[0].conv1.stride = (1, 1)
    changed = [
        encoder(other),
        encoder(strided),
        encoder(resnet(), Preprocessing(48, PLAIN.mean, PLAIN.std)),
        encoder(resnet(), pooling="mean"),
        encoder(resnet(), views=ViewSpec("x", "reflect", 11.5)),
    ]
    assert len({base, *map(digest, changed)}) == 1 + len(changed)


def test_a_class_without_source_is_not_identified() -> None:
    scope: dict[str, Any] = {"nn": nn, "__name__": "__typed__"}
    exec("class Typed(nn.Module):\n    def forward(self, x):\n        return x.flatten(1)", scope)
    assert encoder(scope["Typed"]()).identity is None


def test_features_that_are_not_finite_name_the_layer() -> None:
    model = resnet()
    with torch.no_grad():
        model.layer3[0].conv2.weight.fill_(float("nan"))
    for call in (encoder(model).represent, lambda x: encoder(model).outputs(x, ["layer1.0"])):
        with pytest.raises(UserError, match="'layer3.0.conv2'"):
            call(images())
    assert first_bad_layer(resnet(), lambda: None) is None


def test_a_model_that_cannot_take_the_images_says_so() -> None:
    with pytest.raises(UserError, match="failed on images of 48.*"):
        encoder(VisionTransformer(32, 8, embed_dim=8, depth=1, num_heads=2), Preprocessing(48)).represent(images())


def test_constant_features_are_refused_by_name() -> None:
    check_varies({"a": torch.rand(4, 3), "b": np.eye(4)})
    constant = torch.full((4, 3), 7.0) + torch.rand(4, 3) * 1e-8
    with pytest.raises(UserError, match="'b' are the same for every image"):
        check_varies({"a": torch.rand(4, 3), "b": constant})
    with pytest.raises(UserError, match="'z'"):
        check_varies({"z": np.zeros((5, 2), np.float16)})


def test_no_mask_is_the_default() -> None:
    assert encoder(nn.Identity()).views == NO_MASK
    assert NO_MASK.radius is None


def test_an_untrained_network_gets_the_batch_norm_statistics_of_its_images() -> None:
    opened = open_encoder("torchvision:mobilenet_v2", pretrained=False, size=32)
    images = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert opened.encoder.represent(images).std(dim=0).mean() < 1e-6, "as initialised, its features vanish"
    weights = {n: p.clone() for n, p in opened.encoder.named_parameters()}
    assert settle_batch_norm(opened.encoder, [images[:12], images[12:]]) == 52
    assert opened.encoder.represent(images).std(dim=0).mean() > 0.01
    for name, value in opened.encoder.named_parameters():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0)
    first = opened.encoder.model.features[0]  # type: ignore[union-attr, index]
    seen = [first[0](opened.encoder.prepare(images[rows])) for rows in (slice(0, 12), slice(12, None))]  # type: ignore[index]
    expected = torch.stack([s.mean(dim=(0, 2, 3)) for s in seen]).mean(dim=0)
    torch.testing.assert_close(first[1].running_mean, expected, rtol=1e-3, atol=1e-5)  # type: ignore[index]
    before = first[1].running_mean.clone()  # type: ignore[index]
    opened.encoder.represent(images)
    torch.testing.assert_close(first[1].running_mean, before, rtol=0, atol=0)  # type: ignore[index]


def test_mean_and_std_of_255_are_refused_with_those_of_1() -> None:
    imagenet = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    for mean, std in (imagenet, (imagenet[0], PLAIN.std), (PLAIN.mean, imagenet[1])):
        with pytest.raises(UserError, match=r"not in units of \[0, 1\]") as told:
            Preprocessing(32, mean, std)
        if (mean, std) == imagenet:
            assert told.value.fix.endswith("--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225")
    for wrong in ((-0.1, 0, 0), (float("nan"), 0, 0)):
        with pytest.raises(UserError, match="units"):
            Preprocessing(32, wrong, PLAIN.std)
    assert Preprocessing(32, (0, 0, 0), (1 / 255,) * 3).std[0] == 1 / 255  # an encoder that wants 0 to 255
    assert Preprocessing(32, (0, 0.5, 1), (1, 1, 1)).mean[2] == 1
