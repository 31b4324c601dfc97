"""Compare two encoders on the same test images: paired bootstrap, Holm's correction over tasks, ties said as ties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from equibench.audit.find import PLACES, Predictions, select, unknown_transformation
from equibench.errors import UserError
from equibench.evaluation.evaluator import EVALUATORS, metric_info
from equibench.records import Record
from equibench.registry import load_file

LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """A minus B on one task.

    Interval and p are about these encoders on other images; only `per_seed` says how far other trainings would differ.
    """

    task: str
    metric: str
    a: float  # mean over pretraining seeds, like b
    b: float
    difference: float  # a - b, with its 95 % bootstrap interval over test images, the same ones for both
    low: float
    high: float
    p: float  # two-sided bootstrap p-value of no difference
    p_holm: float  # p corrected over the tasks compared
    verdict: Literal["A", "B", "tie"]  # who is better; where neither direction is better, who is higher
    per_seed: tuple[float, ...] = ()  # differences of the runs of each pretraining seed that both sides have


def compare(
    a: str, b: str, *, tasks: Sequence[str] | None = None, features: str = "full", places: Sequence[str | Path] = PLACES
) -> list[Difference]:
    """Compare two scored encoders on the tasks that both have been scored on.

    Args:
        a, b: names of scored encoders, results folders, or both as in "results/demo/table2:vicreg" (see `find.select`).
        tasks: only these; all common ones if None. A Python file stands for the tasks that it registers.
        places: folders in which records and predictions are looked for.

    Raises:
        UserError: nothing in common; task versions or pairs that differ; predictions that are not here.
    """
    for entry in tasks or ():
        if entry.endswith(".py"):
            tasks = [*(t for t in tasks or () if t != entry), *load_file(entry, "task")]
    ours, theirs = ([r for r in select(n, places) if r.features == features] for n in (a, b))
    common = [t for t in dict.fromkeys(r.task for r in ours) if any(r.task == t for r in theirs)]
    if tasks is not None:
        common = [t for t in common if t in tasks]
    if not common:
        raise UserError(f"{a} and {b} have no task in common", "score both on the same tasks: equibench score")
    predictions = Predictions([*places, *(p for n in (a, b) if (p := n.partition(":")[0]) and Path(p).is_dir())])
    sides = {task: _comparable(task, a, b, ours, theirs) for task in common}  # refused before anything is drawn
    found = [_difference(task, *sides[task], predictions) for task in common]
    corrected = holm([difference.p for difference in found])
    return [replace(d, p_holm=p, verdict=_verdict(d, p)) for d, p in zip(found, corrected, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that hold for the whole family of tests."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(np.array(p_values)[order] * np.arange(len(p_values), 0, -1)).clip(max=1)
    return corrected.tolist()


def paired_p(differences: NDArray[np.float64]) -> float:
    """Two-sided p-value of a bootstrap distribution of differences, at least 2 / (resamples + 1)."""
    defined = differences[~np.isnan(differences)]  # a ratio has no value where a resample's bottom is 0
    below, above = (defined <= 0).sum(), (defined >= 0).sum()
    return float(min(1.0, 2 * (1 + min(below, above)) / (1 + len(defined))))


def _comparable(
    task: str, a: str, b: str, ours: Sequence[Record], theirs: Sequence[Record]
) -> tuple[list[Record], list[Record]]:
    """Records of both that answer the same question: the same task version and the same pairs."""
    sides = [[r for r in side if r.task == task] for side in (ours, theirs)]
    kinds = [{(r.task_version, r.pairs_sha256, r.variant) for r in side} for side in sides]
    shared = kinds[0] & kinds[1]
    if not shared:
        one, other = sides[0][0], sides[1][0]
        facts = (
            ("task version", one.task_version, other.task_version),
            ("data", one.data, other.data),
            ("views", one.variant, other.variant),
            ("pairs", one.pairs_sha256[:12], other.pairs_sha256[:12]),
        )
        differs = ", ".join(f"{what} ({x} against {y})" for what, x, y in facts if x != y)
        raise UserError(
            f"{a} and {b} cannot be compared on {task}: they differ in {differs}",
            f"score both on the same pairs: {one.command}",
        )
    if len(shared) > 1:
        raise UserError(
            f"{a} and {b} were both scored on {task} with {len(shared)} different sets of pairs",
            "name the records, as in: equibench compare results/demo/table2:vicreg results/demo/table2:reconstruction",
        )
    mine, others = ([r for r in side if (r.task_version, r.pairs_sha256, r.variant) in shared] for side in sides)
    return mine, others


def _difference(task: str, ours: Sequence[Record], theirs: Sequence[Record], predictions: Predictions) -> Difference:
    (one, draws_a), (other, draws_b) = (draws_by_seed(side, predictions) for side in (ours, theirs))
    a, b = (float(np.mean(list(values.values()))) for values in (one, other))
    draws = draws_a - draws_b
    low, high = np.nanquantile(draws, [0.025, 0.975])
    p = paired_p(draws)
    per_seed = tuple(one[seed] - other[seed] for seed in one if seed in other)
    return Difference(task, ours[0].main_metric, a, b, a - b, float(low), float(high), p, p, "tie", per_seed)


def draws_by_seed(
    records: Sequence[Record], predictions: Predictions
) -> tuple[dict[int | None, float], NDArray[np.float64]]:
    """Values by pretraining seed, and the bootstrap distribution of their mean: equal seeds draw equal images.

    Of several seeds those count whose predictions are here; all of them if none are.
    """
    records = [record for record in records if predictions.path(record)] or records
    latest = {r.seeds.pretraining: r for r in records}
    draws = [_resampled(record, predictions) for record in latest.values()]
    values = {seed: found[0] for seed, r in latest.items() if (found := r.interval())}
    if len(values) < len(latest):
        raise UserError(f"{records[0].signature} has no score", f"score it again: {records[0].command}")
    return values, np.mean(draws, axis=0)


def _resampled(record: Record, predictions: Predictions) -> NDArray[np.float64]:
    arrays = predictions.arrays(record)
    unknown = unknown_transformation(arrays)
    if unknown:
        raise UserError(
            f"{record.task} is a task on {unknown!r}, which no file has registered here",
            f"name the file: --tasks FILE.py,{record.task}",
        )
    return EVALUATORS.get(record.evaluator).resampled(arrays, record.features)


def _verdict(found: Difference, p_holm: float) -> Literal["A", "B", "tie"]:
    info = metric_info(found.metric)
    ahead = (found.difference > 0) != (info is not None and info.better == "lower")
    return "tie" if p_holm >= LEVEL else "A" if ahead else "B"
