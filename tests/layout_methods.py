"""Layouts of pretraining methods and their releases: see `layout_matrix`."""

from __future__ import annotations

import torch
from layout_writers import (
    ARGS,
    BEIT,
    DEIT,
    MEAN_VIT,
    REG,
    RES,
    V2,
    VIT,
    Layout,
    body,
    children,
    chunks,
    head,
    mapped,
    official_registers,
    optimizer,
    prefixed,
    projector,
)

METHODS = (
    Layout(
        "DINO",
        "teacher / backbone.blocks.0.norm1.weight; student",
        VIT,
        lambda s, o, p: {
            "student": prefixed("module.backbone.", body(o)) | head("module.head."),
            "teacher": prefixed("backbone.", body(s)) | head(),
            "epoch": 3,
            "args": ARGS,
            "dino_loss": {"center": torch.rand(1, 4)},
        },
    ),
    Layout(
        "iBOT",
        "teacher / backbone.x; student with masked_embed",
        VIT,
        lambda s, o, p: {
            "student": prefixed("module.backbone.", body(o) | {"masked_embed": torch.rand(1, 32)}),
            "teacher": prefixed("backbone.", body(s)),
        },
    ),
    Layout(
        "DINOv2's training",
        "teacher / backbone.blocks.0.1.norm1.weight",
        V2,
        lambda s, o, p: {
            "teacher": prefixed("backbone.", chunks(body(s)) | {"mask_token": torch.rand(1, 32)}) | head("dino_head.")
        },
    ),
    Layout(
        "DINOv2's training, both networks",
        "model / teacher.backbone.blocks.0.1.x",
        V2,
        lambda s, o, p: {
            "model": prefixed("teacher.backbone.", chunks(body(s))) | prefixed("student.backbone.", chunks(body(o)))
        },
    ),
    Layout(
        "DINOv2's release",
        "blocks.0.ls1.gamma, mask_token",
        V2,
        lambda s, o, p: body(s) | {"mask_token": torch.rand(1, 32)},
    ),
    Layout("DINOv2's release with registers", "register_tokens", REG, lambda s, o, p: official_registers(s)),
    Layout(
        "MoCo v1, v2",
        "state_dict / module.encoder_q.conv1.weight; module.encoder_k",
        RES,
        lambda s, o, p: {
            "arch": "resnet18",
            "state_dict": prefixed("module.encoder_q.", s)
            | prefixed("module.encoder_k.", o)
            | {"module.queue": torch.rand(4, 8), "module.queue_ptr": torch.zeros(1).long()},
        },
    ),
    Layout(
        "MoCo v3",
        "state_dict / module.base_encoder.x; module.momentum_encoder",
        VIT,
        lambda s, o, p: {
            "state_dict": prefixed("module.base_encoder.", body(s) | projector("head."))
            | prefixed("module.momentum_encoder.", body(o) | projector("head."))
            | projector("module.predictor.")
        },
    ),
    Layout(
        "SimSiam",
        "state_dict / module.encoder.x; module.predictor",
        RES,
        lambda s, o, p: {
            "state_dict": prefixed("module.encoder.", body(s) | projector("fc.")) | projector("module.predictor.")
        },
    ),
    Layout(
        "BYOL, two networks",
        "online_network.x; target_network.x",
        RES,
        lambda s, o, p: {
            "target_network_state_dict": {"w": torch.rand(1)},
            "state": prefixed("target_network.", o) | prefixed("online_network.", s),
        },
    ),
    Layout(
        "BYOL of byol-pytorch",
        "online_encoder.net.x; target_encoder.net.x",
        RES,
        lambda s, o, p: (
            prefixed("target_encoder.net.", o) | prefixed("online_encoder.net.", s) | projector("online_predictor.")
        ),
    ),
    Layout(
        "SwAV, DeepCluster v2",
        "module.conv1.weight; module.prototypes",
        RES,
        lambda s, o, p: prefixed(
            "module.", body(s) | projector("projection_head.") | {"prototypes.weight": torch.rand(4, 4)}
        ),
    ),
    Layout(
        "Barlow Twins",
        "model / module.backbone.x; module.projector",
        RES,
        lambda s, o, p: {
            "model": prefixed("module.backbone.", body(s))
            | projector("module.projector.")
            | {"module.bn.running_var": torch.rand(4)},
            "optimizer": optimizer(s),
        },
    ),
    Layout("VICReg, released backbone", "conv1.weight", RES, lambda s, o, p: body(s)),
    Layout(
        "SimCLR, projector inside",
        "state_dict / encoder.x; projector",
        RES,
        lambda s, o, p: {"state_dict": prefixed("encoder.", body(s)) | projector("projector.")},
    ),
    Layout(
        "solo-learn",
        "state_dict / backbone.x; momentum_backbone",
        RES,
        lambda s, o, p: {
            "state_dict": prefixed("momentum_backbone.", body(o))
            | prefixed("backbone.", body(s))
            | projector("projector.")
            | {"classifier.weight": torch.rand(3, 16)},
            "hyper_parameters": {"args": ARGS},
        },
    ),
    Layout(
        "lightly: children in a row",
        "state_dict / backbone.4.0.conv1.weight",
        RES,
        lambda s, o, p: {"state_dict": children(s, "backbone.") | projector("projection_head.layers.")},
    ),
    Layout(
        "lightly, with momentum",
        "backbone.4.0.x; backbone_momentum.4.0.x",
        RES,
        lambda s, o, p: {"state_dict": children(o, "backbone_momentum.") | children(s, "backbone.")},
    ),
    Layout(
        "lightly's DINO",
        "backbone.x; student_backbone.x",
        VIT,
        lambda s, o, p: {
            "state_dict": prefixed("student_backbone.", body(o)) | prefixed("backbone.", body(s)) | head()
        },
    ),
    Layout(
        "OpenMMLab's MoCo",
        "state_dict / backbone.x; encoder_k.module.0.x",
        RES,
        lambda s, o, p: {
            "meta": {"epoch": 1},
            "state_dict": prefixed("backbone.", body(s))
            | prefixed("encoder_k.module.0.", body(o))
            | {"queue": torch.rand(3, 3)},
        },
    ),
    Layout(
        "OpenMMLab's BYOL",
        "state_dict / backbone.x; target_net.module.0.x",
        RES,
        lambda s, o, p: {"state_dict": prefixed("target_net.module.0.", body(o)) | prefixed("backbone.", body(s))},
    ),
    Layout(
        "VISSL",
        "classy_state_dict / base_model / model / trunk / _feature_blocks.x",
        RES,
        lambda s, o, p: {
            "classy_state_dict": {
                "base_model": {"model": {"trunk": prefixed("_feature_blocks.", body(s)), "heads": projector("0.clf.")}}
            }
        },
    ),
    Layout(
        "MAE, pretraining",
        "model / blocks.x; decoder_blocks.x; mask_token",
        VIT,
        lambda s, o, p: {
            "model": body(s)
            | {
                "mask_token": torch.rand(1, 1, 8),
                "decoder_pos_embed": torch.rand(1, 5, 8),
                "decoder_blocks.0.norm1.weight": torch.rand(8),
                "decoder_pred.bias": torch.rand(8),
            }
        },
    ),
    Layout(
        "MAE, fine-tuned on mean tokens",
        "model / fc_norm.weight",
        f"{VIT},global_pool=avg",
        lambda s, o, p: {"model": s},
        asked=VIT,
    ),
    Layout(
        "SimMIM",
        "model / encoder.x; decoder.0.weight",
        VIT,
        lambda s, o, p: {
            "model": prefixed("encoder.", body(s) | {"mask_token": torch.rand(1, 1, 32)})
            | {"decoder.0.weight": torch.rand(8, 32, 1, 1)}
        },
    ),
    Layout("BEiT", "model / blocks.0.gamma_1", BEIT, lambda s, o, p: {"model": s}),
    Layout("DeiT, distilled", "model / dist_token", DEIT, lambda s, o, p: {"model": s}),
    Layout(
        "DeiT III",
        "model / blocks.0.gamma_1",
        V2,
        lambda s, o, p: {"model": mapped(s, (r"ls(\d)\.gamma", r"gamma_\1"))},
    ),
    Layout(
        "I-JEPA",
        "target_encoder / module.x; encoder; predictor",
        MEAN_VIT,
        lambda s, o, p: {
            "encoder": prefixed("module.", body(o)),
            "predictor": prefixed("module.", projector("predictor_blocks.")),
            "target_encoder": prefixed("module.", body(s)),
            "opt": optimizer(s),
        },
    ),
    Layout(
        "MSN",
        "target_encoder / module.x; encoder",
        VIT,
        lambda s, o, p: {
            "encoder": prefixed("module.", body(o) | projector("fc.")),
            "target_encoder": prefixed("module.", body(s) | projector("fc.")),
            "prototypes": torch.rand(4, 4),
        },
    ),
    Layout(
        "weights and their average, one named",
        "state_dict; state_dict_ema",
        RES,
        lambda s, o, p: {"state_dict": o, "state_dict_ema": s},
        options={"branch": "state_dict_ema"},
    ),
    Layout(
        "names of one's own, with rules",
        "stem.conv.weight; stage_1.0.x",
        RES,
        lambda s, o, p: mapped(s, (r"^conv1", "stem.conv"), (r"^layer", "stage_")),
        options={"rename": r"^stem\.conv=>conv1;^stage_=>layer"},
    ),
)
