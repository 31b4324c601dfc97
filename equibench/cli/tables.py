"""The command line. Each command is a function of the package; those for a checkpoint stand in `cli_score`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from equibench.cli import data as cli_data
from equibench.cli import encoders as cli_score
from equibench.cli.options import (
    BaselineFiles,
    Data,
    DataRoot,
    Device,
    Devices,
    Jobs,
    ProfileOption,
    Runs,
    SkipBad,
    Variant,
    names,
    whole_numbers,
)
from equibench.errors import UserError, closest
from equibench.evaluation.catalogue import CATALOGUE
from equibench.evaluation.controls import CONTROLS
from equibench.profiles import PROFILES
from equibench.registry import BASELINES, TASKS
from equibench.report.definition import load_definition, table_names
from equibench.runner.plan import Plan
from equibench.utils.progress import clock


def list_names(kind: str) -> list[tuple[str, str]]:
    """Names and one-line descriptions of the tasks, baselines (with controls), tables, profiles or metrics.

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
        return [(d.name, f"{d.title}: {len(d.rows)} rows x {len(d.columns)} columns") for d in definitions]
    if kind == "profiles":
        return [(p.name, p.title) for p in PROFILES.values()]
    if kind == "metrics":
        return [(name, f"{m.title} ({m.better} is better): {m.meaning}") for name, m in CATALOGUE.items()]
    kinds = ("tasks", "baselines", "tables", "profiles", "metrics")
    raise UserError(f"unknown kind {kind!r}{closest(kind, kinds)}", f"one of {', '.join(kinds)}")


# before torch starts its threads: idle ones must sleep, since spinning slows a busy machine many times over
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Train a method, score an encoder, believe the number.\n\n"
    "Smallest table: [bold]equibench table table2 --profile tiny[/bold]",
)


@app.command("list", epilog="Example: equibench list tasks")
def list_command(
    kind: Annotated[str, typer.Argument(help="tasks, baselines, tables, profiles, metrics; or all.")] = "",
) -> None:
    """Show what there is: tasks, baselines, tables, profiles, metrics."""
    pass

    console = Console()
    for one in [kind] if kind else ["tasks", "baselines", "tables", "profiles", "metrics"]:
        shown = Table(title=None if kind else one, show_header=False, box=None, title_justify="left")
        shown.add_column(no_wrap=True, style="bold")
        for name, description in list_names(one):
            shown.add_row(name, escape(description))
        console.print(shown)


@app.command(
    epilog="Examples:\n\n"
    "equibench table table2\n\n"
    "equibench table table2 --profile tiny --dry-run\n\n"
    "equibench table table2 --rows vicreg,reconstruction --columns rotation --seeds 0,1,2\n\n"
    "equibench table table2 --baseline my_method.py"
)
def table(
    name: Annotated[str, typer.Argument(help="A table's name, or a CSV that defines one.")] = "table2",
    profile: ProfileOption = "demo",
    rows: Annotated[str | None, typer.Option(help="Only these rows, separated by commas.")] = None,
    columns: Annotated[str | None, typer.Option(help="Only these columns, separated by commas.")] = None,
    seeds: Annotated[str, typer.Option(help="Pretraining seeds, separated by commas.")] = "0",
    baseline: BaselineFiles = [],  # noqa: B006
    variant: Variant = "headline",
    data_root: DataRoot = None,
    device: Device = "auto",
    devices: Devices = 1,
    jobs: Jobs = None,
    runs: Runs = Path("runs"),
    skip_bad: SkipBad = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; by default results/PROFILE/NAME.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the units and their time; run nothing.")] = False,
) -> None:
    """Bring a table up to date: pretrain and score what is missing, print it, write it."""
    from equibench.report.table import print_table
    from equibench.runner import table as api

    selection = {
        "profile": profile,
        "rows": names(rows),
        "columns": names(columns),
        "seeds": whole_numbers("--seeds", seeds),
        "baseline_files": baseline,
        "variant": variant,
        "data_root": data_root,
        "device": device,
        "jobs": jobs,
        "runs": runs,
        "skip_bad": skip_bad,
    }
    console = Console()
    if dry_run:
        print_plan(api.plan_table(name, **selection), console)  # type: ignore[arg-type]
        return
    result = api.table(name, **selection, devices=devices, out=out)  # type: ignore[arg-type]
    if result.place.fabric.is_global_zero:
        setting = result.place.setting
        print_table(result.definition, result.rows, result.columns, result.records, setting, result.seeds, console)
        console.print("written: " + ", ".join(map(str, result.files)), style="dim", soft_wrap=True)


@app.command(
    epilog="Examples:\n\nequibench pretrain vicreg\n\n"
    "equibench pretrain reconstruction --profile cifar10 --seed 1 --device cuda"
)
def pretrain(
    baseline_name: Annotated[str, typer.Argument(metavar="BASELINE", help="See `equibench list baselines`.")],
    profile: ProfileOption = "demo",
    seed: Annotated[int, typer.Option(help="Pretraining seed.")] = 0,
    baseline: BaselineFiles = [],  # noqa: B006
    variant: Variant = "headline",
    data_root: DataRoot = None,
    device: Device = "auto",
    devices: Devices = 1,
    runs: Runs = Path("runs"),
) -> None:
    """Pretrain one baseline; interrupted, it goes on where it was."""
    from equibench.runner import table as api

    run = api.pretrain(
        baseline_name,
        profile=profile,
        seed=seed,
        baseline_files=baseline,
        variant=variant,
        data_root=data_root,
        device=device,
        devices=devices,
        runs=runs,
    )
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # one of several processes speaks
        Console().print(f"{run.folder / 'encoder.safetensors'}  (log: {run.folder / 'log.jsonl'})", soft_wrap=True)


