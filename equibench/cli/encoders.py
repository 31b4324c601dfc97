"""The commands for a checkpoint and what was scored: score, doctor, compare, stability, explain, verify."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from equibench.cli.options import (
    HERE,
    DryRun,
    Json,
    Out,
    Places,
    command,
    configured,
    names,
    plain_console,
    print_facts,
    print_files,
)
from equibench.cli.report import WithReport, write_report
from equibench.config import SCORE_OPTIONS, VIEW_OPTIONS

encoder_commands = typer.Typer()


@command(
    encoder_commands,
    "score",
    "equibench score timm:vit_small_patch16_224",
    "equibench score weights.pth --arch torchvision:resnet50 --data photographs/ --tasks 'rotation*'",
    "equibench score weights.pth --arch model.py:build",
    "equibench score reconstruction --tasks all --layers all",
    "equibench score --features features/",
)
@configured(*SCORE_OPTIONS)
def _score(
    encoder: Annotated[
        str | None,
        typer.Argument(
            metavar="[ENCODER]",
            help="A run's folder or a baseline; timm:NAME, torchvision:NAME, hf-hub:ORG/NAME; a file of weights; "
            "FILE.py:FUNCTION, which builds a network.",
        ),
    ] = None,
    out: Out = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    with_report: WithReport = True,
    *,
    options: dict[str, Any],
) -> None:
    """Score an encoder: which transformations do its features keep?"""
    from equibench.report.score import print_score
    from equibench.runner.score import plan_score, score
    from equibench.utils.progress import clock

    console = plain_console()
    if dry_run:
        jobs, seconds = plan_score(encoder, **options)
        table = Table("row", "task", "estimate")
        for job, one in zip(jobs, seconds, strict=True):
            table.add_row(job.place.row, job.tasks[0].name, clock(one))
        console.print(table)
        console.print(f"{len(jobs)} to do, about {clock(sum(seconds))}")
        return
    result = score(encoder, out=out, **options)
    if as_json:
        records = [_json(record) for record in result.records]
        typer.echo(json.dumps({"name": result.name, "notes": result.notes, "records": records}))
        return
    print_score(result.name, result.records, result.context, result.notes, console)
    print_files(result.files, console)
    if with_report:
        runs, data_root = options.get("runs", Path("runs")), options.get("data_root")
        write_report(result.files[0].parent, runs, data_root, console)


@command(
    encoder_commands,
    "export-pairs",
    "equibench export-pairs views/ --tasks rotation,color",
    "equibench export-pairs views/ --data photographs/ --image-size 224 --png",
)
@configured("tasks", *VIEW_OPTIONS)
def _export_pairs(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; empty, or not there.")],
    png: Annotated[bool, typer.Option("--png", help="Write each view as a PNG besides.")] = False,
    *,
    options: dict[str, Any],
) -> None:
    """Write views and θ of tasks for other code, whose features `equibench score --features` then scores."""
    from equibench.runner.exchange import MANIFEST, export_pairs

    console = Console()
    print_files(export_pairs(out, png=png, **options), console)
    line = f"now save features (N, D) of each NAME.npy that {MANIFEST} lists under `views` as FEATURES/NAME.npy, copy "
    line += f"{MANIFEST} beside them, and run: equibench score --features FEATURES"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _json(record: Any) -> dict[str, Any]:
    return {"signature": record.signature, **record.model_dump(mode="json", exclude_none=True)}


@command(
    encoder_commands, "doctor", "equibench doctor weights.pth", "equibench doctor weights.pth --arch timm:resnet50"
)
def _doctor(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of weights.")],
    arch: Annotated[str | None, typer.Option(help="A file's architecture, as `score` takes it.")] = None,
    branch: Annotated[str | None, typer.Option(help="Which network of a file that holds several.")] = None,
    rename: Annotated[str | None, typer.Option(help="Rules for its names, 'regex=>text;regex=>text'.")] = None,
    data: Annotated[str, typer.Option(help="cifar10, solids, or a folder of images.")] = "cifar10",
    data_root: Annotated[Path | None, typer.Option(help="Folder that holds CIFAR-10.")] = None,
    quick: Annotated[bool, typer.Option("--no-score", help="Look at the file only; encode nothing.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Json = False,
) -> None:
    """Look at a file of weights: is it safe, what is it, does it load, and does it see anything?"""
    from equibench.audit.doctor import doctor

    findings = doctor(
        file, arch=arch, branch=branch, rename=rename, data=data, data_root=data_root, score=not quick, device=device
    )
    if as_json:
        typer.echo(json.dumps(asdict(findings), default=str))
    else:
        _print_findings(findings, Console())
    raise typer.Exit(0 if findings.usable else 1)


@command(encoder_commands, "compare", "equibench compare results/demo/table2:vicreg results/demo/table2:reconstruction")
def _compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A scored encoder's name, its folder, or FOLDER:NAME.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    tasks: Annotated[str | None, typer.Option(help="Only these tasks, separated by commas.")] = None,
    features: Annotated[str, typer.Option(help="full, invariant, equivariant, or layer:NAME.")] = "full",
    places: Places = HERE,
    as_json: Json = False,
) -> None:
    """Compare two scored encoders on the same images: differences, intervals, p-values, ties."""
    from equibench.audit.compare import compare
    from equibench.evaluation.evaluator import metric_info

    found = compare(a, b, tasks=names(tasks), features=features, places=places)
    if as_json:
        typer.echo(json.dumps([asdict(difference) for difference in found]))
        return
    console = plain_console()
    console.print(f"A = {a}\nB = {b}\npaired bootstrap over test images", style="dim", highlight=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, head in enumerate(("task, metric", "A", "B", "A - B", "95 % interval", "p", "better")):
        table.add_column(head, justify="right" if number else "left", no_wrap=number > 0, min_width=0 if number else 20)
    for d in found:
        info, tie = metric_info(d.metric), d.verdict == "tie"
        said = f"{d.verdict} ↑" if info and info.better == "neither" and not tie else d.verdict
        interval = (f"{d.difference:+.3f}", f"{d.low:+.3f}..{d.high:+.3f}", f"{d.p_holm:.3f}")
        metric = f"{d.task}, {info.title if info else d.metric}"
        table.add_row(metric, f"{d.a:.3f}", f"{d.b:.3f}", *interval, said, style="dim" if tie else "")
    console.print(table)
    for d in found:
        if len(d.per_seed) > 1:
            seeds = ", ".join(f"{value:+.3f}" for value in d.per_seed)
            console.print(f"{d.task}, A - B of each pretraining seed: {seeds}", style="dim", highlight=False)
    said = f"p-values are corrected over {len(found)} tasks; tie: p ≥ 0.05; ↑: higher, which is not better"
    console.print(said, style="dim")


@command(encoder_commands, "stability", "equibench stability results/demo/table2")
def _stability(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A results folder, or one records.jsonl.")],
    features: Annotated[str, typer.Option(help="full, invariant, equivariant, or layer:NAME.")] = "full",
    as_json: Json = False,
) -> None:
    """Tell whether rows keep their order with half of the training pairs, and under the closed form: Kendall's τ."""
    from equibench.audit.stability import stability

    found = stability(results, features=features)
    if as_json:
        typer.echo(json.dumps([asdict(one) | {"file": str(one.file)} for one in found]))
        return
    console, heads = plain_console(), ("", "rows", "pairs apart", "τ half", "swapped", "τ closed", "swapped")
    for file in dict.fromkeys(one.file for one in found):
        table = Table(title=str(file.parent), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for number, head in enumerate(heads):
            table.add_column(head, justify="right" if number else "left")
        for one in (one for one in found if one.file == file):
            sides = [(f"{a.tau:+.2f}", str(a.swapped)) if a else ("–", "–") for a in (one.half, one.closed)]
            table.add_row(one.task, str(len(one.rows)), str(one.separated), *sides[0], *sides[1])
        console.print(table)
    console.print(
        "Kendall's τ of R² between all training pairs and half of them, and between MLP and closed form; controls are "
        "not ranked. Pairs apart: rows with disjoint 95 % intervals. Swapped: those of them in the opposite order.",
        style="dim",
    )


@command(encoder_commands, "explain", "equibench explain 3f2a90c1d2e4")
def _explain(
    signature: Annotated[str, typer.Argument(metavar="SIGNATURE", help="A score's signature, or its last part.")],
    places: Places = HERE,
    as_json: Json = False,
) -> None:
    """Turn a signature into the full recipe and the command that makes the score again."""
    from equibench.audit.find import explain, recipe_lines

    found = explain(signature, places)
    if as_json:
        typer.echo(json.dumps(_json(found.record)))
    else:
        print_facts(recipe_lines(found), Console())


@command(
    encoder_commands,
    "figures",
    "equibench figures",
    "equibench figures results/demo/table2 results/demo/table5 --base vicreg",
    "equibench figures results/sweep --names sweep.csv --out figures/",
)
def _figures(
    folders: Annotated[list[Path] | None, typer.Argument(metavar="[FOLDER]...", help="Results with records.")] = None,
    base: Annotated[str | None, typer.Option(help="The encoder that accuracies are compared with.")] = None,
    names_file: Annotated[
        Path | None, typer.Option("--names", help="CSV: encoder, and any of method, backbone, lambda, d_equi.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder below which the predictions are kept.")] = Path("runs"),
    out: Out = None,
) -> None:
    """Draw P2's figures from records, beside the published points: SVG, PNG, and the data as CSV."""
    from equibench.audit.figures import figures

    found, console = figures(folders or (), base=base, names=names_file, runs=runs, out=out), plain_console()
    for note in found.notes:
        console.print(note, style="yellow", soft_wrap=True)
    print_files(found.files, console)


@command(encoder_commands, "verify", "equibench verify results/")
def _verify(
    results: Annotated[Path, typer.Argument(help="A results folder, or one records.jsonl.")] = Path("results"),
    runs: Annotated[Path, typer.Option(help="Folder below which the predictions are kept.")] = Path("runs"),
    tasks: Annotated[
        list[Path], typer.Option("--tasks", help="A Python file that registers tasks of your own; may be repeated.")
    ] = [],  # noqa: B006
) -> None:
    """Compute every reported score again from the stored predictions; exit status 1 if one differs."""
    from equibench.audit.verify import verify

    console = Console()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("verifying", total=None)
        found = verify(
            results,
            runs=runs,
            task_files=tasks,
            report=lambda done, total: progress.update(bar, completed=done, total=total),
        )
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
            markup=False,
            style="yellow",
        )
    raise typer.Exit(1 if found.mismatches else 0)


