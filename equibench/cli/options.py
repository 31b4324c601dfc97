"""What commands share: their examples, what they print, and options made from the fields of the configuration."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from equibench.config import RunConfig
from equibench.errors import UserError

Places = Annotated[
    list[Path], typer.Option("--in", help="Folder with records and predictions; may be repeated.", show_default=True)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the results, instead of one below results/.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the jobs and their time; run nothing.")]
HERE = [Path("results"), Path("runs")]
Command = Callable[..., None]
Number = TypeVar("Number", int, float)


def command(app: typer.Typer, name: str, *examples: str) -> Callable[[Command], Command]:
    """Decorator that registers a command with its examples."""
    return app.command(name, epilog="\n\n".join(["Examples:", *examples]))


def plain_console() -> Console:
    """A console that prints names as they are: "[last]" in a file's name is no markup."""
    return Console(markup=False, highlight=False)


def print_files(files: Iterable[Path], console: Console) -> None:
    console.print("written: " + ", ".join(map(str, files)), markup=False, style="dim", soft_wrap=True)


def print_facts(facts: Iterable[tuple[str, str]], console: Console, title: str | None = None) -> None:
    """Print (what, value) as two columns."""
    table = Table(show_header=False, box=None, title=title, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in facts:
        table.add_row(key, escape(value))
    console.print(table)


def configured(*names: str) -> Callable[[Command], Command]:
    """Decorator of a command whose last parameter is `options`: the named fields of `RunConfig`, as options.

    The command then takes what the user gave, by field, ready for `RunConfig.of`.
    """
    chosen = {one.name: one for one in fields(RunConfig) if one.name in names}

    def decorate(function: Command) -> Command:
        def run(**given: Any) -> None:
            options = {name: _parsed(chosen[name], given.pop(name)) for name in chosen}
            function(**given, options={name: value for name, value in options.items() if value is not None})

        parameters = inspect.signature(function, eval_str=True).parameters.values()
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters if p.name != "options"]
        run.__signature__ = inspect.Signature([*own, *(_parameter(chosen[name]) for name in names)])  # type: ignore[attr-defined]
        run.__doc__ = function.__doc__
        return run

    return decorate


def _parameter(one: Any) -> inspect.Parameter:
    facts, default = one.metadata, one.default
    text, flags = str(one.type), [facts["flag"]] if facts["flag"] else []
    annotation: Any = str
    if text.startswith("tuple") and "Path" in text:
        annotation, default = list[Path], list(default)
    elif text.startswith("tuple"):  # a list separated by commas
        default = None if default is None else ",".join(map(str, default))
        annotation = str | None if default is None else str
    elif text == "bool":
        annotation = bool
        flags = flags or ([f"--{one.name.replace('_', '-')}"] if default is False else [])
    else:
        kind = {"int": int, "Path": Path, "float": float}.get(text.split(" | ")[0], str)
        annotation = kind | None if "None" in text else kind
    words = facts["help"][0].upper() + facts["help"][1:] + "."
    annotation = Annotated[annotation, typer.Option(*flags, help=words, rich_help_panel=facts["group"])]
    return inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parsed(one: Any, value: Any) -> Any:
    if value is None or not str(one.type).startswith("tuple") or isinstance(value, list):
        return value
    kind = one.metadata["numbers"]
    return numbers(f"--{one.name.replace('_', '-')}", value, kind) if kind else names(value)


def names(text: str | None) -> list[str] | None:
    """A list separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()] if text is not None else None


def numbers(flag: str, text: str, kind: type[Number], count: int | None = None) -> list[Number]:
    """Numbers of one kind (int or float) separated by commas; a UserError if they are others, too many or too few."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{flag} takes numbers separated by commas, not {text!r}", f"{flag} 0,1,2") from None
    if count is not None and len(found) != count:
        raise UserError(f"{flag} takes {count} numbers, not {len(found)}", f"{flag} {','.join('1' * count)}")
    if kind is int and any(value != int(value) for value in found):
        raise UserError(f"{flag} takes whole numbers, not {text!r}", f"{flag} {','.join('1' * (count or 1))}")
    return [kind(value) for value in found]
