"""Rows x tasks -> jobs -> records: what is missing, how long it takes, doing it, and collecting what there is.

Tables, scores, learning curves and ablations all go through here. The journal `records.jsonl` of the context's folder
is append-only: a row's score on a task is done if it holds a record with the same digest. Whatever kills a run, the
next one goes on from the journal and the last checkpoint.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

from equibench.config import RunConfig
from equibench.encoders.vit import weights_sha256
from equibench.evaluation.context import Context, Row, vit_identity
from equibench.evaluation.controls import CONTROLS, row_title
from equibench.evaluation.evaluate import evaluate, evaluation_digest
from equibench.evaluation.evaluator import evaluator_of
from equibench.evaluation.features import outputs_of
from equibench.pretrain import loop, runs
from equibench.pretrain.method import BASELINES
from equibench.records import Record, append_records, read_records
from equibench.task import Task
from equibench.utils.digests import code_digest
from equibench.utils.files import digest_of, read_lines
from equibench.utils.progress import Advance, Progress

PIXEL_CONTROL_SECONDS = 5 / 8000
"""For each pair of a task, where there is no encoder to measure."""
CLASSIFICATION = (60_000, 3e-4)
"""Images that a classification is taken to have, and the seconds that 45 fits of ten classes take for each."""
SEGMENTATION_TIMES = 12
"""How many forward passes of the bare encoder a training step of the segmentation head takes."""
PROBE_SECONDS = 1e-4
"""Of training a pair's probes for one epoch."""

_timed: dict[tuple[object, ...], float] = {}
"""Seconds of pretraining by method, profile, data and device, as far as they were measured in this process."""


@dataclass(frozen=True)
class Place:
    """Which encoder: a row's id, its pretraining seed (None for controls without an encoder), and the step of its run
    after which it is taken (None for the finished one).
    """

    row: str
    seed: int | None
    step: int | None = None


@dataclass(frozen=True)
class Job:
    """One piece of work: pretrain a row if need be, and score it on some tasks; done if there is nothing of both."""

    place: Place
    pretrain: bool
    tasks: tuple[Task, ...]

    @property
    def done(self) -> bool:
        return not self.pretrain and not self.tasks


class Rows(Protocol):
    """Where the rows come from."""

    def find(self, place: Place) -> Row | None:
        """The row, or None if it has to be pretrained first."""


