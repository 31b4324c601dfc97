"""Strict loading: every name accounted for, wrappers taken off, classifiers left out, nothing random by accident."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from equibench.encoders.checkpoint import Checkpoint
from equibench.encoders.coverage import Coverage, check_finite, fit_names, load_strictly
from equibench.errors import UserError

FC = ("fc.",)


def resnet(seed: int, classes: int = 1000) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("test_resnet", num_classes=classes)


def checkpoint(state: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint(Path("w.pth"), "torch zip", 1, "0", state)


def encoder_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if not name.startswith("fc.")}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_classifier_of_other_classes_is_ignored() -> None:
    source, target = resnet(1, classes=10), resnet(2)
    classifier = target.get_submodule("fc").weight.clone()
    coverage, notes = load_strictly(target, checkpoint(source.state_dict()), classifier=FC)
    assert same(encoder_of(source), encoder_of(target))
    assert torch.equal(target.get_submodule("fc").weight, classifier)
    assert (coverage.share, coverage.complete, notes) == (1.0, True, ())
    assert set(coverage.ignored) == {"fc.weight", "fc.bias"}
    floats = [v for n, v in source.state_dict().items() if v.is_floating_point() and not n.startswith("fc.")]
    assert coverage.total == coverage.loaded == sum(v.numel() for v in floats)


def test_a_classifier_that_fits_is_loaded_and_one_that_lacks_is_not_missing() -> None:
    source, target = resnet(1), resnet(2)
    load_strictly(target, checkpoint(source.state_dict()), classifier=FC)
    assert same(dict(source.state_dict()), dict(target.state_dict()))
    coverage, _ = load_strictly(resnet(3), checkpoint(encoder_of(source)), classifier=FC)
    assert coverage.share == 1.0
    assert coverage.ignored == ()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"module.{name}",
        lambda name: f"module.base_encoder.{name}",
        lambda name: f"_orig_mod.module.backbone.{name}",
        lambda name: name,
    ],
)
def test_wrappers_are_taken_off(wrap: Callable[[str], str]) -> None:
    source, target = resnet(1), resnet(2)
    wrapped = {wrap(name): value for name, value in source.state_dict().items()}
    coverage, notes = load_strictly(target, checkpoint(wrapped), classifier=FC)
    assert same(encoder_of(source), encoder_of(target))
    assert coverage.share == 1.0
    assert bool(notes) == (wrap("x") != "x")


def test_a_projection_head_beside_the_backbone_needs_leave() -> None:
    source, target = resnet(1), resnet(2)
    before = encoder_of(target)
    state = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    # named like the target's own classifier, and yet another network's
    state |= {"head.mlp.0.weight": torch.rand(8, 8), "fc.weight": torch.rand(1000, 64)}
    with pytest.raises(UserError, match=r"unexpected \(2\): head.mlp.0.weight, fc.weight") as caught:
        load_strictly(target, checkpoint(state), classifier=FC)
    assert "projection head" in caught.value.fix
    assert "--allow-partial" in caught.value.fix
    assert same(before, encoder_of(target))
    coverage, notes = load_strictly(target, checkpoint(state), classifier=FC, allow_partial=True)
    assert same(encoder_of(source), encoder_of(target))
    assert coverage.share == 1.0
    assert "100 %" in notes[-1]


def test_of_two_networks_side_by_side_one_is_taken_whole() -> None:
    query, key, target = resnet(1), resnet(2), resnet(3)
    state = {f"module.encoder_q.{n}": v for n, v in query.state_dict().items()}
    state |= {f"module.encoder_k.{n}": v for n, v in key.state_dict().items()}
    load_strictly(target, checkpoint(state), classifier=FC, allow_partial=True)
    assert same(encoder_of(target), encoder_of(query)) or same(encoder_of(target), encoder_of(key))


def test_another_architecture_is_refused_even_as_partial() -> None:
    target, before = resnet(1), encoder_of(resnet(1))
    other = timm.create_model("test_vit").state_dict()
    with pytest.raises(UserError, match=r"missing \(\d+\): .* and \d+ more"):
        load_strictly(target, checkpoint(other), classifier=FC)
    with pytest.raises(UserError, match="random weights"):
        load_strictly(target, checkpoint(other), classifier=FC, allow_partial=True)
    assert same(before, encoder_of(target))
    coverage, notes = load_strictly(target, checkpoint(other), classifier=FC, allow_partial=True, allow_random=True)
    assert coverage.share == 0.0
    assert "partial weights: 0 %" in notes[-1]


def test_a_missing_and_a_misshaped_weight_are_named() -> None:
    state = encoder_of(resnet(1))
    del state["bn1.running_mean"]
    state["conv1.0.weight"] = torch.rand(5, 3, 7, 7)
    with pytest.raises(UserError) as caught:
        load_strictly(resnet(2), checkpoint(state), classifier=FC)
    assert "missing (1): bn1.running_mean" in str(caught.value)
    assert "conv1.0.weight (5x3x7x7, not " in str(caught.value)


def test_quantised_weights_do_not_pass_for_floats() -> None:
    state = encoder_of(resnet(1))
    state["conv1.0.weight"] = (state["conv1.0.weight"] * 100).to(torch.int8)
    with pytest.raises(UserError, match="misshaped.*int8"):
        load_strictly(resnet(2), checkpoint(state), classifier=FC)


def test_counters_may_lack_on_either_side() -> None:
    state = {n: v for n, v in encoder_of(resnet(1)).items() if "num_batches" not in n}
    state["layer1.0.relative_position_index"] = torch.arange(4)
    coverage, _ = load_strictly(resnet(2), checkpoint(state), classifier=FC)
    assert coverage.complete
    assert coverage.ignored == ("layer1.0.relative_position_index",)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_loaded(value: float) -> None:
    state, target = resnet(1).state_dict(), resnet(2)
    before = encoder_of(target)
    state["layer2.0.conv1.weight"].view(-1)[3] = value
    with pytest.raises(UserError, match="layer2.0.conv1.weight"):
        load_strictly(target, checkpoint(state), classifier=FC, allow_partial=True, allow_random=True)
    assert same(before, encoder_of(target))
    bad = resnet(3)
    bad.load_state_dict(state)
    with pytest.raises(UserError, match="NaN or infinite: layer2.0.conv1.weight"):
        check_finite(bad.state_dict(), "it", FC)
    state["layer2.0.conv1.weight"].view(-1)[3] = 0
    state["fc.bias"][0] = value  # no part of the encoder
    load_strictly(resnet(2), checkpoint(state), classifier=FC)


def test_a_positional_embedding_of_another_size_is_resampled_as_timm_does() -> None:
    torch.manual_seed(0)
    source = timm.create_model("test_vit", img_size=160)
    target = timm.create_model("test_vit", img_size=96)
    state = source.state_dict()
    coverage, notes = load_strictly(target, checkpoint(state), classifier=("head.",))
    assert coverage.share == 1.0
    assert "10 x 10 patches, here 6 x 6" in notes[-1]
    source.set_input_size(96)
    torch.testing.assert_close(target.pos_embed, source.pos_embed)


def test_torchvisions_former_names_are_known() -> None:
    torch.manual_seed(0)
    source = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32)
    target = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32)
    old = {n.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v for n, v in
           source.state_dict().items()}  # fmt: skip
    assert old.keys() != source.state_dict().keys()
    coverage, _ = load_strictly(target, checkpoint(old), classifier=("heads.head.",))
    assert coverage.complete
    assert same(dict(source.state_dict()), dict(target.state_dict()))


def test_fitting_on_the_meta_device_changes_nothing_and_counts_the_same() -> None:
    state = resnet(1, classes=10).state_dict()
    with torch.device("meta"):
        skeleton = timm.create_model("test_resnet")
    real = fit_names(resnet(2), state, FC)[0]
    assert fit_names(skeleton, state, FC)[0] == real


def test_a_share_is_never_rounded_up_to_all() -> None:
    assert Coverage(("a",), (), (), (), 999_999, 1_000_000).describe().startswith("99.9 %")
    assert Coverage((), (), (), (), 5, 5).describe().startswith("100 %")
