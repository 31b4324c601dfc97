"""The recipe of a segmentation run as an mmengine config (docs/protocol.md 7.5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equibench.data.ade20k import ADE20K_SPLITS, CLASSES, MASK, CheckedTree
from equibench.errors import UserError, closest

if TYPE_CHECKING:
    from equibench.segmentation.backbone import Encoder

IMAGE_LISTS = {split: f"{split}.txt" for split in ADE20K_SPLITS}
_CHOICES = {"head": ("hypernet", "linear"), "level_norm": ("lrn", "batch")}
_LEAST = {"iterations": 1, "batch": 1, "crop": 8, "checkpoint_every": 1, "workers": 0, "weight_decay": 0, "lr": 1e-12}


@dataclass(frozen=True)
class SegmentationSettings:
    """How a head is trained on an encoder, by default as DINOv2's linear one; a UserError if one is out of range."""

    iterations: int = 40_000  # optimiser steps
    batch: int = 16  # images per step, over all processes
    crop: int = 512  # side of the training crops in pixels; images are resized so that their short side is this long
    lr: float = 1e-3  # of AdamW; it rises linearly for `warmup` steps and falls linearly to zero (poly, 1.0)
    weight_decay: float = 1e-4
    warmup: int = 1500
    classes: int = CLASSES  # labels 1 to `classes` count, 0 is ignored; 150 for ADE20K
    head: str = "hypernet"  # P1's, or "linear"
    channels_per_level: int = 42  # this and the next two: of the hypernet head
    channels: int = 256
    level_norm: str = "lrn"  # as Kong et al., or "batch"
    frozen: bool = True  # whether the encoder stays as it is
    size: int | None = None  # side to which an encoder that takes one size only is given its images; None: as they are
    slide: bool = True  # whether validation images are predicted in overlapping crops (stride 2/3), or whole
    seed: int = 0  # of the head's initial weights, the order of the images, their augmentation and dropout
    workers: int = 4  # processes per process that load images; 0: none
    checkpoint_every: int = 1000  # iterations between two checkpoints

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} is too small", f"give at least {least}")
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"unknown {name} {value!r}{closest(value, known)}", f"choose from {', '.join(known)}")
        if not 0 <= self.warmup < self.iterations:
            raise UserError(f"warmup={self.warmup} is out of range", f"give 0 to {self.iterations - 1} iterations")
        if not 2 <= self.classes <= CLASSES:
            raise UserError(f"classes={self.classes} is out of range", f"give 2 to {CLASSES}")


def build_config(
    encoder: Encoder, tree: CheckedTree, work_dir: Path, settings: SegmentationSettings, *, processes: int, cuda: bool
) -> dict[str, Any]:
    """A config for mmengine's Runner; its model can be built from it again if `encoder.source` names the weights.

    Lists of the tree's good images must lie in `work_dir` under the names in IMAGE_LISTS. A UserError is raised if the
    batch cannot be shared evenly by the processes. Without CUDA there is no SyncBN, and DDP must not be told a device.
    """
    if settings.batch % processes:
        problem = f"a batch of {settings.batch} cannot be shared by {processes} processes"
        raise UserError(problem, f"choose a multiple of {processes}")
    config = {
        "default_scope": "mmseg",
        "custom_imports": {"imports": ["equibench.segmentation.engine"], "allow_failed_imports": False},
        "work_dir": str(work_dir),
        "model": _model(encoder, settings, "SyncBN" if cuda and processes > 1 else "BN"),
        **_data(tree, work_dir, settings, settings.batch // processes),
        **_schedule(settings),
        "launcher": "pytorch" if processes > 1 else "none",
        "randomness": {"seed": settings.seed},
        "log_level": "WARNING",
    }
    unused = {"find_unused_parameters": not settings.frozen}  # a network of another library may have parts without use
    if processes > 1 and not cuda:
        config["model_wrapper_cfg"] = {"type": "MMDistributedDataParallel", "device_ids": None, **unused}
    return config | unused


def _model(encoder: Encoder, settings: SegmentationSettings, norm: str) -> dict[str, Any]:
    crop = settings.crop
    head: dict[str, Any] = {
        "type": "equibench.LinearHead", "in_channels": list(encoder.channels), "num_classes": settings.classes,
        "norm_cfg": {"type": norm, "requires_grad": True},
    }  # fmt: skip
    if settings.head == "hypernet":
        # to a quarter of the image; an encoder that sees the crop at another size has strides in pixels of that size
        stride = encoder.strides[0] * (crop / settings.size if settings.size else 1)
        head |= {
            "type": "equibench.HyperNetHead", "upsample": stride / 4, "channels": settings.channels,
            "channels_per_level": settings.channels_per_level, "level_norm": settings.level_norm,
        }  # fmt: skip
    step = max(crop * 2 // 3, 1)
    slide = {"mode": "slide", "crop_size": (crop, crop), "stride": (step, step)}
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": [255 * value for value in encoder.mean], "std": [255 * value for value in encoder.std],
            "bgr_to_rgb": True, "pad_val": 0, "seg_pad_val": 255, "size": (crop, crop),
        },
        "backbone": {
            "type": "equibench.Encoder", **encoder.source, "frozen": settings.frozen, "size": settings.size,
            "out_indices": list(encoder.out_indices),
        },
        "decode_head": head,
        "train_cfg": {},
        "test_cfg": slide if settings.slide else {"mode": "whole"},
    }  # fmt: skip


