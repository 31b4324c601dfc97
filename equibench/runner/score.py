"""Score any encoder: which transformations its features keep, beside its untrained twin, pixels, floor and ceiling."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from equibench.config import RESULTS, RunConfig
from equibench.data.dataset import DATASETS, Dataset
from equibench.evaluation.context import Context, Row
from equibench.evaluation.evaluator import evaluator_of
from equibench.evaluation.features import outputs_of
from equibench.records import RECORDS, Record, read_records, with_digest, write_records
from equibench.report.score import score_frame, score_markdown
from equibench.runner.open import EncoderSource, OpenedScore, open_score
from equibench.runner.plan import Job, Place, collect, estimate, plan
from equibench.runner.workers import run_jobs
from equibench.task import Task
from equibench.utils.files import writable_folder, write_text


@dataclass(frozen=True)
class ScoreResult:
    """What an encoder was found to keep."""

    name: str  # the encoder's id in the records
    frame: pd.DataFrame  # one line per row, task, feature set and metric; see `report.score.score_frame`
    records: list[Record]  # of the encoder and of its controls
    context: Context  # data, views and probe
    notes: list[str]  # what was found out while opening the encoder
    files: list[Path]  # what was written


def score(
    encoder: EncoderSource | None = None,
    *,
    out: str | Path | None = None,
    console: Console | None = None,
    **options: Any,
) -> ScoreResult:
    """Score an encoder on tasks; what is done already is not done again.

        equibench.score("timm:resnet18", tasks=["rotation"], profile="tiny")

    Args:
        encoder: see `EncoderSource`; None where `features` are given.
        out: folder for records.jsonl, score.csv and score.md; results/score/<name>.<weights' digest>-<data> by
            default, where other preprocessing or pooling than the encoder's own, and data of one's own, are told too.
        console: where progress is shown.
        options: fields of `equibench.config.RunConfig`: tasks, data, arch, size, pooling, layers, pairs, ...

    Raises:
        UserError: a name, file, folder or device is wrong; the weights do not fit, or give no usable features.
    """
    config = RunConfig.of(**options)
    with ExitStack() as stack:
        opened = open_score(encoder, config, stack)
        row, context = opened.rows[0], opened.context
        folder = writable_folder(Path(out) if out else RESULTS / "score" / _slug(row, config, context.dataset))
        if jobs := _jobs(opened):
            _check_features(row, context, jobs[0].tasks[0])
        run_jobs(jobs, opened, console)
        records = [record for task in opened.tasks for _, record in collect(_places(opened), [task], opened)]
    files = [folder / f for f in (RECORDS, "score.csv", "score.md")]
    records = [*_still_true(read_records(files[0]), records, opened), *records]
    frame = score_frame(records)
    write_records(files[0], records)
    write_text(files[1], frame.to_csv(index=False))
    write_text(files[2], score_markdown(row.name, records, context, opened.notes))
    return ScoreResult(row.name, frame, records, context, opened.notes, files)


def plan_score(encoder: EncoderSource | None = None, **options: Any) -> tuple[list[Job], list[float]]:
    """What `score` would do with the same options, with seconds for each job; nothing is scored or written."""
    with ExitStack() as stack:
        opened = open_score(encoder, RunConfig.of(**options), stack)
        jobs = _jobs(opened)
        return jobs, estimate(jobs, opened)


def _slug(row: Row, config: RunConfig, data: Dataset) -> str:
    """A folder's name for each network, way of using it, and data: neither a file's name nor a folder's is enough."""
    told = [flag.strip("-") for flag in config.flags(["pooling", "size", "mean", "std", "interpolation"])]
    where = data.name if data.name in DATASETS else with_digest(data.name, data.sha256)
    words = "-".join([with_digest(row.name, row.encoder_sha256), *told, where])
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in words)


def _places(opened: OpenedScore) -> list[Place]:
    return [Place(row.name, row.seed) for row in opened.rows]


def _jobs(opened: OpenedScore) -> list[Job]:
    """What is not in the journal yet, one task after the other, so that a task's views can go when it is done."""
    jobs = plan(_places(opened), opened.tasks, opened)
    return [replace(job, tasks=(task,)) for task in opened.tasks for job in jobs if task in job.tasks]


def _check_features(row: Row, context: Context, task: Task) -> None:
    """Stop before any work if the encoder's features are not finite or say nothing."""
    from equibench.encoders.adapter import check_varies

    if row.given:
        pairs = evaluator_of(task).pairs(task, context)[0]
        check_varies({"default": np.asarray(row.given(context.views.first(pairs))[:32])})
        return
    images = np.array(context.dataset.test.images[:32])
    batch = torch.from_numpy(images).to(context.device).float() / 255
    with torch.inference_mode(), torch.autocast(context.device.type, dtype=torch.bfloat16, enabled=context.bf16):
        check_varies(outputs_of(row.encoder.to(context.device).eval(), batch, row.layers))


def _still_true(before: list[Record], now: list[Record], opened: OpenedScore) -> list[Record]:
    """What the folder held of other tasks, if it is of the same encoder, data, views and probe; the rest goes."""

    def kind(record: Record) -> tuple[object, ...]:
        probe = {key: value for key, value in record.probe.items() if key != "best_epochs"}
        return record.data_sha256, record.variant, record.profile, probe, record.precision

    row, tasks, kinds = opened.rows[0], {task.name for task in opened.tasks}, [kind(r) for r in now]
    others = [r for r in before if r.task not in tasks and kind(r) in kinds]
    encoder = (row.name, row.description, row.encoder_sha256)
    same = {r.task for r in others if (r.baseline, r.encoder, r.encoder_sha256) == encoder}
    return [r for r in others if r.task in same]
