"""Score one row on tasks: pairs -> views -> features -> probes -> predictions -> records."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

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
from equibench.metrics.regression import bootstrap_r2, r2_per_dimension, r2_pooled
from equibench.probes.mlp import Split, fit_probes
from equibench.profiles import Profile
from equibench.records import Record, Seeds
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


def evaluate(
    subject: Subject,
    tasks: Sequence[Task],
    setting: Setting,
    report: Callable[[Task], None] | None = None,
) -> list[Record]:
    """Score a row on tasks.

    Args:
        subject: the row.
        tasks: columns.
        setting: data, profile and where things are kept.
        report: called before each task.

    Returns:
        For each task one record of all features, and one of each half (null scores where there is no split).
    """
    records = []
    for task in tasks:
        if report:
            report(task)
        records += _evaluate_task(subject, task, setting)
    return records


def _evaluate_task(subject: Subject, task: Task, setting: Setting) -> list[Record]:
    started = time.perf_counter()
    pairs = setting.pairs(task)
    size = setting.dataset.train.images.shape[-1]
    transformation = TRANSFORMATIONS[task.transformation]
    coded = transformation.encode(pairs.theta, size)
    digest = evaluation_digest(subject, task, pairs, setting)
    splits = _splits(subject, pairs, coded, setting)
    predictions, epochs = _predictions(subject, splits, setting)
    targets = splits["test"].targets
    _keep_predictions(setting.work / "predictions" / f"{digest[:32]}.npz", targets, predictions)

    mean, std = splits["train"].targets.mean(axis=0), splits["train"].targets.std(axis=0)
    constant = constant_prediction(splits)
    published = transformation.publish(transformation.decode(targets, size), size)
    floor = float(r2_per_dimension(targets, constant).mean())
    floor_pooled = r2_pooled(published, transformation.publish(transformation.decode(constant, size), size))

    def record(features: str, seconds: float) -> Record:
        scores: dict[str, object] = dict.fromkeys(
            ("r2", "r2_low", "r2_high", "r2_std_probe", "r2_pooled", "per_dimension", "best_epochs")
        )
        if features in predictions:
            predicted = predictions[features]
            standard, standard_predicted = (targets - mean) / std, (predicted - mean) / std
            per_seed = np.array([r2_per_dimension(standard, p) for p in standard_predicted])
            low, high = bootstrap_r2(standard, standard_predicted)
            decoded = [transformation.publish(transformation.decode(p, size), size) for p in predicted]
            scores = {
                "r2": per_seed.mean(),
                "r2_low": low,
                "r2_high": high,
                "r2_std_probe": per_seed.mean(axis=1).std(),
                "r2_pooled": np.mean([r2_pooled(published, p) for p in decoded]),
                "per_dimension": per_seed.mean(axis=0).tolist(),
                "best_epochs": epochs.get(features),
            }
        probing = setting.profile.probing
        return Record(
            baseline=subject.name,
            task=task.name,
            task_version=task.version,
            profile=setting.profile.name,
            variant=setting.variant,
            data=setting.dataset.name,
            data_sha256=setting.dataset.sha256,
            features=features,  # type: ignore[arg-type]
            seeds=Seeds(pretraining=subject.seed, probe=setting.probe_seeds),
            **scores,  # type: ignore[arg-type]
            r2_floor=floor,
            r2_pooled_floor=floor_pooled,
            parameters=list(transformation.parameters),
            pairs=list(pairs.sizes),
            pairs_sha256=pairs.sha256,
            encoder_sha256=subject.encoder_sha256,
            recipe_sha256=subject.recipe_sha256,
            evaluation_sha256=digest,
            probe={
                "width": probing.width,
                "epochs": probing.epochs,
                "batch": probing.batch,
                "lr": probing.lr,
            },
            precision="bf16-mixed" if setting.bf16 else "32-true",
            package_version=equibench.__version__,
            torch_version=torch.__version__,
            collapsed=subject.collapsed,
            pretraining_seconds=subject.seconds,
            seconds=round(seconds, 2),
        )

    seconds = time.perf_counter() - started
    return [record(features, seconds) for features in ("full", "invariant", "equivariant")]


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
