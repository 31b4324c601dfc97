"""The suite as functions: what the command line does, in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from equibench.controls import CONTROLS
from equibench.data.datasets import Dataset, load_dataset, load_or_generate
from equibench.errors import UserError
from equibench.estimate import estimate_seconds, total_seconds
from equibench.files import writable_folder, write_text
from equibench.pretrain.loop import Run, start_fabric
from equibench.profiles import PROFILES, Profile, get_profile
from equibench.progress import Progress
from equibench.records import Record, read_records, write_records
from equibench.registry import BASELINES, TASKS, closest, load_baseline_file
from equibench.report.markdown import markdown_table
from equibench.runner import (
    Plan,
    Unit,
    Workplace,
    carry_out,
    current_records,
    find_subject,
    open_workplace,
    plan,
    pretrain_row,
)
from equibench.tables import TableDefinition, load_certificates, load_definition, table_frame, table_names
from equibench.task import Task

RUNS = Path("runs")
RESULTS = Path("results")
VARIANTS = ("headline", "paper_like")


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
    tasks: list[Task]
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
    columns: list[str]
    tasks: list[Task]
    seeds: list[int]
    place: Workplace
    complete: bool


def list_names(kind: str) -> list[tuple[str, str]]:
    """Names and one-line descriptions of the tasks, baselines (with controls), tables or profiles.

    Raises:
        UserError: another kind.
    """
    if kind == "tasks":
        return [(name, TASKS.get(name).note) for name in TASKS.names()]
    if kind == "baselines":
        entries = [BASELINES.get(name) for name in BASELINES.names()]
        rows = [(e.name, f"{e.title}: {e.description}") for e in entries]
        return rows + [(c.name, f"control: {c.description}") for c in CONTROLS.values()]
    if kind == "tables":
        definitions = [load_definition(name) for name in table_names()]
        return [(d.name, f"{len(d.rows)} rows x {len(d.columns)} tasks") for d in definitions]
    if kind == "profiles":
        return [(p.name, p.title) for p in PROFILES.values()]
    kinds = ("tasks", "baselines", "tables", "profiles")
    raise UserError(f"unknown kind {kind!r}{closest(kind, kinds)}", f"one of {', '.join(kinds)}")


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
    devices: int | str = 1,
    runs: str | Path = RUNS,
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
        runs: folder for work in progress.
        out: folder for the results; by default results/<profile>, or results/<profile>/partial where rows or
            columns are narrowed.
        console: where progress is shown.

    Raises:
        UserError: a name, file, folder or device is wrong.
    """
    request = _resolve(name, profile, rows, columns, seeds, baseline_files, variant, data_root, device, devices, runs)
    folder = Path(out) if out else RESULTS / profile / ("" if request.complete else "partial")
    writable_folder(folder)
    place = request.place
    units = plan(request.rows, request.tasks, request.seeds, place)
    if not all(unit.done for unit in units):
        estimates = estimate_seconds(units, read_records(place.journal), place.setting)
        with Progress(estimates, total_seconds(units, estimates), console) as progress:
            carry_out(units, place, progress)
    place.fabric.barrier()
    return _write(request, folder)


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
    runs: str | Path = RUNS,
) -> Plan:
    """What `table` would do with the same arguments, with an estimate of the seconds; nothing is run or written."""
    request = _resolve(name, profile, rows, columns, seeds, baseline_files, variant, data_root, device, 1, runs)
    units = plan(request.rows, request.tasks, request.seeds, request.place)
    estimates = estimate_seconds(units, read_records(request.place.journal), request.place.setting)
    return Plan(units, estimates, total_seconds(units, estimates))


