"""The usual protocol, written plainly: every probe seed of every task loads, transforms and encodes in every epoch.

This is the loop that equivariance papers publish (SIE's): the encoder is frozen and in eval mode, yet each epoch of
each probe encodes both views of every pair again. Pairs, initialisation, batches, optimiser and the choice of the
epoch are those of `equibench.probes.mlp`, so that the same numbers must come out, but for two roundings: the suite
stores views in 8 bits and features in float16.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equibench.data.dataset import image_source
from equibench.encoders.adapter import ImageEncoder
from equibench.encoders.vit import ViTEncoder
from equibench.evaluation.context import Context
from equibench.pairs.manifest import Pairs
from equibench.probes.mlp import STD_FLOOR, _initial_layers
from equibench.transforms.transformation import TRANSFORMATIONS, transform


class PlainProbe(nn.Module):
    """Two hidden layers with ReLU on both views' features, standardised with the training pairs' moments."""

    def __init__(self, inputs: int, width: int, targets: int, seed: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        sizes = ((inputs, width), (width, width), (width, targets))
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in sizes)
        for layer, (weight, bias) in zip(self.layers, _initial_layers(inputs, width, targets, seed), strict=True):
            layer.weight.data, layer.bias.data = weight.T.contiguous(), bias.flatten()

    def forward(self, x: Tensor) -> Tensor:
        first, hidden, out = self.layers
        x = torch.relu(hidden(torch.relu(first((x - self.mean) / self.std))))
        with torch.autocast(x.device.type, enabled=False):
            return out(x.float())


@dataclass(frozen=True)
class PlainProtocol:
    """One task for one encoder.

    Args:
        encoder: has a method `represent`.
        batch: images per forward pass.
        rounded: round views and features as the suite does when it stores them.
    """

    encoder: ImageEncoder | ViTEncoder
    pairs: Pairs
    context: Context
    batch: int
    rounded: bool = False

    def run(self, seed: int) -> NDArray[np.float64]:
        """Train one probe, keep the epoch that is best on the validation pairs, predict test: (N, K)."""
        probe, order = self.probe(seed, self.moments), torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(probe.parameters(), lr=self.context.probing.lr, fused=True)
        best, kept = float("inf"), {}
        for _ in range(self.context.probing.epochs):
            self.train_epoch(probe, optimizer, order)
            error = (self.predict(probe, "val") - self.targets("val")).square().mean().item()
            if error < best:
                best, kept = error, {name: value.clone() for name, value in probe.state_dict().items()}
        probe.load_state_dict(kept)
        mean, std = self._target_moments
        return self.predict(probe, "test").double().numpy() * std + mean

    def probe(self, seed: int, moments: tuple[Tensor, Tensor]) -> PlainProbe:
        """An untrained probe, for features (2 D,) of this mean and standard deviation."""
        outputs = self.targets("train").shape[1]
        return PlainProbe(len(moments[0]), self.context.probing.width, outputs, seed, *moments)

    def train_epoch(self, probe: PlainProbe, optimizer: torch.optim.Optimizer, order: torch.Generator) -> None:
        """Load, transform and encode every training pair, and train the probe on it."""
        targets = self.targets("train")
        for rows in torch.randperm(len(targets), generator=order).split(self.context.probing.batch):
            features = self.features("train", rows)
            with self._autocast():
                loss = (probe(features) - targets[rows]).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    @torch.no_grad()
    def predict(self, probe: PlainProbe, split: str) -> Tensor:
        """Standardised predictions (N, K) of a split, whose pairs are loaded, transformed and encoded."""
        rows = torch.arange(len(self.targets(split))).split(self.context.probing.batch)
        parts = []
        for part in rows:
            features = self.features(split, part)
            with self._autocast():
                parts.append(probe(features))
        return torch.cat(parts)

    def targets(self, split: str) -> Tensor:
        """Standardised targets (N, K) of a split."""
        mean, std = self._target_moments
        return torch.from_numpy((self._coded[self.pairs.rows(split)] - mean) / std).float()

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (2 D,) of the training pairs' features, from one more pass over them."""
        rows = torch.arange(self.pairs.sizes[0]).split(self.context.probing.batch)
        x = torch.cat([self.features("train", part) for part in rows])
        std, mean = torch.std_mean(x, dim=0, correction=0)
        size = float((std.square() + mean.square()).mean().sqrt())
        return mean, std.clamp_min(STD_FLOOR * size + 1e-12)

    @torch.no_grad()
    def features(self, split: str, rows: Tensor) -> Tensor:
        """Both views' representations side by side (n, 2 D) of these pairs of a split."""
        self.encoder.eval()
        images, theta = self._load(split, rows)
        moved = transform(images, {self.pairs.transformation: theta}, self.context.spec.fill)
        if self.rounded:
            moved = moved.mul(255).round().clamp(0, 255) / 255
        with self._autocast():
            encoded = [self.encoder.represent(part).float() for part in torch.cat([images, moved]).split(self.batch)]
        features = torch.cat(torch.cat(encoded).chunk(2), dim=1)
        return features.half().float() if self.rounded else features

    def _load(self, split: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] and parameters of these pairs of a split."""
        mine = self.pairs.rows(split).start + rows.numpy()
        images = image_source(self.context.dataset, split).images[self.pairs.image[mine]]
        return torch.from_numpy(images).float() / 255, torch.from_numpy(self.pairs.theta[mine]).float()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.context.device.type, dtype=torch.bfloat16, enabled=self.context.bf16)

    @cached_property
    def _coded(self) -> NDArray[np.float64]:
        return TRANSFORMATIONS[self.pairs.transformation].encode(self.pairs.theta, self.context.size)

    @cached_property
    def _target_moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        train = self._coded[self.pairs.rows("train")]
        return train.mean(axis=0), np.where(train.std(axis=0) > 0, train.std(axis=0), 1.0)
