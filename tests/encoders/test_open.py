"""Opening encoders by name, from files and from Python: their preprocessing, what is refused, what stays untouched."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from equibench.encoders import zoo
from equibench.encoders.guess import candidates, propose_rename
from equibench.encoders.open import open_encoder
from equibench.errors import UserError
from equibench.transforms.transformation import view_spec

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def images(side: int = 32) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def seeded(make: Any, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


@torch.no_grad()
def test_an_untrained_timm_model_with_its_own_preprocessing() -> None:
    opened = open_encoder("timm:test_resnet", pretrained=False, seed=3)
    model = seeded(lambda: timm.create_model("test_resnet"), 3)
    config = timm.data.resolve_model_data_config(model)
    mode = InterpolationMode(config["interpolation"])
    x = tv.resize(tv.normalize(images(), config["mean"], config["std"]), [160, 160], interpolation=mode, antialias=True)
    expected = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(opened.encoder.represent(images()), expected)
    assert (opened.name, opened.architecture, opened.pretrained) == ("timm:test_resnet", "timm:test_resnet", False)
    assert opened.coverage is None


@torch.no_grad()
def test_an_untrained_torchvision_model_and_overrides() -> None:
    opened = open_encoder("torchvision:mobilenet_v3_small", pretrained=False, size=32, mean=(0, 0, 0), std=(1, 1, 1))
    model = seeded(lambda: torchvision.models.mobilenet_v3_small())
    hidden = model.classifier[:3](model.avgpool(model.features(images())).flatten(1))
    torch.testing.assert_close(opened.encoder.represent(images()), hidden)
    own = open_encoder("torchvision:resnet18", pretrained=False).encoder.preprocessing
    assert (own.size, own.interpolation) == (224, "bilinear")
    assert own.mean == pytest.approx(IMAGENET[0])
    assert own.std == pytest.approx(IMAGENET[1])


@pytest.mark.parametrize("arch", ["timm:test_vit", "timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224"])
def test_a_vit_is_built_for_the_size_that_is_asked_for(arch: str) -> None:
    encoder = open_encoder(arch, pretrained=False, size=64).encoder
    assert encoder.prepare(images()).shape[-1] == 64
    assert encoder.represent(images()).ndim == 2


def test_seeds_and_the_callers_random_numbers() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    opened = open_encoder("timm:test_resnet", pretrained=False, seed=1)
    assert opened.fresh is not None
    same, other = opened.fresh(1), opened.fresh(2)
    assert torch.equal(torch.rand(3), expected)
    assert same.identity == opened.encoder.identity
    assert not torch.equal(other.represent(images()), same.represent(images()))
    assert other.preprocessing == same.preprocessing


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("timm:resnet5O", "did you mean 'resnet5"),
        ("timm:resnet50.a1_in1q", "no weights called 'a1_in1q'; did you mean 'a1_in1k'"),
        ("torchvision:mobilnet_v2", "did you mean 'mobilenet_v2'"),
        ("torchvison:resnet18", "neither a model's name nor a file"),
        ("resnet18", "did you mean 'timm:resnet18'"),
        ("absent.pth", "weights file not found"),
        (7, "an object of type int is no encoder"),
    ],
)
def test_wrong_names(source: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        open_encoder(source)


@pytest.mark.parametrize("arch", ["timm:resnet18", "torchvision:resnet18", "hf-hub:timm/resnet18.a1_in1k"])
def test_without_a_network_it_says_so_at_once(
    arch: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known")

    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr("socket.getaddrinfo", unreachable)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    begun = time.perf_counter()
    with pytest.raises(UserError, match="could not be downloaded") as caught:
        open_encoder(arch)
    assert "--no-pretrained" in caught.value.fix
    assert "--arch" in caught.value.fix
    assert time.perf_counter() - begun < 10
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_no_library_unpickles_while_it_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "marker",)

    torch.save({"x": Trap()}, tmp_path / "w.pth")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")

    def careless(*_: Any, **__: Any) -> nn.Module:
        torch.load(tmp_path / "w.pth", weights_only=False)
        raise AssertionError("it was loaded")

    monkeypatch.setattr(torchvision.models, "get_model", careless)
    with pytest.raises(UserError, match="weights could not be loaded.*Weights only load failed"):
        open_encoder("torchvision:resnet18")
    assert not (tmp_path / "marker").exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_with_another_classifier_gives_its_networks_features(tmp_path: Path, suffix: str) -> None:
    model = seeded(lambda: timm.create_model("test_resnet", num_classes=10), 5)
    path = tmp_path / f"w{suffix}"
    (torch.save if suffix == ".pth" else save_file)(model.state_dict(), path)
    opened = open_encoder(path, arch="timm:test_resnet", views=view_spec("headline", 32))
    assert opened.coverage is not None
    assert opened.coverage.share == 1.0
    assert opened.name == path.name
    expected = model.forward_features(opened.encoder.prepare(images())).mean((2, 3))
    torch.testing.assert_close(opened.encoder.represent(images()), expected)
    # the classifier's random weights are no part of the digest
    again = open_encoder(path, arch="timm:test_resnet", views=view_spec("headline", 32), seed=9)
    assert again.encoder.identity == opened.encoder.identity
    assert opened.fresh is not None
    assert opened.fresh(0).identity != opened.encoder.identity


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(seeded(lambda: timm.create_model("test_vit")).state_dict(), path)
    with pytest.raises(UserError, match="equibench doctor"):
        open_encoder(path, arch="timm:test_resnet")
    with pytest.raises(UserError, match="unknown architecture 'resnet18'"):
        open_encoder(path, arch="resnet18")
    with pytest.raises(UserError, match="not the architecture that they belong to"):
        open_encoder(path)
    for former in ({"allow_partial": True}, {"allow_random": True}):
        with pytest.raises(UserError, match="allow.random"):
            open_encoder(path, arch="timm:test_resnet", **former)  # type: ignore[arg-type]


def test_dino_like_files(tmp_path: Path) -> None:
    model = seeded(lambda: timm.create_model("test_vit", img_size=96, num_classes=0))
    teacher = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    head = {"head.mlp.0.weight": torch.rand(4, 4), "head.last_layer.weight_g": torch.rand(4, 1)}
    path = tmp_path / "dino.pth"
    torch.save({"student": {f"module.{n}": v + 1 for n, v in teacher.items()}, "teacher": teacher | head}, path)
    opened = open_encoder(path, arch="timm:test_vit", size=96)
    assert any("'teacher.backbone'" in note for note in opened.notes)
    assert any("'teacher.head' (2)" in note for note in opened.notes)
    x = opened.encoder.prepare(images())
    expected = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(opened.encoder.represent(images()), expected)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


class Free(Net):
    """Has a parameter that nobody knows how to draw afresh."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


