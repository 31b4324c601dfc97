"""The MLP probe that regresses transformations: SIE's three layers on what `whitening` makes of a pair.

Two hidden layers with ReLU and dropout, Adam at a constant rate, mean squared error (docs/protocol.md 7.1). What is
kept is a running average of the weights at the epoch where the validation error is lowest; training ends when it has
not fallen for some epochs. The training mean is among the candidates, for each target on its own, so that an R² below 0
is the noise of few validation pairs. Seeds are probes with matrix products in one batch; they share the dropout's
random numbers and end together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from equibench.probes.whitening import SHRINKAGES, Conditioning, Split, Whitening
from equibench.profiles import Probing

_STEPS_PER_EPOCH, _SMALLEST_BATCH = 16, 32
"""With few pairs batches are made smaller, so that an epoch has so many steps."""
_SHORT = 8
"""Shrinkages are compared after this share of the epochs."""


@dataclass(frozen=True)
class ProbeResult:
    """What the probes of one feature set predict for the test split."""

    predictions: NDArray[np.float64]  # (seeds, N, K) in the targets' coding
    best_epochs: list[int]  # per seed, counted from 1, chosen on the validation split
    validation_mse: list[float]  # per seed, of standardised targets, at that epoch


def literal_schedule(settings: Probing) -> Probing:
    """The schedule of P1's literal probe: few epochs, no dropout, no averaging, each epoch a candidate."""
    epochs, lr = settings.unwhitened_epochs, settings.unwhitened_lr
    return replace(settings, epochs=epochs, lr=lr, patience=epochs, dropout=0.0, averaging=0.0)


def fit_mlp(
    splits: Mapping[str, Split],
    conditioning: Conditioning,
    settings: Probing,
    *,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    bf16: bool = False,
) -> ProbeResult:
    """Train probes on the train split, choose their epochs on val, predict test.

    Args:
        splits: "train", "val" and "test". The test targets are never read.
        conditioning: what the probe is shown of the representations.
        seeds: one probe each.
        bf16: multiply matrices in bfloat16.
    """
    mean, std = splits["train"].targets.mean(axis=0), splits["train"].targets.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    standard = {s: torch.from_numpy((splits[s].targets - mean) / std).float().to(device) for s in ("train", "val")}
    inputs = {name: _Inputs(split, conditioning, device) for name, split in splits.items()}
    with torch.random.fork_rng(), torch.autocast(torch.device(device).type, torch.bfloat16, bf16, cache_enabled=False):
        torch.manual_seed(seeds[0])  # dropout draws from the global generator
        probes = SeedProbes(inputs["train"].width, standard["train"].shape[1], settings, seeds).to(device)
        best = _train(probes, inputs, standard, settings)
        probes.load_state_dict(best.weights)
        with torch.no_grad():
            predicted = _predict(probes.eval(), inputs["test"]).double()
    constant = (best.errors >= standard["val"].square().mean(dim=0)).unsqueeze(1)  # no better than the training mean
    coded = torch.where(constant.to(predicted.device), 0.0, predicted).cpu().numpy() * std + mean
    return ProbeResult(coded, best.epochs.tolist(), best.errors.mean(dim=1).tolist())


