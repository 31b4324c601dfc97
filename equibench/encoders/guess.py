"""Which of the architectures that timm and torchvision know a file's weights belong to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from equibench.encoders.coverage import Coverage, fit_names
from equibench.encoders.layouts import apply_rename, parse_rename
from equibench.encoders.zoo import classifier_of, skeleton
from equibench.errors import UserError

_TRIED = 200  # rules that are tried
_NEAR = 0.9  # share from which on a variant of an architecture is tried
_CLIP, _VIT = "transformer.resblocks.0.", "encoder.layer.0.attention|layers.0.(ln1|attn)|blocks.0.0.attn"

_RESNET = "layer1.0.conv1.weight|4.0.conv1.weight|stages.0.layers.0.layer.0.conv"
# a pattern of a name in the state dict that tells the family, the library, and the members
_FAMILIES: tuple[tuple[str, str, str], ...] = (
    (rf"blocks\.0\.attn\.qkv\.weight|{_VIT}", "timm", "vit_tiny_patch16_224 vit_small_patch16_224 vit_base_patch16_224 "
     "vit_large_patch16_224 vit_small_patch32_224 vit_base_patch32_224 vit_small_patch8_224 vit_base_patch8_224 "
     "vit_large_patch14_224"),
    (r"\.ls1\.gamma|layer_scale1\.lambda1|register_tokens", "timm",
     "vit_small_patch14_dinov2 vit_base_patch14_dinov2 vit_large_patch14_dinov2 "
     "vit_small_patch14_reg4_dinov2 vit_base_patch14_reg4_dinov2 vit_large_patch14_reg4_dinov2"),
    (rf"norm_pre.weight|{_CLIP}|pre_layrnorm", "timm",
     "vit_base_patch32_clip_224 vit_base_patch16_clip_224 vit_large_patch14_clip_224"),
    (r"dist_token|distillation_token", "timm", "deit_tiny_distilled_patch16_224 deit_small_distilled_patch16_224 "
     "deit_base_distilled_patch16_224"),
    ("blocks.0.gamma_1", "timm", "beit_base_patch16_224 beit_large_patch16_224"),
    (r"layers\.0\.blocks\.0\.attn", "timm", "swin_tiny_patch4_window7_224 swin_small_patch4_window7_224 "
     "swin_base_patch4_window7_224"),
    ("encoder_layer_0.", "torchvision", "vit_b_16 vit_b_32 vit_l_16 vit_l_32"),
    ("relative_position_bias_table", "torchvision", "swin_t swin_s swin_b"),
    (_RESNET, "torchvision", "resnet18 resnet34 resnet50 resnet101 resnet152 wide_resnet50_2 "
     "wide_resnet101_2 resnext50_32x4d resnext101_32x8d"),
    (_RESNET, "timm", "resnet10t resnet14t resnet18d resnet26 resnet26d resnet26t resnet34d resnet50d "
     "resnet101d resnet50_gn seresnet50 ecaresnet50d"),
    (r"features\.18\.0\.weight", "torchvision", "mobilenet_v2"),
    (r"\.block\.0\.0\.weight", "torchvision", "mobilenet_v3_small mobilenet_v3_large efficientnet_b0 efficientnet_b1 "
     "efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_v2_s efficientnet_v2_m"),
    ("bn2.running_mean", "timm", "mobilenetv2_050 mobilenetv2_100 mobilenetv2_140 mobilenetv3_small_100 "
     "mobilenetv3_large_100 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 "
     "tf_efficientnetv2_s"),
    (".layer_scale", "torchvision", "convnext_tiny convnext_small convnext_base convnext_large"),
    ("conv_dw.weight|dwconv", "timm",
     "convnext_atto convnext_femto convnext_pico convnext_nano convnext_tiny convnext_small "
     "convnext_base convnext_large convnextv2_atto convnextv2_nano convnextv2_tiny convnextv2_base"),
    ("denseblock1.", "torchvision", "densenet121 densenet161 densenet169 densenet201"),
    ("features.0.weight", "torchvision", "vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn alexnet"),
    ("trunk_output.", "torchvision", "regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_x_400mf"),
    (".b1.conv1.conv.weight", "timm", "regnety_002 regnety_004 regnety_008 regnety_016 regnety_032 regnety_040"),
    ("branch2.0.0.", "torchvision", "shufflenet_v2_x0_5 shufflenet_v2_x1_0"),
)  # fmt: skip


class Candidate(NamedTuple):
    """An architecture that a file may belong to: `share` of its weights are there by name and shape."""

    arch: str
    share: float
    coverage: Coverage


def candidates(state: Mapping[str, Tensor], limit: int = 5) -> list[Candidate]:
    """Architectures that a state dict may belong to, best first, by the share of names and shapes that fit.

    Only families whose tell-tale name occurs are built, without memory for their weights. Where what is left over
    tells a variant of the best one (registers, another pooling), that variant is tried as well. Equal shares: fewer
    left-over names first, then what the names say themselves, then torchvision's.
    """
    shapes = {name: tensor.to("meta") for name, tensor in state.items()}
    found: list[Candidate] = []
    for tell, library, names in _FAMILIES:
        if any(re.search(tell, name) for name in state):
            found += [c for name in names.split() if (c := _candidate(shapes, library, name)) is not None]
    found.sort(key=_rank)
    if found and found[0].share > _NEAR and not found[0].coverage.complete:
        library, _, name = found[0].arch.partition(":")
        options = "".join(f",{option}" for option in _variant(found[0].coverage))
        if options and library == "timm" and (variant := _candidate(shapes, library, name + options)) is not None:
            found = sorted([*found, variant], key=_rank)
    return found[:limit]


def propose_rename(arch: str, state: Mapping[str, Tensor]) -> str:
    """Rules for --rename by which a file's names become an architecture's, or "" if none are found that make it whole.

    Names of equal shapes are paired in order, and a rule is a difference that many pairs have in common: a proposal,
    since two layers of one shape may stand in another order.
    """
    library, _, name = arch.partition(":")
    if (model := skeleton(library, name)) is None:
        return ""
    shapes = {name: tensor.to("meta") for name, tensor in state.items()}
    coverage = fit_names(model, shapes, classifier_of(model))[0]
    if not coverage.lacking:
        return ""
    own = {name: tensor for name, tensor in model.state_dict().items() if name in coverage.missing}
    inside = {name.removeprefix(coverage.prefix): tensor for name, tensor in shapes.items()}
    votes = Counter(_pairs(inside, own))
    chosen: list[str] = []
    for rule, _ in votes.most_common(_TRIED):
        trial = [*chosen, rule]
        try:
            tried = fit_names(model, apply_rename(shapes, parse_rename(";".join(trial))), classifier_of(model))[0]
        except UserError:
            continue
        if tried.loaded > coverage.loaded:
            chosen, coverage = trial, tried
        if not coverage.lacking:
            return ";".join(chosen)
    return ""


def _pairs(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> Iterator[str]:
    """The rule that makes a file's name one of the network's, for all pairs of one shape and one numbering."""
    by_kind: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in theirs.items():
        by_kind.setdefault(_kind(name, tensor), []).append(name)
    for new, tensor in ours.items():
        for old in by_kind.get(_kind(new, tensor), ()):
            a, b = old.split("."), new.split(".")
            while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
                a, b = a[:-1], b[:-1]
            count = iter(range(1, 20))
            text = re.sub(r"\d+", lambda _, count=count: f"\\{next(count)}", ".".join(b))  # type: ignore[misc]
            yield "(?<![^.])" + re.sub(r"\d+", r"(\\d+)", re.escape(".".join(a))) + rf"(?=\.|$)=>{text}"


def _kind(name: str, tensor: Tensor) -> tuple[object, ...]:
    return tuple(tensor.shape), tuple(re.findall(r"\d+", name)), name.rpartition(".")[2]


def _candidate(shapes: Mapping[str, Tensor], library: str, name: str) -> Candidate | None:
    if (model := skeleton(library, name)) is None:
        return None
    coverage = fit_names(model, shapes, classifier_of(model))[0]
    return Candidate(f"{library}:{name}", coverage.share, coverage) if coverage.share > 0.05 else None


def _variant(coverage: Coverage) -> tuple[str, ...]:
    """Options of timm's by which an architecture becomes the one that a file was written by."""
    without = ("class_token=False", "global_pool=avg", "fc_norm=False") if "cls_token" in coverage.missing else ()
    return (*coverage.variant, *without)


def _rank(c: Candidate) -> tuple[float, int, bool, bool]:
    return -c.share, len(c.coverage.unexpected), bool(c.coverage.layout), not c.arch.startswith("torchvision")
