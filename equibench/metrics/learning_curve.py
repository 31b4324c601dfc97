"""What the R² of fewer training pairs says about that of all: where the curve leads, and how many pairs it takes.

A curve is R² at n/8, n/4, n/2 and n pairs (docs/protocol.md 8.13). Its last two steps, d1 and d2, are taken for the
start of a geometric series with ratio d2 / d1, which ends at R²(n) + d2 r / (1 - r).
"""

import numpy as np
from numpy.typing import NDArray

from equibench.records import Metric

RISING = 0.03
"""An R² that has grown by more than this from half of the pairs to all of them is a lower bound."""
DISAGREEMENT = 0.1
"""Two probes whose R² differ by more than this read different things: one of them is under-trained."""
SHARES = {"r2_eighth": 8, "r2_quarter": 4, "r2_half": 2}

_STEEPEST = 0.85
"""Ratio of the last two steps above which nothing is extrapolated."""
_MOST_DOUBLINGS = 4
_REFUSED = 0.1
"""Share of bootstrap draws without an end above which the curve has none."""


def rising(metrics: dict[str, Metric]) -> bool:
    """Whether R² still rises at the last doubling of the training pairs."""
    return _gain(metrics, "r2_half") > RISING


def disagree(metrics: dict[str, Metric]) -> bool:
    """Whether the MLP and the closed form differ by more than `DISAGREEMENT`."""
    return abs(_gain(metrics, "r2_closed")) > DISAGREEMENT


def _gain(metrics: dict[str, Metric], name: str) -> float:
    """By how much R² is above another metric; 0 where one of them is not there."""
    other, own = (found.value if (found := metrics.get(n)) else None for n in (name, "r2"))
    return 0.0 if other is None or own is None else own - other


def asymptote(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where curves (..., 4) lead; nan where the steps grow or shrink too slowly. A curve that has ended stays there."""
    first, last = curve[..., 2] - curve[..., 1], curve[..., 3] - curve[..., 2]
    ratio = np.divide(last, first, out=np.full_like(last, np.inf), where=first > 0)
    ratio = np.where(last <= 0, 0.0, ratio)
    steep = ratio > _STEEPEST
    return np.where(steep, np.nan, curve[..., 3] + last * ratio / (1 - np.where(steep, 0, ratio)))


def pairs_to(goal: float, curve: NDArray[np.float64], pairs: int) -> float | None:
    """Training pairs at which a curve (4,) that ends at `pairs` reaches the goal; None where it is not known to.

    Between its points it is taken as linear in the logarithm of the pairs. A curve that starts above the goal gives
    its first point, an upper bound.
    """
    best, logs = np.maximum.accumulate(curve), np.log2(pairs) - np.arange(3, -1, -1)
    if best[-1] >= goal:
        at = int(np.argmax(best >= goal))
        share = 1.0 if at == 0 else (goal - best[at - 1]) / (best[at] - best[at - 1])
        return float(2 ** (logs[max(at - 1, 0)] + share * (at > 0)))
    end, first, last = float(asymptote(curve)), curve[2] - curve[1], curve[3] - curve[2]
    if not end > goal or last <= 0:
        return None
    doublings = np.log((end - goal) / (end - curve[3])) / np.log(last / first)
    return float(pairs * 2**doublings) if doublings <= _MOST_DOUBLINGS else None


def curve_metrics(curve: NDArray[np.float64], draws: NDArray[np.float64], pairs: int) -> dict[str, Metric]:
    """The curve's numbers by name, from R² (4,) and its bootstrap draws (resamples, 4)."""
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    found = {n: Metric(value=curve[i], low=low[i], high=high[i]) for i, n in enumerate(SHARES)}
    ends, end = asymptote(draws), float(asymptote(curve))
    if np.isfinite(end) and np.isnan(ends).mean() <= _REFUSED:
        low, high = np.nanquantile(ends, [0.025, 0.975])
        found["r2_asymptote"] = Metric(value=min(end, 1.0), low=min(low, 1.0), high=min(high, 1.0))
    for name, goal in (("pairs_to_half", 0.5), ("pairs_to_ninety", 0.9)):
        if (needed := pairs_to(goal, curve, pairs)) is not None:
            found[name] = Metric(value=round(needed))
    return found
