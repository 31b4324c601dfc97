"""The linear probe of Table 5: multinomial logistic regression on frozen features, its l2 penalty chosen on validation.

The protocol is that of Kornblith et al. and SimCLR (PROTOCOL 5): 45 penalties, one fit on train for each, the best on
val fitted again on train and val together, test predicted once. Features are taken as they are, not standardised.

For a penalty w the weights W (K, D) and biases b (K,) minimise

    sum over images of the cross-entropy of softmax(W x + b)  +  w/2 ||W||²

with free biases. This is scikit-learn's objective with C = 1/w for three classes or more. For two it fits the one
vector W_1 - W_0, whose penalty is half as large: C = 2/w.

How one such fit is carried out stands in `softmax`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equibench.errors import UserError
from equibench.metrics.classification import mean_per_class, top1
from equibench.probes.softmax import (
    Data,
    Features,
    Labelled,
    Labels,
    Problem,
    check_labels,
    check_width,
    read_features,
)

Select = Callable[[Labels, Labels], float]

GRID = np.logspace(-6, 5, 45)
"""The penalties of PROTOCOL 5, per sum over images."""

SELECT: dict[str, Select] = {"top1": top1, "mean_per_class": mean_per_class}

TOLERANCE = 1e-6
"""A fit ends where the estimated rest of the way down is this share of the loss and of what the features gained."""
FINAL_TOLERANCE = 1e-9
"""That of the fit whose predictions are kept, so that they are those of the optimum but for ties."""
MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class LinearClassifier:
    """A fitted classifier.

    Attributes:
        labels: (K,) the classes that occurred in training; no other is ever predicted.
        weights: (K, D) for features as they are.
        bias: (K,).
        iterations: steps of L-BFGS.
        converged: whether the tolerance was reached.
    """

    labels: Labels
    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    iterations: int
    converged: bool

    def predict(self, features: Features) -> Labels:
        """Labels (N,) of features (N, D).

        Raises:
            UserError: a feature is not finite, or there are not D.
        """
        check_width(features, self.weights.shape[1])
        scores = [
            block @ self.weights.T + self.bias for block in read_features(features, "the features to predict from")
        ]
        return self.labels[np.concatenate(scores).argmax(axis=1)]


@dataclass(frozen=True)
class LogisticResult:
    """What the linear probe predicts for the test split, and how it came about.

    Attributes:
        predictions: (N_test,) labels.
        penalty: the one chosen.
        validation_scores: one for each value of the grid, in its order.
        grid: the penalties.
        iterations: steps of L-BFGS in all fits together.
        converged: whether every fit reached the tolerance.
    """

    predictions: Labels
    penalty: float
    validation_scores: NDArray[np.float64]
    grid: NDArray[np.float64]
    iterations: int
    converged: bool


def fit_logistic(
    train: Labelled,
    val: Labelled,
    test: Features,
    *,
    classes: int,
    select: Select | str,
    grid: NDArray[np.float64] = GRID,
    device: torch.device | str = "cpu",
) -> LogisticResult:
    """Choose the penalty on val, fit again on train and val, predict test.

    Args:
        train: features (N, D), in memory or mapped from a file, computed with in float32; labels (N,) in [0, classes).
        val: likewise; read to choose the penalty only, and to be fitted in the end.
        test: features (N, D).
        classes: number of classes. One that does not occur in what is fitted is not predicted.
        select: "top1", "mean_per_class", or a function of labels (N,) and predictions (N,); higher is better. Of
            penalties that score alike the strongest is chosen.
        grid: positive penalties.

    Raises:
        UserError: features that are not finite, labels out of range, sizes that do not match.
    """
    score, order = _select(select), np.argsort(-_check_grid(grid), kind="stable")
    check_labels(val[0], val[1], classes)
    check_width(test, val[0].shape[-1])
    scores, fits = np.empty(len(grid)), []
    for number, model in zip(order, fit_path([train], grid[order], classes=classes, device=device), strict=True):
        scores[number] = score(val[1], model.predict(val[0]))
        fits.append(model)
    penalty = float(grid[order[scores[order].argmax()]])
    final = fit_one(train, val, penalty=penalty, classes=classes, device=device, tolerance=FINAL_TOLERANCE)
    fits.append(final)
    return LogisticResult(
        predictions=final.predict(test),
        penalty=penalty,
        validation_scores=scores,
        grid=np.asarray(grid),
        iterations=sum(fit.iterations for fit in fits),
        converged=all(fit.converged for fit in fits),
    )


def fit_one(*parts: Labelled, penalty: float, classes: int, **options: Any) -> LinearClassifier:
    """The classifier of one penalty on all parts together; options as for `fit_path`."""
    return next(fit_path(parts, [penalty], classes=classes, **options))


def fit_path(
    parts: Sequence[Labelled],
    penalties: Sequence[float] | NDArray[np.float64],
    *,
    classes: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> Iterator[LinearClassifier]:
    """Classifiers of penalties one after the other, each of which starts from where the last two point to.

    Args:
        parts: features (N, D) and labels (N,), which are fitted together.
        penalties: from strong to weak to be quick.
        classes: labels are in [0, classes).
        dtype: of the matrix products, where it suffices to reach the tolerance, else float64; sums over blocks of
            images are in float64 always.

    Raises:
        UserError: as `fit_logistic`.
    """
    _check_grid(np.asarray(penalties, dtype=np.float64))
    data = Data(parts, classes, torch.device(device), dtype)
    last: Tensor | None = None
    weights, curvature = data.start()
    descent = data.evaluate(weights, torch.float64)[1]
    for penalty in penalties:
        guess = weights if last is None else 2 * weights - last
        problem = Problem(data, penalty / data.count, curvature, descent, tolerance)
        last, (weights, steps) = weights, problem.solve(guess, max_iterations)
        curvature = problem.curvature
        yield LinearClassifier(data.labels, *data.classifier(weights), steps, problem.converged)


def _select(select: Select | str) -> Select:
    if callable(select):
        return select
    if select not in SELECT:
        raise UserError(f"no score to select by is called '{select}'", f"one of: {', '.join(SELECT)}")
    return SELECT[select]


def _check_grid(grid: NDArray[np.float64]) -> NDArray[np.float64]:
    if not len(grid) or not (np.isfinite(grid) & (grid > 0)).all():
        raise UserError("the grid of penalties has a value that is not a positive number, or none at all", "e.g. 1e-3")
    return np.asarray(grid)
