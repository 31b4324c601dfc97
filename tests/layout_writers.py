"""Writing a network's weights as others publish them: the steps from which the layouts of `layout_matrix` are made."""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

State = dict[str, Tensor]
RES, TV = "timm:resnet18,channels=(8,8,16,16)", "torchvision:shufflenet_v2_x0_5"
VIT = "timm:test_vit,embed_dim=32,depth=3,num_heads=2"
MEAN_VIT, V2 = f"{VIT},class_token=False,global_pool=avg,fc_norm=False", f"{VIT},init_values=1e-5"
REG = f"{V2},reg_tokens=4,no_embed_class=True"
CLIP = f"{VIT},pre_norm=True"
SWIN = "timm:swin_tiny_patch4_window7_224,embed_dim=16,depths=(1,2,1,1),num_heads=(1,2,2,4)"
CONVNEXT, BEIT = "timm:test_convnext", "timm:beit_base_patch16_224,embed_dim=32,depth=2,num_heads=2"
DEIT = "timm:deit_tiny_distilled_patch16_224,embed_dim=32,depth=2,num_heads=2"


@dataclass(frozen=True)
class Layout:
    """A published layout: `write` makes it of the network's weights and those of a second network of the same kind.

    It returns what torch.save is to write, or writes the file itself, given its path, and returns None.
    """

    name: str
    shown: str  # how its names look
    arch: str  # the network that is written
    write: Callable[[State, State, Path], Any]
    refused: str = ""  # a pattern of the reason, where it must be refused
    options: dict[str, Any] = field(default_factory=dict)  # of open_encoder
    asked: str = ""  # --arch, if it is not the writer's
    suffix: str = ".pth"


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def mapped(state: State, *rules: tuple[str, str]) -> State:
    made = {}
    for name, value in state.items():
        for pattern, text in rules:
            name = re.sub(pattern, text, name)
        made[name] = value
    return made


def split(state: State, names: tuple[str, str, str]) -> State:
    """Fused queries, keys and values as three matrices."""
    made: State = {}
    for name, value in state.items():
        if ".qkv." in name:
            for part, piece in zip(names, value.chunk(3), strict=True):
                made[name.replace("qkv", part)] = piece.clone()
        else:
            made[name] = value
    return made


def body(state: State) -> State:
    """Without the classifier."""
    return {n: v for n, v in state.items() if not n.startswith(("fc.", "head.", "head_dist."))}


