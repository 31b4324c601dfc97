"""The 3-layer MLP probe, for all probe seeds and feature sets at once.

SIE's probe (PROTOCOL 1.2): two hidden layers with ReLU on the concatenated representations of both views, Adam with
a constant learning rate, mean squared error. Seeds and feature sets are independent probes whose matrix products are
batched; each one keeps the epoch that is best on the validation split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from equibench.profiles import Probing

STD_FLOOR = 1e-4
"""A feature that varies less than this share of the features' typical size is left as small as it is."""


@dataclass(frozen=True)
class Split:
    """Representations of both views (N, D) each and coded targets (N, K)."""

    first: NDArray[np.floating]
    second: NDArray[np.floating]
    targets: NDArray[np.float64]


@dataclass(frozen=True)
class ProbeResult:
    """What the probes of one feature set predict for the test split.

    Attributes:
        predictions: (seeds, N, K) in the targets' coding.
        best_epoch: per seed, counted from 1, chosen on the validation split.
        validation_mse: per seed, of standardised targets, at that epoch.
    """

    predictions: NDArray[np.float64]
    best_epoch: list[int]
    validation_mse: list[float]


class FusedProbes(nn.Module):
    """Independent MLPs: one for each (feature set, seed); the seeds of a set share one first matrix product.

    Args:
        columns: for each feature set, the columns of one view's representation that it sees.
        targets: number of target dimensions K.
        width: of both hidden layers.
        seeds: initialisation of each probe; a probe does not depend on which others are trained beside it.
    """

    def __init__(
        self, columns: Mapping[str, slice], features: int, targets: int, width: int, seeds: Sequence[int]
    ) -> None:
        super().__init__()
        self.columns, self.width, self.seeds = dict(columns), width, list(seeds)
        first, hidden, out = {}, [], []
        for name, column in columns.items():
            inputs = 2 * len(range(*column.indices(features)))
            layers = [_initial_layers(inputs, width, targets, seed) for seed in seeds]
            first[name] = nn.ParameterList(
                [nn.Parameter(torch.stack([layer[0][i] for layer in layers], dim=-2)) for i in (0, 1)]
            )
            hidden += [layer[1] for layer in layers]
            out += [layer[2] for layer in layers]
        self.first = nn.ModuleDict(first)
        self.hidden, self.hidden_bias = (nn.Parameter(torch.stack([h[i] for h in hidden])) for i in (0, 1))
        self.out, self.out_bias = (nn.Parameter(torch.stack([o[i] for o in out])) for i in (0, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Both views' representations (N, 2, D) -> predictions (sets * seeds, N, K), set by set."""
        layers = []
        for name, column in self.columns.items():
            weight, bias = self.first[name].get_parameter("0"), self.first[name].get_parameter("1")
            y = F.linear(x[:, :, column].flatten(1), weight.flatten(1).T, bias.flatten())
            layers.append(F.relu(y).unflatten(1, (len(self.seeds), self.width)).transpose(0, 1))
        y = F.relu(torch.baddbmm(self.hidden_bias, torch.cat(layers), self.hidden))
        with torch.autocast(x.device.type, enabled=False):  # the small last layer keeps its digits
            return torch.baddbmm(self.out_bias, y.float(), self.out)

    def probe_axis(self) -> dict[str, tuple[int, slice]]:
        """For each parameter, the axis along which its probes lie and which of all probes they are."""
        everyone = slice(0, len(self.columns) * len(self.seeds))
        axes = {name: (0, everyone) for name in ("hidden", "hidden_bias", "out", "out_bias")}
        for number, name in enumerate(self.columns):
            mine = slice(number * len(self.seeds), (number + 1) * len(self.seeds))
            axes |= {f"first.{name}.0": (1, mine), f"first.{name}.1": (0, mine)}
        return axes


def fit_probes(
    splits: Mapping[str, Split],
    columns: Mapping[str, slice],
    settings: Probing,
    *,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    bf16: bool = False,
) -> dict[str, ProbeResult]:
    """Train probes on the train split, choose their epochs on val, predict test.

    Args:
        splits: "train", "val" and "test". The test targets are never read.
        columns: which columns of a representation each feature set holds.
        settings: width, epochs, batch and learning rate.
        seeds: one probe each.
        bf16: multiply matrices in bfloat16.

    Returns:
        For each feature set, its probes' predictions.
    """
    inputs, moments = _standardised_inputs(splits, device), _moments(splits["train"].targets)
    targets = {
        name: torch.from_numpy((splits[name].targets - moments[0]) / moments[1]).float().to(device)
        for name in ("train", "val")
    }
    probes = FusedProbes(columns, inputs["train"].shape[2], targets["train"].shape[1], settings.width, seeds).to(device)
    optimizer = torch.optim.Adam(probes.parameters(), lr=settings.lr, fused=True)
    best = _Best(probes)
    order = torch.Generator().manual_seed(0)
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=bf16, cache_enabled=False):
        for epoch in range(1, settings.epochs + 1):
            for rows in torch.randperm(len(targets["train"]), generator=order).to(device).split(settings.batch):
                error = (probes(inputs["train"][rows]) - targets["train"][rows]).square()
                # a sum over probes: each one's gradient is that of its own mean squared error
                error.mean(dim=(1, 2)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                best.update(epoch, (_predict(probes, inputs["val"]) - targets["val"]).square().mean(dim=(1, 2)))
        best.restore()
        with torch.no_grad():
            predicted = _predict(probes, inputs["test"]).double().cpu().numpy()
    predicted = predicted * moments[1] + moments[0]
    return {
        name: ProbeResult(
            predicted[n * len(seeds) : (n + 1) * len(seeds)],
            best.epoch[n * len(seeds) : (n + 1) * len(seeds)].tolist(),
            best.error[n * len(seeds) : (n + 1) * len(seeds)].tolist(),
        )
        for n, name in enumerate(columns)
    }


class _Best:
    """Each probe's weights at the epoch where its own validation error was lowest."""

    def __init__(self, probes: FusedProbes) -> None:
        self.probes, self.axes = probes, probes.probe_axis()
        count = len(probes.columns) * len(probes.seeds)
        self.error, self.epoch = torch.full((count,), float("inf")), torch.zeros(count, dtype=torch.int64)
        self.weights = {name: value.detach().clone() for name, value in probes.named_parameters()}

    def update(self, epoch: int, error: Tensor) -> None:
        better = error.cpu() < self.error
        self.error = torch.where(better, error.cpu(), self.error)
        self.epoch[better] = epoch
        for name, value in self.probes.named_parameters():
            axis, mine = self.axes[name]
            shape = [-1 if dim == axis else 1 for dim in range(value.ndim)]
            mask = better[mine].to(value.device).view(shape)
            self.weights[name] = torch.where(mask, value.detach(), self.weights[name])

    def restore(self) -> None:
        self.probes.load_state_dict(self.weights)


def _initial_layers(inputs: int, width: int, targets: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of three layers as nn.Linear draws them, weights as (in, out)."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for number, (before, after) in enumerate(((inputs, width), (width, width), (width, targets))):
        bound = before**-0.5
        weight = torch.empty(before, after).uniform_(-bound, bound, generator=generator)
        bias = torch.empty(after).uniform_(-bound, bound, generator=generator)
        layers.append((weight, bias if number == 0 else bias[None]))
    return layers


def _standardised_inputs(splits: Mapping[str, Split], device: torch.device | str) -> dict[str, Tensor]:
    """(N, 2, D) float32 per split, each view's columns standardised by the train split."""
    train = np.stack([splits["train"].first, splits["train"].second], axis=1).astype(np.float32)
    mean, std = train.mean(axis=0), train.std(axis=0)
    std = np.maximum(std, STD_FLOOR * np.sqrt(np.square(train).mean()) + 1e-12)
    stacked = {name: np.stack([s.first, s.second], axis=1).astype(np.float32) for name, s in splits.items()}
    return {name: torch.from_numpy((x - mean) / std).to(device) for name, x in stacked.items()}


def _moments(targets: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    std = targets.std(axis=0)
    return targets.mean(axis=0), np.where(std > 0, std, 1.0)


def _predict(probes: FusedProbes, x: Tensor) -> Tensor:
    return torch.cat([probes(part) for part in x.split(4096)], dim=1)