@torch.no_grad()
def test_a_users_module_is_copied_and_left_alone() -> None:
    model = Net().train()
    opened = open_encoder(model)
    assert model.training
    assert model.norm.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    features = opened.encoder.represent(images())
    assert torch.equal(model.norm.running_mean, torch.zeros(4))
    torch.testing.assert_close(features, model.eval()(tv.normalize(images(), *IMAGENET)).mean((2, 3)))
    model.conv.weight.zero_()  # training goes on
    assert torch.equal(opened.encoder.represent(images()), features)
    assert opened.encoder.identity is not None
    assert opened.fresh is not None
    assert not torch.equal(opened.fresh(0).represent(images()), features)
    assert torch.equal(opened.fresh(4).represent(images()), opened.fresh(4).represent(images()))
    assert open_encoder(Free()).fresh is None
    assert open_encoder(nn.DataParallel(Net())).architecture.endswith(".Net")


@torch.no_grad()
def test_a_users_torchvision_model_keeps_its_classifier_and_gives_its_input() -> None:
    model = seeded(lambda: torchvision.models.mobilenet_v2(width_mult=0.25))
    opened = open_encoder(model)
    expected = model.features(tv.normalize(images(), *IMAGENET)).mean((2, 3))
    torch.testing.assert_close(opened.encoder.represent(images()), expected)
    assert isinstance(model.classifier[1], nn.Linear)
    model.classifier = nn.Identity()
    torch.testing.assert_close(open_encoder(model).encoder.represent(images()), expected)


@torch.no_grad()
def test_a_bare_function() -> None:
    opened = open_encoder(lambda x: x.mean((2, 3)), mean=(0, 0, 0), std=(1, 1, 1))
    torch.testing.assert_close(opened.encoder.represent(images()), images().mean((2, 3)))
    assert opened.encoder.identity is None
    assert opened.fresh is None
    with pytest.raises(UserError, match="not those of RGB images"):
        open_encoder(lambda x: x, mean=(0.5,))


def test_a_users_broken_weights_are_refused() -> None:
    model = Net()
    with torch.no_grad():
        model.conv.bias[0] = float("nan")
    with pytest.raises(UserError, match="conv.bias"):
        open_encoder(model)


