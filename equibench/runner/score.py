"""Score any encoder: which transformations its features keep, beside its untrained twin, pixels, floor and ceiling."""

from __future__ import annotations

import shlex
import time
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from equibench.encoders.adapter import check_varies
from equibench.errors import UserError, closest
from equibench.evaluation.context import Setting, Subject
from equibench.evaluation.evaluate import evaluate, evaluation_digest
from equibench.evaluation.evaluator import family_of
from equibench.evaluation.features import outputs_of
from equibench.records import Record, append_records, read_records, write_records
from equibench.report.score import score_frame, score_markdown
from equibench.runner.open import Prepared, ScoreOptions, Source, prepare
from equibench.task import Task
from equibench.utils.files import writable_folder, write_text
from equibench.utils.progress import Progress

JOURNAL = "records.jsonl"


@dataclass(frozen=True)
class ScoreResult:
    """What an encoder was found to keep.

    Attributes:
        name: the encoder's id in the records.
        frame: one row per subject, task, feature set and metric; see `report.score.score_frame`.
        records: of the encoder and of its controls.
        setting: data, views and probe.
        notes: what was found out while opening the encoder.
        files: what was written.
    """

    name: str
    frame: pd.DataFrame
    records: list[Record]
    setting: Setting
    notes: list[str]
    files: list[Path]


@dataclass(frozen=True)
class Work:
    """One piece of a score still to be done, with an estimate in seconds."""

    subject: Subject
    task: Task
    views: int
    seconds: float


def score(
    encoder: Source, *, out: str | Path | None = None, console: Console | None = None, **options: Any
) -> ScoreResult:
    """Score an encoder on tasks; what is done already is not done again.

    Args:
        encoder: a run folder or baseline of equibench; "timm:NAME", "torchvision:NAME", "hf-hub:ORG/NAME"; a file of
            weights (with `arch`); an `nn.Module` or a callable on a batch of normalised images (N, 3, S, S).
        out: folder for records.jsonl, score.csv and score.md; results/score/<name>-<data> by default.
        console: where progress is shown.
        options: those of `ScoreOptions`: tasks, data, arch, size, pooling, layers, ...

    Raises:
        UserError: a name, file, folder or device is wrong; the weights do not fit, or give no usable features.
    """
    with ExitStack() as stack:
        prepared = prepare(encoder, _checked(options), stack)
        folder = Path(out) if out else Path("results/score") / f"{_slug(prepared.name)}-{prepared.setting.dataset.name}"
        writable_folder(folder)
        _carry_out(prepared, console or Console(stderr=True))
        return _write(prepared, folder)


def plan_score(encoder: Source, **options: Any) -> list[Work]:
    """What `score` would do with the same arguments, with an estimate of the seconds; nothing is scored or written."""
    with ExitStack() as stack:
        return plan(prepare(encoder, _checked(options), stack))


def _checked(options: dict[str, Any]) -> ScoreOptions:
    known = [field.name for field in fields(ScoreOptions)]
    for name in options:
        if name not in known:
            raise UserError(f"score has no option {name!r}{closest(name, known)}", f"options: {', '.join(known)}")
    return ScoreOptions(**options)


def plan(prepared: Prepared) -> list[Work]:
    """What is still to be done, task by task, with seconds from one measured forward pass."""
    done = {(r.baseline, r.evaluation_sha256) for r in read_records(prepared.setting.work / JOURNAL)}
    speed: dict[str, float] = {}
    work = []
    for number, task in enumerate(prepared.tasks):
        for subject in prepared.subjects:
            if not subject.suits(task):
                continue
            if (subject.name, evaluation_digest(subject, task, prepared.setting)) in done:
                continue
            views = _views(task, prepared.setting, first=number == 0)
            if subject.encoder is not None and subject.name not in speed:
                speed[subject.name] = seconds_per_view(subject, prepared.setting)
            probe = prepared.setting.probing.epochs * prepared.setting.probing.pairs[0] * 5e-5
            work.append(Work(subject, task, views, views * speed.get(subject.name, 3e-4) + probe))
    return work


def _views(task: Task, setting: Setting, first: bool) -> int:
    """How many views a task has to encode; the first task encodes the untransformed ones for all."""
    sizes, _ = family_of(task).manifests(task, setting)
    own = sum(setting.probing.pairs)
    return sum(sizes) + (own if first else 0)


