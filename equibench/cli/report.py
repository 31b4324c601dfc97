"""The command `equibench report`, and what tables and scores share with it: a report at their end, other formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from equibench.cli.options import command, plain_console
from equibench.errors import UserError, closest

if TYPE_CHECKING:
    from equibench.runner.table import TableResult

report_commands = typer.Typer()
PAPER_FORMATS = "latex, markdown, csv, json, bibtex"
REPORT = "report.html"
WithReport = Annotated[bool, typer.Option("--report/--no-report", help=f"Write {REPORT} beside the results.")]


@command(
    report_commands,
    "report",
    "equibench report results/demo -o report.html",
    "equibench report results/demo/table2 results/score --data-root data/ -o report.html",
)
def _report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="Folders below which records.jsonl lie, or such files.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path(REPORT),
    runs: Annotated[Path, typer.Option(help="Folder with predictions, logs and encoders.")] = Path("runs"),
    data_root: Annotated[
        Path | None, typer.Option(help="Folder that holds CIFAR-10, for pictures; else $EQUIBENCH_DATA, the cache.")
    ] = None,
    pictures: Annotated[bool, typer.Option(help="Show views, reconstructions and retrieved transforms.")] = True,
    tasks: Annotated[
        list[Path], typer.Option("--tasks", help="A Python file that registers tasks of your own; may be repeated.")
    ] = [],  # noqa: B006
    title: Annotated[str | None, typer.Option(help="The page's title.")] = None,
) -> None:
    """Show results in one HTML file that opens offline: tables, figures, pictures, and every number's recipe."""
    from equibench.audit.publish import report_html

    written = report_html(
        results, out=out, runs=runs, data_root=data_root, pictures=pictures, title=title, task_files=tasks
    )
    plain_console().print(f"report: {written.path}", soft_wrap=True)
    for note in written.left_out:
        Console(stderr=True).print(f"left out: {note}", style="yellow", soft_wrap=True, markup=False, highlight=False)


def write_report(results: Path, runs: Path, data_root: Path | None, console: Console) -> None:
    """Write the report of a folder into it and say where it is; what hinders it spoils no result."""
    from equibench.audit.publish import report_html

    try:
        written = report_html([results], out=results / REPORT, runs=runs, data_root=data_root)
    except UserError as error:
        console.print(f"no report: {error.problem}", style="yellow", soft_wrap=True, markup=False, highlight=False)
        return
    for note in written.left_out:
        console.print(f"not in the report: {note}", style="dim", soft_wrap=True, markup=False, highlight=False)
    console.print(f"report: {written.path}", soft_wrap=True, markup=False, highlight=False)


def report_place(result: TableResult) -> Path:
    """The folder whose report a table belongs to: that of all tables of its profile, or its own where it stands alone.

    It stands alone where --out, --rows, --columns or --variant gave it another folder than results/PROFILE/TABLE.
    """
    from equibench.config import RESULTS

    own = result.files[0].parent
    return own.parent if own == RESULTS / result.context.profile.name / result.definition.name else own


def check_format(format: str, tables: Sequence[str]) -> None:
    """Refuse an unknown format, and several tables in one file, before anything is computed."""
    known = PAPER_FORMATS.split(", ")
    if format not in known:
        raise UserError(f"unknown format {format!r}{closest(format, known)}", f"--format is one of {PAPER_FORMATS}")
    if len(tables) > 1:
        raise UserError("--format prints one table", f"name one: equibench table {tables[0]} --format {format}")


def print_formatted(result: TableResult, format: str) -> None:
    """Print a table for a paper or a program to the standard output, and nothing else."""
    from equibench.audit.find import Predictions
    from equibench.audit.paired import standings
    from equibench.evaluation.controls import row_title
    from equibench.report.latex import PrintedTable, formatted

    found = standings(result.rows, result.columns, result.records, Predictions([result.config.runs]))
    names = {row: row_title(row) for row in result.rows}
    typer.echo(
        formatted(PrintedTable(result.definition, names, result.columns, result.records, found), format), nl=False
    )
