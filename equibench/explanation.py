"""From a signature to the full recipe of a score, and the command that makes it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from equibench.archive import PLACES, Predictions, stored_records
from equibench.errors import UserError
from equibench.records import Record


@dataclass(frozen=True)
class Explanation:
    """A score, where it is kept, and where the predictions behind it are (None if they are not here)."""

    record: Record
    path: Path
    predictions: Path | None

    @property
    def score(self) -> str:
        """The headline in words."""
        found = self.record.headline_value()
        if found is None:
            return "none: this encoder has no such half, or the score is not defined"
        return f"{self.record.headline} {found[0]:.4f}, 95 % interval {found[1]:.4f} to {found[2]:.4f}"


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
    skipped = {"r2", "r2_low", "r2_high", "metrics", "command"}
    for key, value in found.record.model_dump().items():
        if key not in skipped and value is not None:
            lines.append((key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    for name, metric in found.record.metrics.items():
        lines.append((name, "–" if metric.value is None else f"{metric.value:.4f}"))
    return [*lines, ("again with", found.record.command)]
