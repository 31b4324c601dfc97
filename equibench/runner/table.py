"""Tables, and the runs behind them: bring every cell up to date, and write the table."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from equibench.config import RESULTS, RunConfig
from equibench.errors import UserError, closest
from equibench.evaluation.context import Context
from equibench.evaluation.controls import CONTROLS
from equibench.evaluation.evaluator import evaluator_of
from equibench.pretrain.method import BASELINES
from equibench.pretrain.runs import Run
from equibench.records import RECORDS, Record, write_records
from equibench.registry import load_file
from equibench.report.definition import Column, TableDefinition, columns_of, load_definition, table_frame
from equibench.report.table import markdown_table, overview
from equibench.runner.open import one_thread, open_context
from equibench.runner.plan import Job, Place, TableRows, collect, estimate, last_lines, places_of, plan, pretrain_row
from equibench.runner.workers import default_jobs, run_jobs
from equibench.task import Task
from equibench.utils.files import writable_folder, write_text
from equibench.utils.progress import Progress


@dataclass(frozen=True)
class Plan:
    """The jobs of a table, with seconds for each still to be done, and for all of them side by side."""

    jobs: list[Job]
    seconds: list[float]
    total: float
    notes: list[str]


@dataclass(frozen=True)
class _Asked:
    """A table with its names resolved."""

    definition: TableDefinition
    rows: list[str]
    columns: list[Column]
    tasks: list[Task]  # of the columns whose data are there
    notes: list[str]  # the other columns, and where their data were looked for
    config: RunConfig
    context: Context
    found: TableRows

    @property
    def places(self) -> list[Place]:
        return places_of(self.rows, self.config.seeds)


@dataclass(frozen=True)
class TableResult(_Asked):
    """A table as far as it has been computed."""

    frame: pd.DataFrame  # one row per baseline or control; see `report.definition.table_frame` for its columns
    records: list[Record]  # what stands behind it
    files: list[Path]  # what was written


def table(
    name: str | Path = "table2", *, out: str | Path | None = None, console: Console | None = None, **options: Any
) -> TableResult:
    """Bring a table up to date and write it; what is done already is not done again.

        equibench.table("table2", profile="tiny", rows=["vicreg"], seeds=[0, 1])

    Args:
        name: a table's name, or a CSV that defines one.
        out: folder for the results; by default results/<profile>/<name>, with -paper_like for that variant, and below
            it partial where rows or columns are narrowed.
        console: where progress is shown.
        options: fields of `equibench.config.RunConfig`: profile, rows, columns, seeds, baseline_files, variant,
            data_root, device, devices, jobs, runs, skip_bad. More than one job starts processes, for which a script
            needs the usual `if __name__ == "__main__":`.

    Raises:
        UserError: a name, file, folder or device is wrong.
    """
    asked = _resolve(name, RunConfig.of(**options))
    definition, rows, columns, config = asked.definition, asked.rows, asked.columns, asked.config
    context, places, found, profile = asked.context, asked.places, asked.found, asked.context.profile.name
    # all but the complete headline table have folders of their own, so that none replaces another
    complete, headline = config.rows is None and config.columns is None, config.variant == "headline"
    own = RESULTS / profile / (definition.name if headline else f"{definition.name}-{config.variant}")
    folder = writable_folder(Path(out) if out else own if complete else own / "partial")
    run_jobs(plan(places, asked.tasks, found), found, console)
    context.barrier()
    records = [record for _, record in collect(places, asked.tasks, found)]
    frame = table_frame(definition, rows, [column.name for column in columns], records)
    text = markdown_table(definition, rows, columns, records, context, config.seeds, asked.notes)
    logs = last_lines(places, found)
    files = [folder / f for f in (f"{definition.name}.csv", f"{definition.name}.md", RECORDS, "pretraining.jsonl")]
    if context.is_first:
        write_text(files[0], frame.to_csv(index=False))
        write_text(files[1], text)
        write_records(files[2], records)
        write_text(files[3], "".join(json.dumps(line) + "\n" for line in logs))
        if out is None and complete and headline:
            files.append(folder.parent / "README.md")
            write_text(files[-1], overview(folder.parent, profile))
    return TableResult(**vars(asked), frame=frame, records=records, files=files)


def plan_table(name: str | Path = "table2", **options: Any) -> Plan:
    """What `table` would do with the same options, with an estimate of the seconds; nothing is run or written."""
    asked = _resolve(name, RunConfig.of(**options))
    jobs = plan(asked.places, asked.tasks, asked.found)
    with one_thread(asked.context):
        seconds = estimate(jobs, asked.found)
    side_by_side = asked.config.jobs or default_jobs(asked.context)
    return Plan(jobs, seconds, sum(seconds) / side_by_side, asked.notes)


def pretrain(baseline: str, *, console: Console | None = None, **options: Any) -> Run:
    """Pretrain one baseline, or go on where it stopped, or return the finished run.

        equibench.pretrain("vicreg", profile="tiny", seed=1).encoder

    Args:
        options: fields of `equibench.config.RunConfig`: profile, seed, baseline_files, variant, data_root, device,
            devices, runs.

    Raises:
        UserError: a name, file, folder or device is wrong.
    """
    config = RunConfig.of(**options)
    for file in config.baseline_files:
        load_file(file, "baseline")
    BASELINES.get(baseline)
    context = open_context(config)
    rows, place = TableRows(config, context), Place(baseline, config.seed)
    console = console or Console(stderr=True, quiet=not context.is_first)
    with one_thread(context), Progress(estimate(plan([place], (), rows), rows), console) as progress:
        return pretrain_row(place, rows, progress)


def _resolve(name: str | Path, config: RunConfig) -> _Asked:
    added = [row for file in config.baseline_files for row in load_file(file, "baseline")]
    definition = load_definition(name)
    columns = columns_of(_choose("column", config.columns, definition.columns))
    evaluators = {column.task.evaluator for column in columns}
    controls = [c.name for c in CONTROLS.values() if c.has_encoder or evaluators & set(c.evaluators)]
    rows = [*definition.rows, *(r for r in added if r not in definition.rows), *controls]
    if config.rows is not None:  # a narrowed table keeps the controls that its cells are judged by
        chosen = {*_choose("row", config.rows, rows), *added, *controls}
        rows = [row for row in rows if row in chosen]
    # --data-root is then the folder of what the tasks bring along, and need not hold CIFAR-10 too
    shared = definition.data is None and any(column.task.data for column in columns)
    config = config.with_(
        table=str(name), pretraining_data=definition.data, shared_root=shared, known_fraction=definition.known_fraction
    )
    context = open_context(config)
    if context.several_processes and "segmentation" in evaluators:
        raise UserError(
            "segmentation heads of a table are trained by one process, and there are several: the others would wait "
            "for ever",
            "pretrain the rows with several processes, then run the table with one; or train one head with several: "
            "torchrun ... -m equibench.segmentation.run JOB.json",
        )
    tasks, notes = [], []
    for task in dict.fromkeys(column.task for column in columns):
        if problem := evaluator_of(task).missing_data(task, context):
            notes.append(f"{task.title}: {problem}")
        else:
            tasks.append(task)
    return _Asked(definition, rows, columns, tasks, notes, config, context, TableRows(config, context))


def _choose(kind: str, wanted: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    if wanted is None:
        return list(known)
    for name in wanted:
        if name not in known:
            raise UserError(f"the table has no {kind} {name!r}{closest(name, known)}", f"{kind}s: {', '.join(known)}")
    return [name for name in known if name in wanted]
