"""Rows x tasks -> jobs -> records: what is missing, how long it takes, doing it, and collecting what there is.

Tables, scores, learning curves and ablations all go through here. The journal `records.jsonl` of the context's folder
is append-only: a row's score on a task is done if it holds a record with the same digest. Whatever kills a run, the
next one goes on from the journal and the last checkpoint.
"""

import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from equibench.config import RunConfig
from equibench.data.transfer_sources import SOURCES
from equibench.encoders.vit import TOKEN_SETS, weights_sha256
from equibench.evaluation.context import Context, Row, vit_identity
from equibench.evaluation.controls import CONTROLS, row_title
from equibench.evaluation.evaluator import evaluate, evaluation_digest, evaluator_of
from equibench.evaluation.features import outputs_of
from equibench.pretrain import loop, runs
from equibench.pretrain.method import BASELINES
from equibench.records import Record, append_records, read_records
from equibench.runner.open import OpenedScore
from equibench.task import Task
from equibench.utils.digests import code_digest
from equibench.utils.files import digest_of, read_lines
from equibench.utils.progress import Advance, Progress

PIXEL_CONTROL_SECONDS = 5 / 8000  # for each pair of a task, where there is no encoder to measure
CLASSIFICATION = (60_000, 3e-4)  # images, where no list counts them; seconds that 45 fits of ten classes take for each
SEGMENTATION_TIMES = 12  # forward passes of the bare encoder that a training step of the segmentation head takes
PROBE_SECONDS = 1e-4  # of training a pair's probes for one epoch
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


class TableRows:
    """Rows of tables: encoders that the suite pretrains, their untrained twin, and controls; none is opened here."""

    def __init__(self, config: RunConfig, context: Context) -> None:
        self.config, self.context = config, context
        self._found: dict[Place, Row] = {}

    def find(self, place: Place) -> Row | None:
        """The row, or None if it has to be pretrained first."""
        if place not in self._found and (row := self._find(place)) is not None:
            self._found[place] = row
        return self._found.get(place)

    def folder(self, place: Place) -> Path:
        """Where the row's pretraining run is kept."""
        share = self.known_fraction(place.row)
        name = place.row if share == 1 else f"{place.row}-known{share:g}"
        return self.context.work / "pretraining" / name / f"seed{place.seed}"

    def known_fraction(self, row: str) -> float:
        """Of the training images, whose θ a row can see; all, where it makes no use of θ."""
        return 1.0 if BASELINES.get(row).use_of_theta == "unused" else self.context.known_fraction

    def _find(self, place: Place) -> Row | None:
        row, seed, step, context = place.row, place.seed, place.step, self.context
        profile, variant, size = context.profile, context.variant, context.profile.encoder
        name, command = row, self._command(place)
        facts: dict[str, Any] = {}  # of the pretraining run
        if row in CONTROLS and not CONTROLS[row].has_encoder:
            return Row(row, command=command)
        assert seed is not None
        if row in CONTROLS:
            versions = [torch.__version__, version("timm"), code_digest(runs.build_encoder)]
            weights = context.remembered(
                ["untrained", str(size), profile.image_size, variant, seed, *versions],
                lambda: weights_sha256(runs.build_encoder(profile, variant, seed)),
            )
        else:
            folder, entry, known = self.folder(place), BASELINES.get(row), self.known_fraction(row)
            digest = digest_of(loop.recipe(entry, profile, context.dataset, variant, seed, known))
            run = runs.read_run(folder, digest)
            if run is None:
                return None
            weights = run["encoder_sha256"]
            if step is not None:
                weights, name = runs.snapshot_sha256(folder, profile, step, digest), f"{row}@{step}"
            half = size.half if entry.splits_features else None
            facts = {"half": half, "recipe_sha256": digest, "known_fraction": known}
            facts |= {key: run[key] for key in ("seconds", "collapsed")}
            if step is None:  # the run's end says nothing about the encoder on its way
                facts |= {key: run[key] for key in ("diagnostics", "trained")}

        def opened() -> torch.nn.Module:
            if row in CONTROLS:
                return runs.build_encoder(profile, variant, seed).eval()
            if step is not None:
                return runs.read_snapshot(folder, profile, variant, seed, step)
            run = runs.finished_run(profile, folder, variant, seed, digest)
            assert run is not None
            return run.encoder

        words = f"ViT of width {size.width}, {size.depth} blocks, patch {size.patch}, mean of patch tokens"
        identity = vit_identity(weights, profile, context.spec)
        facts |= {"seed": seed, "token_sets": lambda: TOKEN_SETS, "description": words, "command": command}
        return Row(name, opened, identity, weights, **facts)

    def _command(self, place: Place) -> str:
        config = self.config
        command = "curve" if place.step is not None else f"table {config.table}"
        profile = config.profile if isinstance(config.profile, str) else config.profile.name
        parts = [f"equibench {command} --profile {shlex.quote(profile)} --rows {place.row} --columns {{task}}"]
        parts += [f"--seeds {place.seed}"] if place.seed is not None else []
        return " ".join([*parts, *config.flags(["variant", "baseline_files", "plugins"])])