def seconds_per_view(subject: Subject, setting: Setting) -> float:
    """One timed forward pass after one to warm up."""
    encoder, batch = subject.encoder, subject.batch or 1
    assert encoder is not None
    images = torch.rand(batch, 3, setting.size, setting.size, device=setting.device)
    encoder.to(setting.device).eval()
    seconds = 0.0
    with torch.inference_mode(), torch.autocast(setting.device.type, dtype=torch.bfloat16, enabled=setting.bf16):
        for _ in range(2):
            started = time.perf_counter()
            outputs_of(encoder, images, subject.layers)
            seconds = time.perf_counter() - started
    return seconds / batch


def _carry_out(prepared: Prepared, console: Console) -> None:
    """Do what is not in the journal yet, one task after the other, so that a task's views can go when it is done."""
    setting = prepared.setting
    to_do = plan(prepared)
    if not to_do:
        return
    _check_features(prepared)
    estimates = {(w.subject.name, w.task.name): w.seconds for w in to_do}
    with Progress(estimates, sum(estimates.values()), console) as progress:
        for task in prepared.tasks:
            mine = [w for w in to_do if w.task == task]
            for work in mine:
                title = f"{work.subject.name}, {task.name}"
                with progress.unit(title, (work.subject.name, task.name)) as advance:
                    encoded = 0

                    def report(count: int, advance=advance, views=work.views) -> None:  # type: ignore[no-untyped-def]
                        nonlocal encoded
                        encoded += count
                        advance(min(0.99, encoded / views), f"{encoded:,} views encoded")

                    watched = replace(setting, on_images=report)
                    named = shlex.quote(prepared.files.get(task.name, task.name))
                    subject = replace(work.subject, command=work.subject.command.replace("{task}", named))
                    append_records(setting.work / JOURNAL, evaluate(subject, task, watched))
            if mine and setting.size > 64:  # hundreds of megabytes; its features are kept
                for pairs in family_of(task).pairs(task, setting):
                    setting.views.discard(pairs)


def _check_features(prepared: Prepared) -> None:
    """Stop before any work if the encoder's features are not finite or say nothing."""
    setting, subject = prepared.setting, prepared.subjects[0]
    assert subject.encoder is not None
    images = np.array(setting.dataset.test.images[: min(32, len(setting.dataset.test.images))])
    batch = torch.from_numpy(images).to(setting.device).float() / 255
    with torch.inference_mode(), torch.autocast(setting.device.type, dtype=torch.bfloat16, enabled=setting.bf16):
        check_varies(outputs_of(subject.encoder.to(setting.device).eval(), batch, subject.layers))


def _write(prepared: Prepared, folder: Path) -> ScoreResult:
    """The score's files: the records behind it, a CSV, and the table in markdown."""
    setting = prepared.setting
    wanted = {
        (s.name, evaluation_digest(s, t, setting)): None
        for t in prepared.tasks
        for s in prepared.subjects
        if s.suits(t)
    }
    journal: dict[tuple[str, str, str], Record] = {}
    for record in read_records(setting.work / JOURNAL):
        journal.setdefault((record.baseline, record.evaluation_sha256, record.features), record)
    records = [r for key in wanted for (n, d, _), r in journal.items() if (n, d) == key]
    files = [folder / f for f in ("records.jsonl", "score.csv", "score.md")]
    records = [*_still_true(read_records(files[0]), records, prepared), *records]
    frame = score_frame(prepared.name, records)
    write_records(files[0], records)
    write_text(files[1], frame.to_csv(index=False))
    write_text(files[2], score_markdown(prepared.name, records, setting, prepared.notes))
    return ScoreResult(prepared.name, frame, records, setting, prepared.notes, files)


def _still_true(before: list[Record], now: list[Record], prepared: Prepared) -> list[Record]:
    """What the folder held of other tasks, if it is of the same encoder, data, views and probe; the rest goes."""

    def kind(record: Record) -> tuple[object, ...]:
        return record.data_sha256, record.variant, record.profile, record.probe, record.precision

    tasks, kinds = {t.name for t in prepared.tasks}, [kind(r) for r in now]
    others = [r for r in before if r.task not in tasks and kind(r) in kinds]
    it = prepared.subjects[0]
    encoder = (it.name, it.description, it.encoder_sha256)
    same = {r.task for r in others if (r.baseline, r.encoder, r.encoder_sha256) == encoder}
    return [r for r in others if r.task in same]


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