class GivenRows:
    """Rows that are there already, as those of a score."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = {row.name: row for row in rows}

    def find(self, place: Place) -> Row:
        return self.rows[place.row]


class TableRows:
    """Rows of tables: encoders that the suite pretrains, their untrained twin, and controls; none is opened here."""

    def __init__(self, config: RunConfig, context: Context) -> None:
        self.config, self.context = config, context
        self._found: dict[Place, Row] = {}

    def find(self, place: Place) -> Row | None:
        if place not in self._found:
            row = self._find(place)
            if row is None:
                return None
            self._found[place] = row
        return self._found[place]

    def folder(self, place: Place) -> Path:
        """Where the row's pretraining run is kept."""
        share = self.known_fraction(place.row)
        name = place.row if share == 1 else f"{place.row}-known{share:g}"
        return self.context.work / "pretraining" / name / f"seed{place.seed}"

    def known_fraction(self, row: str) -> float:
        """Of the training images, whose θ a row can see; all, where it makes no use of θ."""
        return 1.0 if BASELINES.get(row).use_of_theta == "unused" else self.context.known_fraction

    def recipe_digest(self, place: Place) -> str:
        context, known = self.context, self.known_fraction(place.row)
        entry, seed = BASELINES.get(place.row), place.seed or 0
        return digest_of(loop.recipe(entry, context.profile, context.dataset, context.variant, seed, known))

    def _find(self, place: Place) -> Row | None:
        row, seed, context, command = place.row, place.seed, self.context, self._command(place)
        profile, variant = context.profile, context.variant
        if row in CONTROLS and not CONTROLS[row].has_encoder:
            return Row(row, command=command)
        assert seed is not None
        if row in CONTROLS:
            versions = [torch.__version__, version("timm"), code_digest(runs.build_encoder)]
            weights = context.remembered(
                ["untrained", str(profile.encoder), profile.image_size, variant, seed, *versions],
                lambda: weights_sha256(runs.build_encoder(profile, variant, seed)),
            )
            return self._row(row, lambda: runs.build_encoder(profile, variant, seed).eval(), weights, seed, command)
        folder, digest = self.folder(place), self.recipe_digest(place)
        facts = runs.read_run(folder, digest)
        if facts is None:
            return None
        entry, step = BASELINES.get(row), place.step
        if step is None:
            weights, name = facts["encoder_sha256"], row
        else:
            weights, name = runs.snapshot_sha256(folder, profile, step, digest), f"{row}@{step}"

        def opened() -> torch.nn.Module:
            if step is not None:
                return runs.read_snapshot(folder, profile, variant, seed, step)
            run = runs.finished_run(profile, folder, variant, seed, digest)
            assert run is not None
            return run.encoder

        return replace(
            self._row(name, opened, weights, seed, command),
            half=profile.encoder.half if entry.splits_features else None,
            recipe_sha256=digest,
            seconds=facts["seconds"],
            collapsed=facts["collapsed"],
            known_fraction=self.known_fraction(row),
        )

    def _row(self, name: str, open: Callable[[], torch.nn.Module], weights: str, seed: int, command: str) -> Row:
        profile, size = self.context.profile, self.context.profile.encoder
        return Row(
            name,
            open,
            vit_identity(weights, profile, self.context.spec),
            weights,
            seed=seed,
            description=f"ViT of width {size.width}, {size.depth} blocks, patch {size.patch}, mean of patch tokens",
            command=command,
        )

    def _command(self, place: Place) -> str:
        config = self.config
        command = "curve" if place.step is not None else f"table {config.table}"
        parts = [f"equibench {command} --profile {config.sizes.name} --rows {place.row} --columns {{task}}"]
        parts += [f"--seeds {place.seed}"] if place.seed is not None else []
        return " ".join([*parts, *config.flags(["variant", "baseline_files"])])


def places_of(rows: Sequence[str], seeds: Sequence[int]) -> list[Place]:
    """Every row at every pretraining seed; controls without an encoder once."""
    pairs = [(row, seed) for row in rows for seed in (seeds if _has_encoder(row) else [None])]
    return [Place(row, seed) for row, seed in pairs]


def _has_encoder(row: str) -> bool:
    return row not in CONTROLS or CONTROLS[row].has_encoder


# What is missing, and what is there


def plan(places: Sequence[Place], tasks: Sequence[Task], rows: Rows, context: Context) -> list[Job]:
    """The jobs that make up places x tasks, done ones included, in the places' order."""
    done = {(line["baseline"], line["task"], line["evaluation_sha256"]) for line in read_lines(context.journal)}
    begun = {key[:2] for key in done}
    jobs = []
    for place in places:
        row = rows.find(place)
        missing = list(tasks)
        if row is not None:
            missing = [task for task in tasks if row.suits(task)]
            there = [task for task in missing if (row.name, task.name) in begun]  # of no other is a digest needed
            ready = [task for task in there if (row.name, task.name, _digest(row, task, context)) in done]
            missing = [task for task in missing if task not in ready]
        jobs.append(Job(place, row is None, tuple(missing)))
    return jobs


def by_task(jobs: Sequence[Job], tasks: Sequence[Task]) -> list[Job]:
    """The same work, one task after the other, so that a task's views can go as soon as it is done."""
    return [replace(job, tasks=(task,)) for task in tasks for job in jobs if task in job.tasks]


def collect(places: Sequence[Place], tasks: Sequence[Task], rows: Rows, context: Context) -> list[tuple[Place, Record]]:
    """The journal's records of these places and tasks, as the code and the settings stand now, in their order."""
    stored: dict[tuple[str, str, str], dict[str, Record]] = {}
    for record in read_records(context.journal):
        key = (record.baseline, record.task, record.evaluation_sha256)
        stored.setdefault(key, {}).setdefault(record.features, record)
    found = []
    for place in places:
        row = rows.find(place)
        for task in tasks if row is not None else ():
            if row is not None and row.suits(task):
                key = (row.name, task.name, _digest(row, task, context) if stored else "")
                found += [(place, record) for record in stored.get(key, {}).values()]
    return found


