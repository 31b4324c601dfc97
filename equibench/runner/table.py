"""The suite as functions: what the command line does, in Python."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from equibench.data.load import root_of_cifar10
from equibench.errors import UserError, closest
from equibench.evaluation.controls import CONTROLS
from equibench.pretrain.loop import Run
from equibench.profiles import get_profile
from equibench.records import Record, read_records, write_records
from equibench.registry import BASELINES, load_baseline_file
from equibench.report.definition import (
    Column,
    TableDefinition,
    columns_of,
    load_certificates,
    load_definition,
    table_frame,
)
from equibench.report.notes import overview
from equibench.report.table import markdown_table
from equibench.runner.open import Order, Workplace, one_thread, open_workplace
from equibench.runner.plan import (
    Plan,
    Unit,
    current_records,
    estimate_seconds,
    final_log_lines,
    find_subject,
    plan,
    pretrain_row,
    total_seconds,
)
from equibench.runner.workers import carry_out_all, default_jobs
from equibench.task import Task
from equibench.utils.files import writable_folder, write_text
from equibench.utils.progress import Progress

RUNS = Path("runs")
RESULTS = Path("results")


@dataclass(frozen=True)
class TableResult:
    """A table as far as it has been computed.

    Attributes:
        frame: one row per baseline or control; see `tables.table_frame` for its columns.
        records: what stands behind it.
        files: what was written.
    """

    definition: TableDefinition
    rows: list[str]
    columns: list[Column]
    seeds: list[int]
    place: Workplace
    frame: pd.DataFrame
    records: list[Record]
    files: list[Path]


@dataclass(frozen=True)
class _Request:
    """A table request with its names resolved."""

    definition: TableDefinition
    rows: list[str]
    columns: list[Column]
    seeds: list[int]
    place: Workplace
    complete: bool

    @property
    def tasks(self) -> list[Task]:
        """The columns' tasks, each once."""
        return list(dict.fromkeys(column.task for column in self.columns))


def table(
    name: str = "table2",
    *,
    profile: str = "demo",
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    baseline_files: Sequence[str | Path] = (),
    variant: str = "headline",
    data_root: str | Path | None = None,
    device: str = "auto",
    devices: int = 1,
    jobs: int | None = 1,
    runs: str | Path = RUNS,
    skip_bad: bool = False,
    out: str | Path | None = None,
    console: Console | None = None,
) -> TableResult:
    """Bring a table up to date and write it; what is done already is not done again.

    Args:
        name: a table's name, or a CSV that defines one.
        profile: how large; see `list_names("profiles")`.
        rows, columns: narrow the table to these baselines or controls, and tasks.
        seeds: pretraining seeds.
        baseline_files: Python files that register more baselines, each a further row.
        variant: "headline" or "paper_like" views.
        data_root: folder that holds the data; else $EQUIBENCH_DATA, the user's cache, a download.
        device, devices: "auto", "cpu" or "cuda", and how many (under torchrun, per node).
        jobs: units worked on side by side, one thread each; None for as many as cores, or one on a GPU. More than
            one starts processes, for which a script needs the usual `if __name__ == "__main__":`.
        runs: folder for work in progress.
        skip_bad: leave out images that cannot be read, views without latents, annotations that do not fit; each record
            counts them.
        out: folder for the results; by default results/<profile>/<name>, with -paper_like for that variant, and below
            it partial where rows or columns are narrowed.
        console: where progress is shown.

    Raises:
        UserError: a name, file, folder or device is wrong.
    """
    order = make_order(profile, variant, data_root, device, devices, runs, baseline_files, skip_bad)
    request = _resolve(name, order, rows, columns, seeds)
    folder = Path(out) if out else _results_folder(request)
    writable_folder(folder)
    place = request.place
    units = plan(request.rows, request.tasks, request.seeds, place)
    carry_out_all(units, place, jobs, show_on(place, console))
    place.fabric.barrier()
    result = _write(request, folder)
    if place.fabric.is_global_zero and out is None and request.complete and variant == "headline":
        page = folder.parent / "README.md"
        write_text(page, overview(folder.parent, profile))
        result.files.append(page)
    return result


def _results_folder(request: _Request) -> Path:
    """Apart from the complete headline table, every kind has a folder of its own, so that none replaces another."""
    order = request.place.order
    name = request.definition.name + (f"-{order.variant}" if order.variant != "headline" else "")
    folder = RESULTS / order.profile.name / name
    return folder if request.complete else folder / "partial"


def plan_table(
    name: str = "table2",
    *,
    profile: str = "demo",
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    baseline_files: Sequence[str | Path] = (),
    variant: str = "headline",
    data_root: str | Path | None = None,
    device: str = "auto",
    jobs: int | None = 1,
    runs: str | Path = RUNS,
    skip_bad: bool = False,
) -> Plan:
    """What `table` would do with the same arguments, with an estimate of the seconds; nothing is run or written."""
    order = make_order(profile, variant, data_root, device, 1, runs, baseline_files, skip_bad)
    request = _resolve(name, order, rows, columns, seeds)
    units = plan(request.rows, request.tasks, request.seeds, request.place)
    jobs = jobs or default_jobs(request.place)
    with one_thread(request.place):
        estimates = estimate_seconds(units, read_records(request.place.journal), request.place.setting)
    return Plan(units, estimates, total_seconds(units, estimates) / jobs)


