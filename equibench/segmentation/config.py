"""The recipe of a segmentation run as an mmengine config (docs/protocol.md 7.5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equibench.data.ade20k import CLASSES, IMAGE, MASK, SPLITS, CheckedTree
from equibench.errors import UserError, closest
from equibench.segmentation.backbone import Encoder

HEADS = ("hypernet", "linear")
STRIDE = 4  # of the hyper feature: a quarter of the image
LISTS = {split: f"{split}.txt" for split in SPLITS}


@dataclass(frozen=True)
class SegmentationSettings:
    """How a head is trained on an encoder.

    The defaults are the recipe for a frozen encoder at 40,000 iterations of 16 images (DINOv2's for its linear head).

    Attributes:
        iterations: optimiser steps.
        batch: images per step, over all processes.
        crop: side of the training crops in pixels; images are resized so that their short side is this long.
        lr, weight_decay: of AdamW; the rate rises linearly for `warmup` steps and falls linearly to zero (poly, 1.0).
        classes: labels 1 to `classes` count, 0 is ignored; 150 for ADE20K.
        head: "hypernet" (P1) or "linear".
        channels_per_level, channels: of the hypernet head.
        level_norm: of the hypernet head, "lrn" (Kong et al.) or "batch".
        frozen: whether the encoder stays as it is.
        size: side to which an encoder that takes one size only is given its images; None: as they are.
        slide: whether validation images are predicted in overlapping crops (stride 2/3), or whole.
        seed: of the head's initial weights, the order of the images, their augmentation and dropout.
        workers: processes per process that load images; 0: none.
        checkpoint_every: iterations between two checkpoints.

    Raises:
        UserError: a value is out of range.
    """

    iterations: int = 40_000
    batch: int = 16
    crop: int = 512
    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup: int = 1500
    classes: int = CLASSES
    head: str = "hypernet"
    channels_per_level: int = 42
    channels: int = 256
    level_norm: str = "lrn"
    frozen: bool = True
    size: int | None = None
    slide: bool = True
    seed: int = 0
    workers: int = 4
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        for name, least in (("iterations", 1), ("batch", 1), ("crop", 8), ("checkpoint_every", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} is too small", f"give at least {least}")
        if not 0 <= self.warmup < self.iterations:
            raise UserError(
                f"a warm-up of {self.warmup} of {self.iterations} iterations is not possible",
                "warmup must be at least 0 and less than iterations",
            )
        if not 2 <= self.classes <= CLASSES:
            raise UserError(f"classes={self.classes} is out of range", f"give 2 to {CLASSES}")
        for value, known in ((self.head, HEADS), (self.level_norm, ("lrn", "batch"))):
            if value not in known:
                raise UserError(f"unknown {value!r}{closest(value, known)}", f"choose from {', '.join(known)}")
        if self.lr <= 0 or self.weight_decay < 0:
            raise UserError(
                f"lr={self.lr}, weight_decay={self.weight_decay} make no sense", "lr > 0, weight_decay >= 0"
            )


def build_config(
    encoder: Encoder,
    source: dict[str, Any],
    tree: CheckedTree,
    work_dir: Path,
    settings: SegmentationSettings,
    *,
    processes: int = 1,
    cuda: bool = False,
) -> dict[str, Any]:
    """A config for mmengine's Runner. Its model can be built from it again, if `source` names the encoder's weights.

    Args:
        encoder: the backbone that will be used: its channels, strides and normalisation.
        source: what the config says of where it comes from: arguments of `Encoder`.
        tree: the checked data; lists of its good images must lie in `work_dir` under the names in LISTS.
        processes: over how many a batch is shared.
        cuda: whether GPUs are used; without them there is no SyncBN, and DDP must not be told a device.

    Raises:
        UserError: the batch cannot be shared evenly.
    """
    if settings.batch % processes:
        raise UserError(
            f"a batch of {settings.batch} cannot be shared by {processes} processes", "choose a multiple of it"
        )
    config = {
        "default_scope": "mmseg",
        "custom_imports": {"imports": ["equibench.segmentation.engine"], "allow_failed_imports": False},
        "work_dir": str(work_dir),
        "model": _model(encoder, source, settings, sync_bn=cuda and processes > 1),
        **_data(tree, work_dir, settings, processes),
        **_schedule(settings),
        "launcher": "pytorch" if processes > 1 else "none",
        "randomness": {"seed": settings.seed},
        "log_level": "WARNING",
    }
    if processes > 1 and not cuda:
        config["model_wrapper_cfg"] = {
            "type": "MMDistributedDataParallel",
            "device_ids": None,
            "find_unused_parameters": not settings.frozen,
        }
    config["find_unused_parameters"] = not settings.frozen  # a network of another library may have parts without use
    return config


def _model(
    encoder: Encoder, source: dict[str, Any], settings: SegmentationSettings, *, sync_bn: bool
) -> dict[str, Any]:
    norm = {"type": "SyncBN" if sync_bn else "BN", "requires_grad": True}
    head: dict[str, Any] = {"in_channels": list(encoder.channels), "num_classes": settings.classes, "norm_cfg": norm}
    if settings.head == "linear":
        head = {"type": "equibench.LinearHead", **head}
    else:
        # an encoder that sees the crop at another size has its strides in pixels of that size
        stride = encoder.strides[0] * (settings.crop / settings.size if settings.size else 1)
        head = {
            "type": "equibench.HyperNetHead", **head, "upsample": stride / STRIDE, "channels": settings.channels,
            "channels_per_level": settings.channels_per_level, "level_norm": settings.level_norm,
        }  # fmt: skip
    test: dict[str, Any] = {"mode": "whole"}
    if settings.slide:
        side, stride = settings.crop, max(settings.crop * 2 // 3, 1)
        test = {"mode": "slide", "crop_size": (side, side), "stride": (stride, stride)}
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": [255 * value for value in encoder.mean],
            "std": [255 * value for value in encoder.std],
            "bgr_to_rgb": True,
            "pad_val": 0,
            "seg_pad_val": 255,
            "size": (settings.crop, settings.crop),
        },
        "backbone": {
            "type": "equibench.Encoder", **source, "frozen": settings.frozen, "size": settings.size,
            "out_indices": list(encoder.out_indices),
        },
        "decode_head": head,
        "train_cfg": {},
        "test_cfg": test,
    }  # fmt: skip


def _data(tree: CheckedTree, work_dir: Path, settings: SegmentationSettings, processes: int) -> dict[str, Any]:
    crop = settings.crop
    scale = (4 * crop, crop)
    train: list[dict[str, Any]] = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations"},
        {"type": "RandomResize", "scale": scale, "ratio_range": (0.5, 2.0), "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": (crop, crop), "cat_max_ratio": 0.75},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    ]
    # the annotation is read after the resize: scores are taken at the image's own size
    test: list[dict[str, Any]] = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": scale, "keep_ratio": True},
        {"type": "LoadAnnotations"},
        {"type": "PackSegInputs"},
    ]
    workers = {"num_workers": settings.workers, "persistent_workers": settings.workers > 0}
    each = settings.batch // processes
    return {
        "train_dataloader": {
            "batch_size": each,
            **workers,
            "sampler": {"type": "equibench.KeyedSampler", "batch": each},
            "dataset": {
                "type": "equibench.KeyedDataset",
                "seed": settings.seed,
                "dataset": _dataset(tree, "training", work_dir, train, settings.classes),
            },
        },
        "val_dataloader": {
            "batch_size": 1,
            **workers,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": _dataset(tree, "validation", work_dir, test, settings.classes),
        },
        "val_evaluator": {"type": "equibench.AreaMetric", "collect_dir": str(work_dir / ".collected")},
        "val_cfg": {"type": "ValLoop"},
    }


def _dataset(
    tree: CheckedTree, split: str, work_dir: Path, pipeline: list[dict[str, Any]], classes: int
) -> dict[str, Any]:
    dataset = {
        "type": "ADE20KDataset",
        "ann_file": str(work_dir / LISTS[split]),
        "data_prefix": {
            "img_path": str(tree.root / "images" / split), "seg_map_path": str(tree.root / "annotations" / split)
        },
        "img_suffix": IMAGE,
        "seg_map_suffix": MASK,
        "reduce_zero_label": True,
        "pipeline": pipeline,
    }  # fmt: skip
    if classes < CLASSES:
        from mmseg.datasets import ADE20KDataset

        dataset["metainfo"] = {"classes": tuple(ADE20KDataset.METAINFO["classes"][:classes])}
    return dataset


def _schedule(settings: SegmentationSettings) -> dict[str, Any]:
    end, warmup = settings.iterations, settings.warmup
    schedulers: list[dict[str, Any]] = [
        {"type": "PolyLR", "power": 1.0, "eta_min": 0.0, "begin": warmup, "end": end, "by_epoch": False}
    ]
    if warmup:
        schedulers.insert(0, {"type": "LinearLR", "start_factor": 1e-6, "begin": 0, "end": warmup, "by_epoch": False})
    return {
        "train_cfg": {"type": "equibench.Loop", "max_iters": end, "val_interval": end},
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": {"type": "AdamW", "lr": settings.lr, "weight_decay": settings.weight_decay},
        },
        "param_scheduler": schedulers,
        "default_hooks": {
            "logger": {"type": "LoggerHook", "interval": 50, "log_metric_by_epoch": False},
            # two: while one is written, the other is there
            "checkpoint": {
                "type": "CheckpointHook", "by_epoch": False, "interval": settings.checkpoint_every,
                "max_keep_ckpts": 2,
            },
        },
        "log_processor": {"by_epoch": False},
    }  # fmt: skip