def _print_findings(found: Any, console: Console) -> None:
    """Print what the doctor found, and what to do next."""
    dtypes = ", ".join(f"{count} {name}" for name, count in found.dtypes.items())
    quick = [f"{name}: {r2:.3f} [{low:.3f}, {high:.3f}]" for name, (r2, low, high) in found.rotation.items()]
    if found.rotation_pairs and quick:
        quick.append("from {:,} training, {:,} validation and {:,} test pairs".format(*found.rotation_pairs))
    facts = [("format", f"{found.format}, {found.bytes / 1e6:.1f} MB"), ("read safely", "yes" if found.safe else "no")]
    if found.tensors:
        facts += [
            ("tensors", f"{found.tensors} ({dtypes}), {found.parameters:,} numbers"),
            ("guesses", "\n".join(f"{arch}: {share:.1%} of its keys" for arch, share in found.guesses)),
            ("architecture", found.architecture or ""),
            ("coverage", found.coverage),
            ("notes", "\n".join(found.notes)),
            ("objects not looked up", ", ".join(found.inert[:8])),
            ("preprocessing", found.preprocessing),
            ("normalisation", found.normalisation),
            ("distance from untrained", "" if found.from_untrained is None else f"{found.from_untrained:.3f} (0 to 1)"),
            ("quick R² of rotation", "\n".join(quick)),
        ]
    print_facts([(key, value) for key, value in facts if value], console, escape(found.file))
    for hint in found.hints:
        console.print(f"[yellow]note:[/] {escape(hint)}", soft_wrap=True, highlight=False)
    for problem in found.problems:
        console.print(f"[bold red]problem:[/] {escape(problem)}", soft_wrap=True, highlight=False)
    if found.usable:
        line = f"next: equibench score {found.file} --arch {found.architecture}{found.options}"
        console.print(line, soft_wrap=True, markup=False)
    console.print(f"{found.seconds:.0f} s", style="dim")
