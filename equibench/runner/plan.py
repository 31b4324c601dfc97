"""Bring the cells of a table up to date: pretrain what is missing, score what is missing, leave the rest alone.

The journal of a profile is `runs/<profile>/<data>-<variant>/records.jsonl`, append-only: a unit whose records are
there under the same digest is done. Whatever kills a run, the next one goes on from the journal and the last
checkpoint.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from equibench.encoders.vit import ViTEncoder, weights_sha256
from equibench.evaluation.context import Setting, Subject, vit_identity
from equibench.evaluation.controls import CONTROLS, row_title
from equibench.evaluation.evaluate import evaluate, evaluation_digest
from equibench.evaluation.evaluator import family_of
from equibench.pairs.manifest import store_pairs
from equibench.pretrain.batches import open_stream
from equibench.pretrain.loop import (
    COLLAPSE_STD,
    Run,
    build,
    build_encoder,
    encode_pair,
    finished_run,
    keep_snapshot,
    pretrain,
    read_snapshot,
    recipe,
)
from equibench.probes.mlp import FusedProbes
from equibench.records import HALVES, Record, append_records, read_records
from equibench.registry import BASELINES
from equibench.runner.open import Workplace
from equibench.task import Task
from equibench.transforms.transformation import view_spec
from equibench.utils.files import digest_of, read_lines
from equibench.utils.progress import Progress


@dataclass(frozen=True)
class Unit:
    """One piece of work: a row at one pretraining seed, on some tasks.

    Attributes:
        row: a baseline's or control's id.
        seed: pretraining seed; None for controls without an encoder.
        pretrain: whether an encoder has to be trained first.
        tasks: columns that are not in the journal yet; empty if the unit is done.
        step: after which the run's encoder is scored; None for a finished run's.
    """

    row: str
    seed: int | None
    pretrain: bool
    tasks: tuple[Task, ...]
    step: int | None = None

    @property
    def done(self) -> bool:
        return not self.pretrain and not self.tasks


@dataclass(frozen=True)
class Plan:
    """The units of a table, and seconds for those still to be done."""

    units: list[Unit]
    estimates: dict[tuple[str, str], float]
    total: float


def plan(rows: Sequence[str], tasks: Sequence[Task], seeds: Sequence[int], place: Workplace) -> list[Unit]:
    """The units that make up rows x tasks x pretraining seeds, done ones included, in the table's order."""
    journal = {(r.baseline, r.task, r.evaluation_sha256) for r in read_records(place.journal)}
    units = []
    for row in rows:
        has_encoder = row not in CONTROLS or CONTROLS[row].has_encoder
        for seed in seeds if has_encoder else [None]:
            subject = find_subject(row, seed, place)
            missing = tuple(tasks)
            if subject:
                suited = [t for t in tasks if subject.suits(t)]
                missing = tuple(t for t in suited if (row, t.name, _digest(subject, t, place)) not in journal)
            units.append(Unit(row, seed, subject is None, missing))
    return units


def find_subject(row: str, seed: int | None, place: Workplace, step: int | None = None) -> Subject | None:
    """The row's encoder or control, or None if it has to be pretrained first.

    Args:
        step: after which the encoder is taken from the finished run, which is then called ROW@STEP.

    Raises:
        UserError: the run kept no encoder of that step.
    """
    setting = place.setting
    command = _command(row, seed, place)
    if row in CONTROLS and not CONTROLS[row].has_encoder:
        return Subject(row, command=command)
    assert seed is not None
    if row in CONTROLS:
        encoder = build_encoder(setting.profile, setting.variant, seed).eval()
        return encoder_subject(row, encoder, weights_sha256(encoder), setting, seed=seed, command=command)
    entry, known = BASELINES.get(row), place.known(row)
    digest = digest_of(recipe(entry, setting.profile, setting.dataset, setting.variant, seed, known))
    run = finished_run(setting.profile, place.run_folder(row, seed), setting.variant, seed, digest)
    if run is None:
        return None
    if step is not None:
        encoder = read_snapshot(run.folder, setting.profile, setting.variant, seed, step, digest)
        run, row = replace(run, encoder=encoder, encoder_sha256=weights_sha256(encoder)), f"{row}@{step}"
        command = command.replace(f"table {place.order.table}", "curve")
    subject = encoder_subject(row, run.encoder, run.encoder_sha256, setting, seed=seed, command=command)
    half = run.encoder.invariant if entry.splits_features else None
    return replace(subject, half=half, recipe_sha256=digest, seconds=run.seconds, collapsed=run.collapsed, known=known)


def encoder_subject(
    name: str, encoder: ViTEncoder, weights: str, setting: Setting, *, seed: int | None, command: str
) -> Subject:
    """An encoder that the suite pretrains, or its untrained twin."""
    size = setting.profile.encoder
    return Subject(
        name,
        encoder,
        vit_identity(encoder, weights, setting.profile, setting.spec),
        weights,
        seed=seed,
        description=f"ViT of width {size.width}, {size.depth} blocks, patch {size.patch}, mean of patch tokens",
        command=command,
    )


