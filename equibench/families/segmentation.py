"""Which class is each pixel? A decode head on the frozen encoder's maps, trained by mmsegmentation (P1 Table 6).

Needs `equibench[seg]`. What is kept are four areas per validation image and class, from which every score follows.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equibench.errors import UserError
from equibench.families.base import Arrays, DataFacts, Family, Kept, Measurement
from equibench.files import digest_of
from equibench.metrics.segmentation import Areas, constant_areas, resampled_scores, scores_from_areas
from equibench.records import Metric
from equibench.segmentation.config import SegmentationSettings
from equibench.segmentation.stand_in import NAME as GENERATED
from equibench.segmentation.stand_in import stand_in_folder
from equibench.segmentation.tree import CheckedTree, check_tree, find_ade20k, label_areas
from equibench.setting import Setting, Subject
from equibench.task import Task

HEADS = {"ade20k": "hypernet", "ade20k_linear": "linear"}
STAND_IN_CLASSES = 12
MOST_WARMUP = 1500
SMALL_CROP = 128
"""Up to this side, crops are so small that loading them in processes of their own would cost more than it gains."""


def settings_of(task: Task, setting: Setting) -> SegmentationSettings:
    """The recipe of PROTOCOL 4 in the profile's size."""
    size = setting.profile.segmentation
    return SegmentationSettings(
        iterations=size.iterations,
        batch=size.batch,
        crop=size.crop,
        lr=size.lr,
        warmup=min(MOST_WARMUP, size.iterations // 10),
        classes=STAND_IN_CLASSES if setting.own_data.stand_ins else SegmentationSettings.classes,
        head=HEADS[task.name],
        workers=0 if size.crop <= SMALL_CROP else SegmentationSettings.workers,
        checkpoint_every=max(1, min(1000, size.iterations // 4)),
    )


def measure(subject: Subject, task: Task, setting: Setting) -> Measurement:
    """Train the head, which goes on where it was interrupted; keep the areas of every validation image."""
    tree, settings = _tree(task, setting), settings_of(task, setting)
    if subject.name == "constant":
        areas = constant_areas(label_areas(tree), int(tree.pixels.argmax()))
        return Measurement(_kept(areas), features=("full",))
    from equibench.segmentation.run import train_and_score  # which imports torch's distributed parts

    assert subject.encoder is not None
    identity = dict(subject.identity or {})
    name = digest_of([identity, asdict(settings), tree.sha256])[:16]
    found = train_and_score(
        subject.encoder,
        tree.root,
        setting.work / "segmentation" / f"{subject.name}-{task.name}-{name}",
        settings,
        report=setting.on_progress,
        skip_bad=setting.own_data.skip_bad,
    )
    return Measurement(_kept(found.areas), features=("full",))


def _kept(areas: Areas) -> Kept:
    return {f"full/{name}": values for name, values in areas.arrays().items()}


def _areas(arrays: Arrays, features: str) -> Areas:
    return Areas(**{name: np.asarray(arrays[f"{features}/{name}"]) for name in Areas.__dataclass_fields__})


def scores(arrays: Arrays, features: str) -> dict[str, Any]:
    """mIoU, mAcc and aAcc with their intervals."""
    areas = _areas(arrays, features)
    found, draws = scores_from_areas(areas), resampled_scores(areas)
    values = {"mIoU": found.miou, "mAcc": found.macc, "aAcc": found.aacc}
    metrics = {}
    for name, value in values.items():
        low, high = np.nanquantile(draws[name], [0.025, 0.975])
        metrics[name] = Metric(value=value, low=float(low), high=float(high))
    return {"metrics": metrics}


def resampled(arrays: Arrays, features: str) -> NDArray[np.float64]:
    """Bootstrap distribution of mIoU over validation images."""
    return resampled_scores(_areas(arrays, features))["mIoU"]


def _tree(task: Task, setting: Setting) -> CheckedTree:
    own, size = setting.own_data, setting.profile
    if own.stand_ins:
        assert size.stand_ins is not None
        root = stand_in_folder(size.stand_ins.scenes, size=size.segmentation.crop * 3 // 2)
    else:
        root = find_ade20k(own.root)
    return _checked(root, settings_of(task, setting).classes, own.skip_bad)


@lru_cache(maxsize=4)  # a table asks for the same tree for every row
def _checked(root: Path, classes: int, skip_bad: bool) -> CheckedTree:
    return check_tree(root, classes=classes, skip_bad=skip_bad)


def _facts(task: Task, setting: Setting) -> DataFacts:
    if task.name not in HEADS:
        raise UserError(f"the segmentation task {task.name!r} has no head", f"one of {', '.join(HEADS)}")
    tree = _tree(task, setting)
    sizes = (len(tree.names["training"]), 0, len(tree.names["validation"]))
    return DataFacts(GENERATED if setting.own_data.stand_ins else "ade20k", tree.sha256, len(tree.bad), sizes)


SEGMENTATION = Family(
    name="segmentation",
    title="Semantic segmentation with a frozen encoder",
    headline="mIoU",
    code=("families/segmentation.py", "metrics/segmentation.py", "segmentation"),
    pairs=lambda task, setting: (),
    measure=measure,
    scores=scores,
    resampled=resampled,
    data=_facts,
    recipe=lambda task, setting: asdict(settings_of(task, setting)),
)
