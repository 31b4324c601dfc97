"""Every number's recipe for the report: signature, command, seeds, digests, all metrics, and its per-image errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from equibench.evaluation.classification import hits
from equibench.evaluation.evaluator import EVALUATORS, Arrays, RatioEvaluator
from equibench.evaluation.regression import targets_of
from equibench.metrics.bootstrap import Floats
from equibench.records import Metric, Record
from equibench.report.definition import plain
from equibench.report.html_tables import Anchors, ReportSource

BINS, BOX_HEIGHT = 24, 40
OpenPredictions = Callable[[Record], Arrays | None]
"""Gives the predictions behind a record, or None where they are not here."""


@dataclass(frozen=True)
class Histogram:
    """Per-image numbers as a path in a box of `BINS` x `BOX_HEIGHT` units, and in words."""

    path: str
    words: str


@dataclass(frozen=True)
class RecipeScore:
    """One record of a recipe: a feature set at a pretraining seed."""

    features: str
    signature: str
    metrics: str
    histogram: Histogram | None


@dataclass(frozen=True)
class RecipeRun:
    """What the feature sets of one pretraining seed share."""

    seed: str
    facts: Sequence[tuple[str, str]]
    scores: Sequence[RecipeScore]


@dataclass(frozen=True)
class Recipe:
    """All that stands behind a row's number in a column."""

    anchor: str
    title: str
    facts: Sequence[tuple[str, str]]
    runs: Sequence[RecipeRun]


def recipes_of(source: ReportSource, anchors: Anchors, opened: OpenPredictions) -> list[Recipe]:
    """The recipes that the tables' anchors lead to."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in source.records:
        groups.setdefault((record.baseline, record.task), []).append(record)
    return [_recipe(source, anchor, groups[key], opened) for key, anchor in anchors.ids.items() if key in groups]


def _recipe(source: ReportSource, anchor: str, records: Sequence[Record], opened: OpenPredictions) -> Recipe:
    some = records[0]
    by_seed: dict[int | None, list[Record]] = {}
    for record in records:
        by_seed.setdefault(record.seeds.pretraining, []).append(record)
    facts = [
        ("records", f"{source.path}/records.jsonl"),
        ("data", f"{some.data} {_short(some.data_sha256)}"),
        ("pairs", f"{' / '.join(f'{n:,}' for n in some.pairs)} {_short(some.pairs_sha256)}"),
        ("views", some.variant),
        ("encoder", some.encoder or "none"),
        ("probe seeds", ", ".join(map(str, some.seeds.probe))),
        ("probe", ", ".join(f"{k} {v}" for k, v in some.probe.items() if k != "best_epochs")),
        ("profile", some.profile),
        ("made with", f"equibench {some.package_version}, torch {some.torch_version}, {some.precision}"),
    ]
    title = f"{source.names.get(some.baseline, some.baseline)}, {some.task} (version {some.task_version})"
    return Recipe(anchor, title, facts, [_run(seed, group, opened) for seed, group in by_seed.items()])


def _short(digest: str) -> str:
    """The first of a digest's 64 digits, all of which the records have: they would be a tenth of the page."""
    return digest[:16]


def _run(seed: int | None, records: Sequence[Record], opened: OpenPredictions) -> RecipeRun:
    some = records[0]
    facts = [("again with", some.command), ("evaluation", _short(some.evaluation_sha256))]
    facts += [("weights", _short(some.encoder_sha256))] if some.encoder_sha256 else []
    facts += [("pretraining recipe", _short(some.recipe_sha256))] if some.recipe_sha256 else []
    facts += [(f"held out: {name}", f"{value:.4f}") for name, value in (some.diagnostics or {}).items()]
    scores, arrays = [], opened(some)
    for record in records:
        metrics = "; ".join(_words(name, metric) for name, metric in record.metrics.items())
        drawn = None if arrays is None else histogram_of(record, arrays)
        # the other feature sets' signatures differ in the set and in the last part, which `equibench explain` takes too
        named = record.signature if record.features == "full" else record.identifier
        scores.append(RecipeScore(record.features, named, metrics, drawn))
    return RecipeRun("none" if seed is None else str(seed), facts, scores)


def _words(name: str, metric: Metric) -> str:
    if metric.value is None:
        return f"{name} not defined"
    ends = "" if metric.low is None or metric.high is None else f" [{plain(metric.low, 4)}, {plain(metric.high, 4)}]"
    return f"{name} {plain(metric.value, 4)}{ends}"


def per_image(record: Record, arrays: Arrays) -> tuple[Floats, str] | None:
    """One number for each test image (N,) of a record's main metric, and what it is; None where there is none.

    Regression: the root mean square of the standardised error over dimensions and probe seeds. Classification: the
    share of probe seeds that are wrong. Ratios of sums: the image's share, top over the mean bottom, whose mean over
    images is the score (or one minus it).
    """
    kind, features = EVALUATORS.get(record.evaluator), record.features
    predictions = arrays.get(f"{features}/predictions")
    if record.evaluator in ("regression", "attentive") and predictions is not None:
        targets = targets_of(arrays)
        error = targets.standardise(np.asarray(predictions, dtype=np.float64)) - targets.standardise(targets.test)
        return np.sqrt(np.square(error).mean(axis=(0, 2))), "error of each test pair in standard deviations of θ"
    if record.evaluator == "classification" and predictions is not None:
        return 1 - hits(arrays["labels"], predictions), "share of wrong answers for each test image"
    if isinstance(kind, RatioEvaluator):
        ratio = kind.ratios(arrays, features).get(record.main_metric)
        if ratio is not None and ratio.bottom.sum() != 0:
            whole = "one minus their mean" if ratio.complement else "their mean"
            return ratio.top / ratio.bottom.mean(), f"each test image's share of the score, which is {whole}"
    return None


def histogram_of(record: Record, arrays: Arrays) -> Histogram | None:
    """The distribution of `per_image`, up to its 99th percentile; None where there is nothing to draw."""
    try:
        found = per_image(record, arrays)
    except KeyError:  # predictions that an older version stored
        return None
    if found is None or not len(values := found[0][np.isfinite(found[0])]):
        return None
    low, median, most, high = np.quantile(values, [0, 0.5, 0.95, 0.99])
    counts, _ = np.histogram(np.minimum(values, high), bins=BINS, range=(min(low, 0), max(high, 1e-9)))
    tops = BOX_HEIGHT * (1 - counts / counts.max())
    path = f"M0 {BOX_HEIGHT}" + "".join(f"V{top:.0f}h1" for top in tops) + f"V{BOX_HEIGHT}z"
    words = f"{found[1]}, {len(values):,} in all: median {median:.3g}, 95 % below {most:.3g}, drawn up to {high:.3g}"
    return Histogram(path, words)
