"""The record: one line of JSON for each score, and all that is needed to make it again; each key is documented.

    for record in read_records(Path("results/demo/table2/records.jsonl")):
        print(record.signature, record.metrics["r2"].value)

What is not known, or makes no sense for a score, is absent.
"""

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from equibench.errors import UserError
from equibench.utils.files import (
    append_line,
    cut_torn_line,
    digest_of,
    read_lines,
    writable_folder,
    write_atomically,
    write_text,
)

RECORDS = "records.jsonl"
Interval = tuple[float, float, float]
"""A value with the lower and upper end of its interval."""


class Seeds(BaseModel):
    """Seeds behind a score."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    pretraining: int | None = Field(default=None, description="of the encoder's initialisation and pairs")
    probe: list[int] = Field(description="one probe each; the score is their mean")


class Metric(BaseModel):
    """One number; `equibench list metrics` says what it means."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="null")
    value: float | None = Field(default=None, description="absent where it is not defined (0 divided by 0)")
    low: float | None = Field(default=None, description="lower end of the 95 % bootstrap interval over test images")
    high: float | None = Field(default=None, description="upper end of that interval")
    floor: float | None = Field(
        default=None, description="what is reached without seeing an image: by the training mean, or by guessing"
    )
    std_probe: float | None = Field(default=None, description="standard deviation over probe seeds")
    per_dimension: list[float] | None = Field(
        default=None, description="of each of the record's parameters, mean over probe seeds"
    )

    def interval(self) -> Interval | None:
        """Value, lower and upper end, or None where one of them is not defined."""
        found = (self.value, self.low, self.high)
        return None if None in found else found  # type: ignore[return-value]


class Record(BaseModel):
    """One score of one row on one task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    baseline: str = Field(
        description="id of the row: a registered baseline, a control, or the encoder that was scored, where a file's "
        "name is followed by 8 digits of its weights' digest"
    )
    task: str = Field(description="id of the column")
    task_version: int = Field(description="version of the task's definition")
    evaluator: str = Field(description="how it is measured: regression, action, classification, segmentation, ...")
    profile: str = Field(description="sizes and schedule, by name; `equibench list profiles`")
    variant: str = Field(
        description="the views: headline (mirrored fill, disc), paper_like (black fill, no disc), or rendered (the "
        "data's own pictures)"
    )
    data: str = Field(description="name of the data set that it was scored on")
    data_sha256: str = Field(description="digest of its images and labels")
    features: str = Field(
        description="which features were looked at: full, invariant, equivariant, or layer:NAME for an inner layer"
    )
    seeds: Seeds = Field(description="pretraining seed and probe seeds")
    main_metric: str = Field(description="the metric by which encoders are compared: a key of `metrics`")
    metrics: dict[str, Metric] = Field(description="every number by name; `equibench list metrics` explains them")
    parameters: list[str] | None = Field(default=None, description="what the dimensions are, with units")
    pairs: list[int] = Field(description="number of pairs, or of images where one is looked at, in train, val and test")
    pairs_sha256: str = Field(description="digest of the manifests: images, parameters, splits")
    known_fraction: float = Field(default=1.0, description="of the pretraining images, whose θ the method could see")
    left_out: int = Field(default=0, description="bad images, views or annotations that were left out of the data")
    encoder: str | None = Field(default=None, description="the encoder in words")
    encoder_sha256: str | None = Field(default=None, description="digest of the encoder's weights")
    recipe_sha256: str | None = Field(default=None, description="digest of the pretraining recipe")
    evaluation_sha256: str = Field(description="digest of everything the score depends on; equal digests, equal scores")
    probe: dict[str, Any] = Field(
        description="how what stands on the features is trained: width, epochs, ...; best_epochs are those chosen on "
        "the validation split, per probe seed"
    )
    precision: str = Field(description="of encoder and probe: bf16-mixed or 32-true")
    package_version: str = Field(description="version of equibench")
    torch_version: str = Field(description="version of torch")
    collapsed: bool | None = Field(default=None, description="whether pretraining ended with collapsed features")
    diagnostics: dict[str, float] | None = Field(
        default=None,
        description="what the method said of itself on held-out pairs when pretraining ended; halves_overlap is the R² "
        "of the equivariant half as a linear function of the invariant one",
    )
    trained: bool | None = Field(
        default=None, description="whether by these diagnostics the method has learned what it is for"
    )
    pretraining_seconds: float | None = Field(default=None, description="wall time of the pretraining run")
    seconds: float = Field(description="wall time of this task's evaluation, shared by its feature sets")
    command: str = Field(description="the command that makes the score again")

    @property
    def signature(self) -> str:
        """The score's recipe in one short line, which `equibench explain` turns into the full one.

        task.version | data.digest | pairs.digest | row.weights | features | variant | identifier
        """
        data = with_digest(self.data, self.data_sha256)
        pairs = with_digest(f"pairs{self.pairs[-1]}", self.pairs_sha256)
        row = (with_digest(self.baseline, self.encoder_sha256), self.features, self.variant, self.identifier)
        parts = (f"{self.task}.{self.task_version}", data, pairs, *row)
        return "|".join(part.replace("|", "/").replace(" ", "_") for part in parts)

    @property
    def identifier(self) -> str:
        """The signature's last part, which is enough to find the record: 12 hexadecimal digits."""
        return digest_of([self.evaluation_sha256, self.baseline, self.features, self.seeds.pretraining])[:12]

    def interval(self, metric: str | None = None) -> Interval | None:
        """A metric with its interval, the main one unless told; None where it is absent or not defined."""
        found = self.metrics.get(metric or self.main_metric)
        return found.interval() if found else None


def with_digest(name: str, sha256: str | None) -> str:
    """A name with the first 8 digits of a digest, which tells it from its namesakes: "checkpoint.pth.14124998".

    The name alone where there is no digest, or it ends in these digits already.
    """
    ending = f".{sha256[:8]}" if sha256 else ""
    return name.removesuffix(ending) + ending


def read_records(path: Path) -> list[Record]:
    """The records of a journal; a UserError names the line that is none."""
    records = []
    for number, line in enumerate(read_lines(path), start=1):
        line.pop("signature", None)
        try:
            records.append(Record.model_validate(line))
        except ValidationError as error:
            first = error.errors()[0]
            problem = f"{path}, line {number} is not a record of this version: {first['loc'][0]}: {first['msg']}"
            raise UserError(problem, f"move {path} away; its scores are computed again") from error
    return records


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Append to a journal, in one write, after cutting off a line that a kill left unfinished."""
    writable_folder(path.parent)
    cut_torn_line(path)
    append_line(path, "\n".join(map(record_line, records)))


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write a whole file of records atomically."""
    write_text(path, "".join(record_line(record) + "\n" for record in records))


def record_line(record: Record) -> str:
    """A record as one line of JSON, its signature first."""
    return '{"signature":' + json.dumps(record.signature) + "," + record.model_dump_json(exclude_none=True)[1:]


def predictions_path(work: Path, evaluation_sha256: str) -> Path:
    """Where the arrays behind a score are kept."""
    return work / "predictions" / f"{evaluation_sha256[:32]}.npz"


def keep_predictions(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Store the arrays from which every score of a measurement can be computed again."""
    write_atomically(path, lambda temporary: np.savez_compressed(temporary, **dict(arrays)))  # type: ignore[arg-type]


def read_predictions(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays behind a score; a UserError if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged: {error}", "remove it and score again") from error