Rows = OpenedScore | TableRows


def places_of(rows: Sequence[str], seeds: Sequence[int]) -> list[Place]:
    """Every row at every pretraining seed; controls without an encoder once."""
    without = [name for name, control in CONTROLS.items() if not control.has_encoder]
    return [Place(row, seed) for row in rows for seed in ([None] if row in without else seeds)]


# What is missing, and what is there


def plan(places: Sequence[Place], tasks: Sequence[Task], rows: Rows) -> list[Job]:
    """The jobs that make up places x tasks, done ones included, in the places' order."""
    context = rows.context
    done = {(line["baseline"], line["task"], line["evaluation_sha256"]) for line in read_lines(context.journal)}
    begun = {key[:2] for key in done}
    jobs = []
    for place in places:
        row, missing = rows.find(place), list(tasks)
        if row is not None:
            missing = [task for task in tasks if row.suits(task)]
            there = [task for task in missing if (row.name, task.name) in begun]  # of no other is a digest needed
            ready = [task for task in there if (row.name, task.name, _digest(row, task, context)) in done]
            missing = [task for task in missing if task not in ready]
        jobs.append(Job(place, row is None, tuple(missing)))
    return jobs


def collect(places: Sequence[Place], tasks: Sequence[Task], rows: Rows) -> list[tuple[Place, Record]]:
    """The journal's records of these places and tasks, as the code and the settings stand now, in their order."""
    stored: dict[tuple[str, str, str], dict[str, Record]] = {}
    for record in read_records(rows.context.journal):
        key = (record.baseline, record.task, record.evaluation_sha256)
        stored.setdefault(key, {}).setdefault(record.features, record)
    found = []
    for place in places if stored else ():
        row = rows.find(place)
        for task in tasks:
            if row is not None and row.suits(task):
                records = stored.get((row.name, task.name, _digest(row, task, rows.context)), {})
                found += [(place, record) for record in records.values()]
    return found


def _digest(row: Row, task: Task, context: Context) -> str:
    """The evaluation's digest, computed once, unless nothing tells the row's encoder from others."""
    if "call" in (row.identity or {}):
        return evaluation_digest(row, task, context)
    shared, key = context._shared, ("digest", row.name, row.seed, row.encoder_sha256, row.layers, task)
    if key not in shared:
        shared[key] = evaluation_digest(row, task, context)
    return str(shared[key])


# How long it takes


def estimate(jobs: Sequence[Job], rows: Rows) -> list[float]:
    """Seconds of each job: what the same took before, else from a short measurement of this machine."""
    context, past = rows.context, {}
    scored: dict[str, list[float]] = {}
    for line in read_lines(context.journal):
        if line.get("pretraining_seconds"):
            past[line["baseline"]] = line["pretraining_seconds"]
        if line.get("encoder_sha256") and line["features"] == "full":
            scored.setdefault(line["task"], []).append(line["seconds"])
    image: float | None = None
    found = []
    for job in jobs:
        seconds = 0.0
        if job.pretrain:
            seconds += past.get(job.place.row) or _time_pretraining(job.place.row, context)
        row = None if job.pretrain else rows.find(job.place)
        for task in job.tasks:
            if row is not None and (not row.has_encoder or row.given):
                seconds += PIXEL_CONTROL_SECONDS * sum(context.probing.pairs)
            elif task.name in scored:
                seconds += statistics.median(scored[task.name])
            else:
                image = time_image(row, context) if image is None else image
                seconds += _task_seconds(task, context, image)
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
        images = sum(SOURCES[task.data].counts.values()) if task.data in SOURCES else images
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

    profile = context.profile.of_row(row)
    entry = BASELINES.get(row)
    kind = (entry.method, entry.extras, profile, context.dataset.name, context.device.type)
    if kind in _timed:
        return _timed[kind]
    batch = min(profile.pretraining.batch, 32)
    module = loop.build_step(entry, profile, context.variant, 0, len(context.dataset.class_names))
    module.to(context.device)
    stream = open_stream(context.dataset, "train", module.method, context.spec, 0)

    def step() -> None:
        views = module.method.prepare(stream.batch(0, batch, module.encoder))
        with torch.autocast(context.device.type, dtype=torch.bfloat16, enabled=context.bf16):
            loss = module(views)[0]["loss"]
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


