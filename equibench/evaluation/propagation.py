"""Where does the object go? The first frame's mask carried through a video by frozen patch tokens (P2 Table 7).

Nothing is trained. Every token takes the labels of the tokens most like it in the first frame and in the frames before
it (Jabri, Owens, Efros, NeurIPS 2020; the settings are CropMAE's, which P2 names). What is kept are sums of J and F
over each video's objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from equibench.data.davis import DavisData, Video, find_davis, load_davis, missing_davis, read_frame, read_mask
from equibench.evaluation.context import Context, Row
from equibench.evaluation.evaluator import (
    Arrays,
    DataFacts,
    Kept,
    Measurement,
    MetricInfo,
    RatioEvaluator,
    kept,
    register_evaluator,
)
from equibench.metrics.bootstrap import Ratio, as_float
from equibench.metrics.masks import boundary_accuracy, region_similarity
from equibench.pairs.manifest import Pairs
from equibench.task import Task

if TYPE_CHECKING:
    from equibench.encoders.token_maps import TokenMaps

FLOOR = "unmoved"
"""Under this name stands what the first mask scores where it stays as it is."""
_QUERIES = 256
"""Tokens whose similarities to all of the context are held at once: 256 x 21 x 1,650 float32 are 35 MB."""
_FRAMES = 4
"""Frames of a forward pass."""


@dataclass(frozen=True)
class Propagation:
    """How labels are carried on; CropMAE's settings for DAVIS, in tokens of 16 px of frames of 480 x 880 px.

    Attributes:
        temperature: of the softmax over the cosine similarities of the nearest tokens.
        nearest: from so many tokens of the context labels are taken.
        radius: only context tokens nearer than this count, in tokens; in the first frame all do.
        context: so many frames before a frame, beside the first one.
        grid: tokens down and across.
    """

    temperature: float = 0.7
    nearest: int = 7
    radius: float = 20
    context: int = 20
    grid: tuple[int, int] = (30, 55)


@register_evaluator
class PropagationEvaluator(RatioEvaluator):
    """Where does the object go? Labels carried through a video by frozen patch tokens."""

    name, title, main_metric = "propagation", "Masks carried through videos by frozen patch tokens", "JF"
    metrics = {
        "JF": MetricInfo("J&F", "higher", "mean of J and F"),
        "J": MetricInfo("J", "higher", "intersection over union of each object's mask, mean over objects"),
        "F": MetricInfo("F", "higher", "harmonic mean of the boundary's precision and recall, mean over objects"),
    }

    def pairs(self, task: Task, context: Context) -> tuple[Pairs, ...]:
        return ()

    def data(self, task: Task, context: Context) -> DataFacts:
        found = _data(context)
        return DataFacts(found.name, found.sha256, sizes=(0, 0, len(found.videos)))

    def missing_data(self, task: Task, context: Context) -> str:
        return missing_davis(context.data_root)

    def recipe(self, task: Task, context: Context) -> dict[str, Any]:
        return asdict(Propagation())

    def measure(self, row: Row, task: Task, context: Context) -> Measurement:
        """Carry the masks through every video; keep the sums of J and F over its objects, and those of the floor."""
        from equibench.encoders.token_maps import TokenMaps

        settings, videos = Propagation(), _data(context).videos
        maps = TokenMaps(row.encoder, settings.grid).to(context.device)
        scores: dict[str, list[NDArray[np.float64]]] = {"full": [], FLOOR: []}
        for done, video in enumerate(videos):
            if context.on_progress:
                context.on_progress(done / len(videos), f"{video.name}, {len(video.frames)} frames")
            annotated = [read_mask(path) for path in video.masks]
            carried = carried_masks(video, annotated[0], maps, settings, bf16=context.bf16)
            scores["full"].append(object_scores(carried, annotated))
            scores[FLOOR].append(object_scores((annotated[0] for _ in annotated), annotated))
        arrays: Kept = {}
        for owner, found in scores.items():
            arrays |= kept(_ratios(found), owner)
        return Measurement(arrays, features=("full",))

    def floors(self, arrays: Arrays) -> dict[str, float]:
        return {name: ratio.value for name, ratio in self.ratios(arrays, FLOOR).items()}


def carried_masks(
    video: Video, first: NDArray[np.uint8], maps: TokenMaps, settings: Propagation, *, bf16: bool = False
) -> Iterator[NDArray[np.int64]]:
    """The mask (H, W) of every frame of a video from that of the first, which is the first of them."""
    device, features = next(maps.buffers()).device, []
    for start in range(0, len(video.frames), _FRAMES):
        frames = np.stack([read_frame(path) for path in video.frames[start : start + _FRAMES]])
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            features.append(maps(torch.from_numpy(frames).to(device).float().div_(255)).float())
    labels = F.one_hot(torch.from_numpy(first).long().to(device)).permute(2, 0, 1).float()
    tokens = torch.cat(features)
    known = F.adaptive_avg_pool2d(
        labels, (tokens.shape[-2], tokens.shape[-1])
    )  # the share of each token that an object covers
    yield first.astype(np.int64)
    for one in propagate(tokens, known, settings):
        sized = F.interpolate(one[None], size=first.shape, mode="bilinear", align_corners=False)[0]
        yield sized.argmax(dim=0).cpu().numpy()


def propagate(maps: Tensor, first: Tensor, settings: Propagation) -> Iterator[Tensor]:
    """Labels (C, h, w) of the second and of every later frame.

    Args:
        maps: token maps (T, D, h, w) of the frames; their lengths do not count.
        first: labels (C, h, w) of the first frame's tokens, which sum to 1 over C.
    """
    features = F.normalize(maps.flatten(2).mT, dim=-1)  # (T, L, D)
    near = _neighbourhood(maps.shape[-2], maps.shape[-1], settings.radius).to(maps.device)
    labels = [first.flatten(1).T]  # (L, C) each
    for number in range(1, len(maps)):
        context = [0, *range(max(1, number - settings.context), number)]
        keys, values = features[context], torch.cat([labels[one] for one in context])
        parts = []
        for query, window in zip(features[number].split(_QUERIES), near.split(_QUERIES), strict=True):
            alike = torch.einsum("qd,fkd->qfk", query, keys)
            alike[:, 1:].masked_fill_(~window[:, None], -torch.inf)
            best = alike.flatten(1).topk(min(settings.nearest, len(values)), dim=1)
            weights = (best.values / settings.temperature).softmax(dim=1)
            parts.append((weights[..., None] * values[best.indices]).sum(dim=1))
        labels.append(torch.cat(parts))
        yield labels[-1].T.unflatten(1, maps.shape[-2:])


def object_scores(predicted: Iterator[NDArray[Any]], annotated: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """J and F (2, objects) of a video's masks (H, W): means over its frames without the first, which was given, and
    the last, as in DAVIS's own evaluation.

    Objects are numbered from 1 to the largest number that is annotated in any frame.
    """
    frames = list(zip(predicted, annotated, strict=True))[1:-1]
    objects = max(int(mask.max()) for mask in annotated)
    found = [
        [[of(ours == one, truth == one) for one in range(1, objects + 1)] for ours, truth in frames]
        for of in (region_similarity, boundary_accuracy)
    ]
    return as_float(found).mean(axis=1)


def _ratios(found: list[NDArray[np.float64]]) -> dict[str, Ratio]:
    """Means over objects as sums over videos, since the objects of one video are no independent draws."""
    count = as_float([scores.shape[1] for scores in found])
    j, f = (as_float([scores[row].sum() for scores in found]) for row in (0, 1))
    both = Ratio((j + f) / 2, count)
    return {"JF": both, "J": replace(both, top=j), "F": replace(both, top=f)}


def _neighbourhood(height: int, width: int, radius: float) -> Tensor:
    """(L, L): which places of a grid are nearer to which than the radius, in steps of the grid."""
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).float()
    return torch.cdist(places, places) < radius


def _data(context: Context) -> DavisData:
    return load_davis(find_davis(context.data_root))