def hf_vit(state: State, block: str = "encoder.layer", **other: str) -> State:
    parts = split(body(state), ("attention.query", "attention.key", "attention.value"))
    norms = ("norm1", "norm2") if other.get("v2") else ("layernorm_before", "layernorm_after")
    mlp = (r"\1.mlp.fc1", r"\1.mlp.fc2") if other.get("v2") else (r"\1.intermediate.dense", r"\1.output.dense")
    return mapped(
        parts,
        (r"^cls_token", "embeddings.cls_token"), (r"^dist_token", "embeddings.distillation_token"),
        (r"^reg_token", "embeddings.register_tokens"), (r"^pos_embed", "embeddings.position_embeddings"),
        (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"), (r"^norm\.", "layernorm."),
        (r"(blocks\.\d+)\.attn\.proj", r"\1.attention.output.dense"), (r"(blocks\.\d+)\.attn\.", r"\1.attention."),
        (r"(blocks\.\d+)\.mlp\.fc1", mlp[0]), (r"(blocks\.\d+)\.mlp\.fc2", mlp[1]),
        (r"(blocks\.\d+)\.norm1", rf"\1.{norms[0]}"), (r"(blocks\.\d+)\.norm2", rf"\1.{norms[1]}"),
        (r"(blocks\.\d+)\.ls(\d)\.gamma", r"\1.layer_scale\2.lambda1"), (r"^blocks", block),
    )  # fmt: skip


def official_registers(state: State) -> State:
    """DINOv2's own file: the class token's position is kept apart from the token."""
    first = torch.full_like(state["cls_token"], 0.25)
    made = mapped(body(state), ("^reg_token", "register_tokens"))
    made["cls_token"] = state["cls_token"] - first
    return made | {"pos_embed": torch.cat([first, state["pos_embed"]], 1), "mask_token": torch.zeros(1, 32)}


def openai(state: State) -> State:
    made = mapped(
        body(state),
        (r"^patch_embed\.proj", "conv1"), (r"^norm_pre", "ln_pre"), (r"^norm\.", "ln_post."),
        (r"^cls_token", "class_embedding"), (r"^pos_embed", "positional_embedding"),
        (r"^blocks", "transformer.resblocks"), (r"norm(\d)", r"ln_\1"), (r"attn\.qkv\.", "attn.in_proj_"),
        (r"attn\.proj", "attn.out_proj"), (r"mlp\.fc1", "mlp.c_fc"), (r"mlp\.fc2", "mlp.c_proj"),
    )  # fmt: skip
    made["class_embedding"], made["positional_embedding"] = state["cls_token"][0, 0], state["pos_embed"][0]
    return made


def clip(state: State) -> State:
    text = {
        "positional_embedding": torch.rand(77, 8),
        "text_projection": torch.rand(8, 8),
        "ln_final.weight": torch.rand(8),
    }
    text |= {"transformer.resblocks.0.attn.in_proj_weight": torch.rand(24, 8), "logit_scale": torch.tensor(4.6)}
    return prefixed("visual.", openai(state) | {"proj": torch.rand(32, 8)}) | text


def hf_clip(state: State) -> State:
    parts = split(body(state), ("q_proj", "k_proj", "v_proj"))
    made = mapped(
        parts,
        (r"^patch_embed\.proj", "embeddings.patch_embedding"), (r"^norm_pre", "pre_layrnorm"),
        (r"^norm\.", "post_layernorm."), (r"^cls_token", "embeddings.class_embedding"),
        (r"^pos_embed", "embeddings.position_embedding.weight"), (r"attn\.proj", "self_attn.out_proj"),
        (r"\.attn\.", ".self_attn."), (r"norm(\d)", r"layer_norm\1"), (r"^blocks", "encoder.layers"),
    )  # fmt: skip
    made["embeddings.class_embedding"] = state["cls_token"][0, 0]
    made["embeddings.position_embedding.weight"] = state["pos_embed"][0]
    beside = {
        "text_model.embeddings.token_embedding.weight": torch.rand(9, 8),
        "visual_projection.weight": torch.rand(8, 32),
    }
    return prefixed("vision_model.", made) | beside


def plus(match: re.Match[str], step: int) -> str:
    return str(int(match[1]) + step)


def hf_swin(state: State) -> State:
    parts = split(body(state), ("self.query", "self.key", "self.value"))
    parts = {
        re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{plus(m, -1)}.downsample", n): v
        for n, v in parts.items()
    }
    return prefixed("swin.", mapped(
        parts,
        (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"), (r"^patch_embed\.norm", "embeddings.norm"),
        (r"^norm\.", "layernorm."), (r"attn\.proj", "attention.output.dense"), (r"attn\.rel", "attention.self.rel"),
        (r"\.attn\.", ".attention."), (r"mlp\.fc1", "intermediate.dense"), (r"mlp\.fc2", "output.dense"),
        (r"(blocks\.\d)\.norm1", r"\1.layernorm_before"), (r"(blocks\.\d)\.norm2", r"\1.layernorm_after"),
        (r"^layers", "encoder.layers"),
    ))  # fmt: skip


def microsoft_swin(state: State) -> State:
    made = {
        re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{plus(m, -1)}.downsample", n): v
        for n, v in body(state).items()
    }
    return made | {"layers.0.blocks.1.attn_mask": torch.zeros(4, 49, 49)}


def facebook_convnext(state: State) -> State:
    return mapped(
        body({n.replace("head.norm", "norm"): v for n, v in state.items()}),
        (r"^stem\.", "downsample_layers.0."), (r"stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"stages\.(\d)\.blocks\.", r"stages.\1."), ("conv_dw", "dwconv"), (r"mlp\.fc", "pwconv"),
    )  # fmt: skip


def hf_convnext(state: State) -> State:
    return prefixed("convnext.", mapped(
        body({n.replace("head.norm", "layernorm"): v for n, v in state.items()}),
        (r"^stem\.0", "embeddings.patch_embeddings"), (r"^stem\.1", "embeddings.layernorm"),
        (r"stages\.(\d)\.downsample\.", r"encoder.stages.\1.downsampling_layer."),
        (r"^stages\.(\d)\.blocks\.(\d+)", r"encoder.stages.\1.layers.\2"), ("conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"), (r"layers\.(\d+)\.norm", r"layers.\1.layernorm"), ("gamma", "layer_scale_parameter"),
    ))  # fmt: skip


def hf_resnet(state: State) -> State:
    made = {}
    for name, value in body(state).items():
        if match := re.match(r"layer(\d)\.(\d+)\.(conv|bn)(\d)(\..*)", name):
            kind = "convolution" if match[3] == "conv" else "normalization"
            name = f"encoder.stages.{int(match[1]) - 1}.layers.{match[2]}.layer.{int(match[4]) - 1}.{kind}{match[5]}"
        elif match := re.match(r"layer(\d)\.(\d+)\.downsample\.(\d)(\..*)", name):
            kind = ("convolution", "normalization")[int(match[3])]
            name = f"encoder.stages.{int(match[1]) - 1}.layers.{match[2]}.shortcut.{kind}{match[4]}"
        name = re.sub(
            "^conv1", "embedder.embedder.convolution", re.sub("^bn1", "embedder.embedder.normalization", name)
        )
        made[f"resnet.{name}"] = value
    return made | {"classifier.1.weight": torch.rand(3, 16)}


def mm_vit(state: State) -> State:
    return prefixed("backbone.", mapped(
        body(state),
        (r"^norm\.", "ln1."), (r"(blocks\.\d+)\.norm", r"\1.ln"), (r"mlp\.fc1", "ffn.layers.0.0"),
        (r"mlp\.fc2", "ffn.layers.1"), (r"^patch_embed\.proj", "patch_embed.projection"), (r"^blocks", "layers"),
    )) | {"head.layers.head.weight": torch.rand(3, 32)}  # fmt: skip


def mm_old_vit(state: State) -> State:
    return prefixed("backbone.", mapped(
        body(state),
        (r"^norm\.", "ln1."), (r"(blocks\.\d+)\.norm", r"\1.ln"), (r"mlp\.fc1", "ffn.layers.0.0"),
        (r"mlp\.fc2", "ffn.layers.1"), (r"attn\.qkv\.", "attn.attn.in_proj_"), (r"attn\.proj", "attn.attn.out_proj"),
        (r"^patch_embed\.proj", "patch_embed.projection"), (r"^blocks", "layers"),
    ))  # fmt: skip


def children(state: State, prefix: str) -> State:
    order = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    return {f"{prefix}{order[n.partition('.')[0]]}.{n.partition('.')[2]}": v for n, v in body(state).items()}


def blocks(state: State, wrapper: str) -> State:
    return mapped(state, (r"^(blocks\.\d+)\.", rf"\1.{wrapper}."))


def chunks(state: State) -> State:
    return {re.sub(r"^blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}.", n): v for n, v in state.items()}


def head(prefix: str = "head.") -> State:
    return {f"{prefix}mlp.0.weight": torch.rand(4, 4), f"{prefix}last_layer.weight_g": torch.rand(4, 1)}


def projector(prefix: str) -> State:
    return {f"{prefix}0.weight": torch.rand(4, 4), f"{prefix}1.running_mean": torch.rand(4)}


def optimizer(state: State) -> dict[str, Any]:
    moments = {i: {"step": 3, "exp_avg": torch.zeros_like(v)} for i, v in enumerate(list(state.values())[:3])}
    return {"state": moments, "param_groups": [{"lr": 0.1, "params": [0, 1, 2]}]}


def without(state: State, *names: str) -> State:
    assert all(any(re.search(name, one) for one in state) for name in names)
    return {n: v for n, v in state.items() if not any(re.search(name, n) for name in names)}


def changed(state: State, name: str, change: Callable[[Tensor], Tensor]) -> State:
    return state | {name: change(state[name])}


def module(state: State, arch: str = RES) -> nn.Module:
    from equibench.encoders.zoo import build_network

    model = build_network(arch, False, None, 0)
    model.load_state_dict(state)
    return model


def safetensors(state: State, path: Path) -> None:
    save_file({name: value.contiguous().clone() for name, value in state.items()}, path)


def shards(state: State, path: Path, *, torch_files: bool = False, keep: int = 2) -> None:
    """Two shards and the index, at `path`."""
    names, items = (
        [f"model-0000{i}-of-00002.{'bin' if torch_files else 'safetensors'}" for i in (1, 2)],
        list(state.items()),
    )
    for i in range(keep):
        part = dict(items[i::2])
        torch.save(part, path.parent / names[i]) if torch_files else safetensors(part, path.parent / names[i])
    path.write_text(json.dumps({"weight_map": {name: names[i % 2] for i, (name, _) in enumerate(items)}}))


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def zipped_again(content: Any, path: Path) -> None:
    torch.save(content, path)
    with zipfile.ZipFile(path) as source:
        entries = {entry.filename: source.read(entry) for entry in source.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in entries.items():
            target.writestr(name, data)


def torchscript(state: State, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/constants.pkl", b"\x80\x02).")
        archive.writestr("w/data.pkl", b"\x80\x02).")


def pickled(state: State, path: Path) -> None:
    import pickle

    path.write_bytes(pickle.dumps({n: v.numpy() for n, v in state.items()}))


ARGS = argparse.Namespace(lr=0.1, out=Path("/x"), when=np.float64(1.0))
"""Options of a training program, of kinds that torch's own safe reader refuses."""
