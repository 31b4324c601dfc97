"""Views for other code and its features back: the same score as here, and nothing else is taken for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scored import PAIRS, Pixels, quick
from typer.testing import CliRunner

import equibench.runner.open
from equibench.cli import app
from equibench.data.dataset import Dataset
from equibench.data.load import load_dataset
from equibench.encoders.open import open_encoder
from equibench.errors import UserError
from equibench.runner.exchange import export_pairs
from equibench.runner.score import score
from equibench.transforms.transformation import TRANSFORMATIONS, transform_sequence, view_spec

ASKED: dict[str, Any] = {"profile": "tiny", "pairs": PAIRS, "data": "solids", "tasks": ["flip", "flip.wahba"]}


@pytest.fixture(scope="module", autouse=True)
def _few_solids(solids_dataset: Dataset) -> Iterator[None]:
    def load(name: Any, **options: Any) -> Dataset:
        return solids_dataset if name == "solids" else load_dataset(name, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equibench.runner.open, "load_dataset", load)
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, _few_solids: None) -> Path:
    folder = tmp_path_factory.mktemp("exchange") / "views"
    export_pairs(folder, png=True, **ASKED)
    return folder


@pytest.fixture(scope="module")
def features(exported: Path) -> Path:
    """What the encoder of `Pixels` makes of the exported views, with the batches in which it is given them here."""
    folder = exported.parent / "features"
    folder.mkdir()
    shutil.copy(exported / "manifest.json", folder)
    size = json.loads((exported / "manifest.json").read_text())["size"]
    encoder = open_encoder(Pixels(), views=view_spec("headline", size)).encoder
    for name in json.loads((exported / "manifest.json").read_text())["views"]:
        images = torch.from_numpy(np.load(exported / f"{name}.npy")).float() / 255
        with torch.inference_mode():
            np.save(folder / f"{name}.npy", encoder.represent(images).numpy())
    return folder


def copied(features: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(features, tmp_path / "mine"))


def test_views_and_parameters_are_those_of_the_pairs(exported: Path) -> None:
    held, manifest = np.load(exported / "flip.npz"), json.loads((exported / "manifest.json").read_text())
    assert np.bincount([["train", "val", "test"].index(s) for s in held["split"]]).tolist() == list(PAIRS)
    first, second = (np.load(exported / f"{held[which]}.npy") for which in ("first", "second"))
    assert (len(first), len(second)) == tuple(manifest["views"][n]["count"] for n in ("first", "flip"))
    assert [name for name in held if name.startswith("nuisance_")], "a regression's second views pass through more"
    held = np.load(exported / "flip.wahba.npz")  # which the pure ones do not
    first, second = (np.load(exported / f"{held[which]}.npy") for which in ("first", "second"))
    mask = np.load(exported / "mask.npy").astype(bool)
    steps = [{"flip": torch.from_numpy(held["theta"]).float()}]
    assert held["theta"].shape == (len(held["image"]), len(TRANSFORMATIONS["flip"].identity))
    moved = transform_sequence(torch.from_numpy(first[held["first_row"]]).float() / 255, steps, "reflect")
    found = second[held["second_row"]][:, :, mask]
    np.testing.assert_allclose(found, moved.numpy()[:, :, mask] * 255, atol=0.51)
    assert len(np.unique(first[:, :, ~mask].transpose(0, 2, 1).reshape(-1, 3), axis=0)) == 1, "the disc is painted in"
    png = np.asarray(Image.open(exported / "first" / "000003.png"))
    np.testing.assert_array_equal(png, np.load(exported / "first.npy")[3].transpose(1, 2, 0))


def test_features_of_other_code_score_as_the_encoder_does_here(features: Path, tmp_path: Path) -> None:
    asked = {**ASKED, "controls": False}
    here = quick(Pixels(), tmp_path / "here", **asked)
    there = quick(None, tmp_path / "there", features=features, controls=False, name="mine")
    assert there.name == "mine"
    by_task = {r.task: r for r in here.records if r.features == "full"}
    for record in there.records:
        if record.features == "full":
            other = by_task.pop(record.task)
            assert record.pairs_sha256 == other.pairs_sha256
            value, expected = record.metrics[record.main_metric].value, other.metrics[other.main_metric].value
            assert value == pytest.approx(expected, abs=1e-3)
            assert record.encoder_sha256 != other.encoder_sha256
    assert not by_task


def test_the_command_in_a_record_gives_the_same_score(features: Path, tmp_path: Path) -> None:
    given = ["score", "--features", str(features), "--tasks", "flip.wahba", "--no-controls", "--json"]
    told = []
    for place in ("a", "b"):
        places = ["--runs", str(tmp_path / place), "--out", str(tmp_path / place)]
        said = CliRunner().invoke(app, [*given, *places])
        assert said.exit_code == 0, said.output
        (record,) = [r for r in json.loads(said.stdout)["records"] if r["features"] == "full"]
        told.append((record["signature"], record["metrics"]["wahba"]["value"]))
        assert f"|features.{record['encoder_sha256'][:8]}|" in record["signature"]
        given = [*record["command"].split()[1:], "--no-controls", "--json"]
    assert told[0] == told[1]


def drop_a_row(folder: Path) -> None:
    np.save(folder / "flip.npy", np.load(folder / "flip.npy")[1:])


def change_the_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"what": "first', '"what": "other'))


def give_nan(folder: Path) -> None:
    values = np.load(folder / "flip.npy")
    values[-1, -1] = np.nan
    np.save(folder / "flip.npy", values)


WRONG = [
    (drop_a_row, r"flip.npy holds 223 rows for 224 views"),
    (lambda folder: (folder / "flip.npy").unlink(), r"flip.npy cannot be read"),
    (lambda folder: (folder / "manifest.json").unlink(), r"manifest.json is absent"),
    (lambda folder: (folder / "manifest.json").write_text("{}"), r"no manifest of views: package_version"),
    (lambda folder: np.save(folder / "flip.npy", np.zeros((224, 3))), r"flip has 3 columns, the|flip.npy has 3 col"),
    (lambda folder: np.save(folder / "flip.npy", np.zeros((224, 3, 2))), r"flip.npy holds float64 \(224, 3, 2\)"),
    (lambda folder: np.save(folder / "flip.npy", np.full((224, 48), 1e6)), r"flip.npy: features are not finite, bey"),
    (lambda folder: np.save(folder / "flip.npy", np.array([None] * 224)), r"flip.npy cannot be read"),
    (give_nan, r"flip.npy: features are not finite"),
    (change_the_manifest, r"was changed: its digest"),
]


@pytest.mark.parametrize(("spoil", "said"), WRONG)
def test_what_does_not_fit_is_refused(spoil: Any, said: str, features: Path, tmp_path: Path) -> None:
    folder = copied(features, tmp_path)
    spoil(folder)
    with pytest.raises(UserError, match=said) as told:
        score(features=folder, runs=tmp_path / "runs", out=tmp_path / "out")
    assert told.value.fix


def test_other_tasks_data_and_options_are_refused(features: Path, exported: Path, tmp_path: Path) -> None:
    places: dict[str, Any] = {"features": features, "runs": tmp_path / "runs", "out": tmp_path / "out"}
    with pytest.raises(UserError, match=r"no features of the views .* an export of flip, flip.wahba"):
        score(**places, tasks=["rotation"])
    with pytest.raises(UserError, match="profile=cifar10 was asked for"):
        score(**places, profile="cifar10")
    with pytest.raises(UserError, match="neither an encoder nor features"):
        score(runs=tmp_path / "runs")
    with pytest.raises(UserError, match="both an encoder and features"):
        score("timm:test_vit", **places)
    with pytest.raises(UserError, match="not an empty folder"):
        export_pairs(exported, **ASKED)
    with pytest.raises(UserError, match="no pairs to export"):
        export_pairs(tmp_path / "x", **{**ASKED, "tasks": ["linear_pets"]})


def test_pictures_that_have_changed_since_the_export_are_refused(tmp_path: Path) -> None:
    def photos(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for number in range(60):
            (tmp_path / "photos").mkdir(exist_ok=True)
            Image.fromarray(rng.integers(256, size=(16, 16, 3), dtype=np.uint8)).save(tmp_path / f"photos/{number}.png")

    photos(0)
    asked = {"data": tmp_path / "photos", "image_size": 16, "profile": "tiny", "pairs": (20, 4, 6), "tasks": ["flip"]}
    export_pairs(tmp_path / "views", **asked)
    for name in json.loads((tmp_path / "views" / "manifest.json").read_text())["views"]:
        images = np.load(tmp_path / "views" / f"{name}.npy")
        np.save(tmp_path / "views" / f"{name}.npy", images.reshape(len(images), -1).astype(np.float32))
    photos(1)
    with pytest.raises(UserError, match=r"views of photos.\w{8}, and the data are photos.\w{8} now"):
        score(features=tmp_path / "views", runs=tmp_path / "runs", out=tmp_path / "out")