def pretrain(
    baseline: str,
    *,
    profile: str = "demo",
    seed: int = 0,
    baseline_files: Sequence[str | Path] = (),
    variant: str = "headline",
    data_root: str | Path | None = None,
    device: str = "auto",
    devices: int = 1,
    runs: str | Path = RUNS,
    console: Console | None = None,
) -> Run:
    """Pretrain one baseline, or go on where it stopped, or return the finished run.

    Args are those of `table`.

    Raises:
        UserError: a name, file, folder or device is wrong.
    """
    order = make_order(profile, variant, data_root, device, devices, runs, baseline_files)
    for file in order.baseline_files:
        load_baseline_file(file)
    BASELINES.get(baseline)
    place = open_workplace(order)
    unit = Unit(baseline, seed, find_subject(baseline, seed, place) is None, ())
    with one_thread(place):
        estimates = estimate_seconds([unit], read_records(place.journal), place.setting)
        with Progress(estimates, total_seconds([unit], estimates), show_on(place, console)) as progress:
            return pretrain_row(baseline, seed, place, progress)


def show_on(place: Workplace, console: Console | None) -> Console:
    """Where to show progress: standard error, on the first of several processes."""
    return console or Console(stderr=True, quiet=not place.fabric.is_global_zero)


def make_order(
    profile: str,
    variant: str,
    data_root: str | Path | None,
    device: str,
    devices: int,
    runs: str | Path,
    baseline_files: Sequence[str | Path],
    skip_bad: bool = False,
) -> Order:
    """The arguments of `table` as an order."""
    return Order(
        profile=get_profile(profile),
        variant=variant,
        data_root=Path(data_root) if data_root else None,
        device=device,
        devices=devices,
        runs=Path(runs),
        baseline_files=tuple(Path(file) for file in baseline_files),
        skip_bad=skip_bad,
    )


def _resolve(
    name: str, order: Order, rows: Sequence[str] | None, columns: Sequence[str] | None, seeds: Sequence[int]
) -> _Request:
    added = [row for file in order.baseline_files for row in load_baseline_file(file)]
    definition = load_definition(name)
    chosen_columns = columns_of(_choose("column", columns, definition.columns))
    families = {column.task.family for column in chosen_columns}
    controls = [c.name for c in CONTROLS.values() if c.has_encoder or families & set(c.families)]
    all_rows = [*definition.rows, *(r for r in added if r not in definition.rows), *controls]
    chosen_rows = _choose("row", rows, all_rows)
    if rows is not None:  # a narrowed table keeps the controls that its cells are judged by
        chosen_rows = [r for r in all_rows if r in {*chosen_rows, *added, *controls}]
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"seeds must be distinct numbers from 0 on, not {list(seeds)}", "for example --seeds 0,1,2")
    order = replace(order, table=str(name), data=definition.data, known=definition.known)
    if definition.data is None and any(column.task.data for column in chosen_columns):
        order = replace(order, own_root=order.data_root, data_root=root_of_cifar10(order.data_root, others=True))
    place = open_workplace(order)
    if place.fabric.world_size > 1 and "segmentation" in families:
        raise UserError(
            "segmentation heads of a table are trained by one process, and there are "
            f"{place.fabric.world_size}: the others would wait for ever",
            "pretrain the rows with several processes, then run the table with one; or train one head with several: "
            "torchrun ... -m equibench.segmentation.launch JOB.json",
        )
    complete = rows is None and columns is None
    return _Request(definition, chosen_rows, chosen_columns, list(seeds), place, complete)


def _choose(kind: str, wanted: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    if wanted is None:
        return list(known)
    for name in wanted:
        if name not in known:
            raise UserError(f"the table has no {kind} {name!r}{closest(name, known)}", f"{kind}s: {', '.join(known)}")
    return [name for name in known if name in wanted]


def _write(request: _Request, folder: Path) -> TableResult:
    """The table's files: CSV, markdown, the records behind them, and how each pretraining run ended."""
    place = request.place
    definition, rows, columns, seeds = request.definition, request.rows, request.columns, request.seeds
    records = current_records(rows, request.tasks, seeds, place)
    frame = table_frame(definition, rows, [column.name for column in columns], records)
    text = markdown_table(definition, rows, columns, records, place.setting, seeds, load_certificates())
    name = definition.name
    files = [folder / f for f in (f"{name}.csv", f"{name}.md", "records.jsonl", "pretraining.jsonl")]
    logs = final_log_lines(rows, seeds, place)
    if place.fabric.is_global_zero:
        write_text(files[0], frame.to_csv(index=False))
        write_text(files[1], text)
        write_records(files[2], records)
        write_text(files[3], "".join(json.dumps(line) + "\n" for line in logs))
    return TableResult(definition, rows, columns, seeds, place, frame, records, files)