@pytest.mark.parametrize(
    ("arch", "prefix"),
    [
        ("torchvision:mobilenet_v2", ""),
        ("torchvision:vit_b_16", "module."),
        ("torchvision:resnet18", "module.encoder_q."),
        ("timm:convnext_atto", ""),
    ],
)
def test_candidates_name_the_architecture_of_bare_weights(arch: str, prefix: str) -> None:
    model = zoo.skeleton(*arch.split(":"))
    assert model is not None
    found = candidates({f"{prefix}{name}": value for name, value in model.state_dict().items()})
    assert (found[0].arch, found[0].share) == (arch, 1.0)
    assert found == sorted(found, key=lambda c: -c.share)


def test_candidates_see_through_another_image_size() -> None:
    with torch.device("meta"):
        state = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=10).state_dict()
    best = candidates(state, limit=1)[0]
    assert (best.arch, best.share) == ("timm:vit_tiny_patch16_224", 1.0)
    assert "pos_embed (6 x 6 patches, here 14 x 14)" in best.coverage.describe()
    assert candidates({"nothing.known": torch.zeros(1)}) == []


def test_a_file_whose_names_are_obvious_suggests_its_architecture(tmp_path: Path) -> None:
    state = torchvision.models.mobilenet_v2(num_classes=10).state_dict()
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match="--arch torchvision:mobilenet_v2"):
        open_encoder(tmp_path / "w.pth")


def variant(options: str) -> nn.Module:
    return seeded(lambda: zoo.build_network(f"timm:test_vit,{options}", False, None, 0))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("reg_tokens=4", "register tokens"),
        ("init_values=1e-5", "layer scale"),
        ("qk_norm=True", "norms of queries and keys"),
        ("pre_norm=True", "a norm before the blocks"),
        ("depth=8", "more blocks"),
    ],
)
def test_what_changes_the_forward_pass_is_another_architecture_and_named(
    tmp_path: Path, options: str, what: str
) -> None:
    model = variant(options)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=what) as caught:
        open_encoder(tmp_path / "w.pth", arch="timm:test_vit")
    assert f"timm:NAME,{options}" in caught.value.fix
    opened = open_encoder(tmp_path / "w.pth", arch=f"timm:test_vit,{options}")
    assert opened.architecture == f"timm:test_vit,{options}"
    x = opened.encoder.prepare(images())
    with torch.no_grad():
        torch.testing.assert_close(
            opened.encoder.represent(images()), model.forward_head(model.forward_features(x), True)
        )
    assert opened.fresh is not None
    assert opened.fresh(1).represent(images()).shape == opened.encoder.represent(images()).shape


def test_a_variant_is_found_from_what_is_left_over() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", reg_tokens=3, qk_norm=True)
    best = candidates(model.state_dict(), limit=1)[0]
    assert best.arch.split(",")[0] == "timm:vit_tiny_patch16_224"
    assert set(best.arch.split(",")[1:]) == {"reg_tokens=3", "qk_norm=True"}
    assert best.coverage.complete


@torch.no_grad()
def test_a_norm_behind_average_pooling_is_built_for_the_file(tmp_path: Path) -> None:
    model = variant("global_pool=avg")
    torch.save(model.state_dict(), tmp_path / "w.pth")
    opened = open_encoder(tmp_path / "w.pth", arch="timm:test_vit")
    assert opened.architecture == "timm:test_vit,global_pool=avg"
    x = opened.encoder.prepare(images())
    expected = model.fc_norm(model.forward_features(x)[:, 1:].mean(1))
    torch.testing.assert_close(opened.encoder.represent(images()), expected)


@pytest.mark.parametrize("options", ["checkpoint_path=x", "pretrained=True", "no_such_option=3"])
def test_what_is_no_option_of_a_network_is_refused(options: str) -> None:
    with pytest.raises(UserError, match="no option|does not take"):
        open_encoder(f"timm:test_vit,{options}", pretrained=False)


def test_rules_are_proposed_for_names_of_ones_own(tmp_path: Path) -> None:
    model = seeded(lambda: timm.create_model("test_resnet", num_classes=0))
    odd = {f"trunk2.{n.replace('layer', 'stage_')}": v for n, v in model.state_dict().items()}
    torch.save(odd, tmp_path / "w.pth")
    with pytest.raises(UserError, match="--rename"):
        open_encoder(tmp_path / "w.pth", arch="timm:test_resnet")
    rule = propose_rename("timm:test_resnet", odd)
    opened = open_encoder(tmp_path / "w.pth", arch="timm:test_resnet", rename=rule)
    own = opened.encoder.model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in model.state_dict().items())
    assert propose_rename("timm:test_resnet", {"x": torch.rand(3)}) == ""
