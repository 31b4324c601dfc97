"""Strict loading: every name accounted for, wrappers taken off, classifiers left out, nothing random by accident."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from equibench.encoders.coverage import Coverage, check_finite, fit_names, load_strictly
from equibench.encoders.weightfile import Checkpoint
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


def test_known_extras_are_left_out_and_said_so() -> None:
    source, target = resnet(1), resnet(2)
    state = dict(source.state_dict())
    state |= {"projection_head.0.weight": torch.rand(8, 8), "queue": torch.rand(4, 4), "mask_token": torch.rand(1, 4)}
    coverage, notes = load_strictly(target, checkpoint(state), classifier=FC)
    assert same(encoder_of(source), encoder_of(target))
    assert coverage.complete
    assert coverage.share == 1.0
    assert "head (1)" in notes[-1]
    assert "queue" in notes[-1]
    assert "mask token (1)" in notes[-1]


def test_what_stands_beside_the_branch_is_named() -> None:
    source, target = resnet(1), resnet(2)
    state = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    # named like the target's own classifier, and yet another network's
    state |= {"anything.mlp.0.weight": torch.rand(8, 8), "fc.weight": torch.rand(1000, 64)}
    coverage, notes = load_strictly(target, checkpoint(state), classifier=FC)
    assert same(encoder_of(source), encoder_of(target))
    assert coverage.prefix == "backbone."
    assert coverage.beside == ("'anything' (1)", "'fc' (1)")
    assert "weights taken from 'backbone'" in notes


@pytest.mark.parametrize("name", ["gate", "adapter.weight", "layer1.0.scale", "layer1.0.adapter.head.weight"])
def test_what_is_not_known_to_be_harmless_is_refused(name: str) -> None:
    source, target = resnet(1), resnet(2)
    before, state = encoder_of(target), {**source.state_dict(), name: torch.rand(3)}
    with pytest.raises(UserError, match=rf"unexpected \(1\): {name}") as caught:
        load_strictly(target, checkpoint(state), classifier=FC)
    assert ("--rename" in caught.value.fix) == (not name.startswith("layer1"))
    assert same(before, encoder_of(target))
    rule = rf"^{name.split('.')[0]}\b.*=>"
    if not name.startswith("layer1"):
        assert rule in caught.value.fix
        load_strictly(target, checkpoint(state), classifier=FC, rename=rule)
        assert same(encoder_of(source), encoder_of(target))


@pytest.mark.parametrize("key", ["conv1.0.weight", "bn1.running_mean", "layer2.0.bn2.bias", "layer1.0.conv1.weight"])
def test_what_is_missing_has_to_be_allowed_by_name_whatever_its_share(key: str) -> None:
    source, target = resnet(1), resnet(2)
    state = encoder_of(source)
    del state[key]
    before = encoder_of(target)
    with pytest.raises(UserError, match=rf"missing \(1\): {key}") as caught:
        load_strictly(target, checkpoint(state), classifier=FC)
    assert f"--allow-random {key.removesuffix('.weight') if 'conv' in key else key}" in caught.value.fix
    with pytest.raises(UserError, match="would stay random"):
        load_strictly(target, checkpoint(state), classifier=FC, allow_random=["layer9", "conv"])
    assert same(before, encoder_of(target))
    coverage, notes = load_strictly(target, checkpoint(state), classifier=FC, allow_random=[key])
    assert coverage.lacking == (key,)
    assert notes[-1].startswith(f"random, as allowed: {key}")
    assert same(encoder_of(target), {**before, **state})


@pytest.mark.parametrize(
    ("one", "other", "taken"),
    [
        ("teacher.", "student.", "teacher."),
        ("teacher.backbone.", "student.backbone.", "teacher.backbone."),
        ("encoder_q.", "encoder_k.", "encoder_q."),
        ("module.base_encoder.", "module.momentum_encoder.", "base_encoder."),
        ("online_network.", "target_network.", "online_network."),
        ("backbone.", "momentum_backbone.", "backbone."),
        ("encoder.", "momentum_encoder.", "encoder."),
        ("encoder.", "target_encoder.", "target_encoder."),
        ("state_dict.backbone.", "state_dict.target_net.0.", "state_dict.backbone."),
    ],
)
def test_of_two_networks_the_one_that_the_method_evaluates_is_taken(one: str, other: str, taken: str) -> None:
    for swapped in (False, True):  # whichever comes first in the file
        a, b, target = resnet(1), resnet(2), resnet(3)
        parts = [{one + n: v for n, v in a.state_dict().items()}, {other + n: v for n, v in b.state_dict().items()}]
        state = {k: v for part in (reversed(parts) if swapped else parts) for k, v in part.items()}
        coverage, notes = load_strictly(target, checkpoint(state), classifier=FC)
        assert coverage.prefix == taken
        assert same(encoder_of(target), encoder_of(a if one.endswith(taken) else b))
        assert any("weights taken from" in note and ":" in note for note in notes)


def test_two_unknown_networks_are_a_question_and_branch_answers_it() -> None:
    a, b = resnet(1), resnet(2)
    state = {f"model.{n}": v for n, v in a.state_dict().items()} | {
        f"model_ema.{n}": v for n, v in b.state_dict().items()
    }
    with pytest.raises(UserError, match="2 networks.*'model', 'model_ema'") as caught:
        load_strictly(resnet(3), checkpoint(state), classifier=FC)
    assert "--branch model" in caught.value.fix
    for branch, source in (("model", a), ("model_ema", b)):
        target = resnet(3)
        coverage, _ = load_strictly(target, checkpoint(state), classifier=FC, branch=branch)
        assert same(encoder_of(target), encoder_of(source))
        assert coverage.prefix == f"{branch}."
    with pytest.raises(UserError, match="no branch 'ema'; it holds"):
        load_strictly(resnet(3), checkpoint(state), classifier=FC, branch="ema")


def test_two_branches_with_the_same_numbers_are_no_question() -> None:
    source, target = resnet(1), resnet(3)
    state = {f"{p}.{n}": v.clone() for p in ("a", "b") for n, v in source.state_dict().items()}
    load_strictly(target, checkpoint(state), classifier=FC)
    assert same(encoder_of(source), encoder_of(target))


def test_the_branch_that_fits_is_taken_and_not_the_larger_one() -> None:
    source, target = resnet(1), resnet(3)
    big = {f"model.{n}": v for n, v in timm.create_model("test_vit2").state_dict().items()}
    state = big | {f"zz.{n}": v for n, v in source.state_dict().items()}
    assert load_strictly(target, checkpoint(state), classifier=FC)[0].prefix == "zz."
    assert same(encoder_of(source), encoder_of(target))


def test_another_architecture_is_refused() -> None:
    target, before = resnet(1), encoder_of(resnet(1))
    other = timm.create_model("test_vit").state_dict()
    with pytest.raises(UserError, match=r"missing \(\d+\): .* and \d+ more"):
        load_strictly(target, checkpoint(other), classifier=FC)
    assert same(before, encoder_of(target))


@pytest.mark.parametrize("text", ["a", "(=>b", r"a=>\9", "a=>b;c"])
def test_a_malformed_rule_is_said_to_be_one(text: str) -> None:
    with pytest.raises(UserError, match="--rename"):
        load_strictly(resnet(1), checkpoint(dict(resnet(2).state_dict())), classifier=FC, rename=text)


def test_rules_of_ones_own_turn_names_and_may_not_join_them() -> None:
    source, target = resnet(1), resnet(2)
    state = {f"blk.{n}".replace("layer", "stage_"): v for n, v in source.state_dict().items()}
    load_strictly(target, checkpoint(state), classifier=FC, rename=r"^blk\.=>;stage_(\d)=>layer\1")
    assert same(encoder_of(source), encoder_of(target))
    with pytest.raises(UserError, match="to two of the file's names"):
        load_strictly(target, checkpoint(state), classifier=FC, rename=r"^blk\..*=>x")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("_flat_param", "FSDP's flattened"),
        ("layer1.0.conv1.lora_A.weight", "LoRA"),
        ("layer1.0.conv1.parametrizations.weight.original0", "parametrised"),
        ("layer1.0.conv1.weight_orig", "pruned"),
        ("layer1.0.conv1.weight_scale", "quantised"),
    ],
)
def test_weights_that_need_another_librarys_computation_are_named(name: str, said: str) -> None:
    state = {**encoder_of(resnet(1)), name: torch.rand(4)}
    with pytest.raises(UserError, match=said):
        load_strictly(resnet(2), checkpoint(state), classifier=FC)


def test_values_that_are_not_there_or_need_a_scale_are_refused() -> None:
    for change, match in (("meta", "meta device"), (torch.float8_e5m2, "float8_e5m2, which need a scale")):
        state = encoder_of(resnet(1))
        state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"].to(change)  # type: ignore[call-overload]
        with pytest.raises(UserError, match=match):
            load_strictly(resnet(2), checkpoint(state), classifier=FC)


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
        load_strictly(target, checkpoint(state), classifier=FC)
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
