"""Which homography lies between two patches? A convolutional head on the frozen token maps of both (P2 Table 6).

The head gives the displacement of every token's middle; the homography of least squares through these is what the
corners are read from. What is kept is the mean error of the four corners of each test pair, in pixels.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equibench.data.homographies import (
    CORNERS,
    PATCH,
    REACH,
    HomographyPairs,
    Patches,
    apply_homography,
    draw_homographies,
    find_pictures,
    fit_homography,
    missing_pictures,
)
from equibench.errors import UserError
from equibench.evaluation.context import Context, Row
from equibench.evaluation.evaluator import (
    Arrays,
    DataFacts,
    Measurement,
    MetricInfo,
    RatioEvaluator,
    kept,
    register_evaluator,
)
from equibench.evaluation.features import FeatureStore
from equibench.metrics.bootstrap import mean_of
from equibench.pairs.manifest import Pairs
from equibench.pairs.views import Views
from equibench.task import Task
from equibench.utils.files import digest_of

IDENTITY = "identity"
"""Under this name stand the errors of the prediction that nothing moves."""
IDENTITY_ERROR = REACH * (math.sqrt(2) + math.asinh(1)) / 3
"""What these are in expectation, 24.5 px: the mean distance from the middle of a square to its points."""
_READ = 64  # test pairs whose maps are read at once


@dataclass(frozen=True)
class HomographyHead:
    """The head and its training: three 3 x 3 convolutions, ReLU between them.

    Attributes:
        width: channels of the first two.
        epochs, batch, lr: of AdamW with a cosine to zero; the loss is the mean squared error of the displacements.
    """

    epochs: int
    width: int = 128
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 1e-4


@register_evaluator
class HomographyEvaluator(RatioEvaluator):
    """Which homography lies between two patches? A convolutional head on the frozen token maps of both."""

    name, title, main_metric = "homography", "Homographies, by a head on frozen token maps", "mce"
    metrics = {
        "mce": MetricInfo("corner error", "lower", "mean distance of the four corners in px of a patch of 128 px")
    }

    def pairs(self, task: Task, context: Context) -> tuple[Pairs, ...]:
        return ()

    def data(self, task: Task, context: Context) -> DataFacts:
        found = _pairs(context)
        return DataFacts(found.name, found.sha256, sizes=(len(found.files["train"]), 0, len(found.files["test"])))

    def missing_data(self, task: Task, context: Context) -> str:
        return missing_pictures(context.data_root)

    def recipe(self, task: Task, context: Context) -> dict[str, Any]:
        return asdict(_settings(context))

    def measure(self, row: Row, task: Task, context: Context) -> Measurement:
        """Encode both patches of every pair, train the head, keep the corner errors of the test pairs."""
        drawn, settings = _pairs(context), _settings(context)
        with tempfile.TemporaryDirectory(dir=_made(context.work), prefix="token-maps-") as scratch:
            maps = {split: _encoded(row, drawn, split, context, Path(scratch)) for split in drawn.files}
            head = train_head(maps["train"], drawn.corners["train"], settings, context)
            moved = predicted_corners(head, maps["test"], context)
        truth = drawn.corners["test"]
        found = {"full": corner_errors(moved, truth), IDENTITY: corner_errors(np.zeros_like(truth), truth)}
        arrays = {
            name: values for owner, e in found.items() for name, values in kept({"mce": mean_of(e)}, owner).items()
        }
        return Measurement(arrays, features=("full",))

    def floors(self, arrays: Arrays) -> dict[str, float]:
        return {name: ratio.value for name, ratio in self.ratios(arrays, IDENTITY).items()}


def corner_errors(predicted: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean distance (N,) of corners, from displacements (N, 4, 2) in pixels."""
    return np.asarray(np.linalg.norm(predicted - truth, axis=-1).mean(axis=-1))


def displacements(corners: NDArray[np.float64], grid: tuple[int, int]) -> NDArray[np.float64]:
    """By how much homographies, given by the displacement of the corners (N, 4, 2), move the middle of each token of a
    grid: (N, 2, h, w) in pixels.
    """
    places = token_places(grid)
    led = apply_homography(fit_homography(CORNERS, CORNERS + corners), places) - places
    return led.swapaxes(1, 2).reshape(-1, 2, *grid)


def corners_of(field: NDArray[np.float64]) -> NDArray[np.float64]:
    """The displacement of the corners (N, 4, 2) from that of the tokens (N, 2, h, w), by one homography through all."""
    places = token_places((field.shape[2], field.shape[3]))
    led = places + field.reshape(len(field), 2, -1).swapaxes(1, 2)
    return apply_homography(fit_homography(places, led), CORNERS) - CORNERS