def choose_shrinkage(
    splits: Mapping[str, Split], whitening: Whitening, proposed: float, settings: Probing, **options: Any
) -> float:
    """The proposed shrinkage or the one that is best after an eighth of the epochs: with which the MLP ends better.

    Both are judged by the validation error of one seed; options are those of `fit_mlp`.
    """

    def error(shrinkage: float, schedule: Probing) -> float:
        return fit_mlp(splits, whitening.shrunk(shrinkage), schedule, seeds=[0], **options).validation_mse[0]

    short = replace(settings, epochs=max(1, settings.epochs // _SHORT))
    early = min(SHRINKAGES, key=lambda shrinkage: error(shrinkage, short))
    return proposed if early == proposed else min(proposed, early, key=lambda shrinkage: error(shrinkage, settings))


class SeedProbes(nn.Module):
    """Independent MLPs, one for each seed, which share one first matrix product."""

    first: Tensor
    first_bias: Tensor
    hidden: Tensor
    hidden_bias: Tensor
    out: Tensor
    out_bias: Tensor

    def __init__(self, inputs: int, targets: int, settings: Probing, seeds: Sequence[int]) -> None:
        super().__init__()
        self.seeds, self.width, self.dropout = len(seeds), settings.width, settings.dropout
        layers = [_initial_layers(inputs, settings.width, targets, seed) for seed in seeds]
        for number, name in enumerate(("first", "hidden", "out")):
            weights, biases = (torch.stack([layer[number][part] for layer in layers]) for part in (0, 1))
            self.register_parameter(name, nn.Parameter(weights))
            self.register_parameter(f"{name}_bias", nn.Parameter(biases))

    def forward(self, x: Tensor) -> Tensor:
        """What is seen of pairs (N, inputs) -> predictions (seeds, N, K)."""
        weight, bias = self.first.transpose(0, 1).flatten(1), self.first_bias.flatten()
        y = torch.addmm(bias, x, weight).unflatten(1, (self.seeds, self.width)).transpose(0, 1)
        y = F.dropout(F.relu(y), self.dropout, self.training)
        y = F.dropout(F.relu(torch.baddbmm(self.hidden_bias, y, self.hidden)), self.dropout, self.training)
        with torch.autocast(x.device.type, enabled=False):  # the small last layer keeps its digits
            return torch.baddbmm(self.out_bias, y.float(), self.out)


class _Best:
    """Each probe's weights at the epoch where its own validation error was lowest."""

    def __init__(self, probes: SeedProbes, targets: int) -> None:
        self.errors = torch.full((probes.seeds, targets), float("inf"))  # by target
        self.epochs = torch.zeros(probes.seeds, dtype=torch.int64)
        self.weights = {name: value.detach().clone() for name, value in probes.named_parameters()}

    def update(self, epoch: int, errors: Tensor, weights: Mapping[str, Tensor]) -> None:
        better = errors.cpu().mean(dim=1) < self.errors.mean(dim=1)
        self.errors[better], self.epochs[better] = errors.cpu()[better], epoch
        for name, value in weights.items():
            self.weights[name][better.to(value.device)] = value.detach()[better.to(value.device)]


class _Inputs:
    """What the probe sees of one split; a split of one block is read once, a larger one in every pass."""

    def __init__(self, split: Split, conditioning: Conditioning, device: torch.device | str) -> None:
        self.split, self.conditioning, self.device = split, conditioning, device
        self.blocks = split.blocks()
        self.whole = self._read(self.blocks[0]) if len(self.blocks) == 1 else None
        self.width = self._read(slice(0, 1)).shape[1]

    def _read(self, rows: slice) -> Tensor:
        return torch.from_numpy(self.conditioning(self.split.read(rows))).to(self.device)

    def passes(self, order: Sequence[int] | None = None) -> Iterator[tuple[slice, Tensor]]:
        """The blocks with their rows, in order or in the order given."""
        for number in order or range(len(self.blocks)):
            yield self.blocks[number], self._read(self.blocks[number]) if self.whole is None else self.whole

    def batches(self, targets: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch: pairs in random order within blocks, blocks in random order, so that a disk is read in sequence.

        The pairs of a manifest are in random order already, so a block is a random sample of them.
        """
        several = len(self.blocks) > 1
        order = torch.randperm(len(self.blocks), generator=generator).tolist() if several else None
        for span, block in self.passes(order):
            mine = targets[span]
            for rows in torch.randperm(len(mine), generator=generator).to(mine.device).split(size):
                yield block[rows], mine[rows]
            del block  # before the next one is read


def _train(
    probes: SeedProbes, inputs: Mapping[str, _Inputs], targets: Mapping[str, Tensor], settings: Probing
) -> _Best:
    """Each probe's best epoch of the averaged weights."""
    optimizer = torch.optim.Adam(probes.parameters(), lr=settings.lr, fused=True)
    average = {name: value.detach().clone() for name, value in probes.named_parameters()}
    best, generator = _Best(probes, targets["train"].shape[1]), torch.Generator().manual_seed(0)
    batch, steps = min(settings.batch, max(_SMALLEST_BATCH, len(targets["train"]) // _STEPS_PER_EPOCH)), 0
    for epoch in range(1, settings.epochs + 1):
        probes.train()
        for x, y in inputs["train"].batches(targets["train"], batch, generator):
            # a sum over probes: each one's gradient is that of its own mean squared error
            (probes(x) - y).square().mean(dim=(1, 2)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            kept = min(settings.averaging, steps / (steps + 10))  # the first steps are soon forgotten
            torch._foreach_lerp_(list(average.values()), [p.detach() for p in probes.parameters()], 1 - kept)
        with torch.no_grad():
            predicted = _predict(probes.eval(), inputs["val"], average)
            best.update(epoch, (predicted - targets["val"]).square().mean(dim=1), average)
        if epoch - int(best.epochs.max()) >= settings.patience:
            break
    return best


def _predict(probes: SeedProbes, inputs: _Inputs, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """(seeds, N, K), with the probes' own weights or others."""
    parts = [part for _, block in inputs.passes() for part in block.split(4096)]
    if weights is None:
        return torch.cat([probes(part) for part in parts], dim=1)
    return torch.cat([torch.func.functional_call(probes, dict(weights), (part,)) for part in parts], dim=1)


def _initial_layers(inputs: int, width: int, targets: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Weights (in, out) and biases (1, out) of three layers as nn.Linear draws them."""
    generator, layers = torch.Generator().manual_seed(seed), []
    for before, after in ((inputs, width), (width, width), (width, targets)):
        bound = max(before, 1) ** -0.5
        weight = torch.empty(before, after).uniform_(-bound, bound, generator=generator)
        layers.append((weight, torch.empty(1, after).uniform_(-bound, bound, generator=generator)))
    return layers
