"""Score one subject on one task: pairs -> views -> features -> measurement, which is kept -> scores -> records."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch

import equibench
from equibench.evaluation.context import Setting, Subject
from equibench.evaluation.controls import CONTROLS
from equibench.evaluation.evaluator import Family, family_of
from equibench.records import HALVES, Record, Seeds, keep_predictions, predictions_path
from equibench.task import Task
from equibench.transforms.transformation import TRANSFORMATIONS
from equibench.utils.digests import code_sha256
from equibench.utils.files import digest_of

SHARED_CODE = (
    "transforms",
    "data/pairs.py",
    "data/pair_sets.py",
    "features.py",
    "setting.py",
    "evaluate.py",
    "families/base.py",
    "metrics/ratio.py",
)
ENCODER_CODE = ("encoders/adapter.py", "encoders/layers.py", "encoders/vit.py")
"""What turns images into features, besides a network's own code, which is part of its identity."""


def evaluation_digest(subject: Subject, task: Task, setting: Setting) -> str:
    """Digest of everything that a score depends on: equal digests, equal scores."""
    family = family_of(task)
    return digest_of(
        {
            "row": subject.name if subject.name in CONTROLS else "encoder",
            "encoder": dict(subject.identity) if subject.identity else None,
            "half": subject.half,
            "layers": list(subject.layers),
            "task": [task.name, task.version],
            "pairs": family.manifests(task, setting),
            "views": asdict(setting.spec),
            "probe": family.recipe(task, setting) or asdict(setting.probing),
            "bf16": setting.bf16,
            "device": setting.device.type,
            "code": code_sha256(*SHARED_CODE, *(ENCODER_CODE if subject.encoder else ()), *family.code),
        }
    )


def evaluate(subject: Subject, task: Task, setting: Setting) -> list[Record]:
    """Score a subject on one task.

    Returns:
        One record of each feature set. In regression an encoder without halves has records of them with null scores,
        so that every row of a table has the same ones.
    """
    started = time.perf_counter()
    family = family_of(task)
    measurement = family.measure(subject, task, setting)
    digest = evaluation_digest(subject, task, setting)
    keep_predictions(predictions_path(setting.work, digest), measurement.arrays)
    found = {name: family.scores(measurement.arrays, name) for name in measurement.features or subject.feature_sets()}
    common = _common(subject, task, family, setting, digest)
    common["seconds"] = round(time.perf_counter() - started, 2)
    if family.name == "regression" and "full" in found:
        floors = {key: found["full"][key] for key in ("r2_floor", "r2_pooled_floor")}
        found = {**{name: {**floors, "metrics": {}} for name in HALVES}, **found}
    return [
        Record(**common, features=name, best_epochs=measurement.best_epochs.get(name), **scores)
        for name, scores in found.items()
    ]


def _common(subject: Subject, task: Task, family: Family, setting: Setting, digest: str) -> dict[str, Any]:
    """What the records of a task's feature sets have in common."""
    probing = setting.probing
    sizes, pairs_digest = family.manifests(task, setting)
    facts = family.data(task, setting)
    transformation = TRANSFORMATIONS.get(task.transformation)
    return {
        "baseline": subject.name,
        "task": task.name,
        "task_version": task.version,
        "family": family.name,
        "headline": task.headline or family.headline,
        "profile": setting.profile.name,
        "variant": setting.variant,
        "data": facts.name,
        "data_sha256": facts.sha256,
        "left_out": facts.left_out,
        "known": subject.known,
        "seeds": Seeds(pretraining=subject.seed, probe=setting.probe_seeds),
        "parameters": list(transformation.parameters) if transformation else [],
        "pairs": sizes,
        "pairs_sha256": pairs_digest,
        "encoder": subject.description,
        "encoder_sha256": subject.encoder_sha256,
        "recipe_sha256": subject.recipe_sha256,
        "evaluation_sha256": digest,
        "probe": family.recipe(task, setting)
        or {"width": probing.width, "epochs": probing.epochs, "batch": probing.batch, "lr": probing.lr},
        "precision": "bf16-mixed" if setting.bf16 else "32-true",
        "package_version": equibench.__version__,
        "torch_version": torch.__version__,
        "collapsed": subject.collapsed,
        "pretraining_seconds": subject.seconds,
        "command": subject.command.replace("{task}", task.name),
    }
