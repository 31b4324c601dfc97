"""The small CNN behind a certificate: trained from scratch on the pixels of one input, scored by its test R²."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from equibench.data.datasets import Dataset
from equibench.data.pairs import SPLITS, Pairs, image_source
from equibench.encoders.vit import MEAN, STD, ViewSpec
from equibench.errors import UserError
from equibench.metrics.regression import bootstrap_r2, r2_per_dimension
from equibench.pretrain.loop import learning_rate
from equibench.transforms import TRANSFORMATIONS, transform, visible_disc

INPUTS = ("both_views", "view2_alone", "border", "interpolation")
"""What a CNN is trained on: both views; view 2; the outermost visible ring of view 2; view 2 of white noise, which has
no upright and no middle, so that what is read from it comes from the resampling (geometric transformations only)."""
LR = 2e-3
BORDER = 2 / 32  # width of the ring over the image's side
LARGE = 64  # a side above which the first convolution strides


class SmallCNN(nn.Module):
    """Four convolutions and two linear layers; keeps the grid until the end, so that positions can be read."""

    def __init__(self, channels: int, targets: int, side: int = LARGE) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        first = -(-side // LARGE)  # brings any side to 64 px or less; the kernel grows with it, to see every pixel
        for before, after, stride, kernel in (
            (channels, 32, first, first + 2),
            (32, 64, 2, 3),
            (64, 96, 2, 3),
            (96, 96, 1, 3),
        ):
            layers += [nn.Conv2d(before, after, kernel, stride, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(6), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(96 * 36, 256), nn.ReLU(), nn.Linear(256, targets))

    def forward(self, x: Tensor) -> Tensor:
        """Views (N, channels, S, S) -> standardised targets (N, K)."""
        return self.head(self.body(x))


@dataclass(frozen=True)
class Subject:
    """What all inputs of a certificate share: the pairs, how they are seen, and how long is trained."""

    pairs: Pairs
    dataset: Dataset
    views: ViewSpec
    fabric: Fabric
    epochs: int
    batch: int

    @property
    def side(self) -> int:
        return int(self.dataset.train.images.shape[-1])

    def rows(self, split: str) -> NDArray[np.int64]:
        return np.arange(*self.pairs.rows(split).indices(len(self.pairs.image)))


def train_and_score(source: str, subject: Subject, advance: Callable[[], object]) -> tuple[float, float, float]:
    """Train on one of `INPUTS`; test R² of the epoch that the validation pairs choose, and its interval's ends.

    Args:
        advance: called after each step.

    Raises:
        UserError: a parameter of the transformation does not vary.
    """
    pairs, fabric = subject.pairs, subject.fabric
    coded = TRANSFORMATIONS[pairs.transformation].encode(pairs.theta, subject.side)
    train = coded[pairs.rows("train")]
    if not train.std(axis=0).all():
        raise UserError(f"θ of {pairs.transformation!r} does not vary over the pairs", "draw it from a range")
    targets = torch.from_numpy((coded - train.mean(axis=0)) / train.std(axis=0)).float()
    torch.manual_seed(0)
    model = SmallCNN(6 if source == "both_views" else 3, targets.shape[1], subject.side)
    module, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=LR, fused=True))
    rows, step = subject.rows("train"), 0
    steps = subject.epochs * (len(rows) // subject.batch)
    best, best_error = None, float("inf")
    for epoch in range(subject.epochs):
        module.train()
        order = np.random.default_rng(epoch).permutation(rows)
        for start in range(0, len(order) - subject.batch + 1, subject.batch):
            batch = order[start : start + subject.batch]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(LR, step, steps, 0.05)
            error = F.mse_loss(module(_input(source, subject, batch)), targets[batch].to(fabric.device))
            fabric.backward(error)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            advance()
        error_val = float(
            np.square(_predict(module, source, subject, "val") - targets[pairs.rows("val")].numpy()).mean()
        )
        if error_val < best_error:
            best, best_error = _predict(module, source, subject, "test"), error_val
    assert best is not None, "the validation error was never a number"
    truth = targets[pairs.rows("test")].double().numpy()
    low, high = bootstrap_r2(truth, best[None].astype(np.float64))
    return float(r2_per_dimension(truth, best.astype(np.float64)).mean()), low, high


@torch.no_grad()
def _predict(module: nn.Module, source: str, subject: Subject, split: str) -> NDArray[np.float32]:
    module.eval()
    rows = subject.rows(split)
    most = 500 if subject.side <= LARGE else 64
    parts = [module(_input(source, subject, part)) for part in np.array_split(rows, -(-len(rows) // most))]
    return torch.cat(parts).float().cpu().numpy()


def _input(source: str, subject: Subject, rows: NDArray[np.int64]) -> Tensor:
    """The views of these pairs, normalised and masked, as the CNN sees them (all rows of one split)."""
    pairs, views, size, device = subject.pairs, subject.views, subject.side, subject.fabric.device
    split = next(s for s in SPLITS if rows[0] < pairs.rows(s).stop)
    if source == "interpolation":
        pixels = noise_pictures(rows - pairs.rows(split).start, size, pairs.transformation, split)
    else:
        pixels = image_source(subject.dataset, split).images[pairs.image[rows]]
    images = torch.from_numpy(pixels).to(device).float() / 255
    theta = {pairs.transformation: torch.from_numpy(pairs.theta[rows]).float().to(device)}
    second = transform(images, theta, views.fill)
    mask = torch.ones(size, size) if views.radius is None else visible_disc(size, views.radius)
    mask = (outer_ring(size, views.radius) if source == "border" else mask).to(device)
    mean, std = (torch.tensor(m, device=device).view(3, 1, 1) for m in (MEAN, STD))
    return torch.cat([(v - mean) / std * mask for v in ([images] if source == "both_views" else []) + [second]], dim=1)


def outer_ring(size: int, radius: float | None) -> Tensor:
    """(S, S) float mask of the outermost visible pixels, 2 px wide at 32 px: a ring, or a frame where no disc hides."""
    if radius is not None:
        return visible_disc(size, radius) - visible_disc(size, radius - BORDER * size)
    width = max(1, round(BORDER * size))
    mask = torch.ones(size, size)
    mask[width : size - width, width : size - width] = 0
    return mask


def noise_pictures(rows: NDArray[np.int64], size: int, *key: object) -> NDArray[np.uint8]:
    """White noise (N, 3, S, S) uint8, one picture for each row number, which depends on it and on the key alone."""
    count = 3 * size * size
    pictures = np.empty((len(rows), count), np.uint8)
    for picture, row in zip(pictures, rows, strict=True):
        digest = hashlib.sha256("|".join(map(str, ("noise", *key, row))).encode()).digest()
        words = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8")).random_raw(-(-count // 8))
        picture[:] = words.astype("<u8").view(np.uint8)[:count]
    return pictures.reshape(-1, 3, size, size)