def _command(row: str, seed: int | None, place: Workplace) -> str:
    order = place.order
    parts = [f"equibench table {order.table} --profile {order.profile.name} --rows {row} --columns {{task}}"]
    parts += [f"--seeds {seed}"] if seed is not None else []
    parts += [f"--variant {order.variant}"] if order.variant != "headline" else []
    parts += [f"--baseline {file}" for file in order.baseline_files]
    return " ".join(parts)


def carry_out(units: Iterable[Unit], place: Workplace, progress: Progress) -> None:
    """Do the units that are not done one after the other, appending their records to the journal as they come."""
    for unit in units:
        if not unit.done:
            do_unit(unit, place, progress, lambda records: append_records(place.journal, records))


def do_unit(unit: Unit, place: Workplace, progress: Progress, keep: Callable[[list[Record]], None]) -> None:
    """Pretrain the unit's row if need be, and score it.

    Args:
        keep: what becomes of the records of each task, as soon as they are there.
    """
    if unit.pretrain:
        pretrain_row(unit.row, unit.seed or 0, place, progress)
    subject = find_subject(unit.row, unit.seed, place, unit.step)
    assert subject is not None
    if unit.tasks and place.fabric.is_global_zero:
        after = "" if unit.step is None else f" after {unit.step:,} steps"
        with progress.unit(f"score {row_title(unit.row)}{after}", ("score", unit.row)) as advance:
            for number, task in enumerate(unit.tasks):
                advance(number / len(unit.tasks), task.title)

                def report(fraction: float, note: str, number: int = number) -> None:
                    advance((number + fraction) / len(unit.tasks), note)

                if task.transformation:
                    store_pairs(place.setting.pairs(task), task.name, place.setting.work / "pairs")
                keep(evaluate(subject, task, replace(place.setting, on_progress=report)))
    place.fabric.barrier()


def pretrain_row(row: str, seed: int, place: Workplace, progress: Progress) -> Run:
    """Pretrain one row at one seed, with progress and a warning as soon as its features collapse."""
    setting, entry, folder = place.setting, BASELINES.get(row), place.run_folder(row, seed)
    warned = False
    with progress.unit(f"pretrain {entry.title}, seed {seed}", ("pretrain", row)) as advance:

        def report(step: int, steps: int, scalars: dict[str, float]) -> None:
            nonlocal warned
            advance(step / steps, f"loss {scalars['loss']:.3f}")
            keep_snapshot(folder, setting.profile, step)
            if scalars["feature_std"] < COLLAPSE_STD and not warned:
                warned = True
                progress.warn(
                    f"{entry.title}, seed {seed}: the features hardly vary over images at step {step} of {steps} "
                    f"(collapse); see {folder / 'log.jsonl'}"
                )

        return pretrain(
            entry,
            setting.profile,
            setting.dataset,
            folder,
            variant=setting.variant,
            seed=seed,
            known=place.known(row),
            fabric=place.fabric,
            report=report,
        )


def current_records(rows: Sequence[str], tasks: Sequence[Task], seeds: Sequence[int], place: Workplace) -> list[Record]:
    """The journal's records of these cells, as the code and the settings stand now, in the table's order."""
    stored: dict[tuple[str, str, str, str], Record] = {}
    for record in read_records(place.journal):
        stored.setdefault((record.evaluation_sha256, record.task, record.features, record.baseline), record)
    found = []
    for row in rows:
        has_encoder = row not in CONTROLS or CONTROLS[row].has_encoder
        for seed in seeds if has_encoder else [None]:
            subject = find_subject(row, seed, place)
            if subject is None:
                continue
            for task in filter(subject.suits, tasks):
                digest = _digest(subject, task, place)
                for features in HALVES:
                    if (key := (digest, task.name, features, row)) in stored:
                        found.append(stored[key])
    return found


def final_log_lines(rows: Sequence[str], seeds: Sequence[int], place: Workplace) -> list[dict[str, Any]]:
    """The last line of each finished run's log: its losses and held-out diagnostics when training ended."""
    lines = []
    for row in rows:
        for seed in seeds if row not in CONTROLS else ():
            if find_subject(row, seed, place):
                last = read_lines(place.run_folder(row, seed) / "log.jsonl")[-1]
                last.pop("pairs_per_second")  # the one value that another run would not repeat
                lines.append({"baseline": row, "seed": seed, **last})
    return lines


def _digest(subject: Subject, task: Task, place: Workplace) -> str:
    return evaluation_digest(subject, task, place.setting)


