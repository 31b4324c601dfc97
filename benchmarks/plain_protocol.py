"""The usual protocol, written plainly: every probe seed of every task loads, transforms and encodes in every epoch.

This is the loop that equivariance papers publish (SIE's): the encoder is frozen and in eval mode, yet each epoch of
each probe encodes both views of every pair again. Pairs, whitening, initialisation, batches, optimiser, averages and
the choice of the epoch are those of `equibench.probes`, so that the same numbers must come out where nothing is dropped
out, but for two roundings: the suite stores views in 8 bits and features in float16.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from equibench.data.dataset import image_source
from equibench.encoders.adapter import ImageEncoder
from equibench.encoders.vit import ViTEncoder
from equibench.evaluation.context import Context
from equibench.pairs.manifest import Pairs
from equibench.probes.mlp import _initial_layers
from equibench.probes.ridge import fit_closed_form
from equibench.probes.whitening import Split, Whitening
from equibench.transforms.transformation import TRANSFORMATIONS, transform_sequence


class PlainProbe(nn.Module):
    """Two hidden layers with ReLU and dropout on both views' features (n, 2 D), of which it sees (x - mean) @ seen."""

    def __init__(
        self, width: int, targets: int, seed: int, mean: Tensor, seen: Tensor, dropout: float
    ) -> None:  # fmt: skip
        super().__init__()
        self.mean, self.seen, self.dropout = mean, seen, nn.Dropout(dropout)
        inputs = seen.shape[1]
        sizes = ((inputs, width), (width, width), (width, targets))
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in sizes)
        for layer, (weight, bias) in zip(self.layers, _initial_layers(inputs, width, targets, seed), strict=True):
            layer.weight.data, layer.bias.data = weight.T.contiguous(), bias.flatten()

    def forward(self, x: Tensor) -> Tensor:
        first, hidden, out = self.layers
        with torch.autocast(x.device.type, enabled=False):
            x = (x - self.mean) @ self.seen
        x = self.dropout(torch.relu(hidden(self.dropout(torch.relu(first(x))))))
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
        """Train one probe, keep the epoch whose average is best on the validation pairs, predict test: (N, K)."""
        settings = self.context.probing
        probe, order = self.probe(seed, *self.conditioning), torch.Generator().manual_seed(0)
        averaged = AveragedModel(probe, avg_fn=self._average)
        averaged.update_parameters(probe)
        optimizer = torch.optim.Adam(probe.parameters(), lr=settings.lr, fused=True)
        best, at, kept = torch.tensor(float("inf")), 0, probe.state_dict()
        for epoch in range(1, settings.epochs + 1):
            self.train_epoch(probe, optimizer, order, averaged)
            errors = (self.predict(averaged.module, "val") - self.targets("val")).square().mean(dim=0)
            if errors.mean() < best.mean():
                best, at = errors, epoch
                kept = {name: value.clone() for name, value in averaged.module.state_dict().items()}
            if epoch - at >= settings.patience:
                break
        probe.load_state_dict(kept)
        learned = (best < self.targets("val").square().mean(dim=0)).numpy()  # else the training mean is as good
        mean, std = self._target_moments
        return self.predict(probe, "test").double().numpy() * learned * std + mean

    def probe(self, seed: int, mean: Tensor, seen: Tensor) -> PlainProbe:
        """An untrained probe that sees (x - mean) @ seen of features x (n, 2 D)."""
        settings = self.context.probing
        return PlainProbe(settings.width, self.targets("train").shape[1], seed, mean, seen, settings.dropout)

    def train_epoch(
        self, probe: PlainProbe, optimizer: torch.optim.Optimizer, order: torch.Generator, averaged: AveragedModel
    ) -> None:  # fmt: skip
        """Load, transform and encode every training pair, and train the probe on it."""
        targets = self.targets("train")
        batch = min(self.context.probing.batch, max(32, len(targets) // 16))
        probe.train()
        for rows in torch.randperm(len(targets), generator=order).split(batch):
            features = self.features("train", rows)
            with self._autocast():
                loss = (probe(features) - targets[rows]).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            averaged.update_parameters(probe)

    @torch.no_grad()
    def predict(self, probe: nn.Module, split: str) -> Tensor:
        """Standardised predictions (N, K) of a split, whose pairs are loaded, transformed and encoded."""
        parts = []
        for part in torch.arange(len(self.targets(split))).split(self.context.probing.batch):
            features = self.features(split, part)
            with self._autocast():
                parts.append(probe.eval()(features))
        return torch.cat(parts)

    def targets(self, split: str) -> Tensor:
        """Standardised targets (N, K) of a split."""
        mean, std = self._target_moments
        return torch.from_numpy((self._coded[self.pairs.rows(split)] - mean) / std).float()

    @cached_property
    def conditioning(self) -> tuple[Tensor, Tensor]:
        """Mean (2 D,) and map (2 D, inputs) of the features, which whiten their views' sum and difference.

        From one more pass over the pairs. The shrinkage is the one that the suite's closed form chooses for them.
        """
        splits = {}
        for split, count in zip(("train", "val", "test"), self.pairs.sizes, strict=True):
            rows = torch.arange(count).split(self.context.probing.batch)
            x = torch.cat([self.features(split, part) for part in rows]).numpy().astype(np.float64)
            first, second = np.split(x, 2, axis=1)
            splits[split] = Split(first, second, self._coded[self.pairs.rows(split)])
        shrinkage = fit_closed_form(splits, Whitening.of(splits["train"])).shrinkage
        maps, sizes = [], []
        for sign in (1, -1):  # of the first view in the sum and in the difference
            values = splits["train"].second + sign * splits["train"].first
            variances, directions = np.linalg.eigh(np.cov(values.T, ddof=0))
            kept = variances > 1e-9 * variances.max()
            variances, directions = variances[kept][::-1], directions[:, kept][:, ::-1]
            scaled = directions / np.sqrt(variances + shrinkage * variances.mean())
            sizes.append(variances / (variances + shrinkage * variances.mean()))
            maps.append(np.concatenate([sign * scaled, scaled]))
        seen = np.concatenate(maps, axis=1) / np.sqrt(np.concatenate(sizes).mean())
        mean = np.concatenate([splits["train"].first.mean(axis=0), splits["train"].second.mean(axis=0)])
        return torch.from_numpy(mean).float(), torch.from_numpy(seen).float()

    @torch.no_grad()
    def features(self, split: str, rows: Tensor) -> Tensor:
        """Both views' representations side by side (n, 2 D) of these pairs of a split."""
        self.encoder.eval()
        mine = self.pairs.rows(split).start + rows.numpy()
        stored = image_source(self.context.dataset, split).images[self.pairs.image[mine]]
        images = torch.from_numpy(stored).float() / 255
        moved = transform_sequence(images, self.pairs.steps(mine), self.context.spec.fill)
        if self.rounded:
            moved = moved.mul(255).round().clamp(0, 255) / 255
        with self._autocast():
            encoded = [self.encoder.represent(part).float() for part in torch.cat([images, moved]).split(self.batch)]
        features = torch.cat(torch.cat(encoded).chunk(2), dim=1)
        return features.half().float() if self.rounded else features

    def _average(self, kept: Tensor, new: Tensor, steps: Tensor | int) -> Tensor:
        """The running average of the weights, of which the first steps are soon forgotten."""
        share = min(self.context.probing.averaging, int(steps) / (int(steps) + 10))
        return share * kept + (1 - share) * new

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.context.device.type, dtype=torch.bfloat16, enabled=self.context.bf16)

    @cached_property
    def _coded(self) -> NDArray[np.float64]:
        return TRANSFORMATIONS[self.pairs.transformation].encode(self.pairs.theta, self.context.size)

    @cached_property
    def _target_moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        train = self._coded[self.pairs.rows("train")]
        return train.mean(axis=0), np.where(train.std(axis=0) > 0, train.std(axis=0), 1.0)
