"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from equibench.errors import UserError

ProfileOption = Annotated[
    str, typer.Option(help="How large: tiny, demo, cifar10_cpu, cifar10 (`equibench list profiles`).")
]
BaselineFiles = Annotated[
    list[Path], typer.Option("--baseline", help="A Python file that registers further baselines; may be repeated.")
]
Variant = Annotated[str, typer.Option(help="Views: headline (mirrored fill, disc) or paper_like (black fill).")]
DataRoot = Annotated[
    Path | None, typer.Option(help="Folder that holds the data sets; else $EQUIBENCH_DATA, the cache, a download.")
]
Data = Annotated[str, typer.Option(help="cifar10, solids, or a folder of images.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Devices = Annotated[int, typer.Option(help="How many devices (on each node, under torchrun or SLURM).")]
Jobs = Annotated[
    int | None, typer.Option(min=1, help="Units worked on side by side, one thread each; as many as cores on a CPU.")
]
Runs = Annotated[Path, typer.Option(help="Folder for work in progress: checkpoints, features, the journal.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out what cannot be read, and count it in the records.")
]
Places = Annotated[
    list[Path], typer.Option("--in", help="Folder with records and predictions; may be repeated.", show_default=True)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]


def names(text: str | None) -> list[str] | None:
    """A list separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()] if text is not None else None


def whole_numbers(flag: str, text: str | None, count: int | None = None) -> list[int] | None:
    """Whole numbers separated by commas.

    Raises:
        UserError: something else, or another number of them.
    """
    found = _numbers(flag, text, count)
    if found is not None and any(value != int(value) for value in found):
        raise UserError(f"{flag} takes whole numbers, not {text!r}", f"{flag} {','.join('1' * (count or 1))}")
    return None if found is None else [int(value) for value in found]


def decimals(flag: str, text: str | None, count: int) -> list[float] | None:
    """Numbers separated by commas.

    Raises:
        UserError: something else, or another number of them.
    """
    return _numbers(flag, text, count)


def _numbers(flag: str, text: str | None, count: int | None) -> list[float] | None:
    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{flag} takes numbers separated by commas, not {text!r}", f"{flag} 0,1,2") from None
    if count is not None and len(found) != count:
        raise UserError(f"{flag} takes {count} numbers, not {len(found)}", f"{flag} {','.join('1' * count)}")
    return found
