"""Probes that regress transformations: the 3-layer MLP, for all seeds and feature sets at once, and ridge regression.

The MLP is SIE's (docs/protocol.md 7.1): two hidden layers with ReLU on the concatenated representations of both views,
Adam with a constant learning rate, mean squared error. Seeds and feature sets are independent probes whose matrix
products are batched; each one keeps the epoch that is best on the validation split.
"""

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from equibench.profiles import Probing
from equibench.utils.arrays import Gathered

STD_FLOOR = 1e-4
"""A feature that varies less than this share of the features' typical size is left as small as it is."""

PENALTIES = tuple(10.0**power for power in range(-2, 6))
"""Of ridge regression; the one that is best on the validation split is taken."""

_BLOCK_FLOATS = 2**26
"""Numbers of a block of pairs that is read into memory at once: 256 MiB in float32, 65,536 pairs of 512 features."""

_Array = NDArray[np.float64]
_Features = NDArray[np.floating] | Gathered


@dataclass(frozen=True)
class Split:
    """Representations of both views (N, D) each, in memory or on disk, and coded targets (N, K)."""

    first: _Features
    second: _Features
    targets: _Array

    def blocks(self) -> list[slice]:
        """Ranges of pairs of which each fits in memory."""
        rows = max(1, _BLOCK_FLOATS // (2 * self.first.shape[1]))
        return [slice(start, min(start + rows, len(self.targets))) for start in range(0, len(self.targets), rows)]

    def read(self, rows: slice) -> NDArray[np.float32]:
        """Representations of both views (n, 2, D)."""
        block = np.empty((rows.stop - rows.start, 2, self.first.shape[1]), dtype=np.float32)
        block[:, 0], block[:, 1] = self.first[rows], self.second[rows]
        if len(self.blocks()) > 1:
            for array in (self.first, self.second):
                _forget(array)
        return block


@dataclass(frozen=True)
class ProbeResult:
    """What the probes of one feature set predict for the test split.

    Attributes:
        predictions: (seeds, N, K) in the targets' coding.
        best_epoch: per seed, counted from 1, chosen on the validation split.
        validation_mse: per seed, of standardised targets, at that epoch.
    """

    predictions: _Array
    best_epoch: list[int]
    validation_mse: list[float]


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
    mean, std = splits["train"].targets.mean(axis=0), splits["train"].targets.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    targets = {
        name: torch.from_numpy((splits[name].targets - mean) / std).float().to(device) for name in ("train", "val")
    }
    standard = _standardisation(splits["train"])
    inputs = {name: _Inputs(split, *standard, device) for name, split in splits.items()}
    features = splits["train"].first.shape[1]
    probes = FusedProbes(columns, features, targets["train"].shape[1], settings.width, seeds).to(device)
    optimizer = torch.optim.Adam(probes.parameters(), lr=settings.lr, fused=True)
    best = _Best(probes)
    generator = torch.Generator().manual_seed(0)
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=bf16, cache_enabled=False):
        for epoch in range(1, settings.epochs + 1):
            for x, y in _batches(inputs["train"], targets["train"], settings.batch, generator):
                error = (probes(x) - y).square()
                # a sum over probes: each one's gradient is that of its own mean squared error
                error.mean(dim=(1, 2)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                best.update(epoch, (_predict(probes, inputs["val"]) - targets["val"]).square().mean(dim=(1, 2)))
        best.restore()
        with torch.no_grad():
            predicted = _predict(probes, inputs["test"]).double().cpu().numpy()
    predicted = predicted * std + mean
    found = {}
    for number, name in enumerate(columns):
        mine = slice(number * len(seeds), (number + 1) * len(seeds))
        found[name] = ProbeResult(predicted[mine], best.epoch[mine].tolist(), best.error[mine].tolist())
    return found


def fit_linear(splits: Mapping[str, Split], columns: slice) -> _Array:
    """Test predictions (N, K), in the targets' coding, of ridge regression on standardised representations.

    Args:
        splits: "train", "val" and "test". The test targets are never read.
        columns: which columns of a view's representation the probe sees.
    """
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    inputs = {}
    for name, split in splits.items():
        both = split.read(slice(0, len(split.targets)))[:, :, columns]
        inputs[name] = both.reshape(len(both), -1).astype(np.float64)
    scaler = StandardScaler().fit(inputs["train"])
    inputs = {name: scaler.transform(both) for name, both in inputs.items()}
    fits = [Ridge(alpha=penalty).fit(inputs["train"], splits["train"].targets) for penalty in PENALTIES]
    errors = [np.square(fit.predict(inputs["val"]) - splits["val"].targets).mean() for fit in fits]
    best = fits[int(np.argmin(errors))]
    return np.asarray(best.predict(inputs["test"]), dtype=np.float64).reshape(len(inputs["test"]), -1)


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
        first, hidden, out = [], [], []
        for column in columns.values():
            inputs = 2 * len(range(*column.indices(features)))
            layers = [_initial_layers(inputs, width, targets, seed) for seed in seeds]
            first.append(
                nn.ParameterList([nn.Parameter(torch.stack([la[0][i] for la in layers], dim=-2)) for i in (0, 1)])
            )
            hidden += [layer[1] for layer in layers]
            out += [layer[2] for layer in layers]
        self.first = nn.ModuleList(first)
        self.hidden, self.hidden_bias = (nn.Parameter(torch.stack([h[i] for h in hidden])) for i in (0, 1))
        self.out, self.out_bias = (nn.Parameter(torch.stack([o[i] for o in out])) for i in (0, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Both views' representations (N, 2, D) -> predictions (sets * seeds, N, K), set by set."""
        layers = []
        for column, first in zip(self.columns.values(), self.first, strict=True):
            weight, bias = first.get_parameter("0"), first.get_parameter("1")
            y = F.linear(x[:, :, column].flatten(1), weight.flatten(1).T, bias.flatten())
            layers.append(F.relu(y).unflatten(1, (len(self.seeds), self.width)).transpose(0, 1))
        y = F.relu(torch.baddbmm(self.hidden_bias, torch.cat(layers), self.hidden))
        with torch.autocast(x.device.type, enabled=False):  # the small last layer keeps its digits
            return torch.baddbmm(self.out_bias, y.float(), self.out)

    def probe_axis(self) -> dict[str, tuple[int, slice]]:
        """For each parameter, the axis along which its probes lie and which of all probes they are."""
        everyone = slice(0, len(self.columns) * len(self.seeds))
        axes = {name: (0, everyone) for name in ("hidden", "hidden_bias", "out", "out_bias")}
        for number in range(len(self.columns)):
            mine = slice(number * len(self.seeds), (number + 1) * len(self.seeds))
            axes |= {f"first.{number}.0": (1, mine), f"first.{number}.1": (0, mine)}
        return axes


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


class _Inputs:
    """Standardised representations of one split; a split of one block is read once, a larger one in every pass."""

    def __init__(
        self, split: Split, mean: NDArray[np.float32], std: NDArray[np.float32], device: torch.device | str
    ) -> None:
        self.split, self.mean, self.std, self.device = split, mean, std, device
        self.blocks = split.blocks()
        self.whole = self.read(self.blocks[0]) if len(self.blocks) == 1 else None

    def read(self, rows: slice) -> Tensor:
        """(n, 2, D) float32 on the device."""
        block = self.split.read(rows)
        block -= self.mean
        block /= self.std
        return torch.from_numpy(block).to(self.device)

    def passes(self, order: Sequence[int] | None = None) -> Iterator[tuple[slice, Tensor]]:
        """The blocks with their rows, in order or in the order given."""
        for number in order or range(len(self.blocks)):
            yield self.blocks[number], self.read(self.blocks[number]) if self.whole is None else self.whole


def _batches(
    inputs: _Inputs, targets: Tensor, batch: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: pairs in random order within blocks, blocks in random order, so that a disk is read in sequence.

    The pairs of a manifest are in random order already, so a block is a random sample of them.
    """
    several = len(inputs.blocks) > 1
    order = torch.randperm(len(inputs.blocks), generator=generator).tolist() if several else None
    for span, block in inputs.passes(order):
        mine = targets[span]
        for rows in torch.randperm(len(mine), generator=generator).to(mine.device).split(batch):
            yield block[rows], mine[rows]
        del block  # before the next one is read


def _standardisation(train: Split) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation (2, D) of each view's columns, the latter bounded from below."""
    count, shape = len(train.targets), (2, train.first.shape[1])
    total, squares = np.zeros(shape), np.zeros(shape)
    for rows in train.blocks():
        total += train.read(rows).sum(axis=0, dtype=np.float64)
    mean = total / count
    for rows in train.blocks():
        block = train.read(rows)
        block -= mean.astype(np.float32)
        squares += np.square(block, out=block).sum(axis=0, dtype=np.float64)
        del block  # before the next one is read
    std = np.sqrt(squares / count)
    size = np.sqrt(np.mean(squares / count + np.square(mean)))
    return mean.astype(np.float32), np.maximum(std, STD_FLOOR * size + 1e-12).astype(np.float32)


def _predict(probes: FusedProbes, inputs: _Inputs) -> Tensor:
    return torch.cat([probes(part) for _, block in inputs.passes() for part in block.split(4096)], dim=1)


def _forget(array: _Features) -> None:
    """Give the pages of a mapped file back, which otherwise count as this process's memory until it ends."""
    mapped = getattr(array.array if isinstance(array, Gathered) else array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)  # they are read-only, and stay in the system's cache
