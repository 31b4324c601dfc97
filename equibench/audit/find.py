"""Records and the predictions behind them, found again in results and in work in progress; a signature explained."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from equibench.errors import UserError, closest
from equibench.evaluation.controls import CONTROLS
from equibench.evaluation.evaluator import Arrays
from equibench.records import RECORDS, Record, predictions_path, read_predictions, read_records, with_digest
from equibench.transforms.transformation import TRANSFORMATIONS

PLACES = (Path("results"), Path("runs"))


def _stored_records(places: Iterable[str | Path]) -> list[tuple[Record, Path]]:
    """All records below these folders (or in these files) with their files, each score once, in the places' order."""
    found: dict[str, tuple[Record, Path]] = {}
    for place in map(Path, places):
        for path in [place] if place.is_file() else sorted(place.rglob(RECORDS)):
            for record in read_records(path):
                found.setdefault(record.identifier, (record, path))
    return list(found.values())


class Predictions:
    """The stored arrays behind scores, wherever below some folders they are kept."""

    def __init__(self, places: Iterable[str | Path]) -> None:
        self.places = [Path(place) for place in places]

    @cached_property
    def _files(self) -> dict[str, Path]:
        folders = [f for place in self.places if place.is_dir() for f in place.rglob("predictions") if f.is_dir()]
        return {file.name: file for folder in folders for file in folder.glob("*.npz")}

    def path(self, record: Record) -> Path | None:
        """The file behind a record, or None where it is not here."""
        return self._files.get(predictions_path(Path(), record.evaluation_sha256).name)

    def arrays(self, record: Record) -> Arrays:
        """The arrays behind a record; a UserError where they are not here, or damaged."""
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
    """The records of one row; a UserError where nothing or nobody has that name, or several networks have it.

    The name is the row's in any record below `places`, with or without the digest at its end; a results folder or
    records file with one scored encoder; or such a path and a name, as in "results/demo/table2:vicreg".
    """
    path, row = (name, "") if _holds_records(name) else name.partition(":")[::2]
    if _holds_records(path):
        own = Path(path) / RECORDS  # a folder with records is meant without those of the folders below it
        places = [own if own.is_file() else path]
    else:
        path, row = "", name
    stored = _stored_records(places)
    names = sorted({record.baseline for record, _ in stored})
    if path and not row:
        encoders = [name for name in names if name not in CONTROLS]
        if len(encoders) != 1:
            raise UserError(
                f"{path} holds {len(encoders)} scored encoders: {', '.join(encoders) or 'none'}",
                f"say which: {path}:{encoders[0] if encoders else 'NAME'}",
            )
        row = encoders[0]
    chosen = [one for one in stored if one[0].baseline == row]
    chosen = chosen or [one for one in stored if one[0].baseline == with_digest(row, one[0].encoder_sha256)]
    if not chosen:
        raise UserError(
            f"no record of {row!r} was found{closest(row, names)}",
            f"score it first: equibench score; known here: {', '.join(names) or 'nobody'}",
        )
    _check_one_network(row, chosen)
    return [record for record, _ in chosen]


def _check_one_network(row: str, stored: Sequence[tuple[Record, Path]]) -> None:
    """Refuse a name that stands for several networks, or one in several ways: a file is overwritten, a name reused."""
    groups: dict[tuple[object, ...], list[tuple[Record, Path]]] = {}
    for record, path in stored:
        question = (record.task, record.features, record.pairs_sha256, record.profile, record.variant)
        groups.setdefault((*question, record.seeds.pretraining, record.known_fraction), []).append((record, path))
    for group in groups.values():
        scored = [record for record, _ in group if record.command.startswith("equibench score")]
        several = len({record.encoder_sha256 for record, _ in group}) > 1
        if several or len({record.encoder for record in scored}) > 1:
            where = {f"{with_digest(r.baseline, r.encoder_sha256)} in {path.parent}": path for r, path in group}
            fix = f"name one by its digest or its folder, such as {group[-1][1].parent}:{group[-1][0].baseline}"
            fix += "; --name gives an encoder a name of its own"
            what = "networks" if several else "ways of using a network"
            raise UserError(f"{row!r} stands for {len(where)} {what}: {', '.join(where)}", fix)


def _holds_records(path: str) -> bool:
    """Whether a name is meant as a place of records: an encoder may be called like its file of weights."""
    return bool(path) and (Path(path).is_dir() or (Path(path).is_file() and path.endswith(".jsonl")))


@dataclass(frozen=True)
class Explanation:
    """A score, where it is kept, and where the predictions behind it are (None if they are not here)."""

    record: Record
    path: Path
    predictions: Path | None


def explain(signature: str, places: Sequence[str | Path] = PLACES) -> Explanation:
    """Find the score that a signature stands for, in folders of records and predictions.

    Args:
        signature: the whole line, or its last part (or the beginning of that, if it is unambiguous).

    Raises:
        UserError: no such score, or several.
    """
    said = signature.strip().strip("`")
    identifier = said.rpartition("|")[2]
    found = [one for one in _stored_records(places) if identifier and one[0].identifier.startswith(identifier)]
    if not found:
        raise UserError(
            f"no score with the signature {signature!r} was found below {', '.join(map(str, places))}",
            "name the folder that holds its records: equibench explain SIGNATURE --in FOLDER",
        )
    if len(found) > 1:
        raise UserError(f"{len(found)} scores have signatures that end in {identifier}...", "give more of its digits")
    record, path = found[0]
    if "|" in said and said != record.signature:
        raise UserError(
            f"{signature} is not the signature of the score {record.identifier}, which is {record.signature}",
            "one of the two was changed by hand; trust neither",
        )
    return Explanation(record, path, Predictions(places).path(record))


def recipe_lines(found: Explanation) -> list[tuple[str, str]]:
    """Everything that the record knows, as (what, value)."""
    record = found.record
    score = "none: the score is not defined"
    if interval := record.interval():
        score = "{} {:.4f}, 95 % interval {:.4f} to {:.4f}".format(record.main_metric, *interval)
    lines = [("signature", record.signature), ("score", score), ("record", str(found.path))]
    lines.append(("predictions", str(found.predictions or "not here; the command below makes them again")))
    for key, value in record.model_dump(exclude={"metrics", "command", "diagnostics"}).items():
        if value is not None:
            lines.append((key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    lines += [(f"held out: {name}", f"{value:.4f}") for name, value in (record.diagnostics or {}).items()]
    for name, metric in record.metrics.items():
        lines.append((name, "–" if metric.value is None else f"{metric.value:.4f}"))
    return [*lines, ("again with", record.command)]
