"""Learning curves: R² of the encoders that a run kept on its way, against the epochs that it had seen by then."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from equibench.config import RESULTS, RunConfig
from equibench.data.dataset import split_indices
from equibench.errors import UserError
from equibench.evaluation.context import Context
from equibench.evaluation.controls import row_title
from equibench.pretrain.method import BASELINES
from equibench.records import RECORDS, Record, write_records
from equibench.registry import load_file
from equibench.runner.open import open_context
from equibench.runner.plan import Place, TableRows, collect, places_of, plan
from equibench.runner.workers import run_jobs
from equibench.task import TASKS, Task
from equibench.utils.files import writable_folder, write_atomically, write_text

_ROWS = ("vicreg", "sie_all", "sie_rot", "reconstruction")
_COLUMNS = ("rotation", "color", "blur", "translation")
_UNTRAINED = "random_init"


@dataclass(frozen=True)
class CurveResult:
    frame: pd.DataFrame  # a line for each row, pretraining seed, step and task
    records: list[Record]
    files: list[Path]


def curve(
    *, out: str | Path | None = None, plot: bool = True, console: Console | None = None, **options: Any
) -> CurveResult:
    """Score rows at the steps that the profile keeps, pretraining those that are missing; write a CSV and a plot.

    Every curve begins with the encoder as it was initialised and ends with the finished one. The learning rate falls
    to zero over the whole run, so a point in between is not what a shorter run would have reached.

    Args:
        out: folder for the results; by default results/<profile>/curve.
        plot: draw curve.png, for which matplotlib must be there.
        options: fields of `equibench.config.RunConfig`: rows (baselines), columns (regression tasks), profile, seeds,
            baseline_files, data_root, device, jobs, runs.

    Raises:
        UserError: a name, folder or device is wrong; the profile keeps no encoders, or a run has kept none.
    """
    if plot and importlib.util.find_spec("matplotlib") is None:
        raise UserError("matplotlib is needed to draw", 'pip install "equibench[plot]", or go without: --no-plot')
    config = RunConfig.of(**options)
    profile, rows = config.sizes, config.rows or _ROWS
    folder = writable_folder(Path(out) if out else RESULTS / profile.name / "curve")
    for file in config.baseline_files:
        load_file(file, "baseline")
    if not profile.snapshots:
        raise UserError(f"the profile {profile.name} keeps no encoders on the way", "choose another profile")
    tasks = [TASKS.get(name) for name in config.columns or _COLUMNS]
    for name in rows:
        BASELINES.get(name)
    for task in tasks:
        if task.evaluator != "regression":
            raise UserError(f"{task.name} is no regression, so it has no R²", "choose regression tasks")
    context = open_context(config)
    found = TableRows(config, context)
    run_jobs(plan(places_of(rows, config.seeds), (), found), found, console)
    points = places_of([_UNTRAINED], config.seeds)
    points += [Place(r, s, step) for r in rows for s in config.seeds for step in (*profile.snapshots, None)]
    run_jobs(plan(points, tasks, found), found, console)
    whole = [(place, record) for place, record in collect(points, tasks, found) if record.features == "full"]
    frame, records = _frame(whole, context), [record for _, record in whole]
    files = [folder / "curve.csv", folder / RECORDS]
    write_text(files[0], frame.to_csv(index=False))
    write_records(files[1], records)
    if plot:
        files.append(folder / "curve.png")
        write_atomically(files[-1], lambda path: _draw(frame, tasks, path))
    return CurveResult(frame, records, files)


def _frame(records: Sequence[tuple[Place, Record]], context: Context) -> pd.DataFrame:
    images, lines = len(split_indices(context.dataset)["train"]), []
    for place, record in records:
        pretraining = context.profile.of_row(place.row).pretraining
        step = place.step if place.step is not None else 0 if place.row == _UNTRAINED else pretraining.steps
        r2 = record.metrics["r2"]
        ends = [None if end is None else round(end, 4) for end in (r2.value, r2.low, r2.high)]
        lines.append(
            {
                "baseline": place.row,
                "title": row_title(place.row),
                "seed": record.seeds.pretraining,
                "step": step,
                "pairs": step * pretraining.batch,
                "epochs": round(step * pretraining.batch / images, 3),
                "task": record.task,
                **dict(zip(("r2", "low", "high"), ends, strict=True)),
                "signature": record.identifier,
            }
        )
    return pd.DataFrame(lines)


def _draw(frame: pd.DataFrame, tasks: Sequence[Task], path: Path) -> None:
    """One panel a task: a line for each row, mean over pretraining seeds, from the untrained encoder on."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * len(tasks), 3.2), layout="constrained")
    axes = figure.subplots(1, len(tasks), squeeze=False)[0]
    start = frame[frame.baseline == _UNTRAINED]
    for axis, task in zip(axes, tasks, strict=True):
        here = frame[frame.task == task.name]
        for row in dict.fromkeys(frame.baseline[frame.baseline != _UNTRAINED]):
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
