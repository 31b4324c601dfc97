"""Layouts of files and of training wrappers: see `layout_matrix`."""

from __future__ import annotations

import torch
from layout_writers import (
    ARGS,
    RES,
    TV,
    VIT,
    Layout,
    blocks,
    body,
    legacy,
    mapped,
    module,
    optimizer,
    prefixed,
    safetensors,
    shards,
    zipped_again,
)
from torch import nn

CONTAINERS = (
    Layout("torch.save(model.state_dict())", "conv1.weight", RES, lambda s, o, p: s),
    Layout("the same of torchvision", "conv1.0.weight", TV, lambda s, o, p: s),
    Layout("safetensors", "conv1.weight", RES, lambda s, o, p: safetensors(s, p), suffix=".safetensors"),
    Layout("torch before 1.6", "conv1.weight", RES, lambda s, o, p: legacy({"state_dict": s, "args": ARGS}, p)),
    Layout("zipped again by hand", "conv1.weight", RES, lambda s, o, p: zipped_again(s, p)),
    Layout(
        "parameters, not tensors",
        "conv1.weight",
        RES,
        lambda s, o, p: {n: nn.Parameter(v, v.is_floating_point() and "num" not in n) for n, v in s.items()},
    ),
    Layout(
        "double precision",
        "conv1.weight",
        RES,
        lambda s, o, p: {n: v.double() if v.is_floating_point() else v for n, v in s.items()},
    ),
    Layout(
        "tensors in another order of memory",
        "conv1.weight",
        RES,
        lambda s, o, p: {n: v.t().contiguous().t() if v.ndim == 2 else v for n, v in s.items()},
    ),
    Layout(
        "epoch, options and optimizer",
        "state_dict / conv1.weight",
        RES,
        lambda s, o, p: {"epoch": 3, "state_dict": s, "args": ARGS, "optimizer": optimizer(s)},
    ),
    Layout(
        "the usual `model`",
        "model / conv1.weight",
        RES,
        lambda s, o, p: {"model": s, "optimizer": optimizer(s), "scaler": {"scale": 1.0}},
    ),
    Layout(
        "PyTorch's tutorial",
        "model_state_dict / conv1.weight",
        RES,
        lambda s, o, p: {"model_state_dict": s, "optimizer_state_dict": optimizer(s), "loss": torch.rand(())},
    ),
    Layout(
        "pytorch-cifar", "net / module.conv1.weight", RES, lambda s, o, p: {"net": prefixed("module.", s), "acc": 93.0}
    ),
    Layout(
        "fvcore", "model_state / conv1.weight", RES, lambda s, o, p: {"model_state": s, "optimizer_state": optimizer(s)}
    ),
    Layout(
        "an entry of any name", "my_weights / conv1.weight", RES, lambda s, o, p: {"opt": optimizer(s), "my_weights": s}
    ),
    Layout(
        "an entry of a list", "models / 0 / conv1.weight", RES, lambda s, o, p: {"models": [s, {"w": torch.rand(3)}]}
    ),
    Layout(
        "a head under `state_dict`, the network elsewhere",
        "backbone / conv1.weight",
        RES,
        lambda s, o, p: {"state_dict": {"fc.weight": torch.rand(3, 3)}, "backbone": s},
    ),
    Layout("torch.save(model): a whole module", "conv1.weight", RES, lambda s, o, p: module(s)),
    Layout(
        "a whole module in a dictionary", "model / conv1.weight", RES, lambda s, o, p: {"model": module(s), "epoch": 1}
    ),
    Layout(
        "shards of safetensors with an index",
        "conv1.weight",
        RES,
        lambda s, o, p: shards(s, p),
        suffix=".safetensors.index.json",
    ),
    Layout(
        "shards of torch files with an index",
        "conv1.weight",
        RES,
        lambda s, o, p: shards(s, p, torch_files=True),
        suffix=".bin.index.json",
    ),
)

WRAPPERS = (
    Layout("DataParallel, DistributedDataParallel", "module.conv1.weight", RES, lambda s, o, p: prefixed("module.", s)),
    Layout("torch.compile", "_orig_mod.conv1.weight", RES, lambda s, o, p: prefixed("_orig_mod.", s)),
    Layout(
        "compiled and parallel", "module._orig_mod.conv1.weight", RES, lambda s, o, p: prefixed("module._orig_mod.", s)
    ),
    Layout("compiled block by block", "blocks.0._orig_mod.norm1.weight", VIT, lambda s, o, p: blocks(s, "_orig_mod")),
    Layout(
        "FSDP",
        "_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.norm1.weight",
        VIT,
        lambda s, o, p: prefixed("_fsdp_wrapped_module.", blocks(s, "_fsdp_wrapped_module")),
    ),
    Layout(
        "activation checkpointing",
        "blocks.0._checkpoint_wrapped_module.norm1.weight",
        VIT,
        lambda s, o, p: blocks(s, "_checkpoint_wrapped_module"),
    ),
    Layout(
        "only the trunk is parallel",
        "blocks.module.0.norm1.weight",
        VIT,
        lambda s, o, p: mapped(s, (r"^blocks\.", "blocks.module.")),
    ),
    Layout(
        "Lightning Fabric",
        "state_dict / model._forward_module.conv1.weight",
        RES,
        lambda s, o, p: {"state_dict": prefixed("model._forward_module.", s), "hyper_parameters": {"lr": 1.0}},
    ),
    Layout(
        "stochastic weight averaging",
        "module.conv1.weight, n_averaged",
        RES,
        lambda s, o, p: prefixed("module.", s) | {"n_averaged": torch.tensor(3)},
    ),
    Layout(
        "a container in the middle",
        "encoder in patch_embed.encoder.proj.weight",
        VIT,
        lambda s, o, p: mapped(s, (r"^blocks\.", "encoder.blocks."), (r"^norm\.", "backbone.norm.")),
    ),
    Layout(
        "a classifier of other classes",
        "model.conv1.weight, model.fc.weight",
        RES,
        lambda s, o, p: prefixed("model.", s | {"fc.weight": torch.rand(10, 16), "fc.bias": torch.rand(10)}),
    ),
    Layout(
        "a linear probe beside it",
        "backbone.conv1.weight, linear.weight",
        RES,
        lambda s, o, p: prefixed("backbone.", body(s)) | {"linear.weight": torch.rand(3, 16)},
    ),
    Layout(
        "a profiler's counters",
        "layer1.0.conv1.total_ops",
        RES,
        lambda s, o, p: s | {"layer1.0.conv1.total_ops": torch.zeros(1), "total_params": torch.zeros(1)},
    ),
    Layout(
        "robustness: one network twice",
        "module.model.x, module.attacker.model.x",
        RES,
        lambda s, o, p: {
            "model": prefixed("module.model.", s)
            | prefixed("module.attacker.model.", {n: v.clone() for n, v in s.items()})
            | {"module.normalizer.new_mean": torch.rand(3, 1, 1)}
        },
    ),
)
