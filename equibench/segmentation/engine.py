"""What mmengine is given: decode heads, draws that depend on the iteration alone, a loop that resumes, areas per image.

Importing this module registers all of it and the encoder. The heads are P1's "HyperNet on top", and a linear classifier
of every position.
"""

# ruff: noqa: E402  (mmseg cannot be imported before mmcv's compiled operations are there, or a stub in their place)
from equibench.segmentation import require_mmseg

require_mmseg()

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pprint import pformat
from typing import Any

import mmseg.utils
import numpy as np
import torch
from mmcv.cnn import build_norm_layer
from mmengine import Config, registry
from mmengine.dist import broadcast, get_dist_info
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop
from mmseg.datasets import ADE20KDataset
from mmseg.evaluation import IoUMetric
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import DATASETS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler

from equibench.errors import UserError
from equibench.metrics.segmentation import Areas, scores_from_areas
from equibench.segmentation.backbone import Encoder
from equibench.utils.random import uniforms

_LOOK_EVERY = 10  # iterations between two looks at the loss, which on a GPU each wait for it
_TRAINING_SHARE = 0.9  # of the progress that is reported; the rest is the validation


class HyperNetHead(BaseDecodeHead):
    """The Hyper Feature of Kong et al. (2016, section 3.1) on an encoder's maps (docs/protocol.md 7.5).

    Every map is resized (bilinear) to one resolution, a quarter of the image's, convolved (5 x 5) to few channels and
    normalised across channels (LRN); the concatenation goes through a 3 x 3 convolution, BatchNorm and ReLU, dropout
    and a 1 x 1 convolution to the classes. No official code is public: what follows the concatenation is ours.

    Args:
        in_channels: of each map.
        upsample: factor from the first map's resolution to the common one: its stride / 4.
        channels_per_level: 42 in the paper, which makes 126 of three levels; 128 is a practical choice.
        channels: between the 3 x 3 and the 1 x 1 convolution.
        level_norm: "lrn" (size 5, alpha 1e-4, beta 0.75), or "batch" for `norm_cfg` in its place.
        norm_cfg, others: as mmsegmentation's BaseDecodeHead; over several GPUs the norm is "SyncBN".
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, upsample: float = 4.0, channels_per_level: int = 42,
        channels: int = 256, level_norm: str = "lrn", norm_cfg: dict[str, Any] | None = None, **others: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            list(in_channels), channels, num_classes=num_classes, in_index=list(range(len(in_channels))),
            input_transform="multiple_select", norm_cfg=norm_cfg or {"type": "BN"}, **others,
        )  # fmt: skip
        self.upsample = upsample
        self.reduce = nn.ModuleList(nn.Conv2d(c, channels_per_level, 5, padding=2) for c in in_channels)
        assert level_norm in ("lrn", "batch"), f"level_norm is 'lrn' or 'batch', not {level_norm!r}"
        if level_norm == "lrn":
            self.norms = nn.ModuleList(nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75) for _ in in_channels)
        else:
            self.norms = nn.ModuleList(build_norm_layer(self.norm_cfg, channels_per_level)[1] for _ in in_channels)
        self.mix = nn.Sequential(
            nn.Conv2d(len(in_channels) * channels_per_level, channels, 3, padding=1, bias=False),
            build_norm_layer(self.norm_cfg, channels)[1],
            nn.ReLU(inplace=True),
        )

    def hyper_feature(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (N, C_l, h_l, w_l) -> (N, levels * channels_per_level, h, w) at the common resolution."""
        size = [max(round(side * self.upsample), 1) for side in maps[0].shape[-2:]]
        same = (F.interpolate(m, size=size, mode="bilinear", align_corners=self.align_corners) for m in maps)
        levels = zip(same, self.reduce, self.norms, strict=True)
        return torch.cat([norm(reduce(level)) for level, reduce, norm in levels], dim=1)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps -> logits (N, classes, h, w)."""
        return self.cls_seg(self.mix(self.hyper_feature(self._transform_inputs(inputs))))


class LinearHead(BaseDecodeHead):
    """BatchNorm and a 1 x 1 convolution on the maps, resized to the first's size: DINOv2's frozen protocol."""

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, norm_cfg: dict[str, Any] | None = None, **others: Any
    ) -> None:
        super().__init__(
            list(in_channels), sum(in_channels), num_classes=num_classes, in_index=list(range(len(in_channels))),
            input_transform="resize_concat", norm_cfg=norm_cfg or {"type": "BN"}, dropout_ratio=0, **others,
        )  # fmt: skip
        self.norm = build_norm_layer(self.norm_cfg, sum(in_channels))[1]

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps -> logits (N, classes, h, w) at the first map's resolution."""
        return self.cls_seg(self.norm(self._transform_inputs(inputs)))


class ListedImages(ADE20KDataset):
    """ADE20K whose lists name images with their suffixes, which mmsegmentation takes to be one for all."""

    def load_data_list(self) -> list[dict[str, Any]]:
        entries = super().load_data_list()
        for entry in entries:
            image = entry["seg_map_path"].removesuffix(self.seg_map_suffix)
            entry["seg_map_path"] = image.rpartition(".")[0] + self.seg_map_suffix
        return entries


