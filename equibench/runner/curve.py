"""Learning curves: R² of the encoders that a run kept on its way, against the epochs that it had seen by then."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from equibench.data.dataset import split_indices
from equibench.errors import UserError
from equibench.evaluation.controls import row_title
from equibench.evaluation.evaluate import evaluation_digest
from equibench.records import Record, read_records, write_records
from equibench.registry import BASELINES, TASKS, load_baseline_file
from equibench.runner.open import Workplace, open_workplace
from equibench.runner.plan import Unit, find_subject, plan
from equibench.runner.table import RESULTS, RUNS, make_order, show_on
from equibench.runner.workers import carry_out_all
from equibench.task import Task
from equibench.utils.files import writable_folder, write_atomically, write_text

ROWS = ("vicreg", "sie_all", "sie_rot", "reconstruction")
COLUMNS = ("rotation", "color", "blur", "translation")
UNTRAINED = "random_init"


@dataclass(frozen=True)
class CurveResult:
    """Attributes: `frame` has a line for each row, pretraining seed, step and task."""

    frame: pd.DataFrame
    records: list[Record]
    files: list[Path]


def curve(
    *,
    rows: Sequence[str] = ROWS,
    columns: Sequence[str] = COLUMNS,
    profile: str = "demo",
    seeds: Sequence[int] = (0,),
    baseline_files: Sequence[str | Path] = (),
    data_root: str | Path | None = None,
    device: str = "auto",
    jobs: int | None = 1,
    runs: str | Path = RUNS,
    out: str | Path | None = None,
    plot: bool = True,
    console: Console | None = None,
) -> CurveResult:
    """Score rows at the steps that the profile keeps, pretraining those that are missing; write a CSV and a plot.

    Every curve begins with the encoder as it was initialised and ends with the finished one. The learning rate falls
    to zero over the whole run, so a point in between is not what a shorter run would have reached.

    Args:
        rows: baselines.
        columns: regression tasks.
        out: folder for the results; by default results/<profile>/curve.
        plot: draw curve.png, for which matplotlib must be there.
        others: those of `api.table`.

    Raises:
        UserError: a name, folder or device is wrong; the profile keeps no encoders, or a run has kept none.
    """
    if plot and importlib.util.find_spec("matplotlib") is None:
        raise UserError("matplotlib is needed to draw", 'pip install "equibench[plot]", or go without: --no-plot')
    folder = writable_folder(Path(out) if out else RESULTS / profile / "curve")
    order = make_order(profile, "headline", data_root, device, 1, runs, baseline_files)
    for file in order.baseline_files:
        load_baseline_file(file)
    if not order.profile.snapshots:
        raise UserError(f"the profile {profile} keeps no encoders on the way", "choose another profile")
    tasks = [TASKS.get(name) for name in columns]
    for name in rows:
        BASELINES.get(name)
    for task in tasks:
        if task.family != "regression":
            raise UserError(f"{task.name} is no regression, so it has no R²", "choose regression tasks")
    place = open_workplace(order)
    carry_out_all(plan(rows, (), seeds, place), place, jobs, show_on(place, console))
    carry_out_all(_units(rows, tasks, seeds, place), place, jobs, show_on(place, console))
    records = _records(rows, tasks, seeds, place)
    frame = _frame(records, place)
    files = [folder / "curve.csv", folder / "records.jsonl"]
    write_text(files[0], frame.to_csv(index=False))
    write_records(files[1], [record for _, record in records])
    if plot:
        files.append(folder / "curve.png")
        write_atomically(files[-1], lambda path: _draw(frame, tasks, path))
    return CurveResult(frame, [record for _, record in records], files)


def _points(rows: Sequence[str], seeds: Sequence[int], place: Workplace) -> list[tuple[str, int, int | None]]:
    """(row, seed, step) of all points; the untrained encoder and the finished ones have no step."""
    steps = (*place.order.profile.snapshots, None)
    return [(UNTRAINED, seed, None) for seed in seeds] + [(r, s, step) for r in rows for s in seeds for step in steps]


def _units(rows: Sequence[str], tasks: Sequence[Task], seeds: Sequence[int], place: Workplace) -> list[Unit]:
    done = {(r.baseline, r.task, r.evaluation_sha256) for r in read_records(place.journal)}
    units = []
    for row, seed, step in _points(rows, seeds, place):
        subject = find_subject(row, seed, place, step)
        assert subject is not None
        digests = {task: evaluation_digest(subject, task, place.setting) for task in tasks}
        missing = tuple(t for t, digest in digests.items() if (subject.name, t.name, digest) not in done)
        units.append(Unit(row, seed, False, missing, step))
    return units


def _records(
    rows: Sequence[str], tasks: Sequence[Task], seeds: Sequence[int], place: Workplace
) -> list[tuple[int, Record]]:
    """The points' records of the whole representation, with the step of each."""
    stored = {(r.baseline, r.evaluation_sha256): r for r in read_records(place.journal) if r.features == "full"}
    found = []
    for row, seed, step in _points(rows, seeds, place):
        subject = find_subject(row, seed, place, step)
        assert subject is not None
        after = step if step is not None else 0 if row == UNTRAINED else place.order.profile.pretraining.steps
        for task in tasks:
            found.append((after, stored[subject.name, evaluation_digest(subject, task, place.setting)]))
    return found


def _frame(records: Sequence[tuple[int, Record]], place: Workplace) -> pd.DataFrame:
    batch, images = place.order.profile.pretraining.batch, len(split_indices(place.setting.dataset)["train"])
    lines = []
    for step, record in records:
        row = record.baseline.partition("@")[0]
        lines.append(
            {
                "baseline": row,
                "title": row_title(row),
                "seed": record.seeds.pretraining,
                "step": step,
                "pairs": step * batch,
                "epochs": round(step * batch / images, 3),
                "task": record.task,
                "r2": round(record.r2, 4) if record.r2 is not None else None,
                "low": round(record.r2_low, 4) if record.r2_low is not None else None,
                "high": round(record.r2_high, 4) if record.r2_high is not None else None,
                "signature": record.identifier,
            }
        )
    return pd.DataFrame(lines)


def _draw(frame: pd.DataFrame, tasks: Sequence[Task], path: Path) -> None:
    """One panel a task: a line for each row, mean over pretraining seeds, from the untrained encoder on."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * len(tasks), 3.2), layout="constrained")
    axes = figure.subplots(1, len(tasks), squeeze=False)[0]
    start = frame[frame.baseline == UNTRAINED]
    for axis, task in zip(axes, tasks, strict=True):
        here = frame[frame.task == task.name]
        for row in dict.fromkeys(frame.baseline[frame.baseline != UNTRAINED]):
            line = pd.concat([start[start.task == task.name], here[here.baseline == row]])
            mean = line.groupby("epochs")[["r2", "low", "high"]].mean()
            spread = [mean.r2 - mean.low, mean.high - mean.r2]
            axis.errorbar(mean.index, mean.r2, yerr=spread, marker="o", markersize=3, capsize=2, label=row_title(row))
        axis.set(title=task.title, xlabel="epochs of pretraining")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("R² (95 % interval over test images)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=110, format="png", metadata={"Software": None})