def _digest(row: Row, task: Task, context: Context) -> str:
    shared, key = context._shared, ("digest", row.name, row.seed, row.encoder_sha256, row.layers, task)
    if row.identity is not None and "call" in row.identity:
        return evaluation_digest(row, task, context)
    if key not in shared:
        shared[key] = evaluation_digest(row, task, context)
    return str(shared[key])


# How long it takes


def estimate(jobs: Sequence[Job], rows: Rows, context: Context) -> list[float]:
    """Seconds of each job: what the same took before, else from a short measurement of this machine."""
    past: dict[str, float] = {}
    scored: dict[str, list[float]] = {}
    for line in read_lines(context.journal):
        if line.get("pretraining_seconds"):
            past[line["baseline"]] = line["pretraining_seconds"]
        if line.get("encoder_sha256") and line["features"] == "full":
            scored.setdefault(line["task"], []).append(line["seconds"])
    image: list[float] = []

    def image_seconds(row: Row | None) -> float:
        if not image:
            image.append(time_image(row, context))
        return image[0]

    found = []
    for job in jobs:
        seconds = 0.0
        if job.pretrain:
            seconds += past.get(job.place.row) or _time_pretraining(job.place.row, context)
        row = None if job.pretrain else rows.find(job.place)
        for task in job.tasks:
            if row is not None and not row.has_encoder:
                seconds += PIXEL_CONTROL_SECONDS * sum(context.probing.pairs)
            elif task.name in scored:
                seconds += statistics.median(scored[task.name])
            else:
                seconds += _task_seconds(task, context, image_seconds(row))
        found.append(seconds)
    return found


def _task_seconds(task: Task, context: Context, image: float) -> float:
    """Seconds of a task that was never scored here."""
    if task.evaluator == "segmentation":
        size = context.profile.segmentation
        images = size.iterations * size.batch * (size.crop / context.size) ** 2
        return SEGMENTATION_TIMES * images * image
    if task.evaluator == "classification":
        images, seconds = CLASSIFICATION
        return images * (image + seconds)
    # one task encodes its second views, and a share of the first ones
    pairs = context.probing.pairs
    return image * sum(pairs) * 1.2 + PROBE_SECONDS * context.probing.epochs * pairs[0]


def time_image(row: Row | None, context: Context) -> float:
    """Seconds of a forward pass per image, after one to warm up."""
    profile = context.profile
    encoder = row.encoder if row else runs.build_encoder(profile, context.variant, 0)
    batch = row.batch if row and row.batch else min(profile.encode_batch, 128)
    images = torch.rand(batch, 3, context.size, context.size, device=context.device)
    layers = row.layers if row else ("default",)
    encoder.to(context.device).eval()

    def forward() -> None:
        with torch.inference_mode(), torch.autocast(context.device.type, torch.bfloat16, enabled=context.bf16):
            outputs_of(encoder, images, layers)

    return _seconds(forward) / batch


def _time_pretraining(row: str, context: Context) -> float:
    """Time a step on a small batch and scale by the pairs of a run; once for all rows of a method on such data."""
    from equibench.pretrain.batches import open_stream

    profile = context.profile
    kind = (BASELINES.get(row).method, profile, context.dataset.name, context.device.type)
    if kind in _timed:
        return _timed[kind]
    batch = min(profile.pretraining.batch, 32)
    module = loop.build_step(BASELINES.get(row), profile, context.variant, 0, len(context.dataset.class_names))
    module.to(context.device)
    stream = open_stream(context.dataset, "train", module.method, context.spec, 0)

    def step() -> None:
        views = stream.batch(0, batch, module.encoder)
        with torch.autocast(context.device.type, dtype=torch.bfloat16, enabled=context.bf16):
            loss = module.method.loss(views, loop.encode_pair(module.encoder, views))["loss"]
        loss.backward()  # type: ignore[no-untyped-call]

    _timed[kind] = _seconds(step) / batch * profile.pretraining.pairs
    return _timed[kind]


