"""Score one row on one task: pairs -> views -> features -> measurement, which is kept -> scores -> records."""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict
from typing import Any

import torch

from equibench.evaluation.context import Context, Row
from equibench.evaluation.controls import CONTROLS
from equibench.evaluation.evaluator import Evaluator, evaluator_of
from equibench.evaluation.features import ENCODER
from equibench.records import Record, Seeds, keep_predictions, predictions_path
from equibench.task import Task
from equibench.transforms.transformation import TRANSFORMATIONS
from equibench.utils.digests import __version__, code_digest
from equibench.utils.files import digest_of


def evaluation_digest(row: Row, task: Task, context: Context) -> str:
    """Digest of everything that a score depends on: equal digests, equal scores."""
    evaluator = evaluator_of(task)
    return digest_of(
        {
            "row": row.name if row.name in CONTROLS else "encoder",
            "encoder": dict(row.identity) if row.identity else None,
            "half": row.half,
            "layers": list(row.layers),
            "task": [task.name, task.version],
            "pairs": evaluator.manifests(task, context),
            "views": asdict(context.spec),
            "probe": evaluator.recipe(task, context),
            "bf16": context.bf16,
            "device": context.device.type,
            "code": code_digest(type(evaluator), *((ENCODER,) if row.has_encoder else ())),
        }
    )


def evaluate(row: Row, task: Task, context: Context) -> list[Record]:
    """Score a row on one task.

    Returns:
        One record of each feature set.
    """
    started = time.perf_counter()
    evaluator = evaluator_of(task)
    measurement = evaluator.measure(row, task, context)
    digest = evaluation_digest(row, task, context)
    keep_predictions(predictions_path(context.work, digest), measurement.arrays)
    scores = {n: evaluator.scores(measurement.arrays, n) for n in measurement.features or row.feature_sets()}
    common = _common(row, task, evaluator, context, digest)
    seconds = round(time.perf_counter() - started, 2)
    records = []
    for name, metrics in scores.items():
        epochs = {"best_epochs": measurement.best_epochs[name]} if name in measurement.best_epochs else {}
        probe = {**common["probe"], **epochs}
        records.append(Record(**{**common, "probe": probe}, features=name, metrics=metrics, seconds=seconds))
    return records


def _common(row: Row, task: Task, evaluator: Evaluator, context: Context, digest: str) -> dict[str, Any]:
    """What the records of a task's feature sets have in common."""
    sizes, pairs_digest = evaluator.manifests(task, context)
    facts = evaluator.data(task, context)
    transformation = TRANSFORMATIONS.get(task.transformation)
    hidden = ("pairs", "seeds")  # which have keys of their own
    return {
        "baseline": row.name,
        "task": task.name,
        "task_version": task.version,
        "evaluator": evaluator.name,
        "main_metric": task.main_metric or evaluator.main_metric,
        "profile": context.profile.name,
        "variant": context.variant,
        "data": facts.name,
        "data_sha256": facts.sha256,
        "left_out": facts.left_out,
        "known_fraction": row.known_fraction,
        "seeds": Seeds(pretraining=row.seed, probe=context.probe_seeds),
        "parameters": list(transformation.parameters) if transformation else None,
        "pairs": sizes,
        "pairs_sha256": pairs_digest,
        "encoder": row.description,
        "encoder_sha256": row.encoder_sha256,
        "recipe_sha256": row.recipe_sha256,
        "evaluation_sha256": digest,
        "probe": {key: value for key, value in evaluator.recipe(task, context).items() if key not in hidden},
        "precision": "bf16-mixed" if context.bf16 else "32-true",
        "package_version": __version__,
        "torch_version": torch.__version__,
        "collapsed": row.collapsed,
        "pretraining_seconds": row.seconds,
        "command": row.command.replace("{task}", shlex.quote(row.task_files.get(task.name, task.name))),
    }
