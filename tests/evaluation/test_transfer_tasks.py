"""Linear transfer through the pipeline: whole pictures, the chosen metric, generated data under their own name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from equibench.data.transfer_stand_ins import write_stand_in
from rich.console import Console
from scored import Pixels
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from equibench.audit.compare import compare
from equibench.audit.verify import verify
from equibench.data.dataset import Dataset
from equibench.data.transfer import load_transfer
from equibench.encoders.adapter import ImageEncoder, Preprocessing
from equibench.encoders.vit import ViTEncoder
from equibench.errors import UserError
from equibench.evaluation.classification import labelled_images, whole_pictures
from equibench.evaluation.context import OwnData, Setting, Subject
from equibench.evaluation.evaluate import evaluate
from equibench.profiles import get_profile
from equibench.records import Record, predictions_path, read_predictions
from equibench.runner import table as api
from equibench.task import TASKS
from equibench.transforms.transformation import view_spec

TINY = get_profile("tiny")


@pytest.fixture(scope="module")
def setting(solids_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(
        profile=TINY,
        dataset=solids_dataset,
        variant="headline",
        work=tmp_path_factory.mktemp("work"),
        device=torch.device("cpu"),
        bf16=False,
        own_data=OwnData(stand_ins=True),
    )


def subject(radius: float | None = 11.5) -> Subject:
    views = replace(view_spec("headline", 32), radius=radius)
    encoder = ImageEncoder(Pixels(), architecture="pixels", preprocessing=Preprocessing(32), views=views)
    return Subject("pixel_encoder", encoder, encoder.identity, "weights")


@pytest.mark.parametrize("name", ["dtd", "pets"])
def test_scores_are_scikit_learn_s_of_what_is_kept(name: str, setting: Setting) -> None:
    task = TASKS.get(f"linear_{name}")
    (record,) = evaluate(subject(), task, setting)
    stored = read_predictions(predictions_path(setting.work, record.evaluation_sha256))
    data = load_transfer(name, size=32, stand_in=True)
    assert (stored["labels"] == data.test.labels).all()
    said = stored["full/predictions"]
    assert record.metrics["top1"].value == pytest.approx(accuracy_score(data.test.labels, said))
    assert record.metrics["mean_per_class"].value == pytest.approx(balanced_accuracy_score(data.test.labels, said))
    assert record.headline == {"dtd": "top1", "pets": "mean_per_class"}[name]
    assert record.data == f"{name}-generated"
    assert record.data_sha256 == data.sha256
    assert record.pairs == [len(data.train.labels), len(data.val.labels), len(data.test.labels)]
    assert record.metrics["top1"].chance == 1 / len(data.class_names)


def test_an_encoder_sees_the_corners_of_single_images_though_views_hide_them() -> None:
    images = torch.zeros(2, 3, 32, 32)
    images[1, :, :6, :6] = 1  # outside the disc
    masked = subject()
    assert masked.encoder is not None
    hidden = masked.encoder.represent(images)  # type: ignore[operator]
    assert torch.equal(hidden[0], hidden[1])
    whole = whole_pictures(masked)
    assert whole.encoder is not None
    seen = whole.encoder.represent(images)  # type: ignore[operator]
    assert not torch.allclose(seen[0], seen[1])
    assert whole.identity != masked.identity, "or stored features of one would be taken for the other's"
    assert torch.equal(masked.encoder.represent(images), hidden), "the encoder itself is left as it was"  # type: ignore[operator]


def test_the_suite_s_own_encoders_keep_the_disc_that_they_were_trained_with() -> None:
    encoder = ViTEncoder(TINY.encoder, 32, view_spec("headline", 32))
    for one in (encoder, ImageEncoder(encoder, architecture="vit", preprocessing=Preprocessing(32))):
        mine = Subject("vit", one, {"weights": "x"})
        assert whole_pictures(mine) is mine


def test_the_profile_s_own_pictures_stand_in_for_cifar10_where_they_are_generated(setting: Setting) -> None:
    task = TASKS.get("linear_cifar10")
    (record,) = evaluate(Subject("constant"), task, setting)
    assert record.data == "cifar10-generated"
    assert sum(record.pairs) == len(setting.dataset.train.labels) + len(setting.dataset.test.labels)
    images = labelled_images(task, setting)
    first = images.views["test"].images[slice(0, 5)]
    assert (np.asarray(first) == setting.dataset.test.images[:5]).all()


def test_published_data_that_are_absent_are_never_replaced_unasked(setting: Setting, tmp_path: Path) -> None:
    asked = replace(setting, own_data=OwnData(root=tmp_path))
    with pytest.raises(UserError, match="Food101|food-101"):
        evaluate(subject(), TASKS.get("linear_food101"), asked)


def test_a_picture_that_does_not_decode_is_named_or_left_out_and_counted(setting: Setting, tmp_path: Path) -> None:
    root = write_stand_in("dtd", tmp_path / "data", classes=3, per_class=(6, 4), size=32)
    broken = sorted(root.rglob("*.jpg"))[0]
    broken.write_bytes(b"no picture")
    task = TASKS.get("linear_dtd")
    with pytest.raises(UserError, match=broken.name):
        evaluate(subject(), task, replace(setting, own_data=OwnData(root=root)))
    (record,) = evaluate(subject(), task, replace(setting, own_data=OwnData(root=root, skip_bad=True)))
    assert record.left_out == 1
    assert record.data == "dtd-generated", "wherever generated data lie, they are called so"
    assert sum(record.pairs) == len(list(root.rglob("*.jpg"))) - 1


@pytest.fixture(scope="module")
def table5(tmp_path_factory: pytest.TempPathFactory) -> api.TableResult:
    folder = tmp_path_factory.mktemp("table5")
    return api.table(
        "table5",
        profile="tiny",
        rows=["supervised"],
        columns=["linear_dtd", "linear_aircraft"],
        jobs=1,
        runs=folder / "runs",
        out=folder / "results",
        console=Console(quiet=True),
    )


def test_a_table_is_in_percent_and_says_what_was_generated(table5: api.TableResult) -> None:
    frame = table5.frame.set_index("baseline")
    record = next(r for r in table5.records if (r.baseline, r.task) == ("supervised", "linear_dtd"))
    assert float(frame.loc["supervised", "linear_dtd_top1"]) == pytest.approx(100 * record.metrics["top1"].value)
    assert frame.loc["supervised", "linear_dtd_published"] == "62.03"
    assert frame.loc["supervised", "linear_aircraft_data"] == "aircraft-generated"
    text = table5.files[1].read_text(encoding="utf-8")
    assert "DTD (generated)" in text
    assert "oracle" not in frame.index


def test_its_scores_can_be_verified_and_compared(table5: api.TableResult) -> None:
    folder, runs = table5.files[0].parent, table5.place.setting.work.parents[1]
    found = verify(folder, runs=runs)
    assert found.checked == len([r for r in table5.records if r.metrics])
    assert found.tables == 1
    assert not found.mismatches
    differences = compare(f"{folder}:supervised", f"{folder}:constant", places=[folder, runs])
    records: dict[tuple[str, str], Record] = {(r.baseline, r.task): r for r in table5.records}
    for one in differences:
        a, b = (records[row, one.task].headline_value() for row in ("supervised", "constant"))
        assert a is not None
        assert b is not None
        assert one.difference == pytest.approx(a[0] - b[0])
