"""P2's figures of any folders of records: frames, drawings, and paired differences to a base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from equibench.audit.compare import compare
from equibench.config import RESULTS
from equibench.errors import UserError
from equibench.evaluation.controls import CONTROLS
from equibench.records import RECORDS, Record, read_records
from equibench.report.figures import differences_frame, dimensions_frame, invariance_frame, read_names, write_figure

_PERCENT = 100


@dataclass(frozen=True)
class FiguresResult:
    """The frames by the figure's name, what was written, and which figures show published points only."""

    frames: dict[str, pd.DataFrame]
    files: list[Path]
    notes: list[str]


def figures(
    folders: Sequence[str | Path] = (),
    *,
    base: str | None = None,
    names: str | Path | None = None,
    runs: str | Path = "runs",
    out: str | Path | None = None,
) -> FiguresResult:
    """Draw P2's figures from the records of results folders, beside the published points.

    Args:
        folders: each with a records.jsonl; none draws what is published.
        base: the encoder from which accuracies are subtracted, by its name in these records.
        names: a CSV that says what encoders are, see `report.figures.read_names`.
        runs: where the predictions are, which paired differences need.
        out: folder for the figures; results/figures by default.

    Raises:
        UserError: a folder holds no records, nobody is called like the base, predictions are not here, matplotlib is
            not installed, or the folder cannot be written.
    """
    places = {str(folder): _records(Path(folder)) for folder in folders}
    told = read_names(names) if names is not None else None
    frames = {
        "invariance": invariance_frame(places, told),
        "differences": differences_frame(_differences(places, base, Path(runs)) if base else []),
        "dimensions": dimensions_frame(places, told),
    }
    files, folder = [], Path(out) if out else RESULTS / "figures"
    for name, frame in frames.items():
        files += write_figure(frame, name, folder)
    wanted = {
        "invariance": "encoders scored on rotation and color",
        "differences": "--base, an encoder with classification tasks, and others with the same",
        "dimensions": "--names, a CSV that gives lambda and d_equi of the encoders",
    }
    bare = [name for name, frame in frames.items() if not (frame["source"] == "measured").any()]
    return FiguresResult(frames, files, [f"{n} shows published points only; it takes {wanted[n]}" for n in bare])


def _records(folder: Path) -> list[Record]:
    path = folder / RECORDS if folder.is_dir() else folder
    if not path.is_file():
        raise UserError(f"{folder} holds no {RECORDS}", "name a folder that equibench table or score has written")
    return read_records(path)


def _differences(places: dict[str, list[Record]], base: str, runs: Path) -> list[dict[str, object]]:
    """Each encoder minus the base on the classification tasks of both, in percentage points."""
    held = {
        place: {r.baseline for r in records if r.evaluator == "classification"} for place, records in places.items()
    }
    home = next((place for place, rows in held.items() if base in rows), None)
    if home is None:
        known = sorted({row for rows in held.values() for row in rows if row not in CONTROLS})
        problem = f"no record of a classification task is of the base {base!r}"
        raise UserError(problem, f"such records are of: {', '.join(known) or 'nobody'}")
    lines: list[dict[str, object]] = []
    for place, rows in held.items():
        for row in sorted(rows - set(CONTROLS) - ({base} if place == home else set())):
            shared = {r.task for p, n in ((place, row), (home, base)) for r in places[p] if r.baseline == n}
            tasks = sorted(t for t in shared if all(_has(places[p], n, t) for p, n in ((place, row), (home, base))))
            if not tasks:
                continue
            for found in compare(f"{place}:{row}", f"{home}:{base}", tasks=tasks, places=[place, home, runs]):
                numbers = {key: _PERCENT * getattr(found, key) for key in ("difference", "low", "high")}
                lines.append({"encoder": row, "base": base, "task": found.task, **numbers, "p": found.p_holm})
    return lines


def _has(records: Sequence[Record], row: str, task: str) -> bool:
    """Whether a row was scored on a task that is a classification."""
    return any(r.baseline == row and r.task == task and r.evaluator == "classification" for r in records)
