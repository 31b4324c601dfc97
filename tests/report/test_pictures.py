"""Pictures of the report: the views that are shown are the views that are scored, and what is missing is said."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from equibench.baselines.reconstruction import patches_of
from PIL import Image
from report_results import ROOT, write_results
from rich.console import Console

import equibench.runner.open
from equibench.audit.publish import report_html
from equibench.data.dataset import Dataset
from equibench.errors import UserError
from equibench.records import RECORDS, Record, read_records, write_records
from equibench.report import html_pictures
from equibench.report.html_pictures import IMAGES, VIEWS_OF_EACH, Picture, report_pictures
from equibench.report.html_tables import ReportSource, main_columns
from equibench.runner.table import pretrain
from equibench.transforms.transformation import BUILT_IN, view_spec, visible_disc

GAP, SIDE = 2, 32


@pytest.fixture(autouse=True)
def small_data(solids_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session's images in place of those that would be rendered again."""
    for module in (html_pictures, equibench.runner.open):
        monkeypatch.setattr(module, "load_dataset", lambda *_, **__: solids_dataset)


def source_of(records: list[Record]) -> ReportSource:
    names = {record.baseline: record.baseline for record in records}
    return ReportSource("here", "records", records, "", None, names, main_columns(records), {})  # type: ignore[arg-type]


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    write_results(tmp_path)
    found = read_records(tmp_path / "results/tiny/table2" / RECORDS)
    return [record.model_copy(update={"data": "solids"}) for record in found]


def tiles(picture: Picture) -> np.ndarray:
    """The views of a picture (rows, columns, S, S, 3) in [0, 255]."""
    data = base64.b64decode(picture.data.removeprefix("data:image/png;base64,"))
    sheet = np.asarray(Image.open(io.BytesIO(data)))
    assert sheet.shape[:2] == (picture.height, picture.width)
    step = SIDE + GAP
    rows, columns = (sheet.shape[0] + GAP) // step, (sheet.shape[1] + GAP) // step
    found = [[sheet[i * step :][:SIDE, j * step :][:, :SIDE, :3] for j in range(columns)] for i in range(rows)]
    return np.array(found).astype(int)


def test_each_transformation_is_shown_at_five_values_with_the_mask(
    records: list[Record], solids_dataset: Dataset
) -> None:
    pictures, left_out = report_pictures([source_of(records)], {}, None)
    assert len(pictures) == len(BUILT_IN)
    assert [note.partition(":")[0] for note in left_out] == ["reconstructions", "retrieved transforms"]
    mask = visible_disc(SIDE, view_spec("headline", SIDE).radius or 0).numpy()[..., None]
    images = np.moveaxis(np.asarray(solids_dataset.test.images[:IMAGES]).astype(int), 1, -1)
    for picture in pictures:
        views = tiles(picture)
        assert views.shape == (IMAGES, 1 + VIEWS_OF_EACH, SIDE, SIDE, 3)
        np.testing.assert_array_equal(views[:, 0], images * mask)
        assert not (views * (1 - mask)).any()


def test_the_values_are_the_ends_and_the_middle_of_the_range(records: list[Record], solids_dataset: Dataset) -> None:
    pictures = {p.title: p for p in report_pictures([source_of(records)], {}, None)[0]}
    rotation, shift = tiles(pictures["Views: Rotation"]), tiles(pictures["Views: Translation"])
    assert "θ = -45; -22; 0; 22; 45 (degrees" in pictures["Views: Rotation"].caption
    assert np.abs(rotation[:, 3] - rotation[:, 0]).max() <= 1  # by 0 degrees
    assert "-4, -4; -2, -2; 0, 0; 2, 2; 4, 4" in pictures["Views: Translation"].caption
    images = np.moveaxis(np.asarray(solids_dataset.test.images[:IMAGES]).astype(int), 1, -1)
    inner = slice(SIDE // 2 - 6, SIDE // 2 + 6)
    moved = np.roll(images, (4, 4), axis=(1, 2))[:, inner, inner]  # to the right and down by 4 px
    assert np.abs(shift[:, 5, inner, inner] - moved).max() <= 1


def test_a_run_of_the_method_is_redrawn_and_searched(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = pretrain("reconstruction", profile="tiny", device="cpu", console=Console(quiet=True))
    logs = {str(records[0].encoder_sha256): run.folder / "log.jsonl"}
    pictures, left_out = report_pictures([source_of(records)], logs, None)
    assert left_out == []
    redrawn, retrieved = (next(p for p in pictures if p.title.startswith(w)) for w in ("Reconstruction", "Retrieved"))
    assert "after 30 steps" in redrawn.caption
    assert tiles(redrawn).shape[0] == 3
    views = tiles(retrieved)
    bank = views[:, 2:]
    assert views.shape[:2] == (IMAGES, 7)
    assert all(len({view.tobytes() for view in row}) == len(row) for row in bank)  # five different views


def test_patches_become_the_image_that_they_were() -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(html_pictures._unpatched(patches_of(images, 4), 4, 16), images)


def test_without_the_data_the_reason_stands_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> Dataset:
        raise UserError("CIFAR-10 is nowhere on this machine")

    monkeypatch.setattr(html_pictures, "load_dataset", absent)
    records = write_results(tmp_path)
    write_records(tmp_path / "some" / RECORDS, records)
    written = report_html(tmp_path / "some", out=tmp_path / "r.html", runs=tmp_path)
    assert written.left_out == ["pictures: CIFAR-10 is nowhere on this machine"]
    assert "Left out: pictures: CIFAR-10 is nowhere" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_data_that_come_with_their_views_are_not_transformed() -> None:
    records = read_records(ROOT / "results/demo/table1" / RECORDS)
    pictures, left_out = report_pictures([source_of(records)], {}, None)
    assert pictures == []
    assert "rendered-objects is not transformed by equibench" in left_out[0]