def do_job(job: Job, rows: Rows, progress: Progress, keep: Callable[[list[Record]], None], number: int) -> None:
    """Pretrain the job's row if need be, and score it; `keep` gets each task's records as soon as they are there."""
    context = rows.context
    if job.pretrain:
        assert isinstance(rows, TableRows)
        pretrain_row(job.place, rows, progress, number)
    row = rows.find(job.place)
    assert row is not None
    if job.tasks and context.is_first:
        title = row_title(job.place.row) if isinstance(rows, TableRows) else row.name
        title += f" after {job.place.step:,} steps" if job.place.step else ""
        title += f", {job.tasks[0].name}" if len(job.tasks) == 1 else ""
        with progress.unit(f"score {title}", number) as advance:
            for done, task in enumerate(job.tasks):
                keep(evaluate(row, task, _watched(task, row, context, advance, done, len(job.tasks))))
    context.barrier()


def _watched(task: Task, row: Row, context: Context, advance: Advance, done: int, tasks: int) -> Context:
    """The context that reports how far a job of some tasks has come: by images encoded, or as the evaluator says."""
    views, encoded = max(1, 2 * sum(context.probing.pairs)), 0

    def report(fraction: float, note: str) -> None:
        advance((done + fraction) / tasks, note)

    def count(images: int) -> None:
        nonlocal encoded
        encoded += images
        report(min(0.99, encoded / views), f"{encoded:,} views encoded")

    report(0.0, task.title)
    return replace(context, on_progress=report, on_images=count) if row.has_encoder else context


def pretrain_row(place: Place, rows: TableRows, progress: Progress, number: int = 0) -> runs.Run:
    """Pretrain one row at one seed, with progress and a warning as soon as its features collapse."""
    entry, folder, context = BASELINES.get(place.row), rows.folder(place), rows.context
    warned = False
    with progress.unit(f"pretrain {entry.title}, seed {place.seed}", number) as advance:

        def report(step: int, steps: int, scalars: dict[str, float]) -> None:
            nonlocal warned
            advance(step / steps, f"loss {scalars['loss']:.3f}")
            runs.keep_snapshot(folder, context.profile, step)
            if (signs := loop.collapse_signs(scalars)) and not warned:
                warned = True
                progress.warn(
                    f"{entry.title}, seed {place.seed}: {signs} at step {step} of {steps} (collapse); "
                    f"see {folder / 'log.jsonl'}"
                )

        return loop.run_pretraining(
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


def carry_out(jobs: Sequence[Job], rows: Rows, progress: Progress) -> None:
    """Do the jobs one after the other, appending their records to the journal as they come.

    Large views, of which a task has hundreds of megabytes, go when no later job needs them; their features are kept.
    """
    context = rows.context
    for number, job in enumerate(jobs):
        do_job(job, rows, progress, lambda records: append_records(context.journal, records), number)
        later = {task for other in jobs[number + 1 :] for task in other.tasks}
        for task in job.tasks if context.size > 64 else ():
            if task not in later:
                alike = [other for other in later if other.transformation == task.transformation]
                needed = {pairs.sha256 for other in alike for pairs in evaluator_of(other).pairs(other, context)}
                for pairs in evaluator_of(task).pairs(task, context):
                    if pairs.sha256 not in needed:
                        context.views.discard(pairs)


def last_lines(places: Sequence[Place], rows: TableRows) -> list[dict[str, Any]]:
    """The last line of each finished run's log: its losses and held-out diagnostics when training ended."""
    lines = []
    for place in places:
        if place.row not in CONTROLS and rows.find(place):
            last = read_lines(rows.folder(place) / "log.jsonl")[-1]
            last.pop("pairs_per_second")  # the one value that another run would not repeat
            lines.append({"baseline": place.row, "seed": place.seed, **last})
    return lines