def token_places(grid: tuple[int, int]) -> NDArray[np.float64]:
    """(h w, 2): x and y of the tokens' middles, in pixels from the middle of a patch's first one."""
    y, x = ((np.arange(count) + 0.5) * PATCH / count - 0.5 for count in grid)
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


class PairHead(nn.Module):
    """Standardised token maps of both patches, side by side (N, 2 D, h, w) -> displacements (N, 2, h, w) in pixels."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            # so that no scale of the features matters; without momentum, its statistics are those of all batches
            nn.BatchNorm2d(2 * channels, affine=False, momentum=None),
            nn.Conv2d(2 * channels, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, 2, 3, padding=1),
        )  # fmt: skip

    def forward(self, both: Tensor) -> Tensor:
        return REACH * self.layers(both)


@dataclass(frozen=True)
class PairMaps:
    """Token maps of both patches of pairs, on disk: (N, D h w) float16 each."""

    first: Any
    second: Any
    shape: tuple[int, int, int]  # (D, h, w)

    def read(self, rows: Any, device: torch.device) -> Tensor:
        """Of some pairs, side by side (n, 2 D, h, w) float32."""
        both = np.stack([np.asarray(part[rows]) for part in (self.first, self.second)], axis=1)
        return torch.from_numpy(both).to(device).float().view(len(both), 2 * self.shape[0], *self.shape[1:])


def train_head(maps: PairMaps, corners: NDArray[np.float64], settings: HomographyHead, context: Context) -> PairHead:
    """The head after its last epoch, in eval mode; it depends on the maps, the settings and seed 0 alone."""
    count, device = len(corners), context.device
    if count < 2:
        raise UserError(f"{count} training pair is too few for a head", "give more pictures, or more --pairs")
    target = torch.from_numpy(displacements(corners, maps.shape[1:])).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = PairHead(maps.shape[0], settings.width).to(device)
    order, batch = torch.Generator().manual_seed(0), min(settings.batch, count)
    steps = settings.epochs * (count // batch)
    optimizer = torch.optim.AdamW(head.parameters(), settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(settings.epochs):
        if context.on_progress:
            context.on_progress(0.5 + 0.5 * epoch / settings.epochs, f"epoch {epoch + 1} of {settings.epochs}")
        for rows in torch.randperm(count, generator=order)[: count // batch * batch].split(batch):
            said = head(maps.read(rows.numpy(), device))
            loss = nn.functional.mse_loss(said / REACH, target[rows].to(device) / REACH)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    if not torch.isfinite(loss):
        raise UserError("the head's loss is no longer a number", "are the encoder's features of a usable size?")
    return head.eval()


@torch.no_grad()
def predicted_corners(head: PairHead, maps: PairMaps, context: Context) -> NDArray[np.float64]:
    """The displacement of the corners (N, 4, 2) of all pairs, in pixels, held in the range that is drawn from."""
    starts = range(0, len(maps.first), _READ)
    fields = [head(maps.read(slice(at, at + _READ), context.device)).double().cpu() for at in starts]
    return corners_of(torch.cat(fields).numpy()).clip(-REACH, REACH)


def _encoded(row: Row, drawn: HomographyPairs, split: str, context: Context, folder: Path) -> PairMaps:
    from equibench.encoders.token_maps import TokenMaps

    maps = TokenMaps(row.encoder).to(context.device)
    with torch.no_grad():
        _, channels, height, width = maps(torch.zeros(1, 3, PATCH, PATCH, device=context.device)).shape
    if min(height, width) < 2:
        problem = f"a token map of {height} x {width} is too coarse for a homography"
        raise UserError(problem, "let the encoder see larger images: --size 224")
    store = FeatureStore(folder, row.batch or context.profile.encode_batch, context.device, context.bf16)
    found = []
    for number, corners in enumerate((np.zeros_like(drawn.corners[split]), drawn.corners[split])):
        patches = Patches(drawn.files[split], drawn.origin[split], corners)
        views = Views(digest_of(["homography", drawn.sha256, split, number]), patches)
        found.append(store.encode(lambda: maps, dict(row.identity or {}), views)["default"])
    return PairMaps(found[0], found[1], (channels, height, width))


def _settings(context: Context) -> HomographyHead:
    return HomographyHead(epochs=context.probing.epochs)


def _pairs(context: Context) -> HomographyPairs:
    train, _, test = context.probing.pairs
    return draw_homographies(find_pictures(context.data_root), (train, test))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
