"""Score one subject on one task: pairs -> views -> features -> measurement, which is kept -> scores -> records."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import equibench
from equibench.controls import CONTROLS
from equibench.errors import UserError
from equibench.families import family_of
from equibench.families.base import Family
from equibench.files import digest_of, write_atomically
from equibench.records import HALVES, Record, Seeds
from equibench.setting import Setting, Subject
from equibench.task import Task
from equibench.transforms import TRANSFORMATIONS
from equibench.version import code_sha256

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


def predictions_path(work: Path, evaluation_sha256: str) -> Path:
    """Where the arrays behind a score are kept."""
    return work / "predictions" / f"{evaluation_sha256[:32]}.npz"


def keep_predictions(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Store the arrays from which every score of a measurement can be computed again."""
    write_atomically(path, lambda temporary: np.savez_compressed(temporary, **dict(arrays)))  # type: ignore[arg-type]


def read_predictions(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays behind a score.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged: {error}", "remove it and score again") from error
