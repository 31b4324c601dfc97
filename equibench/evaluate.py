"""Score one row on tasks: pairs -> views -> features -> probes -> predictions -> records."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

import equibench
from equibench.controls import (
    CONTROLS,
    constant_prediction,
    oracle_features,
    pixel_features,
    statistics_features,
)
from equibench.data.datasets import Dataset
from equibench.data.pairs import SPLITS, Pairs, draw_pairs
from equibench.encoders.vit import ViewSpec, ViTEncoder, view_spec
from equibench.features import FeatureStore, ViewStore
from equibench.files import digest_of, write_atomically
from equibench.metrics.scores import Scores, Targets, floors, score
from equibench.probes.mlp import Split, fit_probes
from equibench.profiles import Profile
from equibench.records import FeatureSet, Record, Seeds
from equibench.task import Task
from equibench.transforms import TRANSFORMATIONS
from equibench.version import code_sha256

EVALUATION_CODE = (
    "transforms",
    "data/pairs.py",
    "features.py",
    "controls.py",
    "probes",
    "metrics",
    "evaluate.py",
)


@dataclass(frozen=True)
class Subject:
    """What is scored: a pretrained encoder, the untrained one, or a control without an encoder.

    Attributes:
        name: the row's id.
        encoder: None for pixel controls.
        encoder_sha256: digest of its weights.
        splits_features: whether its halves are scored alone too.
        seed: pretraining seed, None for controls without an encoder.
        recipe_sha256, seconds, collapsed: of the pretraining run, if there was one.
    """

    name: str
    encoder: ViTEncoder | None = None
    encoder_sha256: str | None = None
    splits_features: bool = False
    seed: int | None = None
    recipe_sha256: str | None = None
    seconds: float | None = None
    collapsed: bool | None = None


@dataclass(frozen=True)
class Setting:
    """Where and on what rows are scored; the same for a whole table.

    Args:
        work: folder for views, features and predictions.
    """

    profile: Profile
    dataset: Dataset
    variant: str
    work: Path
    device: torch.device
    bf16: bool
    _pairs: dict[Task, Pairs] = field(default_factory=dict, compare=False, repr=False)

    @property
    def spec(self) -> ViewSpec:
        return view_spec(self.variant, self.profile.image_size)

    @property
    def probe_seeds(self) -> list[int]:
        return list(range(self.profile.probing.seeds))

    def pairs(self, task: Task) -> Pairs:
        """The task's manifest on this data, drawn once."""
        if task not in self._pairs:
            sizes = self.profile.probing.pairs
            self._pairs[task] = draw_pairs(
                self.dataset, task.transformation, sizes, task=task.name, version=task.version
            )
        return self._pairs[task]


def evaluation_digest(subject: Subject, task: Task, pairs: Pairs, setting: Setting) -> str:
    """Digest of everything that a score depends on: equal digests, equal scores."""
    return digest_of(
        {
            "row": subject.name if subject.name in CONTROLS else "encoder",
            "encoder": _identity(subject, setting),
            "halves": subject.splits_features,
            "task": [task.name, task.version],
            "pairs": pairs.sha256,
            "probe": asdict(setting.profile.probing),
            "bf16": setting.bf16,
            "device": setting.device.type,
            "code": code_sha256(*EVALUATION_CODE),
        }
    )


def _identity(subject: Subject, setting: Setting) -> dict[str, object]:
    """What tells an encoder from all others: weights, architecture, and what it makes of an image."""
    return {
        "weights": subject.encoder_sha256,
        "architecture": asdict(setting.profile.encoder),
        "views": asdict(setting.spec),
    }


def evaluate(subject: Subject, task: Task, setting: Setting) -> list[Record]:
    """Score a row on one task.

    Returns:
        One record of all features, and one of each half (null scores where there is no split).
    """
    started = time.perf_counter()
    pairs = setting.pairs(task)
    size = setting.dataset.train.images.shape[-1]
    transformation = TRANSFORMATIONS[task.transformation]
    splits = _splits(subject, pairs, transformation.encode(pairs.theta, size), setting)
    predictions, epochs = _predictions(subject, splits, setting)
    train = splits["train"].targets
    targets = Targets(transformation, size, splits["test"].targets, train.mean(axis=0), train.std(axis=0))
    scores = {name: score(targets, predicted) for name, predicted in predictions.items()}
    digest = evaluation_digest(subject, task, pairs, setting)
    _keep_predictions(setting.work / "predictions" / f"{digest[:32]}.npz", targets.test, predictions)
    common = _common(subject, task, pairs, setting, digest)
    common["r2_floor"], common["r2_pooled_floor"] = floors(targets)
    common["seconds"] = round(time.perf_counter() - started, 2)
    unscored: dict[str, Any] = dict.fromkeys(f.name for f in fields(Scores))
    return [
        Record(
            **common,
            features=name,
            best_epochs=epochs.get(name),
            **(asdict(scores[name]) if name in scores else unscored),
        )
        for name in get_args(FeatureSet)
    ]