def _data(tree: CheckedTree, work_dir: Path, settings: SegmentationSettings, batch: int) -> dict[str, Any]:
    crop, scale = settings.crop, (4 * settings.crop, settings.crop)
    load, annotations, pack = ({"type": name} for name in ("LoadImageFromFile", "LoadAnnotations", "PackSegInputs"))
    augment: list[dict[str, Any]] = [
        {"type": "RandomResize", "scale": scale, "ratio_range": (0.5, 2.0), "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": (crop, crop), "cat_max_ratio": 0.75},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
    ]
    training = [load, annotations, *augment, pack]
    # the annotation is read after the resize: scores are taken at the image's own size
    resize: dict[str, Any] = {"type": "Resize", "scale": scale, "keep_ratio": True}
    validation = [load, resize, annotations, pack]

    def dataset(split: str, pipeline: list[dict[str, Any]]) -> dict[str, Any]:
        images, masks = (str(tree.root / kind / split) for kind in ("images", "annotations"))
        return {
            "type": "equibench.ListedImages", "ann_file": str(work_dir / IMAGE_LISTS[split]),
            "data_prefix": {"img_path": images, "seg_map_path": masks}, "img_suffix": "", "seg_map_suffix": MASK,
            "reduce_zero_label": True, "pipeline": pipeline, **named,
        }  # fmt: skip

    named = {}
    if settings.classes < CLASSES:
        from mmseg.datasets import ADE20KDataset

        named = {"metainfo": {"classes": tuple(ADE20KDataset.METAINFO["classes"][: settings.classes])}}
    workers = {"num_workers": settings.workers, "persistent_workers": settings.workers > 0}
    return {
        "train_dataloader": {
            "batch_size": batch, **workers, "sampler": {"type": "equibench.KeyedSampler", "batch": batch},
            "dataset": {
                "type": "equibench.KeyedDataset", "seed": settings.seed, "dataset": dataset("training", training)
            },
        },
        "val_dataloader": {
            "batch_size": 1, **workers, "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": dataset("validation", validation),
        },
        "val_evaluator": {"type": "equibench.AreaMetric", "collect_dir": str(work_dir / ".collected")},
        "val_cfg": {"type": "ValLoop"},
    }  # fmt: skip


def _schedule(settings: SegmentationSettings) -> dict[str, Any]:
    end, warmup = settings.iterations, settings.warmup
    rise = {"type": "LinearLR", "start_factor": 1e-6, "begin": 0, "end": warmup, "by_epoch": False}
    fall = {"type": "PolyLR", "power": 1.0, "eta_min": 0.0, "begin": warmup, "end": end, "by_epoch": False}
    optimizer = {"type": "AdamW", "lr": settings.lr, "weight_decay": settings.weight_decay}
    return {
        "train_cfg": {"type": "equibench.Loop", "max_iters": end, "val_interval": end},
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": optimizer},
        "param_scheduler": [rise, fall] if warmup else [fall],
        "default_hooks": {
            "logger": {"type": "LoggerHook", "interval": 50, "log_metric_by_epoch": False},
            # two: while one is written, the other is there
            "checkpoint": {
                "type": "CheckpointHook", "by_epoch": False, "interval": settings.checkpoint_every, "max_keep_ckpts": 2
            },
        },
        "log_processor": {"by_epoch": False},
    }  # fmt: skip
