"""A study: tables, learning curves and scores that belong together, listed in a TOML file and carried out in order.

[[part]]
table = "table2"                # or curve = true, or score = "runs/demo/.../seed0"
folder = "three_seeds"          # below the file's own folder
rows = ["vicreg", "sie_all"]    # any field of the configuration
seeds = [0, 1, 2]
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equibench.config import RunConfig
from equibench.errors import UserError, closest

if TYPE_CHECKING:
    from equibench.runner.curve import CurveResult
    from equibench.runner.score import ScoreResult
    from equibench.runner.table import TableResult

_KINDS = ("table", "curve", "score")


@dataclass(frozen=True)
class Part:
    """One table, curve or score of a study."""

    kind: str  # "table", "curve" or "score"
    target: str  # the table's name or the encoder that is scored
    folder: Path  # where its results go
    options: dict[str, Any]  # fields of the configuration

    @property
    def words(self) -> str:
        """What it is, in one line."""
        target = "" if self.kind == "curve" else f" {self.target}"
        return f"{self.kind}{target}" + "".join(f", {key} {value}" for key, value in self.options.items())


def read_study(file: str | Path) -> list[Part]:
    """The parts of a study.

    Raises:
        UserError: the file is missing or no TOML, or a part is no table, curve or score, or has an unknown option.
    """
    path = Path(file)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}", "give a TOML file with [[part]] tables") from error
    parts = []
    for number, facts in enumerate(content.get("part", ()), start=1):
        kind = next((kind for kind in _KINDS if kind in facts), "")
        if not kind or "folder" not in facts:
            hint = closest(next(iter(facts), ""), _KINDS)
            raise UserError(f"{path}: part {number} has no folder, or is none of {', '.join(_KINDS)}{hint}", "add both")
        options = {key: value for key, value in facts.items() if key not in (kind, "folder")}
        RunConfig.of(**options)
        parts.append(Part(kind, str(facts[kind]), path.parent / facts["folder"], options))
    if not parts:
        raise UserError(f"{path} lists no [[part]]", "see the docstring of equibench.runner.study")
    return parts


def run_study(file: str | Path) -> Iterator[TableResult | CurveResult | ScoreResult]:
    """Carry out the parts one after the other; each is brought up to date, so an interrupted study goes on."""
    from equibench.runner.curve import curve
    from equibench.runner.score import score
    from equibench.runner.table import table

    for part in read_study(file):
        if part.kind == "table":
            yield table(part.target, out=part.folder, **part.options)
        elif part.kind == "curve":
            yield curve(out=part.folder, **part.options)
        else:
            yield score(part.target, out=part.folder, **part.options)
