"""The linear probe for classes: multinomial logistic regression, its l2 penalty chosen on the validation split.

The protocol is that of Kornblith et al. and SimCLR (docs/protocol.md 7.3): one fit on train for each penalty w, the
best on val fitted again on train and val together; features are not standardised. Weights W (K, D) and free biases
b (K,) minimise the sum over images of the cross-entropy of softmax(W x + b), plus w/2 ||W||². This is scikit-learn's
objective with C = 1/w, or for two classes C = 2/w.

L-BFGS needs thousands of steps on raw features, whose variances span many powers of ten. It is therefore run in other
coordinates, in which the optimum is the same: features are centred (the bias takes up the mean) and turned into their
principal components (a rotation keeps ||W||), and the search, not the penalty, is scaled by an estimate of the
curvature along each component.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equibench.errors import UserError
from equibench.utils.arrays import Gathered

GRID = np.logspace(-6, 5, 45)
"""The penalties, per sum over images (docs/protocol.md 7.3)."""

# a fit ends where the estimated rest of the way down is this share of the loss and of what the features gained; that
# of the fit whose predictions are kept is smaller, so that they are those of the optimum but for ties
_TOLERANCE, _FINAL_TOLERANCE = 1e-6, 1e-9
_ROUNDING = 1e-15  # a rest of the way, in loss per image, that a search by float64 losses cannot see
_RESOLUTION = 2.0**-23  # components that vary less than this share of the features' size hold float32's rounding alone
_READ_ROWS = 4096
# images of a block: on a CPU a block stays in the cache for both of its products, on a GPU few calls are better
_CPU_ROWS, _GPU_ROWS = 1024, 65536

_Array = NDArray[np.float64]
_Features = NDArray[np.floating[Any]] | Gathered
_Labels = NDArray[np.int64]
_Labelled = tuple[_Features, _Labels]


@dataclass(frozen=True)
class LinearClassifier:
    """A fitted classifier."""

    labels: _Labels  # (K,) the classes that occurred in training; no other is ever predicted
    weights: _Array  # (K, D) for features as they are
    bias: _Array  # (K,)
    iterations: int  # steps of L-BFGS
    converged: bool  # whether the tolerance was reached

    def predict(self, features: _Features) -> _Labels:
        """Labels (N,) of features (N, D); a UserError if one is not finite, or there are not D."""
        _check_width(features, self.weights.shape[1])
        scores = [block @ self.weights.T + self.bias for block in _read(features, "the features to predict from")]
        return self.labels[np.concatenate(scores).argmax(axis=1)]


@dataclass(frozen=True)
class LogisticResult:
    """What the linear probe predicts for the test split, and how it came about."""

    predictions: _Labels  # (N_test,)
    penalty: float  # the one chosen
    validation_scores: _Array  # one for each value of the grid, in its order
    iterations: int  # steps of L-BFGS in all fits together
    converged: bool  # whether every fit reached the tolerance


def fit_logistic(
    train: _Labelled,
    val: _Labelled,
    test: _Features,
    *,
    classes: int,
    select: Callable[[_Labels, _Labels], float],
    grid: _Array = GRID,
    device: torch.device | str = "cpu",
) -> LogisticResult:
    """Choose the penalty on val, fit again on train and val, predict test.

    Features (N, D) are in memory or mapped from a file, and computed with in float32; labels (N,) are in [0, classes).
    A class that does not occur in what is fitted is not predicted. `select` is the score of labels (N,) and predictions
    (N,) to choose by; higher is better, and of penalties (positive) that score alike the strongest is chosen.

    Raises:
        UserError: features that are not finite, labels out of range, sizes that do not match.
    """
    _check_labels(*val, classes)
    _check_width(test, val[0].shape[-1])
    order = np.argsort(-grid, kind="stable")
    scores, fits = np.empty(len(grid)), []
    for number, model in zip(order, fit_path([train], grid[order], classes=classes, device=device), strict=True):
        scores[number] = select(val[1], model.predict(val[0]))
        fits.append(model)
    penalty = float(grid[order[scores[order].argmax()]])
    fits += fit_path([train, val], [penalty], classes=classes, device=device, tolerance=_FINAL_TOLERANCE)
    iterations, converged = sum(fit.iterations for fit in fits), all(fit.converged for fit in fits)
    return LogisticResult(fits[-1].predict(test), penalty, scores, iterations, converged)


def fit_path(
    parts: Sequence[_Labelled],
    penalties: Sequence[float] | _Array,
    *,
    classes: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tolerance: float = _TOLERANCE,
    max_iterations: int = 1000,
) -> Iterator[LinearClassifier]:
    """Classifiers of penalties one after the other, each of which starts from where the last two point to.

    The parts, features (N, D) and labels (N,) in [0, classes), are fitted together, with positive penalties, from
    strong to weak to be quick. `dtype` is that of the matrix products, where it suffices to reach the tolerance, else
    float64; sums over blocks of images are in float64 always. Errors are those of `fit_logistic`.
    """
    if not len(penalties) or not (np.isfinite(penalties) & (np.asarray(penalties) > 0)).all():
        fault = "the grid of penalties has a value that is not a positive number, or none at all"
        raise UserError(fault, "give positive numbers, such as 1e-3")
    data = _Data(parts, classes, torch.device(device), dtype)
    last: Tensor | None = None
    # no weights and the classes' shares as biases, which is the best constant answer, and the curvature there
    weights = torch.zeros(len(data.labels), len(data.variances) + 1, dtype=torch.float64)
    weights[:, -1] = data.shares.log()
    curvature = float((data.shares * (1 - data.shares)).mean())
    descent = data.evaluate(weights, torch.float64)[1]
    for penalty in penalties:
        guess = weights if last is None else 2 * weights - last
        problem = _Problem(data, penalty / data.count, curvature, descent, tolerance)
        last, (weights, steps) = weights, problem.solve(guess, max_iterations)
        curvature = problem.curvature
        raw = (weights[:, :-1].to(data.basis.device) @ data.basis.T).cpu().numpy()  # for features as they are
        bias = weights[:, -1].numpy() - raw @ data.mean
        yield LinearClassifier(data.labels, raw, bias, steps, problem.converged)


class _Data:
    """Centred features as principal components, with a column of ones, in blocks of images with their labels.

    `labels` (K,) are the classes that occur, `shares` (K,) how often, `variances` (R,) those of the components kept.
    """

    def __init__(self, parts: Sequence[_Labelled], classes: int, device: torch.device, dtype: torch.dtype) -> None:
        for features, labels in parts:
            _check_labels(features, labels, classes)
            _check_width(features, parts[0][0].shape[-1])
        labels, width = np.concatenate([labels for _, labels in parts]), parts[0][0].shape[1]
        self.labels, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        self.dtype, self.count, self.shares = dtype, len(index), torch.from_numpy(counts / len(index))
        self.mean, covariance = np.zeros(width), torch.zeros(width, width, dtype=torch.float64, device=device)
        for block in _read_parts(parts):
            self.mean += block.sum(axis=0) / self.count
        for block in _read_parts(parts):
            centred = torch.from_numpy(block - self.mean).to(device)
            covariance += centred.T @ centred
        variances, basis = torch.linalg.eigh(covariance / self.count)
        kept = variances > _RESOLUTION**2 * (variances[-1] + float(self.mean @ self.mean))
        self.variances, self.basis = variances[kept].cpu(), basis[:, kept]
        inputs, row = torch.ones(self.count, len(self.variances) + 1, dtype=dtype, device=device), 0
        for block in _read_parts(parts):
            inputs[row : row + len(block), :-1] = torch.from_numpy(block - self.mean).to(device) @ self.basis
            row += len(block)
        rows = _CPU_ROWS if device.type == "cpu" else _GPU_ROWS
        self.blocks = list(zip(inputs.split(rows), torch.from_numpy(index).to(device).split(rows), strict=True))

    def evaluate(self, weights: Tensor, dtype: torch.dtype) -> tuple[float, Tensor, float]:
        """Mean cross-entropy of weights (K, R + 1), its gradient, and the mean of p (1 - p) over images and classes.

        What an image's probability is short of 1 is taken as a sum of the others', so that no digits are lost where
        classes are separated and losses are small.
        """
        device = self.blocks[0][0].device
        loss, curvature = torch.zeros(2, dtype=torch.float64, device=device)
        gradient = torch.zeros(weights.shape, dtype=torch.float64, device=device)
        weights = weights.to(device=device, dtype=dtype)
        for stored, labels in self.blocks:
            inputs, label = stored.to(dtype), labels[None]
            share = weights @ inputs.T  # (K, n): several times quicker than (n, K) for few classes
            share -= share.amax(dim=0)
            true = share.gather(0, label)
            total = share.exp_().sum(dim=0)
            share /= total
            wrong = share.scatter_(0, label, 0).sum(dim=0, keepdim=True)
            loss += torch.where(wrong < 0.5, -torch.log1p(-wrong), total.log() - true).sum(dtype=torch.float64)
            share.scatter_(0, label, -wrong)
            gradient += share @ inputs
            curvature += 2 * wrong.sum(dtype=torch.float64) - torch.linalg.vector_norm(share, dtype=torch.float64) ** 2
        count = self.count
        return float(loss) / count, gradient.cpu() / count, float(curvature) / (count * len(weights))


class _Problem:
    """The objective per image for one penalty, in coordinates in which its curvature is about one everywhere.

    `curvature` is the mean p (1 - p) near the solution: with the variances it estimates the Hessian's diagonal.
    `descent` is the gradient (K, R + 1) at the best constant answer.
    """

    def __init__(self, data: _Data, penalty: float, curvature: float, descent: Tensor, tolerance: float) -> None:
        self.data, self.tolerance, self.curvature = data, tolerance, max(curvature, 1e-8)
        self.penalty = torch.cat([torch.full_like(data.variances, penalty), torch.zeros(1, dtype=torch.float64)])
        spread = torch.cat([data.variances, torch.ones(1, dtype=torch.float64)])
        self.scale = (self.curvature * spread + self.penalty).rsqrt()
        self.gain = _decrement(descent * self.scale)  # about what there is to gain beyond the constant answer
        self.dtype, self.converged = data.dtype, False

    def solve(self, start: Tensor, max_iterations: int) -> tuple[Tensor, int]:
        """Weights (K, R + 1) and the number of steps; what rounding stops short is ended in float64."""
        from scipy.optimize import minimize

        point, steps = (start / self.scale).flatten().numpy(), 0
        for dtype in dict.fromkeys((self.data.dtype, torch.float64)):
            self.dtype = dtype
            limits = {"maxiter": max_iterations - steps, "maxfun": 2 * max_iterations, "ftol": 0, "gtol": 0}
            found = minimize(self.evaluate, point, jac=True, method="L-BFGS-B", callback=self.stop, options=limits)
            point, steps = found.x, steps + int(found.nit)
            if not self.converged:  # the line search has gone on to points that were not taken
                self.evaluate(point)
            if self.converged or steps >= max_iterations:
                break
        return torch.from_numpy(point).view(start.shape) * self.scale, steps

    def evaluate(self, point: _Array) -> tuple[float, _Array]:
        """The objective and its gradient at a point (K * (R + 1),) in the scaled coordinates."""
        weights = torch.from_numpy(point).view(-1, len(self.scale)) * self.scale
        loss, gradient, self.curvature = self.data.evaluate(weights, self.dtype)
        loss += 0.5 * float((self.penalty * weights.square()).sum())
        gradient = (gradient + self.penalty * weights) * self.scale
        self.converged = _decrement(gradient) <= self.tolerance * min(loss, self.gain) + _ROUNDING
        return loss, gradient.flatten().numpy()

    def stop(self, intermediate_result: Any) -> None:
        """End the search: the point that a step arrives at is the one that was evaluated last."""
        if self.converged:
            raise StopIteration


def _decrement(gradient: Tensor) -> float:
    """How far below a quadratic of curvature one ends."""
    return 0.5 * float(gradient.square().sum())


def _read_parts(parts: Sequence[_Labelled]) -> Iterator[_Array]:
    for number, (features, _) in enumerate(parts):
        yield from _read(features, "the training features" if number == 0 else "the validation features")


def _read(features: _Features, name: str) -> Iterator[_Array]:
    """Features (N, D) rounded to float32, in blocks of float64; `name` says which they are if one is not finite."""
    for start in range(0, len(features), _READ_ROWS):
        with np.errstate(over="ignore"):
            block = np.asarray(features[start : start + _READ_ROWS], dtype=np.float32)
        if not np.isfinite(block).all():
            row, column = np.argwhere(~np.isfinite(block))[0]
            problem = f"{name} are not finite: image {start + row}, feature {column}"
            raise UserError(problem, "look at the encoder's weights: training may have diverged")
        yield block.astype(np.float64)


def _check_labels(features: _Features, labels: _Labels, classes: int) -> None:
    """Raise unless there is a label in [0, classes) for each row of features, and at least one."""
    if len(features) != len(labels) or not len(labels):
        raise UserError(f"{len(features)} rows of features for {len(labels)} labels", "give one label for each row")
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"labels from {labels.min()} to {labels.max()} for {classes} classes", "count classes from 0")


def _check_width(features: _Features, width: int) -> None:
    if len(features.shape) != 2 or features.shape[1] != width:
        problem = f"features of shape {features.shape} beside features of {width} columns"
        raise UserError(problem, "give (images, features)")
