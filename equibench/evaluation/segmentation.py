"""Which class is each pixel? A decode head on the frozen encoder's maps, trained by mmsegmentation (P1 Table 6).

`equibench[seg]` installs what it needs. What is kept are four areas per validation image and class, from which every
score follows (`metrics.segmentation`).
"""

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equibench.data.ade20k import (
    NAME,
    RENDERED_SCENES,
    CheckedTree,
    check_tree,
    find_ade20k,
    label_areas,
    rendered_scenes_folder,
)
from equibench.errors import UserError
from equibench.evaluation.context import Context, Row
from equibench.evaluation.evaluator import (
    Arrays,
    DataFacts,
    Evaluator,
    Measurement,
    MetricInfo,
    metric_of,
    register_evaluator,
)
from equibench.metrics.segmentation import Areas, constant_areas, resampled_scores, scores_from_areas
from equibench.pairs.manifest import Pairs
from equibench.records import Metric
from equibench.segmentation.config import SegmentationSettings
from equibench.task import Task
from equibench.utils.files import digest_of

_HEADS = {"ade20k": "hypernet", "ade20k_linear": "linear"}
_RENDERED_CLASSES = 12
_MOST_WARMUP = 1500
_SMALL_CROP = 128
"""Up to this side, crops are so small that loading them in processes of their own would cost more than it gains."""


@register_evaluator
class SegmentationEvaluator(Evaluator):
    """Which class is each pixel? A decode head on the frozen encoder's maps."""

    name, title, main_metric = "segmentation", "Semantic segmentation with a frozen encoder", "mIoU"
    metrics = {
        "mIoU": MetricInfo("mIoU", "higher", "intersection over union of a class's pixels, averaged over classes"),
        "mAcc": MetricInfo("mAcc", "higher", "share of a class's pixels that are found, averaged over classes"),
        "aAcc": MetricInfo("aAcc", "higher", "share of all pixels that are found"),
    }

    def pairs(self, task: Task, context: Context) -> tuple[Pairs, ...]:
        return ()

    def data(self, task: Task, context: Context) -> DataFacts:
        if task.name not in _HEADS:
            raise UserError(f"the segmentation task {task.name!r} has no head", f"one of {', '.join(_HEADS)}")
        tree = _tree(task, context)
        sizes = (len(tree.names["training"]), 0, len(tree.names["validation"]))
        return DataFacts(RENDERED_SCENES if context.rendered else "ade20k", tree.sha256, len(tree.bad), sizes)

    def missing_data(self, task: Task, context: Context) -> str:
        if context.rendered:
            return ""
        try:
            find_ade20k(context.data_root)
        except UserError:
            return f"put the folder {NAME} below --data-root or $EQUIBENCH_DATA"
        return ""

    def recipe(self, task: Task, context: Context) -> dict[str, Any]:
        return asdict(settings_of(task, context))

    def measure(self, row: Row, task: Task, context: Context) -> Measurement:
        """Train the head, which goes on where it was interrupted; keep the areas of every validation image."""
        tree, settings = _tree(task, context), settings_of(task, context)
        if row.name == "constant":
            areas = constant_areas(label_areas(tree), int(tree.pixels.argmax()))
        else:
            from equibench.segmentation.run import train_and_score_head  # which imports torch's distributed parts

            name = digest_of([dict(row.identity or {}), asdict(settings), tree.sha256])[:16]
            folder = context.work / "segmentation" / f"{row.name}-{task.name}-{name}"
            report, skip_bad = context.on_progress, context.skip_bad
            areas = train_and_score_head(
                row.encoder, tree.root, folder, settings, report=report, skip_bad=skip_bad
            ).areas
        return Measurement({f"full/{name}": values for name, values in areas.arrays().items()}, features=("full",))

    def scores(self, arrays: Arrays, features: str) -> dict[str, Metric]:
        """mIoU, mAcc and aAcc with their intervals."""
        areas = _areas(arrays, features)
        found, draws = scores_from_areas(areas), resampled_scores(areas)
        values = {"mIoU": found.miou, "mAcc": found.macc, "aAcc": found.aacc}
        return {name: metric_of(value, draws[name]) for name, value in values.items()}

    def resampled(self, arrays: Arrays, features: str) -> NDArray[np.float64]:
        """Bootstrap distribution of mIoU over validation images."""
        return resampled_scores(_areas(arrays, features))["mIoU"]


def settings_of(task: Task, context: Context) -> SegmentationSettings:
    """The recipe of docs/protocol.md 7.5 in the profile's size."""
    size = context.profile.segmentation
    return SegmentationSettings(
        **asdict(size),
        warmup=min(_MOST_WARMUP, size.iterations // 10),
        classes=_RENDERED_CLASSES if context.rendered else SegmentationSettings.classes,
        head=_HEADS[task.name],
        workers=0 if size.crop <= _SMALL_CROP else SegmentationSettings.workers,
        checkpoint_every=max(1, min(1000, size.iterations // 4)),
    )


def _areas(arrays: Arrays, features: str) -> Areas:
    return Areas(**{name: np.asarray(arrays[f"{features}/{name}"]) for name in Areas.__dataclass_fields__})


def _tree(task: Task, context: Context) -> CheckedTree:
    if context.rendered:
        assert context.profile.rendered is not None
        root = rendered_scenes_folder(context.profile.rendered.scenes, size=context.profile.segmentation.crop * 3 // 2)
    else:
        root = find_ade20k(context.data_root)
    return _checked(root, settings_of(task, context).classes, context.skip_bad)


@lru_cache(maxsize=4)  # a table asks for the same tree for every row
def _checked(root: Path, classes: int, skip_bad: bool) -> CheckedTree:
    return check_tree(root, classes=classes, skip_bad=skip_bad)
