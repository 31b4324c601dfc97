"""The record: one line of JSON for each score, and all that is needed to make it again; each key is documented."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from equibench.errors import UserError
from equibench.files import append_line, read_lines, writable_folder, write_text

FeatureSet = Literal["full", "invariant", "equivariant"]


class Seeds(BaseModel):
    """Seeds behind a score."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    pretraining: int | None = Field(description="of the encoder's initialisation and pairs; null for pixel controls")
    probe: list[int] = Field(description="one probe each; the score is their mean")


class Record(BaseModel):
    """One score of one row on one task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    baseline: str = Field(description="id of the row: a registered baseline or a control")
    task: str = Field(description="id of the column")
    task_version: int = Field(description="version of the task's definition")
    profile: str = Field(description="sizes and schedule: tiny, demo, cifar10")
    variant: str = Field(description="the views: headline (mirrored fill, disc) or paper_like (black fill, no disc)")
    data: str = Field(description="name of the data set")
    data_sha256: str = Field(description="digest of its images and labels")
    features: FeatureSet = Field(description="which channels of the representation the probe saw")
    seeds: Seeds = Field(description="pretraining seed and probe seeds")
    r2: float | None = Field(
        description="R² per dimension on standardised targets, averaged over dimensions and probe seeds; the headline. "
        "null for a half of an encoder that has no halves"
    )
    r2_low: float | None = Field(description="lower end of the 95 % bootstrap interval over test images")
    r2_high: float | None = Field(description="upper end of that interval")
    r2_std_probe: float | None = Field(description="standard deviation over probe seeds")
    r2_floor: float = Field(description="r2 of the constant predictor (the training mean)")
    r2_pooled: float | None = Field(description="R² with one scalar mean over all dimensions, in the published coding")
    r2_pooled_floor: float = Field(description="r2_pooled of the constant predictor")
    per_dimension: list[float] | None = Field(description="R² of each parameter, mean over probe seeds")
    parameters: list[str] = Field(description="what the dimensions are, with units")
    best_epochs: list[int] | None = Field(description="the probe epoch chosen on the validation split, per probe seed")
    pairs: list[int] = Field(description="number of pairs in train, val and test")
    pairs_sha256: str = Field(description="digest of the pair manifest: images, parameters, splits")
    encoder_sha256: str | None = Field(description="digest of the encoder's weights; null for pixel controls")
    recipe_sha256: str | None = Field(description="digest of the pretraining recipe; null for controls")
    evaluation_sha256: str = Field(description="digest of everything the score depends on; equal digests, equal scores")
    probe: dict[str, float] = Field(description="width, epochs, batch and learning rate of the probe")
    precision: str = Field(description="of encoder and probe: bf16-mixed or 32-true")
    package_version: str = Field(description="version of equibench")
    torch_version: str = Field(description="version of torch")
    collapsed: bool | None = Field(description="whether pretraining ended with collapsed features")
    pretraining_seconds: float | None = Field(description="wall time of the pretraining run; null for controls")
    seconds: float = Field(description="wall time of this task's evaluation, shared by its feature sets")


def read_records(path: Path) -> list[Record]:
    """The records of a journal.

    Raises:
        UserError: a line that is no record, with its number.
    """
    records = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            records.append(Record.model_validate(line))
        except ValidationError as error:
            raise UserError(
                f"{path}, line {number} is not a record of this version: {error.errors()[0]['msg']}",
                f"move {path} away; its scores are computed again",
            ) from error
    return records


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Append to a journal, in one write, after cutting off a line that a kill left unfinished."""
    writable_folder(path.parent)
    if path.exists() and (text := path.read_text(encoding="utf-8")) and not text.endswith("\n"):
        write_text(path, text[: text.rfind("\n") + 1])
    append_line(path, "\n".join(record.model_dump_json() for record in records))


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write a whole file of records atomically."""
    write_text(path, "".join(record.model_dump_json() + "\n" for record in records))
