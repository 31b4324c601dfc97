"""The record: one line of JSON for each score, and all that is needed to make it again; each key is documented."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from equibench.errors import UserError
from equibench.utils.files import append_line, digest_of, read_lines, writable_folder, write_atomically, write_text


def predictions_path(work: Path, evaluation_sha256: str) -> Path:
    """Where the arrays behind a score are kept."""
    return work / "predictions" / f"{evaluation_sha256[:32]}.npz"


def keep_predictions(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Store the arrays from which every score of a measurement can be computed again."""
    write_atomically(path, lambda temporary: np.savez_compressed(temporary, **dict(arrays)))  # type: ignore[arg-type]


def read_predictions(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays behind a score.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged: {error}", "remove it and score again") from error


HALVES = ("full", "invariant", "equivariant")


class Seeds(BaseModel):
    """Seeds behind a score."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    pretraining: int | None = Field(description="of the encoder's initialisation and pairs; null for pixel controls")
    probe: list[int] = Field(description="one probe each; the score is their mean")


class Metric(BaseModel):
    """One number beside or instead of R²; `equibench.metrics.catalogue` says what it means."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="null")
    value: float | None = Field(description="null where it is not defined (0 divided by 0)")
    low: float | None = Field(description="lower end of the 95 % bootstrap interval over test images")
    high: float | None = Field(description="upper end of that interval")
    chance: float | None = Field(default=None, description="what guessing scores, in closed form")

    def interval(self) -> tuple[float, float, float] | None:
        """Value, lower and upper end, or None where one of them is not defined."""
        found = (self.value, self.low, self.high)
        return None if None in found else found  # type: ignore[return-value]


class Record(BaseModel):
    """One score of one subject on one task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    baseline: str = Field(description="id of the row: a registered baseline, a control, or the encoder that was scored")
    task: str = Field(description="id of the column")
    task_version: int = Field(description="version of the task's definition")
    family: str = Field(description="how it is measured: regression, action, classification, segmentation, ...")
    profile: str = Field(description="sizes and schedule, by name; `equibench list profiles`")
    variant: str = Field(
        description="the views: headline (mirrored fill, disc), paper_like (black fill, no disc), or rendered (the "
        "data's own pictures)"
    )
    data: str = Field(description="name of the data set that it was scored on; generated ones are called so")
    data_sha256: str = Field(description="digest of its images and labels")
    features: str = Field(
        description="which features were looked at: full, invariant, equivariant, or layer:NAME for an inner layer"
    )
    seeds: Seeds = Field(description="pretraining seed and probe seeds")
    headline: str = Field(description="the metric by which encoders are compared: r2, or a key of metrics")
    r2: float | None = Field(
        default=None,
        description="R² per dimension on standardised targets, averaged over dimensions and probe seeds. "
        "null for a half of an encoder that has no halves, and outside regression",
    )
    r2_low: float | None = Field(default=None, description="lower end of the 95 % bootstrap interval over test images")
    r2_high: float | None = Field(default=None, description="upper end of that interval")
    r2_std_probe: float | None = Field(default=None, description="standard deviation over probe seeds")
    r2_floor: float | None = Field(default=None, description="r2 of the constant predictor (the training mean)")
    r2_pooled: float | None = Field(
        default=None, description="R² with one scalar mean over all dimensions, in the published coding"
    )
    r2_pooled_floor: float | None = Field(default=None, description="r2_pooled of the constant predictor")
    per_dimension: list[float] | None = Field(default=None, description="R² of each parameter, mean over probe seeds")
    metrics: dict[str, Metric] = Field(description="further numbers by name, see `equibench.metrics.catalogue`")
    parameters: list[str] = Field(description="what the dimensions are, with units")
    best_epochs: list[int] | None = Field(description="the probe epoch chosen on the validation split, per probe seed")
    pairs: list[int] = Field(description="number of pairs, or of images where one is looked at, in train, val and test")
    pairs_sha256: str = Field(description="digest of the manifests: images, parameters, splits")
    known: float = Field(default=1.0, description="share of the pretraining images whose θ the method could see")
    left_out: int = Field(default=0, description="bad images, views or annotations that were left out of the data")
    encoder: str | None = Field(description="the encoder in words; null for pixel controls")
    encoder_sha256: str | None = Field(description="digest of the encoder's weights; null for pixel controls")
    recipe_sha256: str | None = Field(description="digest of the pretraining recipe; null without one")
    evaluation_sha256: str = Field(description="digest of everything the score depends on; equal digests, equal scores")
    probe: dict[str, Any] = Field(description="how what stands on the features is trained: width, epochs, ...")
    precision: str = Field(description="of encoder and probe: bf16-mixed or 32-true")
    package_version: str = Field(description="version of equibench")
    torch_version: str = Field(description="version of torch")
    collapsed: bool | None = Field(description="whether pretraining ended with collapsed features")
    pretraining_seconds: float | None = Field(description="wall time of the pretraining run; null for controls")
    seconds: float = Field(description="wall time of this task's evaluation, shared by its feature sets")
    command: str = Field(description="the command that makes the score again")

    @property
    def signature(self) -> str:
        """The score's recipe in one short line, which `equibench explain` turns into the full one.

        task.version | data.digest | pairs.digest | subject.weights | features | variant | identifier
        """
        weights = f".{self.encoder_sha256[:8]}" if self.encoder_sha256 else ""
        parts = (
            f"{self.task}.{self.task_version}",
            f"{self.data}.{self.data_sha256[:8]}",
            f"pairs{self.pairs[-1]}.{self.pairs_sha256[:8]}",
            f"{self.baseline}{weights}",
            self.features,
            self.variant,
            self.identifier,
        )
        return "|".join(part.replace("|", "/").replace(" ", "_") for part in parts)

    @property
    def identifier(self) -> str:
        """The signature's last part, which is enough to find the record: 12 hexadecimal digits."""
        return digest_of([self.evaluation_sha256, self.baseline, self.features, self.seeds.pretraining])[:12]

    def headline_value(self) -> tuple[float, float, float] | None:
        """The headline metric with its interval, or None where there is none."""
        if self.headline != "r2":
            metric = self.metrics.get(self.headline)
            return metric.interval() if metric else None
        return Metric(value=self.r2, low=self.r2_low, high=self.r2_high).interval()


def read_records(path: Path) -> list[Record]:
    """The records of a journal.

    Raises:
        UserError: a line that is no record, with its number.
    """
    records = []
    for number, line in enumerate(read_lines(path), start=1):
        line.pop("signature", None)
        try:
            records.append(Record.model_validate(line))
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(
                f"{path}, line {number} is not a record of this version: {first['loc'][0]}: {first['msg']}",
                f"move {path} away; its scores are computed again",
            ) from error
    return records


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Append to a journal, in one write, after cutting off a line that a kill left unfinished."""
    writable_folder(path.parent)
    if path.exists() and (text := path.read_text(encoding="utf-8")) and not text.endswith("\n"):
        write_text(path, text[: text.rfind("\n") + 1])
    append_line(path, "\n".join(map(record_line, records)))


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write a whole file of records atomically."""
    write_text(path, "".join(record_line(record) + "\n" for record in records))


def record_line(record: Record) -> str:
    """A record as one line of JSON, its signature first."""
    return '{"signature":' + json.dumps(record.signature) + "," + record.model_dump_json()[1:]
