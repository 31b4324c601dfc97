"""Compute every reported score again from the stored predictions, and every table from its records."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equibench.audit.find import Predictions, unknown_transformation
from equibench.errors import UserError
from equibench.evaluation.controls import CONTROLS
from equibench.evaluation.evaluator import EVALUATORS
from equibench.records import RECORDS, Metric, Record, read_records
from equibench.registry import load_file
from equibench.report.definition import load_definition, table_frame, table_names
from equibench.utils.files import read_lines

_TOLERANCE = 1e-9
"""Largest difference between a reported and a recomputed number: sums may be taken in another order elsewhere."""


@dataclass
class Verification:
    """What was found."""

    checked: int = 0  # scores computed again from their predictions
    mismatches: list[str] = field(
        default_factory=list
    )  # which number of which record or table is not what it should be
    absent: list[Record] = field(default_factory=list)  # records whose predictions are not here
    tables: int = 0  # CSV files compared with their records
    skipped: list[str] = field(default_factory=list)  # what could not be compared, and why


def verify(
    results: str | Path = "results",
    *,
    runs: str | Path = "runs",
    task_files: Sequence[str | Path] = (),
    report: Callable[[int, int], None] | None = None,
) -> Verification:
    """Check a results folder, or one file of records, with the predictions that are kept below `runs`.

    Args:
        task_files: Python files that register the tasks of one's own that were scored.
        report: called with (records done, records in all).

    Raises:
        UserError: no records there, or a damaged file.
    """
    for task_file in task_files:
        load_file(task_file, "task")
    root = Path(results)
    files = [root] if root.is_file() else sorted(root.rglob(RECORDS))
    if not files:
        raise UserError(f"there are no records below {root}", "give a folder that holds records.jsonl")
    predictions, found = Predictions([runs]), Verification()
    work = [(file, record) for file in files for record in read_records(file)]
    for number, (file, record) in enumerate(work, start=1):
        _check_record(file, record, predictions, found)
        if report:
            report(number, len(work))
    for file in files:
        records = [record for place, record in work if place == file]
        for line, record in zip(read_lines(file), records, strict=True):
            written = line.get("signature", record.signature)
            if written != record.signature:
                found.mismatches.append(f"{file}: {written}: the recipe beside this signature has {record.signature}")
        _check_tables(file, records, found)
    return found


def _check_record(file: Path, record: Record, predictions: Predictions, found: Verification) -> None:
    if predictions.path(record) is None:
        found.absent.append(record)
        return
    arrays = predictions.arrays(record)
    unknown = unknown_transformation(arrays)
    if unknown:
        found.skipped.append(f"{record.signature}: {unknown!r} is registered by a file of yours; give --tasks FILE.py")
        return
    if record.evaluator not in EVALUATORS.names():
        found.mismatches.append(f"{file}: {record.signature}: unknown evaluator {record.evaluator}")
        return
    try:
        scores = EVALUATORS.get(record.evaluator).scores(arrays, record.features)
    except KeyError as error:
        found.mismatches.append(f"{file}: {record.signature}: the predictions lack {error}")
        return
    found.checked += 1
    for key, said, computed in _pairs("metrics", record.model_dump()["metrics"], scores):
        if not _equal(said, computed):
            found.mismatches.append(f"{file}: {record.signature}: {key} is reported as {said}, computed as {computed}")
    for name in sorted(set(record.metrics) - set(scores)):
        found.mismatches.append(f"{file}: {record.signature}: {name} is reported, and not computed")


def _pairs(name: str, said: Any, computed: Any) -> list[tuple[str, Any, Any]]:
    """Numbers to compare, with their names: those of dictionaries and lists one by one."""
    if isinstance(computed, Metric):
        computed = computed.model_dump()
    if isinstance(computed, dict):
        said = said or {}
        return [pair for key, value in computed.items() for pair in _pairs(f"{name}.{key}", said.get(key), value)]
    if isinstance(computed, list):
        said = [*(said or []), *[None] * len(computed)]
        return [(f"{name}[{n}]", said[n], value) for n, value in enumerate(computed)]
    return [(name, said, computed)]


def _equal(said: Any, computed: Any) -> bool:
    if said is None or computed is None:
        return said is computed or (computed is not None and math.isnan(computed))
    return math.isclose(said, computed, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def _check_tables(file: Path, records: list[Record], found: Verification) -> None:
    """Tables beside a file of records must be what the records say, to the last character."""
    there = {record.baseline for record in records}
    for name in table_names():
        path = file.parent / f"{name}.csv"
        if not path.is_file():
            continue
        definition, written = load_definition(name), path.read_text(encoding="utf-8")
        own = [row for row in definition.rows if row not in CONTROLS]
        rows = [*own, *sorted(there.difference(own, CONTROLS)), *CONTROLS]
        rows = [row for row in rows if row in there]
        head = written.partition("\n")[0].split(",")
        columns = [c for c in definition.columns if f"{c.replace(':', '_')}_published" in head]
        try:
            expected = table_frame(definition, rows, columns, records).to_csv(index=False)
        except UserError as error:  # a baseline of the user's own, whose title stands in a file that is not known here
            found.skipped.append(f"{path}: {error.problem}")
            continue
        found.tables += 1
        if expected != written:
            found.mismatches.append(f"{path} is not what {file} says")
