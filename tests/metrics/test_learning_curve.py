"""Learning curves against geometric series and power laws, whose ends and whose pairs are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from equibench.metrics.learning_curve import asymptote, curve_metrics, pairs_to, rising
from equibench.records import Metric

PAIRS = 4000
AT = PAIRS / np.array([8, 4, 2, 1])


def geometric(end: float, ratio: float, first: float = 0.3) -> Callable[[float], float]:
    """R² by pairs: what is missing to the end is multiplied by the ratio with each doubling."""
    return lambda pairs: end - first * ratio ** np.log2(pairs / AT[0])


def power_law(end: float, exponent: float) -> Callable[[float], float]:
    return lambda pairs: end - 3 * pairs**-exponent


CURVES = [geometric(0.9, 0.5), geometric(0.7, 0.8), geometric(0.95, 0.1), power_law(0.9, 0.4), power_law(0.8, 1.0)]


def of(law: Callable[[float], float]) -> np.ndarray:
    return np.array([law(pairs) for pairs in AT])


@pytest.mark.parametrize(("law", "end"), list(zip(CURVES, (0.9, 0.7, 0.95, 0.9, 0.8), strict=True)))
def test_the_end_of_geometric_curves_and_power_laws_is_found(law: Callable[[float], float], end: float) -> None:
    assert law(PAIRS) < end - 1e-6
    assert asymptote(of(law)) == pytest.approx(end)


def test_curves_are_looked_at_each_for_itself() -> None:
    curves = np.stack([of(law) for law in CURVES] + [of(geometric(0.9, 0.9)), np.array([0.1, 0.2, 0.3, 0.3])])
    found = asymptote(curves.reshape(7, 1, 4))
    assert found.shape == (7, 1)
    np.testing.assert_allclose(found[:, 0], [0.9, 0.7, 0.95, 0.9, 0.8, np.nan, 0.3])


@pytest.mark.parametrize(
    "curve",
    [
        of(geometric(0.9, 0.9)),  # steps that hardly shrink
        [0.1, 0.2, 0.3, 0.4],  # as it rises, it rises for ever
        [0.1, 0.12, 0.16, 0.3],  # it has only begun
        [0.3, 0.4, 0.35, 0.5],  # it fell and rose
        [0.3, 0.4, 0.4, 0.5],
    ],
)
def test_an_end_that_cannot_be_told_is_refused(curve: list[float]) -> None:
    assert np.isnan(asymptote(np.array(curve)))
    assert pairs_to(0.9, np.array(curve), PAIRS) is None


def test_a_curve_that_falls_or_stands_ends_where_it_is() -> None:
    for curve in ([0.3, 0.5, 0.55, 0.52], [0.6, 0.5, 0.4, 0.3], [0.2, 0.4, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]):
        assert asymptote(np.array(curve)) == curve[-1]
        assert pairs_to(0.9, np.array(curve), PAIRS) is None


@pytest.mark.parametrize("law", CURVES)
@pytest.mark.parametrize("doublings", [0.5, 1, 2, 3.9])
def test_pairs_beyond_those_there_are(law: Callable[[float], float], doublings: float) -> None:
    needed = PAIRS * 2**doublings
    assert pairs_to(law(needed), of(law), PAIRS) == pytest.approx(needed, rel=1e-4)


def test_what_lies_too_far_or_above_the_end_is_not_told() -> None:
    law = geometric(0.9, 0.8)
    assert pairs_to(law(PAIRS * 2**3.9), of(law), PAIRS) is not None
    assert pairs_to(law(PAIRS * 2**4.1), of(law), PAIRS) is None
    assert pairs_to(0.9, of(law), PAIRS) is None
    assert pairs_to(0.95, of(law), PAIRS) is None


def test_pairs_within_the_curve() -> None:
    curve = np.array([0.2, 0.4, 0.6, 0.7])
    for pairs, goal in zip(AT, curve, strict=True):
        assert pairs_to(goal, curve, PAIRS) == pytest.approx(pairs)
    assert pairs_to(0.5, curve, PAIRS) == pytest.approx(1000 * 2**0.5)  # half-way in the logarithm
    assert pairs_to(0.675, curve, PAIRS) == pytest.approx(2000 * 2**0.75)
    assert pairs_to(0.1, curve, PAIRS) == pytest.approx(500)  # an upper bound
    # a curve that falls again reaches what it has reached
    assert pairs_to(0.6, np.array([0.2, 0.6, 0.5, 0.55]), PAIRS) == pytest.approx(1000)
    assert pairs_to(0.57, np.array([0.2, 0.4, 0.35, 0.6]), PAIRS) == pytest.approx(2000 * 2**0.85)


def test_rising_is_more_than_three_hundredths_at_the_last_doubling() -> None:
    def metrics(half: float | None, whole: float | None) -> dict[str, Metric]:
        return {"r2_half": Metric(value=half), "r2": Metric(value=whole)}

    assert rising(metrics(0.5, 0.531))
    assert not rising(metrics(0.5, 0.529))
    assert not rising(metrics(0.5, 0.4))
    for unknown in ({}, {"r2": Metric(value=0.5)}, metrics(None, 0.5), metrics(0.1, None)):
        assert not rising(unknown)


def test_numbers_of_a_curve() -> None:
    curve, rng = of(geometric(0.95, 0.5, first=0.6)), np.random.default_rng(0)
    draws = curve + 0.01 * rng.normal(size=(1000, 1)) + 0.001 * rng.normal(size=(1000, 4))
    found = curve_metrics(curve, draws, PAIRS)
    assert set(found) == {"r2_eighth", "r2_quarter", "r2_half", "r2_asymptote", "pairs_to_half", "pairs_to_ninety"}
    for number, name in enumerate(("r2_eighth", "r2_quarter", "r2_half")):
        metric = found[name]
        assert metric.value == curve[number]
        assert metric.low == pytest.approx(curve[number] - 0.0196, abs=0.003)
        assert metric.high == pytest.approx(curve[number] + 0.0196, abs=0.003)
    end = found["r2_asymptote"]
    assert end.value == pytest.approx(0.95)
    assert end.low is not None
    assert end.high is not None
    assert end.low < 0.935 < 0.965 < end.high
    assert found["pairs_to_half"].value == pytest.approx(500 * 2 ** (0.15 / 0.3), abs=1)
    assert found["pairs_to_ninety"].value == round(500 * 2 ** np.log2(0.6 / 0.05))


def test_an_end_that_many_draws_refuse_has_no_number() -> None:
    curve, rng = of(geometric(0.9, 0.82)), np.random.default_rng(0)
    sure, unsure = (curve + noise * rng.normal(size=(500, 4)) for noise in (1e-4, 0.02))
    assert "r2_asymptote" in curve_metrics(curve, sure, PAIRS)
    assert "r2_asymptote" not in curve_metrics(curve, unsure, PAIRS)
    assert "pairs_to_ninety" not in curve_metrics(curve, sure, PAIRS)


def test_no_end_lies_above_one() -> None:
    curve = np.array([0.6, 0.8, 0.92, 0.98])
    draws = curve + 1e-3 * np.random.default_rng(0).normal(size=(500, 1))
    end = curve_metrics(curve, draws, PAIRS)["r2_asymptote"]
    assert (end.value, end.high) == (1, 1)


def test_an_interval_of_an_end_above_one_has_its_ends_in_order() -> None:
    curve = np.array([0.6, 0.8, 0.92, 0.98])
    draws = curve + 1e-3 * np.random.default_rng(0).normal(size=(500, 1))
    end = curve_metrics(curve, draws, PAIRS)["r2_asymptote"]
    assert end.low is not None
    assert end.high is not None
    assert end.low <= end.high