def pretrain(
    baseline: str,
    *,
    profile: str = "demo",
    seed: int = 0,
    baseline_files: Sequence[str | Path] = (),
    variant: str = "headline",
    data_root: str | Path | None = None,
    device: str = "auto",
    devices: int | str = 1,
    runs: str | Path = RUNS,
    console: Console | None = None,
) -> Run:
    """Pretrain one baseline, or go on where it stopped, or return the finished run.

    Args are those of `table`.

    Raises:
        UserError: a name, file, folder or device is wrong.
    """
    for file in baseline_files:
        load_baseline_file(file)
    BASELINES.get(baseline)
    place = _workplace(get_profile(profile), variant, data_root, device, devices, Path(runs))
    unit = Unit(baseline, seed, find_subject(baseline, seed, place) is None, ())
    estimates = estimate_seconds([unit], read_records(place.journal), place.setting)
    with Progress(estimates, total_seconds([unit], estimates), console) as progress:
        return pretrain_row(baseline, seed, place, progress)


def _resolve(
    name: str,
    profile: str,
    rows: Sequence[str] | None,
    columns: Sequence[str] | None,
    seeds: Sequence[int],
    baseline_files: Sequence[str | Path],
    variant: str,
    data_root: str | Path | None,
    device: str,
    devices: int | str,
    runs: str | Path,
) -> _Request:
    added = [row for file in baseline_files for row in load_baseline_file(file)]
    definition, sizes = load_definition(name), get_profile(profile)
    all_rows = [*definition.rows, *(r for r in added if r not in definition.rows), *CONTROLS]
    chosen_rows = _choose("row", rows, all_rows)
    if rows is not None:  # a narrowed table keeps the controls that its cells are judged by
        chosen_rows = [r for r in all_rows if r in {*chosen_rows, *added, *CONTROLS}]
    chosen_columns = _choose("column", columns, definition.columns)
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"seeds must be distinct numbers from 0 on, not {list(seeds)}", "for example --seeds 0,1,2")
    place = _workplace(sizes, variant, data_root, device, devices, Path(runs))
    return _Request(
        definition,
        chosen_rows,
        chosen_columns,
        [TASKS.get(c) for c in chosen_columns],
        list(seeds),
        place,
        rows is None and columns is None,
    )


def _choose(kind: str, wanted: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    if wanted is None:
        return list(known)
    for name in wanted:
        if name not in known:
            raise UserError(f"the table has no {kind} {name!r}{closest(name, known)}", f"{kind}s: {', '.join(known)}")
    return [name for name in known if name in wanted]


def _workplace(
    profile: Profile, variant: str, data_root: str | Path | None, device: str, devices: int | str, runs: Path
) -> Workplace:
    if variant not in VARIANTS:
        raise UserError(f"unknown variant {variant!r}{closest(variant, VARIANTS)}", f"one of {', '.join(VARIANTS)}")
    fabric = start_fabric(device, devices)
    return open_workplace(profile, _load_data(profile, data_root), variant, runs, fabric)


def _load_data(profile: Profile, data_root: str | Path | None) -> Dataset:
    if profile.dataset_sizes:
        return load_dataset(profile.dataset, sizes=profile.dataset_sizes)
    if profile.name == "demo":  # the demo has to show something on any machine
        return load_or_generate(profile.dataset, data_root=data_root)
    return load_dataset(profile.dataset, data_root=data_root)


def _write(request: _Request, folder: Path) -> TableResult:
    """The table's files: CSV and markdown, and all records of this profile that are up to date."""
    place = request.place
    records = current_records(request.rows, request.tasks, request.seeds, place)
    frame = table_frame(request.definition, request.rows, request.columns, records)
    text = markdown_table(
        request.definition,
        request.rows,
        request.tasks,
        records,
        place.setting,
        request.seeds,
        load_certificates(),
    )
    name = request.definition.name
    files = [folder / f"{name}.csv", folder / f"{name}.md", folder / "records.jsonl"]
    if place.fabric.is_global_zero:
        write_text(files[0], frame.to_csv(index=False))
        write_text(files[1], text)
        write_records(files[2], records)
    return TableResult(request.definition, request.rows, request.tasks, request.seeds, place, frame, records, files)
