"""The command line: `equibench table`, `score`, `compare` and their siblings; each is a function of the package."""

import os
import sys

# before torch starts its threads: idle ones must sleep, since spinning slows a busy machine many times over
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer
from rich.console import Console
from rich.markup import escape

from equibench.cli.data import data_commands
from equibench.cli.encoders import encoder_commands
from equibench.cli.report import report_commands
from equibench.cli.tables import table_commands
from equibench.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Train a method, score an encoder, believe the number.\n\n"
    "Smallest table: [bold]equibench table table2 --profile tiny[/bold]",
)
app.add_typer(table_commands)
app.add_typer(encoder_commands)
app.add_typer(report_commands)
app.add_typer(data_commands, name="data")


def main() -> None:
    """Run the command line; a user's mistake ends in one message and exit status 2."""
    try:
        app()
    except UserError as error:
        console = Console(stderr=True)
        console.print(f"[bold red]error:[/] {escape(error.problem)}", soft_wrap=True, highlight=False)
        if error.fix:  # which speaks Python, since both roads lead to it
            console.print(escape(error.fix.replace("skip_bad=True", "--skip-bad")), soft_wrap=True, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; the same command goes on where it was")
        sys.exit(130)