def _common(subject: Subject, task: Task, pairs: Pairs, setting: Setting, digest: str) -> dict[str, Any]:
    """What the records of a task's feature sets have in common."""
    probing = setting.profile.probing
    return {
        "baseline": subject.name,
        "task": task.name,
        "task_version": task.version,
        "profile": setting.profile.name,
        "variant": setting.variant,
        "data": setting.dataset.name,
        "data_sha256": setting.dataset.sha256,
        "seeds": Seeds(pretraining=subject.seed, probe=setting.probe_seeds),
        "parameters": list(TRANSFORMATIONS[task.transformation].parameters),
        "pairs": list(pairs.sizes),
        "pairs_sha256": pairs.sha256,
        "encoder_sha256": subject.encoder_sha256,
        "recipe_sha256": subject.recipe_sha256,
        "evaluation_sha256": digest,
        "probe": {"width": probing.width, "epochs": probing.epochs, "batch": probing.batch, "lr": probing.lr},
        "precision": "bf16-mixed" if setting.bf16 else "32-true",
        "package_version": equibench.__version__,
        "torch_version": torch.__version__,
        "collapsed": subject.collapsed,
        "pretraining_seconds": subject.seconds,
    }


def _splits(subject: Subject, pairs: Pairs, coded: NDArray[np.float64], setting: Setting) -> dict[str, Split]:
    """Representations of both views and coded targets, by split."""
    first, second = _features(subject, pairs, coded, setting)
    return {name: Split(first[pairs.rows(name)], second[pairs.rows(name)], coded[pairs.rows(name)]) for name in SPLITS}


def _features(
    subject: Subject, pairs: Pairs, coded: NDArray[np.float64], setting: Setting
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    if subject.name == "oracle":
        return oracle_features(pairs, coded)
    if subject.name == "constant":
        return np.zeros_like(coded), np.zeros_like(coded)
    views = ViewStore(setting.work / "views", setting.dataset, setting.spec)
    first_digest, first = views.first(pairs)
    second_digest, second = views.second(pairs)
    if subject.name == "pixels":
        return pixel_features(first, second, pairs.rows("train"), setting.spec)
    if subject.name == "image_statistics":
        return statistics_features(first, second, setting.spec)
    assert subject.encoder is not None
    assert subject.encoder_sha256 is not None
    store = FeatureStore(setting.work / "features", setting.profile.encode_batch, setting.device, setting.bf16)
    encoder = subject.encoder.to(setting.device)
    return (
        store.encode(encoder, _identity(subject, setting), first_digest, first),
        store.encode(encoder, _identity(subject, setting), second_digest, second),
    )


def _predictions(
    subject: Subject, splits: dict[str, Split], setting: Setting
) -> tuple[dict[str, NDArray[np.float64]], dict[str, list[int]]]:
    """Test predictions (seeds, N, K) and chosen epochs, by feature set."""
    if subject.name == "constant":
        return {"full": np.repeat(constant_prediction(splits)[None], len(setting.probe_seeds), axis=0)}, {}
    columns = {"full": slice(None)}
    if subject.splits_features:
        half = setting.profile.encoder.half
        columns |= {"invariant": slice(0, half), "equivariant": slice(half, None)}
    results = fit_probes(
        splits,
        columns,
        setting.profile.probing,
        seeds=setting.probe_seeds,
        device=setting.device,
        bf16=setting.bf16,
    )
    return {n: r.predictions for n, r in results.items()}, {n: r.best_epoch for n, r in results.items()}


def _keep_predictions(path: Path, targets: NDArray[np.float64], predictions: dict[str, NDArray[np.float64]]) -> None:
    """Store test targets and predictions, from which every score can be computed again."""
    arrays = {name: p.astype(np.float32) for name, p in predictions.items()}
    write_atomically(path, lambda temporary: np.savez(temporary, targets=targets, **arrays))  # type: ignore[arg-type]