@app.command(
    epilog="Examples:\n\nequibench curve\n\n"
    "equibench curve --profile tiny --rows vicreg,reconstruction --columns rotation --no-plot"
)
def curve(
    rows: Annotated[
        str | None, typer.Option(help="Baselines, separated by commas; four of Table 2's if left out.")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Regression tasks; those of Table 4 if left out.")] = None,
    profile: ProfileOption = "demo",
    seeds: Annotated[str, typer.Option(help="Pretraining seeds, separated by commas.")] = "0",
    baseline: BaselineFiles = [],  # noqa: B006
    data_root: DataRoot = None,
    device: Device = "auto",
    jobs: Jobs = None,
    runs: Runs = Path("runs"),
    plot: Annotated[bool, typer.Option(help="Draw curve.png; needs matplotlib.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; by default results/PROFILE/curve.")] = None,
) -> None:
    """Score rows at several points of their pretraining: R² against epochs, as a CSV and a plot."""
    from equibench.runner.curve import COLUMNS, ROWS
    from equibench.runner.curve import curve as run_curve

    result = run_curve(
        rows=names(rows) or ROWS,
        columns=names(columns) or COLUMNS,
        profile=profile,
        seeds=whole_numbers("--seeds", seeds) or (0,),
        baseline_files=baseline,
        data_root=data_root,
        device=device,
        jobs=jobs,
        runs=runs,
        out=out,
        plot=plot,
    )
    console = Console()
    grid = result.frame.pivot_table(index=["title", "seed", "epochs"], columns="task", values="r2", sort=False)
    console.print(grid.round(3).to_string())
    console.print("written: " + ", ".join(map(str, result.files)), style="dim", soft_wrap=True)


@app.command(
    epilog="Examples:\n\nequibench certify translation\n\nequibench certify\n\n"
    "equibench certify my_task.py --data photographs/ --out certificates.json"
)
def certify(
    tasks: Annotated[
        list[str] | None, typer.Argument(help="Tasks, or Python files that register some; all if left out.")
    ] = None,
    data: Data = "cifar10",
    data_root: DataRoot = None,
    inputs: Annotated[
        str | None, typer.Option(help="Only some of both_views, view2_alone, border, interpolation.")
    ] = None,
    pairs: Annotated[str, typer.Option(help="Training, validation and test pairs.")] = "20000,2000,5000",
    image_size: Annotated[int, typer.Option(help="To which the images of a folder are resized and cropped.")] = 224,
    again: Annotated[bool, typer.Option("--again", help="Measure again what is on file.")] = False,
    out: Annotated[Path | None, typer.Option(help="File to write; by default the one kept with the tasks.")] = None,
) -> None:
    """Measure what pixels hold, and what view 2 alone, its border and the resampling give away, with a small CNN."""
    from equibench.audit.leakage import certify as run_certify

    train, val, test = whole_numbers("--pairs", pairs, 3) or (0, 0, 0)
    written = run_certify(
        tasks or None,
        data=data,
        data_root=data_root,
        out=out,
        pairs=(train, val, test),
        inputs=names(inputs),
        size=image_size,
        again=again,
    )
    Console().print(f"written: {', '.join(map(str, written))}", soft_wrap=True)


cli_score.add_to(app)
cli_data.add_to(app)


def main() -> None:
    """Run the command line; a user's mistake ends in one message and exit status 2."""
    try:
        app()
    except UserError as error:
        console = Console(stderr=True)
        console.print(f"[bold red]error:[/] {escape(error.problem)}", soft_wrap=True, highlight=False)
        if error.fix:
            # messages speak Python, since both roads lead to them
            fix = error.fix.replace("skip_bad=True", "--skip-bad")
            console.print(escape(fix), soft_wrap=True, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; the same command goes on where it was")
        sys.exit(130)


if __name__ == "__main__":
    main()


def print_plan(plan: Plan, console: Console) -> None:
    """The units of a table with an estimate for those still to be done."""
    table = Table("unit", "seed", "to do", "estimate")
    for unit in plan.units:
        steps = (["pretrain"] if unit.pretrain else []) + [task.name for task in unit.tasks]
        seconds = plan.estimates.get(("pretrain", unit.row), 0.0) * unit.pretrain
        seconds += plan.estimates.get(("score", unit.row), 0.0) * bool(unit.tasks)
        seed = "" if unit.seed is None else str(unit.seed)
        table.add_row(unit.row, seed, ", ".join(steps) or "done", clock(seconds) if steps else "")
    console.print(table)
    to_do = sum(not unit.done for unit in plan.units)
    console.print(f"{to_do} of {len(plan.units)} units to do, about {clock(plan.total)}")