PIXEL_CONTROL_SECONDS = 5 / 8000
"""For each pair of a task, where there is no encoder to measure."""
CLASSIFIER_SECONDS = 3e-4
"""For each image of a classification: 45 fits of ten classes on 512 features."""
SEGMENTATION_TIMES = 12
"""How many forward passes of the bare encoder a training step of the segmentation head takes."""


def estimate_seconds(
    units: Sequence[Unit], records: Sequence[Record], setting: Setting
) -> dict[tuple[str, str], float]:
    """Seconds of each kind of unit still to be done, by ("pretrain" or "score", row)."""
    past = {r.baseline: r.pretraining_seconds for r in records if r.pretraining_seconds}
    scored: dict[str, list[float]] = {}
    for record in records:
        if record.encoder_sha256 and record.features == "full":
            scored.setdefault(record.task, []).append(record.seconds)
    speed = _Speed(setting)
    estimates: dict[tuple[str, str], float] = {}
    for unit in units:
        if unit.pretrain and ("pretrain", unit.row) not in estimates:
            estimates["pretrain", unit.row] = past.get(unit.row) or _time_pretraining(unit.row, setting)
        if unit.tasks:
            seconds = 0.0
            for task in unit.tasks:
                if unit.row in CONTROLS and not CONTROLS[unit.row].has_encoder:
                    seconds += PIXEL_CONTROL_SECONDS * sum(setting.profile.probing.pairs)
                elif task.name in scored:
                    seconds += statistics.median(scored[task.name])
                else:
                    seconds += speed.seconds(task)
            estimates["score", unit.row] = seconds
    return estimates


class _Speed:
    """Seconds of tasks that were never scored here, from one measured forward pass and probe step."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @cached_property
    def image(self) -> float:
        return _time_image(self.setting)

    @cached_property
    def regression(self) -> float:
        # one task encodes its second views, and a share of the first ones
        return self.image * sum(self.setting.probing.pairs) * 1.2 + _time_probe(self.setting)

    def seconds(self, task: Task) -> float:
        if task.family == "segmentation":
            size = self.setting.profile.segmentation
            images = size.iterations * size.batch * (size.crop / self.setting.size) ** 2
            return SEGMENTATION_TIMES * images * self.image
        if task.family == "classification":
            images = sum(family_of(task).manifests(task, self.setting)[0])
            return images * (self.image + CLASSIFIER_SECONDS)
        return self.regression


def total_seconds(units: Sequence[Unit], estimates: dict[tuple[str, str], float]) -> float:
    """Sum over the units that are not done."""
    return sum(
        (estimates["pretrain", u.row] if u.pretrain else 0.0) + (estimates["score", u.row] if u.tasks else 0.0)
        for u in units
    )


def _time_pretraining(row: str, setting: Setting) -> float:
    """Time two steps on a small batch and scale by the pairs of a run."""
    profile = setting.profile
    batch = min(profile.pretraining.batch, 64)
    classes = len(setting.dataset.class_names)
    module = build(BASELINES.get(row), profile, setting.variant, 0, classes).to(setting.device)
    spec = view_spec(setting.variant, profile.image_size)
    stream = open_stream(setting.dataset, "train", module.method, spec, 0)

    def step() -> None:
        views = stream.batch(0, batch, module.encoder)
        with torch.autocast(setting.device.type, dtype=torch.bfloat16, enabled=setting.bf16):
            loss = module.method.loss(views, encode_pair(module.encoder, views))["loss"]
        loss.backward()  # type: ignore[no-untyped-call]

    return _seconds(step) / batch * profile.pretraining.pairs


def _time_image(setting: Setting) -> float:
    """Seconds of a forward pass per image."""
    profile = setting.profile
    encoder = ViTEncoder(profile.encoder, profile.image_size, setting.spec).eval().to(setting.device)
    images = torch.rand(min(profile.encode_batch, 128), 3, profile.image_size, profile.image_size)

    def forward() -> None:
        with torch.no_grad(), torch.autocast(setting.device.type, dtype=torch.bfloat16, enabled=setting.bf16):
            encoder.represent(images.to(setting.device))

    return _seconds(forward) / len(images)


def _time_probe(setting: Setting) -> float:
    """Seconds of training a task's probes."""
    encoder, probing = setting.profile.encoder, setting.profile.probing
    columns = {"full": slice(None), "invariant": slice(0, encoder.half), "equivariant": slice(encoder.half, None)}
    probes = FusedProbes(columns, encoder.features, 2, probing.width, setting.probe_seeds)
    inputs = torch.randn(probing.batch, 2, encoder.features)

    def probe_step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting.bf16):
            probes(inputs).square().mean().backward()

    steps = probing.epochs * probing.pairs[0] / probing.batch
    return _seconds(probe_step) * steps * 1.5


def _seconds(work: object) -> float:
    """Seconds of one call after a warm-up call."""
    assert callable(work)
    work()
    started = time.perf_counter()
    for _ in range(2):
        work()
    return (time.perf_counter() - started) / 2
