"""What records say of the pretraining behind their rows: which have not learned, and how far their halves overlap."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from equibench.evaluation.controls import row_title
from equibench.pretrain.method import BASELINES
from equibench.records import Record
from equibench.report.definition import plain

UNTRAINED = "‡"
"""Behind the name of a row that has not learned what it is for."""
_T = TypeVar("_T")


def untrained_rows(records: Sequence[Record]) -> dict[str, str]:
    """Rows of which a run has not learned what it is for, with the diagnostics that say so."""
    found = _by_run(records, _failed)
    several = {r.seeds.pretraining for r in records if r.trained is not None}
    return {
        row: ", ".join(f"seed {seed}: {said}" if len(several) > 1 else said for seed, said in runs.items())
        for row, runs in found.items()
    }


def untrained_legend(records: Sequence[Record]) -> str:
    """What the mark means, and which diagnostic failed for which row; nothing where no row is marked."""
    rows = "; ".join(f"{row_title(row)} ({why})" for row, why in untrained_rows(records).items())
    said = "has not learned what it is for, by held-out diagnostics when pretraining ended"
    return f"{UNTRAINED} {said}: {rows}." if rows else ""


def with_overlaps(lines: Sequence[str], rows: Sequence[str], records: Sequence[Record]) -> list[str]:
    """A markdown table of the rows' halves with a column more: how far these overlap, where that is known of any."""
    found = _by_run(records, lambda record: (record.diagnostics or {}).get("halves_overlap"))
    if not found:
        return list(lines)
    means = [plain(float(np.mean(list(found[row].values())))) if row in found else "–" for row in rows]
    said = "Overlap: R² of the equivariant half as a linear function of the invariant one, on validation images."
    return [*(f"{line} {cell} |" for line, cell in zip(lines, ["Overlap", "---", *means], strict=True)), "", said]


def _failed(record: Record) -> str | None:
    if record.trained is not False:
        return None
    return " and ".join(BASELINES.get(record.baseline).method.not_learned(record.diagnostics or {}))


def _by_run(records: Sequence[Record], told: Callable[[Record], _T | None]) -> dict[str, dict[int | None, _T]]:
    """What is told of each row and pretraining seed, where anything is."""
    found: dict[str, dict[int | None, _T]] = {}
    for record in records:
        if (value := told(record)) is not None:
            found.setdefault(record.baseline, {})[record.seeds.pretraining] = value
    return found