def _seconds(work: Callable[[], None]) -> float:
    """Seconds of one call after a warm-up call."""
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# Doing it


def do_job(
    job: Job, rows: Rows, context: Context, progress: Progress, keep: Callable[[list[Record]], None], number: int = 0
) -> None:
    """Pretrain the job's row if need be, and score it.

    Args:
        keep: what becomes of the records of each task, as soon as they are there.
        number: of the job, for the progress.
    """
    if job.pretrain:
        assert isinstance(rows, TableRows)
        pretrain_row(job.place, rows, context, progress, number)
    row = rows.find(job.place)
    assert row is not None
    if job.tasks and context.is_first:
        title = row_title(job.place.row) if isinstance(rows, TableRows) else row.name
        title += f" after {job.place.step:,} steps" if job.place.step else ""
        title += f", {job.tasks[0].name}" if len(job.tasks) == 1 else ""
        with progress.unit(f"score {title}", number) as advance:
            for count, task in enumerate(job.tasks):
                watched = _watched(task, row, context, _part(advance, count, len(job.tasks)))
                keep(evaluate(row, task, watched))
    context.barrier()


def _part(advance: Advance, number: int, count: int) -> Advance:
    """Progress of one of so many parts."""
    return lambda fraction, note: advance((number + fraction) / count, note)


def _watched(task: Task, row: Row, context: Context, advance: Callable[[float, str], None]) -> Context:
    """The context that reports how far a task has come: by the images encoded, or as its evaluator says."""
    advance(0.0, task.title)
    if not row.has_encoder:
        return context
    views, encoded = max(1, 2 * sum(context.probing.pairs)), 0

    def count(images: int) -> None:
        nonlocal encoded
        encoded += images
        advance(min(0.99, encoded / views), f"{encoded:,} views encoded")

    return replace(context, on_progress=advance, on_images=count)


def pretrain_row(place: Place, rows: TableRows, context: Context, progress: Progress, number: int = 0) -> runs.Run:
    """Pretrain one row at one seed, with progress and a warning as soon as its features collapse."""
    entry, folder = BASELINES.get(place.row), rows.folder(place)
    warned = False
    with progress.unit(f"pretrain {entry.title}, seed {place.seed}", number) as advance:

        def report(step: int, steps: int, scalars: dict[str, float]) -> None:
            nonlocal warned
            advance(step / steps, f"loss {scalars['loss']:.3f}")
            runs.keep_snapshot(folder, context.profile, step)
            if scalars["feature_std"] < loop.COLLAPSE_STD and not warned:
                warned = True
                progress.warn(
                    f"{entry.title}, seed {place.seed}: the features hardly vary over images at step {step} of "
                    f"{steps} (collapse); see {folder / 'log.jsonl'}"
                )

        return loop.pretrain(
            entry,
            context.profile,
            context.dataset,
            folder,
            variant=context.variant,
            seed=place.seed or 0,
            known_fraction=rows.known_fraction(place.row),
            fabric=context.fabric,
            report=report,
        )


def carry_out(jobs: Sequence[Job], rows: Rows, context: Context, progress: Progress) -> None:
    """Do the jobs one after the other, appending their records to the journal as they come.

    Large views, of which a task has hundreds of megabytes, go when no later job needs them; their features are kept.
    """
    for number, job in enumerate(jobs):
        do_job(job, rows, context, progress, lambda records: append_records(context.journal, records), number)
        later = {task for other in jobs[number + 1 :] for task in other.tasks}
        for task in job.tasks if context.size > 64 else ():
            if task not in later:
                for pairs in evaluator_of(task).pairs(task, context):
                    context.views.discard(pairs)


def final_log_lines(places: Sequence[Place], rows: TableRows) -> list[dict[str, Any]]:
    """The last line of each finished run's log: its losses and held-out diagnostics when training ended."""
    lines = []
    for place in places:
        if place.row not in CONTROLS and rows.find(place):
            last = read_lines(rows.folder(place) / "log.jsonl")[-1]
            last.pop("pairs_per_second")  # the one value that another run would not repeat
            lines.append({"baseline": place.row, "seed": place.seed, **last})
    return lines
