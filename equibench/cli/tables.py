"""The commands for tables and the runs behind them: list, table, pretrain, curve, study, certify."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from equibench.cli.options import DryRun, Out, command, configured, names, numbers, print_files
from equibench.cli.report import PAPER_FORMATS, WithReport, check_format, print_formatted, report_place, write_report
from equibench.errors import UserError, closest

if TYPE_CHECKING:
    from equibench.runner.table import Plan

table_commands = typer.Typer()
_KINDS = ("tasks", "baselines", "tables", "profiles", "metrics", "datasets")


@command(table_commands, "list", "equibench list tasks")
def _list(
    kind: Annotated[str, typer.Argument(help="tasks, baselines, tables, profiles, metrics, datasets; or all.")] = "",
) -> None:
    """Show what there is: tasks, baselines, tables, profiles, metrics, data sets."""
    console = Console()
    for one in [kind] if kind else _KINDS:
        for group, rows in described(one).items():
            shown = Table(title=group or (None if kind else one), show_header=False, box=None, title_justify="left")
            shown.add_column(no_wrap=True, style="bold")
            for name, description in rows:
                shown.add_row(name, escape(description))
            console.print(shown)


def described(kind: str) -> dict[str, list[tuple[str, str]]]:
    """Names and one-line descriptions of one kind (else a UserError), in groups: tasks by their evaluator."""
    if kind not in _KINDS:
        raise UserError(f"unknown kind {kind!r}{closest(kind, _KINDS)}", f"one of {', '.join(_KINDS)}")
    if kind == "profiles":
        from equibench.profiles import PROFILES

        return {"": [(p.name, p.title) for p in PROFILES.values()]}
    if kind == "datasets":
        from equibench.data.own import OWN_DATASETS

        own = [(d.name, d.title) for d in map(OWN_DATASETS.get, OWN_DATASETS.names())]
        return {"": [("cifar10", "CIFAR-10"), ("solids", "solids that equibench renders"), *own]}
    from equibench.evaluation.controls import CONTROLS
    from equibench.evaluation.evaluator import EVALUATORS, evaluator_of
    from equibench.pretrain.method import BASELINES
    from equibench.report.definition import load_definition, table_names
    from equibench.task import TASKS

    if kind == "tasks":
        groups: dict[str, list[tuple[str, str]]] = {}
        for task in map(TASKS.get, TASKS.names()):
            groups.setdefault(evaluator_of(task).title, []).append((task.name, task.note))
        return groups
    if kind == "metrics":
        metrics = {n: info for kind in EVALUATORS.names() for n, info in EVALUATORS.get(kind).metrics.items()}
        return {"": [(n, f"{i.title} ({i.better} is better): {i.meaning}") for n, i in metrics.items()]}
    if kind == "tables":
        definitions = map(load_definition, table_names())
        return {"": [(d.name, f"{d.title}: {len(d.rows)} rows x {len(d.columns)} columns") for d in definitions]}
    rows = [(e.name, f"{e.title}: {e.description}") for e in map(BASELINES.get, BASELINES.names())]
    return {"": rows + [(c.name, f"control: {c.description}") for c in CONTROLS.values()]}


@command(
    table_commands,
    "table",
    "equibench table table2",
    "equibench table all --profile tiny --dry-run",
    "equibench table table2 --rows vicreg,reconstruction --columns rotation --seeds 0,1,2",
    "equibench table table2 --baseline my_method.py",
    "equibench table table2 --format latex > table2.tex",
)
@configured(
    "profile", "rows", "columns", "seeds", "baseline_files", "variant", "plugins", "data_root", "skip_bad", "device",
    "devices", "jobs", "runs",
)  # fmt: skip
def _table(
    name: Annotated[
        list[str] | None, typer.Argument(metavar="[TABLE]...", help="Tables, CSVs that define one, or all.")
    ] = None,
    out: Out = None,
    dry_run: DryRun = False,
    format: Annotated[
        str | None, typer.Option("--format", help="Print it for a paper or a program: " + PAPER_FORMATS + ".")
    ] = None,
    with_report: WithReport = True,
    *,
    options: dict[str, Any],
) -> None:
    """Bring a table up to date: pretrain and score what is missing, print it, write it."""
    from equibench.report.definition import load_definition, table_names
    from equibench.report.table import print_table
    from equibench.runner.table import plan_table, table

    wanted = table_names() if name == ["all"] else name or ["table2"]
    if out is not None and len(wanted) > 1:
        raise UserError("--out is the folder of one table", "leave it out, or name one table")
    if format is not None:
        check_format(format, wanted)
    console = Console(stderr=format is not None)
    for one in wanted:
        if dry_run:
            if len(wanted) > 1:
                console.print(f"{one}:")
            _print_plan(plan_table(one, **options), console)
            for line in load_definition(one).recipe_lines:
                console.print(line, style="dim", soft_wrap=True, highlight=False)
            continue
        r = table(one, out=out, **options)
        if r.context.is_first:
            if format is None:
                print_table(r.definition, r.rows, r.columns, r.records, r.context, r.config.seeds, console)
            else:
                print_formatted(r, format)
            _print_unmeasured(r.notes, console)
            print_files(r.files, console)
            if with_report:
                write_report(report_place(r), r.config.runs, r.config.data_root, console)


def _print_unmeasured(notes: list[str], console: Console) -> None:
    for note in notes:
        console.print(f"not measured: {note}", style="yellow", soft_wrap=True, highlight=False, markup=False)


def _print_plan(plan: Plan, console: Console) -> None:
    """The jobs of a table with an estimate for those still to be done."""
    from equibench.utils.progress import clock

    shown = Table("row", "seed", "to do", "estimate")
    for job, seconds in zip(plan.jobs, plan.seconds, strict=True):
        steps = (["pretrain"] if job.pretrain else []) + [task.name for task in job.tasks]
        seed = "" if job.place.seed is None else str(job.place.seed)
        shown.add_row(job.place.row, seed, ", ".join(steps) or "done", clock(seconds) if steps else "")
    console.print(shown)
    _print_unmeasured(plan.notes, console)
    to_do = sum(not job.done for job in plan.jobs)
    console.print(f"{to_do} of {len(plan.jobs)} jobs to do, about {clock(plan.total)}")


@command(
    table_commands,
    "pretrain",
    "equibench pretrain vicreg",
    "equibench pretrain reconstruction --profile cifar10 --seed 1 --device cuda",
)
@configured("profile", "seed", "baseline_files", "variant", "plugins", "data_root", "device", "devices", "runs")
def _pretrain(
    baseline: Annotated[str, typer.Argument(metavar="BASELINE", help="See `equibench list baselines`.")],
    *,
    options: dict[str, Any],
) -> None:
    """Pretrain one baseline; interrupted, it goes on where it was."""
    from equibench.runner.table import pretrain

    found = pretrain(baseline, **options)
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # one of several processes speaks
        Console().print(
            f"{found.folder / 'encoder.safetensors'}  (log: {found.folder / 'log.jsonl'})", soft_wrap=True, markup=False
        )


@command(
    table_commands,
    "curve",
    "equibench curve",
    "equibench curve --profile tiny --rows vicreg,reconstruction --columns rotation --no-plot",
)
@configured("profile", "rows", "columns", "seeds", "baseline_files", "plugins", "data_root", "device", "jobs", "runs")
def _curve(
    plot: Annotated[bool, typer.Option(help="Draw curve.png; needs matplotlib.")] = True,
    out: Out = None,
    *,
    options: dict[str, Any],
) -> None:
    """Score rows at several points of their pretraining: R² against epochs, as a CSV and a plot.

    Rows are baselines, four of Table 2's if left out; columns are regression tasks, those of Table 4 if left out.
    """
    from equibench.runner.curve import curve

    result = curve(out=out, plot=plot, **options)
    console = Console()
    grid = result.frame.pivot_table(index=["title", "seed", "epochs"], columns="task", values="r2", sort=False)
    console.print(grid.round(3).to_string())
    print_files(result.files, console)


@command(
    table_commands,
    "tune",
    "equibench tune table2 --dry-run",
    "equibench tune table2 --profile tiny --trials 2 --rows vicreg,sie_rot",
)
@configured("profile", "rows", "baseline_files", "data_root", "device", "jobs", "runs")
def _tune(
    name: Annotated[str, typer.Argument(metavar="[TABLE]", help="Whose rows are tuned.")] = "table2",
    trials: Annotated[int, typer.Option(help="Settings that each row is pretrained with.")] = 6,
    out: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the settings; run nothing.")] = False,
    *,
    options: dict[str, Any],
) -> None:
    """Try the same settings on every row, on validation images alone, and say which suit each; nothing else changes.

    What is chosen is written to chosen.json. A profile takes it over as its field `tuned`.
    """
    from equibench.config import RunConfig
    from equibench.runner.tune import FACTORS, tune
    from equibench.runner.tune import trials as settings

    console = Console()
    if dry_run:
        for number, one in enumerate(settings(RunConfig.of(**options).sizes.pretraining, trials)):
            console.print(f"trial {number}: " + ", ".join(f"{n} {getattr(one, n):g}" for n in FACTORS), highlight=False)
        return
    result = tune(name, count=trials, out=out, **options)
    console.print(result.frame.round(3).to_string(index=False))
    print_files(result.files, console)


@command(table_commands, "study", "equibench study results/cifar10/study.toml --dry-run")
def _study(
    file: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="Its tables, curves and scores, in order.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the parts; run nothing.")] = False,
) -> None:
    """Carry out a study: the tables, curves and scores that a TOML file lists, each up to date in its folder."""
    from equibench.runner.study import read_study, run_study

    console = Console()
    for part in read_study(file):
        console.print(f"[bold]{escape(str(part.folder))}[/]: {escape(part.words)}", highlight=False)
    if not dry_run:
        for result in run_study(file):
            print_files(result.files, console)


@command(
    table_commands,
    "certify",
    "equibench certify translation",
    "equibench certify",
    "equibench certify my_task.py --data photographs/ --out leakage.json",
)
def _certify(
    tasks: Annotated[
        list[str] | None, typer.Argument(help="Tasks, or Python files that register some; all if left out.")
    ] = None,
    data: Annotated[str, typer.Option(help="cifar10, solids, or a folder of images.")] = "cifar10",
    data_root: Annotated[Path | None, typer.Option(help="Folder that holds CIFAR-10.")] = None,
    inputs: Annotated[
        str | None, typer.Option(help="Only some of both_views, view2_alone, border, interpolation.")
    ] = None,
    pairs: Annotated[str, typer.Option(help="Training, validation and test pairs.")] = "20000,2000,5000",
    image_size: Annotated[int, typer.Option(help="To which the images of a folder are resized and cropped.")] = 224,
    again: Annotated[bool, typer.Option("--again", help="Measure again what is on file.")] = False,
    out: Annotated[Path | None, typer.Option(help="File to write; by default the one kept with the tasks.")] = None,
) -> None:
    """Measure what pixels hold, and what view 2 alone, its border and the resampling give away, with a small CNN."""
    from equibench.audit.leakage import certify

    train, val, test = numbers("--pairs", pairs, int, 3)
    written = certify(
        tasks or None,
        data=data,
        data_root=data_root,
        out=out,
        pairs=(train, val, test),
        inputs=names(inputs),
        size=image_size,
        again=again,
    )
    Console().print(f"written: {', '.join(map(str, written))}", soft_wrap=True, markup=False)
