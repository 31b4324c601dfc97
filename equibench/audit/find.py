"""Records and the predictions behind them, found again in results and in work in progress; a signature explained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from equibench.errors import UserError, closest
from equibench.evaluation.evaluator import Arrays
from equibench.records import RECORDS, Record, predictions_path, read_predictions, read_records
from equibench.transforms.transformation import TRANSFORMATIONS

PLACES = (Path("results"), Path("runs"))


@dataclass(frozen=True)
class Stored:
    """A record and the file that holds it."""

    record: Record
    path: Path


def stored_records(places: Iterable[str | Path] = PLACES) -> list[Stored]:
    """All records below these folders (or in these files), each score once, in the order of the places.

    Raises:
        UserError: a file is no journal.
    """
    found: dict[str, Stored] = {}
    for place in map(Path, places):
        for path in [place] if place.is_file() else sorted(place.rglob(RECORDS)):
            for record in read_records(path):
                found.setdefault(record.identifier, Stored(record, path))
    return list(found.values())


class Predictions:
    """The stored arrays behind scores, wherever below some folders they are kept."""

    def __init__(self, places: Iterable[str | Path] = PLACES) -> None:
        self.places = [Path(place) for place in places]
        self._files: dict[str, Path] | None = None

    def path(self, record: Record) -> Path | None:
        """The file behind a record, or None where it is not here."""
        if self._files is None:
            folders = [f for place in self.places if place.is_dir() for f in place.rglob("predictions") if f.is_dir()]
            self._files = {file.name: file for folder in folders for file in folder.glob("*.npz")}
        return self._files.get(predictions_path(Path(), record.evaluation_sha256).name)

    def arrays(self, record: Record) -> Arrays:
        """The arrays behind a record.

        Raises:
            UserError: they are not here, or damaged.
        """
        path = self.path(record)
        if path is None:
            raise UserError(
                f"the predictions behind {record.signature} are not below {', '.join(map(str, self.places))}",
                f"make them again: {record.command}",
            )
        return read_predictions(path)


def unknown_transformation(arrays: Arrays) -> str | None:
    """The transformation behind stored predictions, if it is one that no built-in and no loaded file has registered."""
    name = str(arrays.get("transformation", ""))
    return name if name and name not in TRANSFORMATIONS else None


def select(name: str, places: Sequence[str | Path] = PLACES) -> list[Record]:
    """The records of one row.

    Args:
        name: the row's name in any record below `places`; a results folder or records file with one scored
            encoder; or such a path and a name, as in "results/demo/table2:vicreg".

    Raises:
        UserError: nothing or nobody of that name.
    """
    path, row = (name, "") if _holds_records(name) else name.partition(":")[::2]
    if _holds_records(path):
        own = Path(path) / RECORDS  # a folder with records is meant without those of the folders below it
        records = [stored.record for stored in stored_records([own if own.is_file() else path])]
        names = sorted({record.baseline for record in records})
        row = row or _only_encoder(path, records)
    else:
        records, row = [stored.record for stored in stored_records(places)], name
        names = sorted({record.baseline for record in records})
    chosen = [record for record in records if record.baseline == row]
    if not chosen:
        raise UserError(
            f"no record of {row!r} was found{closest(row, names)}",
            f"score it first: equibench score; known here: {', '.join(names) or 'nobody'}",
        )
    return chosen


def _holds_records(path: str) -> bool:
    """Whether a name is meant as a place of records: an encoder may be called like its file of weights."""
    return bool(path) and (Path(path).is_dir() or (Path(path).is_file() and path.endswith(".jsonl")))


def _only_encoder(path: str, records: Sequence[Record]) -> str:
    """The one encoder of a score's folder that is no control."""
    from equibench.evaluation.controls import CONTROLS

    names = sorted({record.baseline for record in records if record.baseline not in CONTROLS})
    if len(names) != 1:
        raise UserError(
            f"{path} holds {len(names)} scored encoders: {', '.join(names) or 'none'}",
            f"say which: {path}:{names[0] if names else 'NAME'}",
        )
    return names[0]


@dataclass(frozen=True)
class Explanation:
    """A score, where it is kept, and where the predictions behind it are (None if they are not here)."""

    record: Record
    path: Path
    predictions: Path | None

    @property
    def score(self) -> str:
        """The headline in words."""
        found = self.record.interval()
        if found is None:
            return "none: the score is not defined"
        return f"{self.record.main_metric} {found[0]:.4f}, 95 % interval {found[1]:.4f} to {found[2]:.4f}"


def explain(signature: str, places: Sequence[str | Path] = PLACES) -> Explanation:
    """Find the score that a signature stands for.

    Args:
        signature: the whole line, or its last part (or the beginning of that, if it is unambiguous).
        places: folders in which records and predictions are looked for.

    Raises:
        UserError: no such score, or several.
    """
    identifier = signature.strip().strip("`").rpartition("|")[2]
    stored = stored_records([place for place in places if Path(place).exists()])
    found = [s for s in stored if identifier and s.record.identifier.startswith(identifier)]
    where = ", ".join(map(str, places))
    if not found:
        raise UserError(
            f"no score with the signature {signature!r} was found below {where}",
            "name the folder that holds its records: equibench explain SIGNATURE --in FOLDER",
        )
    if len(found) > 1:
        raise UserError(f"{len(found)} scores have signatures that end in {identifier}...", "give more of its digits")
    record = found[0].record
    if "|" in signature and signature.strip().strip("`") != record.signature:
        raise UserError(
            f"{signature} is not the signature of the score {record.identifier}, which is {record.signature}",
            "one of the two was changed by hand; trust neither",
        )
    return Explanation(record, found[0].path, Predictions(places).path(record))


def recipe_lines(found: Explanation) -> list[tuple[str, str]]:
    """Everything that the record knows, as (what, value)."""
    lines = [("signature", found.record.signature), ("score", found.score), ("record", str(found.path))]
    lines.append(("predictions", str(found.predictions or "not here; the command below makes them again")))
    skipped = {"metrics", "command"}
    for key, value in found.record.model_dump().items():
        if key not in skipped and value is not None:
            lines.append((key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    for name, metric in found.record.metrics.items():
        lines.append((name, "–" if metric.value is None else f"{metric.value:.4f}"))
    return [*lines, ("again with", found.record.command)]
