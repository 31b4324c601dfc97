"""Probes in closed form: kernel ridge regression of transformations, without seeds or schedule, and the linear probe.

The kernels see the whitened sum s and difference d of a pair: that of infinitely many random ReLU features (the
arc-cosine kernel of order 1), and the same with the products of s and d, which is what a pair tells beyond its views
(docs/protocol.md 7.3). Both depend on inner products alone, so on no basis. Landmarks (Nyström) keep the system small,
penalties are chosen by exact leave-one-out, shrinkage and kernel on the validation pairs.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equibench.probes.whitening import SHRINKAGES, Split, Whitening

PENALTIES = tuple(10.0**power for power in range(-2, 6))
"""Of the linear probe; the one that is best on the validation split is taken."""
KERNELS = ("relu", "relu+products")

_PENALTIES_PER_PAIR = 10.0 ** np.arange(-7, 2)
_BIAS, _PRODUCTS = 0.3, 10.0
"""The ReLU features' bias and the weight of the products, for inputs whose mean square is 1."""
_PAIRS_PER_LANDMARK, _MOST_LANDMARKS, _SCREENING = 4, 2048, 256
"""One landmark for so many pairs, at most so many, and so many while shrinkage and kernel are chosen."""
_CHUNK = 8192
_UNREAD = 0.01
"""The shrinkage where no closed form reads anything, for the MLP to try."""

Predict = Callable[[Split], Tensor]


@dataclass(frozen=True)
class ClosedForm:
    """The best closed form of one feature set."""

    predictions: NDArray[np.float64]  # (N, K) for the test split, in the targets' coding
    shrinkage: float
    kernel: str


def fit_closed_form(splits: Mapping[str, Split], whitening: Whitening) -> ClosedForm:
    """Choose shrinkage and kernel with few landmarks, fit with all of them, predict test.

    The test targets are never read. A target of which the training mean is the better guess on the validation pairs is
    predicted by that.
    """
    mean, std = splits["train"].targets.mean(axis=0), splits["train"].targets.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    train, val = (torch.from_numpy((splits[s].targets - mean) / std).float() for s in ("train", "val"))

    def errors(shrinkage: float, kernel: str, landmarks: int) -> tuple[Predict, Tensor]:
        predict = _fit(splits["train"], train, whitening, shrinkage, kernel, landmarks)
        return predict, (predict(splits["val"]) - val).square().mean(dim=0)

    screened = {c: float(errors(*c, _SCREENING)[1].mean()) for c in product(SHRINKAGES, KERNELS)}
    shrinkage, kernel = min(screened, key=screened.__getitem__)
    if screened[shrinkage, kernel] >= float(val.square().mean()):
        shrinkage = _UNREAD  # nothing was read, so nothing was chosen
    landmarks = min(_MOST_LANDMARKS, max(2 * _SCREENING, len(train) // _PAIRS_PER_LANDMARK))
    predict, found = errors(shrinkage, kernel, landmarks)
    predicted = torch.where(found >= val.square().mean(dim=0), 0.0, predict(splits["test"]).double())
    return ClosedForm(predicted.numpy() * std + mean, shrinkage, kernel)


def fit_linear(splits: Mapping[str, Split]) -> NDArray[np.float64]:
    """Test predictions (N, K), in the targets' coding, of ridge regression on standardised representations.

    The test targets are never read.
    """
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    inputs = {}
    for name, split in splits.items():
        both = split.read(slice(0, len(split.targets)))
        inputs[name] = both.reshape(len(both), -1).astype(np.float64)
    scaler = StandardScaler().fit(inputs["train"])
    inputs = {name: scaler.transform(both) for name, both in inputs.items()}
    fits = [Ridge(alpha=penalty).fit(inputs["train"], splits["train"].targets) for penalty in PENALTIES]
    errors = [np.square(fit.predict(inputs["val"]) - splits["val"].targets).mean() for fit in fits]
    best = fits[int(np.argmin(errors))]
    return np.asarray(best.predict(inputs["test"]), dtype=np.float64).reshape(len(inputs["test"]), -1)


def _fit(train: Split, targets: Tensor, whitening: Whitening, shrinkage: float, kernel: str, landmarks: int) -> Predict:
    """Kernel ridge regression on landmarks, the penalty by leave-one-out; one factorisation for all penalties."""
    conditioning, sums = whitening.shrunk(shrinkage), len(whitening.variances[0])
    first = torch.from_numpy(conditioning(train.read(slice(0, min(landmarks, len(targets))))))
    scale = first.square().sum(dim=1).mean().clamp_min(1e-12).rsqrt()
    centres = first * scale
    # eigenvectors of the landmarks' kernel turn kernel values into features whose inner products are the kernel's
    values, vectors = torch.linalg.eigh(_kernel(centres, centres, kernel, sums))
    root = vectors / values.clamp_min(float(values[-1]) * 1e-6).sqrt()

    def features(block: NDArray[np.float32]) -> Tensor:
        return _kernel(torch.from_numpy(conditioning(block)) * scale, centres, kernel, sums) @ root

    count, chunks = len(targets), [slice(at, min(at + _CHUNK, len(targets))) for at in range(0, len(targets), _CHUNK)]
    kept = features(train.read(chunks[0])) if len(chunks) == 1 else None
    mean, gram = torch.zeros(len(centres)), torch.zeros(len(centres), len(centres))
    moment = torch.zeros(len(centres), targets.shape[1])
    for rows in chunks:
        phi = features(train.read(rows)) if kept is None else kept
        mean, gram, moment = mean + phi.sum(dim=0) / count, gram + phi.T @ phi, moment + phi.T @ targets[rows]
    values, vectors = torch.linalg.eigh(gram - count * torch.outer(mean, mean))
    values, moment = values.clamp_min(0), vectors.T @ moment  # the standardised targets' mean is 0
    inverses = 1 / (values + count * torch.from_numpy(_PENALTIES_PER_PAIR).float()[:, None])
    errors = torch.zeros(len(inverses))
    for rows in chunks:
        turned = ((features(train.read(rows)) if kept is None else kept) - mean) @ vectors
        left = 1 - turned.square() @ inverses.T - 1 / count
        for number, inverse in enumerate(inverses):
            residual = targets[rows] - turned @ (inverse[:, None] * moment)
            errors[number] += (residual / left[:, number, None].clamp_min(1e-6)).square().sum()
    weights = vectors @ (inverses[int(errors.argmin())][:, None] * moment)

    def predict(split: Split) -> Tensor:
        rows = [slice(at, min(at + _CHUNK, len(split.targets))) for at in range(0, len(split.targets), _CHUNK)]
        return torch.cat([(features(split.read(part)) - mean) @ weights for part in rows])

    return predict


def _kernel(x: Tensor, centres: Tensor, kind: str, sums: int) -> Tensor:
    """Kernel values (N, M) of what is seen of pairs, of which the first columns are the sum's."""
    inner = x @ centres.T
    size = torch.outer(x.square().sum(dim=1) + _BIAS, centres.square().sum(dim=1) + _BIAS).sqrt()
    cosine = ((inner + _BIAS) / size).clamp(-1, 1)
    relu = size / math.pi * ((1 - cosine.square()).clamp_min(0).sqrt() + (math.pi - cosine.arccos()) * cosine)
    if kind == "relu":
        return relu
    of_sums = x[:, :sums] @ centres[:, :sums].T
    return relu + _PRODUCTS * of_sums * (inner - of_sums)
