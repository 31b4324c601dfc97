"""Does the order of rows depend on how it was asked? Kendall's τ between training-set sizes and between probes.

Scores are read by one probe from so many training pairs; another probe, or fewer pairs, gives other scores. Where the
order of the rows stays, it is a property of the encoders. That is asked only of columns which separate rows: between
rows of which none is better than another any order is chance (docs/protocol.md 10.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from equibench.errors import UserError
from equibench.evaluation.controls import CONTROLS
from equibench.records import RECORDS, Interval, Record, read_records

_AGAINST = {"half": "r2_half", "closed": "r2_closed"}
"""What R² of the MLP from all pairs is held against: that from half of them, and that of the closed form."""


@dataclass(frozen=True)
class RankAgreement:
    """How far two ways of scoring order rows alike.

    Attributes:
        tau: Kendall's τ-b over all rows, in [-1, 1]; nan where one of the ways gives all rows the same score.
        swapped: pairs of rows that are separated and stand in the opposite order.
    """

    tau: float
    swapped: int


@dataclass(frozen=True)
class Stability:
    """One column of one file of records.

    Attributes:
        file: the records.
        rows: those that are ranked; controls are not.
        separated: pairs of rows with disjoint 95 % intervals.
        half, closed: against half of the training pairs, and against the closed form; None where rows lack that score.
    """

    file: Path
    task: str
    rows: tuple[str, ...]
    separated: int
    half: RankAgreement | None
    closed: RankAgreement | None


def stability(results: str | Path, *, features: str = "full") -> list[Stability]:
    """Rank agreement of every column that separates at least two rows, in each file of records below a folder.

    A row with several pretraining seeds counts with its mean score and the mean ends of its intervals.

    Raises:
        UserError: no records, or no column of regression with three rows of which two are separated.
    """
    place = Path(results)
    files = [place] if place.is_file() else sorted(place.rglob(RECORDS))
    found = [one for file in files for one in _of_file(file, features)]
    if not found:
        what = "no column of regression ranks three rows and separates two of them" if files else f"no {RECORDS} is"
        raise UserError(f"{what} below {results}", "name the results of a table: equibench stability results/demo")
    return found


def agreement(all_pairs: Sequence[Interval], other: Sequence[float]) -> RankAgreement:
    """Of rows' scores with intervals, and of the same rows' scores by another way of scoring."""
    from scipy.stats import kendalltau

    tau = kendalltau([value for value, _, _ in all_pairs], list(other)).statistic
    swapped = sum((other[i] - other[j]) * (all_pairs[i][0] - all_pairs[j][0]) < 0 for i, j in _separated(all_pairs))
    return RankAgreement(float(tau), int(swapped))


def _of_file(file: Path, features: str) -> list[Stability]:
    columns: dict[tuple[str, ...], dict[str, list[Record]]] = {}
    for record in read_records(file):
        if record.features == features and record.main_metric == "r2" and record.baseline not in CONTROLS:
            key = (record.task, str(record.task_version), record.pairs_sha256, record.variant)
            columns.setdefault(key, {}).setdefault(record.baseline, []).append(record)
    return [one for (task, *_), rows in columns.items() if (one := _of_column(file, task, rows))]


def _of_column(file: Path, task: str, rows: dict[str, list[Record]]) -> Stability | None:
    """None where there are fewer than three rows with a score, or no two are separated."""
    scored = {name: found for name, records in rows.items() if (found := _mean_interval(records))}
    separated = len(_separated(list(scored.values())))
    if len(scored) < 3 or not separated:
        return None
    agreements = {}
    for what, metric in _AGAINST.items():
        other = [_mean_value(rows[name], metric) for name in scored]
        known = [value for value in other if value is not None]
        agreements[what] = agreement(list(scored.values()), known) if len(known) == len(scored) else None
    return Stability(file, task, tuple(scored), separated, **agreements)


def _separated(intervals: Sequence[Interval]) -> list[tuple[int, int]]:
    """Pairs of rows whose intervals are disjoint."""
    pairs = combinations(range(len(intervals)), 2)
    return [(i, j) for i, j in pairs if intervals[i][1] > intervals[j][2] or intervals[j][1] > intervals[i][2]]


def _mean_interval(records: Sequence[Record]) -> Interval | None:
    found = [interval for record in records if (interval := record.interval())]
    if not found:
        return None
    value, low, high = np.mean(found, axis=0).tolist()
    return value, low, high


def _mean_value(records: Sequence[Record], metric: str) -> float | None:
    found = [m.value for record in records if (m := record.metrics.get(metric)) and m.value is not None]
    return float(np.mean(found)) if len(found) == len(records) else None
