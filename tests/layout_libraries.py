"""Layouts of libraries: see `layout_matrix`."""

from __future__ import annotations

import numpy as np
import torch
from layout_writers import (
    CLIP,
    CONVNEXT,
    DEIT,
    REG,
    RES,
    SWIN,
    V2,
    VIT,
    Layout,
    body,
    clip,
    facebook_convnext,
    hf_clip,
    hf_convnext,
    hf_resnet,
    hf_swin,
    hf_vit,
    mapped,
    microsoft_swin,
    mm_old_vit,
    mm_vit,
    official_registers,
    openai,
    prefixed,
    without,
)

LIBRARIES = (
    Layout(
        "Swin of Microsoft",
        "model / layers.0.downsample.x, attn_mask",
        SWIN,
        lambda s, o, p: {"model": microsoft_swin(s)},
    ),
    Layout(
        "ConvNeXt of Facebook",
        "model / downsample_layers.0.0.weight",
        CONVNEXT,
        lambda s, o, p: {"model": facebook_convnext(s)},
    ),
    Layout("CLIP of OpenAI, open_clip", "visual.transformer.resblocks.0.ln_1.weight", CLIP, lambda s, o, p: clip(s)),
    Layout(
        "open_clip's training",
        "state_dict / module.visual.x",
        CLIP,
        lambda s, o, p: {"epoch": 1, "state_dict": prefixed("module.", clip(s))},
    ),
    Layout(
        "open_clip with a timm tower",
        "visual.trunk.blocks.0.x",
        VIT,
        lambda s, o, p: (
            prefixed("visual.trunk.", body(s))
            | {"visual.head.proj.weight": torch.rand(8, 32), "logit_scale": torch.tensor(1.0)}
        ),
    ),
    Layout("a CLIP tower on its own", "transformer.resblocks.0.ln_1.weight", CLIP, lambda s, o, p: openai(s)),
    Layout(
        "transformers: ViT",
        "vit.encoder.layer.0.attention.attention.query.weight",
        VIT,
        lambda s, o, p: prefixed("vit.", hf_vit(s)) | {"classifier.weight": torch.rand(3, 32)},
    ),
    Layout(
        "transformers: ViTModel",
        "encoder.layer.0.x; pooler.dense",
        VIT,
        lambda s, o, p: hf_vit(s) | {"pooler.dense.weight": torch.rand(32, 32)},
    ),
    Layout(
        "transformers: DeiT", "deit.embeddings.distillation_token", DEIT, lambda s, o, p: prefixed("deit.", hf_vit(s))
    ),
    Layout(
        "transformers: ViTMAE",
        "vit.x; decoder.decoder_layers.0.x",
        VIT,
        lambda s, o, p: (
            prefixed("vit.", hf_vit(s))
            | {"decoder.mask_token": torch.rand(1, 1, 8), "decoder.decoder_embed.weight": torch.rand(8, 32)}
        ),
    ),
    Layout(
        "transformers: DINOv2",
        "encoder.layer.0.layer_scale1.lambda1",
        V2,
        lambda s, o, p: hf_vit(s, v2="1") | {"embeddings.mask_token": torch.rand(1, 32)},
    ),
    Layout(
        "transformers: DINOv2 with registers",
        "embeddings.register_tokens",
        REG,
        lambda s, o, p: prefixed(
            "dinov2_with_registers.",
            hf_vit(mapped(without(official_registers(s), "mask_token"), ("^register_tokens", "reg_token")), v2="1"),
        ),
    ),
    Layout(
        "transformers: CLIP", "vision_model.encoder.layers.0.self_attn.q_proj.weight", CLIP, lambda s, o, p: hf_clip(s)
    ),
    Layout(
        "transformers: Swin",
        "swin.encoder.layers.0.blocks.0.attention.self.query.weight",
        SWIN,
        lambda s, o, p: hf_swin(s),
    ),
    Layout(
        "transformers: ConvNeXt",
        "convnext.encoder.stages.0.layers.0.dwconv.weight",
        CONVNEXT,
        lambda s, o, p: hf_convnext(s),
    ),
    Layout(
        "transformers: ResNet",
        "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight",
        RES,
        lambda s, o, p: hf_resnet(s),
    ),
    Layout("transformers: timm's wrapper", "timm_model.conv1.weight", RES, lambda s, o, p: prefixed("timm_model.", s)),
    Layout(
        "mmpretrain: ViT",
        "state_dict / backbone.layers.0.ffn.layers.0.0.weight",
        VIT,
        lambda s, o, p: {"state_dict": mm_vit(s), "message_hub": {"log": np.zeros(3)}},
    ),
    Layout(
        "mmsegmentation: ViT, older",
        "backbone.layers.0.attn.attn.in_proj_weight",
        VIT,
        lambda s, o, p: {"state_dict": mm_old_vit(s)},
    ),
    Layout(
        "mmpretrain: ResNet",
        "state_dict / backbone.conv1.weight; head.fc",
        RES,
        lambda s, o, p: {"state_dict": prefixed("backbone.", body(s)) | {"head.fc.weight": torch.rand(3, 16)}},
    ),
)
