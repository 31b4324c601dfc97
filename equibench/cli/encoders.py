"""The commands for a checkpoint: score, doctor, compare, explain, verify."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from equibench.audit.doctor import Findings
from equibench.cli.options import (
    Data,
    DataRoot,
    Device,
    Json,
    Places,
    ProfileOption,
    Runs,
    Variant,
    decimals,
    names,
    whole_numbers,
)

DEFAULT_PLACES = [Path("results"), Path("runs")]
Arch = Annotated[str | None, typer.Option(help="A file's architecture: timm:NAME or torchvision:NAME.")]


def score(
    encoder: Annotated[
        str,
        typer.Argument(
            metavar="ENCODER",
            help="A run's folder or a baseline; timm:NAME, torchvision:NAME, hf-hub:ORG/NAME; a file of weights.",
        ),
    ],
    tasks: Annotated[
        str | None, typer.Option(help="Names, patterns, families, all, or a .py file; the regression tasks by default.")
    ] = None,
    data: Data = "cifar10",
    data_root: DataRoot = None,
    arch: Arch = None,
    pretrained: Annotated[bool, typer.Option(help="Take the model's trained weights, or none.")] = True,
    layers: Annotated[str | None, typer.Option(help="Inner layers to score as well, by name, or all.")] = None,
    pooling: Annotated[str, typer.Option(help="default (the model's own), cls, mean, or a layer's name.")] = "default",
    size: Annotated[int | None, typer.Option(help="Pixels that the encoder sees, instead of its own.")] = None,
    mean: Annotated[str | None, typer.Option(help="Three numbers in units of [0, 1], instead of its own.")] = None,
    std: Annotated[str | None, typer.Option(help="Three numbers, instead of its own.")] = None,
    interpolation: Annotated[str | None, typer.Option(help="bilinear, bicubic or nearest.")] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Score although some keys do not fit.")
    ] = False,
    allow_random: Annotated[
        bool, typer.Option("--allow-random", help="Score although under 99 % of the parameters were loaded.")
    ] = False,
    controls: Annotated[bool, typer.Option(help="Score random init, pixels, constant and oracle as well.")] = True,
    profile: ProfileOption = "demo",
    pairs: Annotated[str | None, typer.Option(help="Training, validation and test pairs: 4000,1000,3000.")] = None,
    image_size: Annotated[int, typer.Option(help="To which the images of a folder are resized and cropped.")] = 224,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images that do not decode.")] = False,
    variant: Variant = "headline",
    name: Annotated[str | None, typer.Option(help="The encoder's name in the records.")] = None,
    seed: Annotated[int, typer.Option(help="Of the untrained control, and of a baseline's run.")] = 0,
    device: Device = "auto",
    runs: Runs = Path("runs"),
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; by default results/score/NAME-DATA.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the work and its time; score nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Score an encoder: which transformations do its features keep?"""
    from equibench.report.score import print_score
    from equibench.runner.score import plan_score
    from equibench.runner.score import score as run_score

    counts = whole_numbers("--pairs", pairs, 3)
    options: dict[str, Any] = {
        "tasks": names(tasks),
        "data": data,
        "data_root": data_root,
        "arch": arch,
        "pretrained": pretrained,
        "layers": names(layers),
        "pooling": pooling,
        "size": size,
        "mean": decimals("--mean", mean, 3),
        "std": decimals("--std", std, 3),
        "interpolation": interpolation,
        "allow_partial": allow_partial,
        "allow_random": allow_random,
        "controls": controls,
        "profile": profile,
        "pairs": tuple(counts) if counts else None,
        "image_size": image_size,
        "skip_bad": skip_bad,
        "variant": variant,
        "name": name,
        "seed": seed,
        "device": device,
        "runs": runs,
    }
    console = Console()
    if dry_run:
        _print_plan(plan_score(encoder, **options), console)
        return
    result = run_score(encoder, out=out, **options)
    if as_json:
        lines = [{"signature": r.signature, **r.model_dump(mode="json")} for r in result.records]
        typer.echo(json.dumps({"name": result.name, "notes": result.notes, "records": lines}))
        return
    print_score(result.name, result.records, result.setting, result.notes, console)
    console.print("written: " + ", ".join(map(str, result.files)), style="dim", soft_wrap=True)


def doctor(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of weights.")],
    arch: Arch = None,
    data: Data = "cifar10",
    data_root: DataRoot = None,
    quick: Annotated[bool, typer.Option("--no-score", help="Look at the file only; encode nothing.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Look at a file of weights: is it safe, what is it, does it load, and does it see anything?"""
    from equibench.audit.doctor import examine

    findings = examine(file, arch=arch, data=data, data_root=data_root, score=not quick, device=device)
    if as_json:
        typer.echo(json.dumps(asdict(findings), default=str))
    else:
        print_findings(findings, Console())
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
    from equibench.evaluation.catalogue import CATALOGUE

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
        neither = d.metric in CATALOGUE and CATALOGUE[d.metric].better == "neither"
        said = f"{d.verdict} ↑" if neither and d.verdict != "tie" else d.verdict
        style = "dim" if d.verdict == "tie" else ""
        values = [f"{value:.3f}" for value in (d.a, d.b)]
        interval = [f"{d.difference:+.3f}", f"{d.low:+.3f}..{d.high:+.3f}"]
        metric = CATALOGUE[d.metric].title if d.metric in CATALOGUE else "R²"
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
        typer.echo(json.dumps({"signature": found.record.signature, **found.record.model_dump(mode="json")}))
        return
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in recipe_lines(found):
        table.add_row(key, escape(value))
    Console().print(table)


def verify(
    results: Annotated[Path, typer.Argument(help="A results folder, or one records.jsonl.")] = Path("results"),
    runs: Runs = Path("runs"),
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


def _print_plan(work: Any, console: Console) -> None:
    from equibench.utils.progress import clock

    table = Table("subject", "task", "views to encode, at most", "estimate")
    for one in work:
        table.add_row(one.subject.name, one.task.name, f"{one.views:,}", clock(one.seconds))
    console.print(table)
    console.print(f"{len(work)} to do, about {clock(sum(one.seconds for one in work))}")


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


def print_findings(found: Findings, console: Console) -> None:
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


def _rotation(found: Findings) -> str:
    lines = [f"{name}: {r2:.3f} [{low:.3f}, {high:.3f}]" for name, (r2, low, high) in found.rotation.items()]
    if found.rotation_pairs and lines:
        lines.append("from {:,} training, {:,} validation and {:,} test pairs".format(*found.rotation_pairs))
    return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
