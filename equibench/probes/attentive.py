"""The attentive probe: queries that look for tokens by what they are and where they stand, then the pair's MLP.

A mean over patch tokens forgets where things are. Here a probe learns queries q (32, k). Of a view's whitened tokens t
(P, k) each query takes the average over places p of the values (t_p + e_p) V, with weights softmax_p(4 q·(t_p + e_p)).
The places' codes e (P, k) and V (k, 16) are learned as well, and all of it is the same for both views. This is cross
attention with learned queries, as pooling in the Set Transformer (Lee et al., ICML 2019, section 3.2). The sum and the
difference of the two views' averages go through the MLP of `equibench.probes.mlp`, by its schedule (docs/protocol.md
7.6).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equibench.probes.mlp import ProbeResult, SeedProbes, _Inputs, _predict, _train
from equibench.probes.whitening import Block, Split
from equibench.profiles import Probing

QUERIES = 32

_VALUES = 16
"""Numbers that a query takes of the tokens: 32 times as many describe a view."""
_GAIN, _PLACES, _SMALL = 4.0, 2.0, 0.1
"""The queries' size in units in which they are learned, of Adam's steps; the places' and the values' initial sizes.
Queries begin as 32 different blurred looks at the grid, and soon turn to tokens of one kind."""


class AttentiveProbe(nn.Module):
    """Attentive pooling of both views, then the MLP of one seed."""

    def __init__(self, positions: int, width: int, targets: int, settings: Probing, seed: int) -> None:
        super().__init__()
        self.shape, self.seeds = (positions, width), 1
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(1, *shape, generator=generator))  # one seed, as in the head

        self.places = normal(positions, width, scale=_PLACES)
        self.queries = normal(QUERIES, width, scale=max(width, 1) ** -0.5 / _GAIN)
        self.values = normal(width, _VALUES, scale=_SMALL)
        self.head = SeedProbes(2 * QUERIES * _VALUES, targets, settings, [seed])

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of pairs (N, 2 P k), position by position -> predictions (1, N, K)."""
        tokens = x.unflatten(1, (2, *self.shape)) + self.places[0]
        weights = (tokens @ (_GAIN * self.queries[0].T)).softmax(dim=2)  # (N, 2, P, queries)
        taken = (weights.mT @ (tokens @ self.values[0])).flatten(2)  # (N, 2, queries x values)
        first, second = taken.unbind(dim=1)
        return self.head(torch.cat([first + second, second - first], dim=1))


def fit_attentive(
    splits: Mapping[str, Split],
    positions: int,
    settings: Probing,
    *,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    bf16: bool = False,
) -> ProbeResult:
    """Train attentive probes on the train split, choose their epochs on val, predict test.

    A target of which the training mean is the better guess on the validation pairs is predicted by that.

    Args:
        splits: "train", "val" and "test", of whitened tokens (N, P k) of each view, position by position. The test
            targets are never read.
        positions: P.
        settings: schedule, and width and dropout of the MLP.
        seeds: one probe each.
        bf16: multiply matrices in bfloat16.
    """
    mean, std = splits["train"].targets.mean(axis=0), splits["train"].targets.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    standard = {s: torch.from_numpy((splits[s].targets - mean) / std).float().to(device) for s in ("train", "val")}
    inputs = {name: _Inputs(split, _side_by_side, device) for name, split in splits.items()}
    useless, width = standard["val"].square().mean(dim=0).cpu(), splits["train"].width // positions
    predictions, epochs, errors = [], [], []
    for seed in seeds:
        autocast = torch.autocast(torch.device(device).type, torch.bfloat16, bf16, cache_enabled=False)
        with torch.random.fork_rng(), autocast:
            torch.manual_seed(seed)  # dropout draws from the global generator
            probe: Any = AttentiveProbe(positions, width, len(std), settings, seed).to(device)
            best = _train(probe, inputs, standard, settings)
            probe.load_state_dict(best.weights)
            with torch.no_grad():
                predicted = _predict(probe.eval(), inputs["test"])[0].double().cpu()
        predictions.append(torch.where(best.errors[0] >= useless, 0.0, predicted).numpy() * std + mean)
        epochs += best.epochs.tolist()
        errors += best.errors.mean(dim=1).tolist()
    return ProbeResult(np.stack(predictions), epochs, errors)


def _side_by_side(block: Block) -> Block:
    """Tokens of both views (n, 2, P k) -> (n, 2 P k)."""
    return block.reshape(len(block), -1)
