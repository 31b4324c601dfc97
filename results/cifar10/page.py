"""Fills the tables inside results/cifar10/README.md from the results beside it.

    python results/cifar10/page.py --runs runs

The page's sentences are a person's; each table between `<!-- name:begin -->` and `<!-- name:end -->` is written by the
function of that name in `page_tables`. Paired differences need the predictions in `runs`, so they are kept in
comparisons.csv, and made anew only where `--runs` is given; all else is made of the committed tables and records.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from page_tables import BLOCKS, COMPARISONS, OWN, TASK_NAMES, THREE, read_table

from equibench.audit.compare import Difference, compare
from equibench.errors import UserError
from equibench.evaluation.controls import CONTROLS
from equibench.registry import load_file
from equibench.utils.files import write_text

FOLDER = Path(__file__).parent
PAIRS = [("reconstruction", "sie_all"), ("reconstruction", "vicreg"), ("sie_all", "vicreg")]


def write_comparisons(folder: Path, runs: Path) -> pd.DataFrame:
    """Paired differences that the page speaks of, into comparisons.csv.

    Raises:
        UserError: results or predictions are missing.
    """
    lines = []
    for part, a, b, tasks in _wanted(folder):
        names = [f"{folder / part}:{row}" for row in (a, b)]
        found = compare(*names, tasks=tasks, places=[folder, runs])
        lines += [{"part": part, "row_a": a, "row_b": b, **_flat(difference)} for difference in found]
    frame = pd.DataFrame(lines)
    write_text(folder / COMPARISONS, frame.to_csv(index=False, float_format="%.5f"))
    return frame


def _wanted(folder: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """(part, A, B, tasks) of each comparison."""
    yield from (("three_seeds", a, b, list(TASK_NAMES)) for a, b in PAIRS)
    yield from (("three_seeds", row, "random_init", list(TASK_NAMES)) for row in THREE)
    table = read_table(folder, "table2")
    kind = [str(row) for row in table.index if str(row).startswith("sie_")]
    for row, task in ((row, task) for row, task in OWN.items() if row in kind):
        others = table.loc[[r for r in kind if r != row], f"{task}_r2"].astype(float)
        yield "table2", row, str(others.idxmax()), [task]
        yield "table2", row, "random_init", [task]
    variants = [row for row in read_table(folder, "ablations").index if row not in CONTROLS]
    bases = {row: "sie_rot" if row.startswith("sie_") else "reconstruction" for row in variants}
    yield from (("ablations", row, base, list(TASK_NAMES[:4])) for row, base in bases.items() if row != base)


def _flat(difference: Difference) -> dict[str, object]:
    facts = asdict(difference)
    facts["per_seed"] = " ".join(f"{value:.5f}" for value in difference.per_seed)
    return facts


def filled(text: str, folder: Path) -> str:
    """The page with each of its blocks written anew.

    Raises:
        UserError: a block that nothing here writes, or a file that is missing.
    """

    def write(found: re.Match[str]) -> str:
        name = found.group(1)
        if name not in BLOCKS:
            raise UserError(f"no function writes the block {name!r}", f"blocks: {', '.join(BLOCKS)}")
        try:
            lines = BLOCKS[name](folder)
        except FileNotFoundError as error:
            raise UserError(f"{error.filename} is missing", "run: make study") from error
        return f"<!-- {name}:begin -->\n" + "\n".join(lines) + f"\n<!-- {name}:end -->"

    return re.sub(r"<!-- (\w+):begin -->\n.*?<!-- \1:end -->", write, text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="compare anew, from the predictions below this folder")
    arguments = parser.parse_args()
    load_file(FOLDER / "ablations.py", "baseline")  # names of the ablations' rows
    if arguments.runs:
        write_comparisons(FOLDER, arguments.runs)
    page = FOLDER / "README.md"
    write_text(page, filled(page.read_text(encoding="utf-8"), FOLDER))


if __name__ == "__main__":
    main()
