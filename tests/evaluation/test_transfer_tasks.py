"""Linear transfer through the pipeline: whole pictures, the chosen metric, generated data under their own name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from scored import Pixels
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from transfer_tree import write_tree

from equibench.audit.compare import compare
from equibench.audit.verify import verify
from equibench.data.dataset import Dataset
from equibench.data.transfer import load_transfer
from equibench.encoders.adapter import ImageEncoder, Preprocessing
from equibench.encoders.vit import ViTEncoder
from equibench.errors import UserError
from equibench.evaluation.classification import labelled_images, whole_pictures
from equibench.evaluation.context import Context, Row, vit_identity
from equibench.evaluation.evaluator import evaluate, evaluator_of
from equibench.profiles import get_profile
from equibench.records import Record, predictions_path, read_predictions
from equibench.runner import table as api
from equibench.task import TASKS
from equibench.transforms.transformation import view_spec

TINY = get_profile("tiny")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small data in the layouts of DTD, Pets and Aircraft."""
    root = tmp_path_factory.mktemp("generated")
    for name in ("dtd", "pets", "aircraft"):
        write_tree(name, root)
    return root


@pytest.fixture(scope="module")
def context(solids_dataset: Dataset, generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    return Context(
        profile=TINY,
        dataset=solids_dataset,
        variant="headline",
        work=tmp_path_factory.mktemp("work"),
        device=torch.device("cpu"),
        bf16=False,
        data_root=generated,
    )


def pixels(radius: float | None = 11.5) -> Row:
    views = replace(view_spec("headline", 32), radius=radius)
    encoder = ImageEncoder(Pixels(), architecture="pixels", preprocessing=Preprocessing(32), views=views)
    return Row("pixel_encoder", lambda: encoder, encoder.identity, "weights")


@pytest.mark.parametrize("name", ["dtd", "pets"])
def test_scores_are_scikit_learn_s_of_what_is_kept(name: str, context: Context) -> None:
    task = TASKS.get(f"linear_{name}")
    (record,) = evaluate(pixels(), task, context)
    stored = read_predictions(predictions_path(context.work, record.evaluation_sha256))
    data = load_transfer(name, size=32, data_root=context.data_root)
    assert (stored["labels"] == data.test.labels).all()
    said = stored["full/predictions"]
    assert record.metrics["top1"].value == pytest.approx(accuracy_score(data.test.labels, said))
    assert record.metrics["mean_per_class"].value == pytest.approx(balanced_accuracy_score(data.test.labels, said))
    assert record.main_metric == {"dtd": "top1", "pets": "mean_per_class"}[name]
    assert record.data == f"rendered-{name}"
    assert record.data_sha256 == data.sha256
    assert record.pairs == [len(data.train.labels), len(data.val.labels), len(data.test.labels)]
    assert record.metrics["top1"].floor == 1 / len(data.class_names)
    first = labelled_images(task, context).views["test"].images[slice(0, 5)]
    assert (np.asarray(first) == data.test.images[:5]).all()


def test_an_encoder_sees_the_corners_of_single_images_though_views_hide_them() -> None:
    images = torch.zeros(2, 3, 32, 32)
    images[1, :, :6, :6] = 1  # outside the disc
    masked = pixels()
    hidden = masked.encoder.represent(images)  # type: ignore[operator]
    assert torch.equal(hidden[0], hidden[1])
    whole = whole_pictures(masked)
    seen = whole.encoder.represent(images)  # type: ignore[operator]
    assert not torch.allclose(seen[0], seen[1])
    assert whole.identity != masked.identity, "or stored features of one would be taken for the other's"
    assert dict(whole.identity or {}) == whole.encoder.identity
    assert torch.equal(masked.encoder.represent(images), hidden), "the encoder itself is left as it was"  # type: ignore[operator]


def test_the_suite_s_own_encoders_keep_the_disc_that_they_were_trained_with() -> None:
    spec = view_spec("headline", 32)
    encoder = ViTEncoder(TINY.encoder, 32, spec)
    opened = ImageEncoder(encoder, architecture="equibench:vit", preprocessing=Preprocessing(32), views=spec)
    assert opened.identity is not None
    for identity in (vit_identity("x", TINY, spec), opened.identity):
        mine = Row("vit", lambda: opened, identity)
        assert whole_pictures(mine) is mine


def test_published_data_that_are_absent_are_never_replaced(context: Context) -> None:
    for name, folder in (("food101", "food-101"), ("cifar10", "cifar-10-batches-bin")):
        task = TASKS.get(f"linear_{name}")
        assert f"put the folder {folder} below" in evaluator_of(task).missing_data(task, context)
        with pytest.raises(UserError, match="Food-101|CIFAR-10"):
            evaluate(pixels(), task, context)
    present = TASKS.get("linear_dtd")
    assert evaluator_of(present).missing_data(present, context) == ""


def test_a_picture_that_does_not_decode_is_named_or_left_out_and_counted(context: Context, tmp_path: Path) -> None:
    root = write_tree("dtd", tmp_path / "data", classes=3, per_class=(6, 4), size=32)
    broken = sorted(root.rglob("*.jpg"))[0]
    broken.write_bytes(b"no picture")
    task = TASKS.get("linear_dtd")
    with pytest.raises(UserError, match=broken.name):
        evaluate(pixels(), task, replace(context, data_root=root))
    (record,) = evaluate(pixels(), task, replace(context, data_root=root, skip_bad=True))
    assert record.left_out == 1
    assert record.data == "rendered-dtd", "wherever generated data lie, they are called so"
    assert sum(record.pairs) == len(list(root.rglob("*.jpg"))) - 1


@pytest.fixture(scope="module")
def table5(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> api.TableResult:
    folder = tmp_path_factory.mktemp("table5")
    return api.table(
        "table5",
        profile="tiny",
        rows=["supervised"],
        columns=["linear_dtd", "linear_aircraft", "linear_food101"],
        data_root=generated,
        jobs=1,
        runs=folder / "runs",
        out=folder / "results",
        console=Console(quiet=True),
    )


def test_a_table_is_in_percent_and_says_what_was_generated_and_what_was_not_there(table5: api.TableResult) -> None:
    frame = table5.frame.set_index("baseline")
    record = next(r for r in table5.records if (r.baseline, r.task) == ("supervised", "linear_dtd"))
    assert float(frame.loc["supervised", "linear_dtd_top1"]) == pytest.approx(100 * record.metrics["top1"].value)
    assert frame.loc["supervised", "linear_dtd_published"] == "62.03"
    assert frame.loc["supervised", "linear_aircraft_data"] == "rendered-aircraft"
    text = table5.files[1].read_text(encoding="utf-8")
    assert "DTD (rendered)" in text
    assert "oracle" not in frame.index
    assert {record.task for record in table5.records} == {"linear_dtd", "linear_aircraft"}
    (note,) = table5.notes
    assert "food-101" in note
    assert note in text


def test_its_scores_can_be_verified_and_compared(table5: api.TableResult) -> None:
    folder, runs = table5.files[0].parent, table5.context.work.parents[1]
    found = verify(folder, runs=runs)
    assert found.checked == len(table5.records)
    assert found.tables == 1
    assert not found.mismatches
    differences = compare(f"{folder}:supervised", f"{folder}:constant", places=[folder, runs])
    records: dict[tuple[str, str], Record] = {(r.baseline, r.task): r for r in table5.records}
    for one in differences:
        a, b = (records[row, one.task].interval() for row in ("supervised", "constant"))
        assert a is not None
        assert b is not None
        assert one.difference == pytest.approx(a[0] - b[0])
