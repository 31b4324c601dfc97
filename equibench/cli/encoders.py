"""The commands for a checkpoint: score, doctor, compare, explain, verify."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from equibench.cli.options import DEFAULT_PLACES, DryRun, Json, Out, Places, configured, names
from equibench.config import SCORE_OPTIONS

Arch = Annotated[str | None, typer.Option(help="A file's architecture: timm:NAME or torchvision:NAME.")]


@configured(*SCORE_OPTIONS)
def score(
    encoder: Annotated[
        str,
        typer.Argument(
            metavar="ENCODER",
            help="A run's folder or a baseline; timm:NAME, torchvision:NAME, hf-hub:ORG/NAME; a file of weights.",
        ),
    ],
    out: Out = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    *,
    options: dict[str, Any],
) -> None:
    """Score an encoder: which transformations do its features keep?"""
    from equibench.report.score import print_score
    from equibench.runner.score import plan_score
    from equibench.runner.score import score as run

    console = Console()
    if dry_run:
        _print_plan(*plan_score(encoder, **options), console)
        return
    result = run(encoder, out=out, **options)
    if as_json:
        typer.echo(
            json.dumps({"name": result.name, "notes": result.notes, "records": list(map(_json, result.records))})
        )
        return
    print_score(result.name, result.records, result.context, result.notes, console)
    console.print("written: " + ", ".join(map(str, result.files)), style="dim", soft_wrap=True)


def _json(record: Any) -> dict[str, Any]:
    return {"signature": record.signature, **record.model_dump(mode="json", exclude_none=True)}


def doctor(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of weights.")],
    arch: Arch = None,
    data: Annotated[str, typer.Option(help="cifar10, solids, or a folder of images.")] = "cifar10",
    data_root: Annotated[Path | None, typer.Option(help="Folder that holds CIFAR-10.")] = None,
    quick: Annotated[bool, typer.Option("--no-score", help="Look at the file only; encode nothing.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Json = False,
) -> None:
    """Look at a file of weights: is it safe, what is it, does it load, and does it see anything?"""
    from equibench.audit.doctor import doctor as examine

    findings = examine(file, arch=arch, data=data, data_root=data_root, score=not quick, device=device)
    if as_json:
        typer.echo(json.dumps(asdict(findings), default=str))
    else:
        _print_findings(findings, Console())
    raise typer.Exit(0 if findings.usable else 1)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A scored encoder's name, its folder, or FOLDER:NAME.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    tasks: Annotated[str | None, typer.Option(help="Only these tasks, separated by commas.")] = None,
    features: Annotated[str, typer.Option(help="full, invariant, equivariant, or layer:NAME.")] = "full",
    places: Places = DEFAULT_PLACES,
    as_json: Json = False,
) -> None:
    """Compare two scored encoders on the same images: differences, intervals, p-values, ties."""
    from equibench.audit.compare import compare as run_compare
    from equibench.evaluation.evaluator import metric_info

    found = run_compare(a, b, tasks=names(tasks), features=features, places=places)
    if as_json:
        typer.echo(json.dumps([asdict(difference) for difference in found]))
        return
    console = Console()
    console.print(f"A = {a}\nB = {b}\npaired bootstrap over test images", style="dim", highlight=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, head in enumerate(("task, metric", "A", "B", "A - B", "95 % interval", "p", "better")):
        table.add_column(head, justify="right" if number else "left", no_wrap=number > 0, min_width=0 if number else 20)
    for d in found:
        info = metric_info(d.metric)
        neither = info is not None and info.better == "neither"
        said = f"{d.verdict} ↑" if neither and d.verdict != "tie" else d.verdict
        style = "dim" if d.verdict == "tie" else ""
        values = [f"{value:.3f}" for value in (d.a, d.b)]
        interval = [f"{d.difference:+.3f}", f"{d.low:+.3f}..{d.high:+.3f}"]
        metric = info.title if info else d.metric
        table.add_row(f"{d.task}, {metric}", *values, *interval, f"{d.p_holm:.3f}", said, style=style)
    console.print(table)
    for d in (d for d in found if len(d.per_seed) > 1):
        seeds = ", ".join(f"{value:+.3f}" for value in d.per_seed)
        console.print(f"{d.task}, A - B of each pretraining seed: {seeds}", style="dim", highlight=False)
    console.print(
        f"p-values are corrected over {len(found)} tasks; tie: p ≥ 0.05; ↑: higher, which is not better", style="dim"
    )


def explain(
    signature: Annotated[str, typer.Argument(metavar="SIGNATURE", help="A score's signature, or its last part.")],
    places: Places = DEFAULT_PLACES,
    as_json: Json = False,
) -> None:
    """Turn a signature into the full recipe and the command that makes the score again."""
    from equibench.audit.find import explain as find
    from equibench.audit.find import recipe_lines

    found = find(signature, places)
    if as_json:
        typer.echo(json.dumps(_json(found.record)))
        return
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in recipe_lines(found):
        table.add_row(key, escape(value))
    Console().print(table)


def verify(
    results: Annotated[Path, typer.Argument(help="A results folder, or one records.jsonl.")] = Path("results"),
    runs: Annotated[Path, typer.Option(help="Folder below which the predictions are kept.")] = Path("runs"),
    tasks: Annotated[
        list[Path], typer.Option("--tasks", help="A Python file that registers tasks of your own; may be repeated.")
    ] = [],  # noqa: B006
) -> None:
    """Compute every reported score again from the stored predictions; exit status 1 if one differs."""
    from equibench.audit.verify import verify as run_verify

    console = Console()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("verifying", total=None)

        def report(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        found = run_verify(results, runs=runs, task_files=tasks, report=report)
    for line in found.mismatches:
        console.print(f"[bold red]mismatch:[/] {escape(line)}", soft_wrap=True, highlight=False)
    console.print(
        f"{found.checked} scores computed again from their predictions, {found.tables} tables from their records: "
        f"{len(found.mismatches) or 'no'} mismatches"
    )
    for line in found.skipped:
        console.print(f"not compared: {escape(line)}", soft_wrap=True, highlight=False, style="yellow")
    if found.absent:
        console.print(
            f"{len(found.absent)} scores could not be checked: their predictions are not below {runs}. "
            f"The first is made again by: {found.absent[0].command}",
            soft_wrap=True,
            style="yellow",
        )
    raise typer.Exit(1 if found.mismatches else 0)


def _print_plan(jobs: Sequence[Any], seconds: Sequence[float], console: Console) -> None:
    from equibench.utils.progress import clock

    table = Table("row", "task", "estimate")
    for job, one in zip(jobs, seconds, strict=True):
        table.add_row(job.place.row, job.tasks[0].name, clock(one))
    console.print(table)
    console.print(f"{len(jobs)} to do, about {clock(sum(seconds))}")


EXAMPLES: dict[Callable[..., None], str] = {
    score: "equibench score timm:vit_small_patch16_224\n\n"
    "equibench score weights.pth --arch torchvision:resnet50 --data photographs/ --tasks 'rotation*'\n\n"
    "equibench score reconstruction --tasks all --layers all",
    doctor: "equibench doctor weights.pth\n\nequibench doctor weights.pth --arch timm:resnet50",
    compare: "equibench compare results/demo/table2:vicreg results/demo/table2:reconstruction",
    explain: "equibench explain 3f2a90c1d2e4",
    verify: "equibench verify results/",
}


def add_to(app: typer.Typer) -> None:
    """Register the commands with their examples."""
    for command, text in EXAMPLES.items():
        app.command(epilog="Examples:\n\n" + text)(command)


def _print_findings(found: Any, console: Console) -> None:
    """Print what the doctor found, and what to do next."""
    table = Table(show_header=False, box=None, title=escape(found.file), title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = [
        ("format", f"{found.format}, {found.bytes / 1e6:.1f} MB"),
        ("safe to load", "yes" if found.safe else "no"),
        ("tensors", f"{found.tensors} ({_listed(found.dtypes)}), {found.parameters:,} numbers"),
        ("guesses", "\n".join(f"{arch}: {share:.1%} of its keys" for arch, share in found.guesses)),
        ("architecture", found.architecture or ""),
        ("coverage", found.coverage),
        ("notes", "\n".join(found.notes)),
        ("preprocessing", found.preprocessing),
        ("normalisation", found.normalisation),
        ("distance from untrained", "" if found.from_untrained is None else f"{found.from_untrained:.3f} (0 to 1)"),
        ("quick R² of rotation", _rotation(found)),
    ]
    for key, value in rows:
        if value and (found.tensors or key in ("format", "safe to load")):
            table.add_row(key, escape(value))
    console.print(table)
    for hint in found.hints:
        console.print(f"[yellow]note:[/] {escape(hint)}", soft_wrap=True, highlight=False)
    for problem in found.problems:
        console.print(f"[bold red]problem:[/] {escape(problem)}", soft_wrap=True, highlight=False)
    if found.usable:
        console.print(f"next: equibench score {found.file} --arch {found.architecture}", soft_wrap=True)
    console.print(f"{found.seconds:.0f} s", style="dim")


def _rotation(found: Any) -> str:
    lines = [f"{name}: {r2:.3f} [{low:.3f}, {high:.3f}]" for name, (r2, low, high) in found.rotation.items()]
    if found.rotation_pairs and lines:
        lines.append("from {:,} training, {:,} validation and {:,} test pairs".format(*found.rotation_pairs))
    return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