class KeyedDataset(Dataset):
    """An endless stream of training samples of an mmsegmentation dataset: sample n depends on the seed and n alone.

    Its transforms draw from the global generators, whose state depends on workers and on what was drawn before; here it
    is set for each sample, so that a resumed run, or one with more workers, sees the same pictures.
    """

    def __init__(self, dataset: dict[str, Any], seed: int) -> None:
        self.dataset, self.seed = DATASETS.build(dataset), seed
        self.metainfo = self.dataset.metainfo

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> dict[str, Any]:
        epoch, place = divmod(number, len(self.dataset))
        seed = _seed_of("segmentation", self.seed, "sample", number)
        random.seed(seed)
        np.random.seed(seed)
        return self.dataset[int(_order(len(self.dataset), self.seed, epoch)[place])]


class KeyedSampler(Sampler):
    """Numbers of this process's samples, `batch` an iteration; none until the loop has said where to start."""

    def __init__(self, dataset: KeyedDataset, batch: int, seed: int | None = None) -> None:
        self.batch, self.start = batch, -1  # the seed, which mmengine gives, is of no use: nothing is drawn
        self.rank, self.world = get_dist_info()
        self.images = len(dataset)

    def __len__(self) -> int:
        return -(-self.images // self.world)

    def __iter__(self) -> Iterator[int]:
        # the loop's base class opens an iterator, which starts drawing, before a checkpoint is read
        if self.start < 0:
            return
        for iteration in itertools.count(self.start):
            first = (iteration * self.world + self.rank) * self.batch
            yield from range(first, first + self.batch)


class Loop(IterBasedTrainLoop):
    """Trains from wherever the checkpoint ended and validates once, at the end.

    mmengine's own loop draws, and throws away, all batches before that point; and where a run was stopped during its
    validation it does not validate again.
    """

    def run(self) -> Any:
        runner = self.runner
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        self.dataloader.sampler.start = self._iter
        batches = iter(self.dataloader)
        while self._iter < self._max_iters:
            runner.model.train()
            torch.manual_seed(_seed_of("segmentation", runner.seed, "iteration", self._iter, runner.rank))  # dropout
            self.run_iter(next(batches))
        # without SyncBN each process has statistics of its own; the checkpoint holds the first one's
        for buffer in runner.model.buffers():
            broadcast(buffer)
        runner.val_loop.run()
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        return runner.model


class AreaMetric(IoUMetric):
    """mmsegmentation's IoUMetric that keeps the areas of every image and adds them as integers."""

    default_prefix = "segmentation"
    areas: Areas | None = None  # of the last validation, in the order of the images; in the first process only

    def __init__(self, collect_dir: str | None = None, **others: Any) -> None:
        super().__init__(**others)
        self.collect_dir = collect_dir  # where processes leave their results for the first one

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        self.areas = Areas(*(torch.stack(part).numpy().astype(np.int64) for part in zip(*results, strict=True)))
        scores = scores_from_areas(self.areas)
        return {"aAcc": 100 * scores.aacc, "mIoU": 100 * scores.miou, "mAcc": 100 * scores.macc}


class PlainConfig(Config):
    """A config of built-in values, written by pprint: yapf, as mmengine has it, takes a second for every checkpoint."""

    @property
    def pretty_text(self) -> str:
        items = self.to_dict().items()
        return "".join(f"{key} = {pformat(value, width=110, sort_dicts=False)}\n" for key, value in items)


class ReportHook(Hook):
    """Tells `report` the fraction that is done and what is going on; stops a run whose loss is no longer a number."""

    def __init__(self, report: Callable[[float, str], None] | None = None) -> None:
        self.report = report or (lambda _fraction, _note: None)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        done = runner.iter + 1
        if outputs is None or (done % _LOOK_EVERY and done != runner.max_iters):
            return
        loss = float(outputs["loss"].detach())
        if not np.isfinite(loss):
            raise UserError(f"the loss is {loss} at iteration {done:,}", "choose a lower learning rate")
        self.report(_TRAINING_SHARE * done / runner.max_iters, f"iteration {done:,}, loss {loss:.3f}")

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        done, total = batch_idx + 1, len(runner.val_dataloader)
        if done % _LOOK_EVERY == 0 or done == total:
            share = _TRAINING_SHARE + (1 - _TRAINING_SHARE) * done / total
            self.report(share, f"validation, {done:,} of {total:,} images")


def _seed_of(*key: object) -> int:
    """A seed in [0, 2**32) that depends on nothing but the key."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, key)).encode()).digest()[:4], "big")


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.argsort(uniforms((count, 1), "segmentation", seed, "order", epoch)[:, 0], kind="stable")


# A scope of our own beside mmsegmentation's, whose registries find it by the prefix `equibench.`
mmseg.utils.register_all_modules(init_default_scope=False)
for _parent, _parts in (
    (registry.MODELS, (Encoder, HyperNetHead, LinearHead)),
    (registry.DATASETS, (KeyedDataset, ListedImages)),
    (registry.DATA_SAMPLERS, (KeyedSampler,)),
    (registry.LOOPS, (Loop,)),
    (registry.METRICS, (AreaMetric,)),
):
    _own = registry.Registry(_parent.name, parent=_parent, scope="equibench")
    for _part in _parts:
        _own.register_module(module=_part)
