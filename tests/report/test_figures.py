"""P2's figures: what the frames say, that the published points are the tables', and that drawings follow the frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata
from typer.testing import CliRunner

from equibench.audit.compare import compare
from equibench.audit.figures import figures
from equibench.cli import app
from equibench.errors import UserError
from equibench.records import Metric, Record, Seeds, append_records, keep_predictions, predictions_path, read_records
from equibench.report.figures import dimensions_frame, invariance_frame, published_points, read_names, write_figure
from equibench.utils.files import digest_of

IMAGES, CLASSES = 200, 5
TRUTH = np.random.default_rng(0).integers(0, CLASSES, IMAGES)


def record(row: str, task: str, metric: str, value: float, evaluator: str = "regression", **more: Any) -> Record:
    plain = {"task_version": 1, "profile": "tiny", "variant": "headline", "data": "solids", "data_sha256": "d",
             "features": "full", "pairs": [1, 1, 1], "pairs_sha256": "p", "probe": {}, "precision": "32-true",
             "package_version": "0", "torch_version": "0", "seconds": 1.0, "command": "again",
             "seeds": Seeds(pretraining=0, probe=[0])}  # fmt: skip
    return Record(
        baseline=row, task=task, evaluator=evaluator, main_metric=metric,
        evaluation_sha256=digest_of([row, task, value]),
        metrics={metric: Metric(value=value, low=value - 0.01, high=value + 0.02)}, **{**plain, **more},
    )  # fmt: skip


def both(row: str, rotation: float, color: float, **more: Any) -> list[Record]:
    return [record(row, "rotation", "r2", rotation, **more), record(row, "color", "r2", color, **more)]


# Published points


def test_published_differences_are_those_of_table_5() -> None:
    """Top-1 of C10, C100, Aircraft, Pet, Food, Flowers, INat18, IN, as P2 prints them."""
    table = {
        "iBOT": "97.60 86.96 55.43 92.30 88.39 90.64 57.30 81.00, 98.08 87.36 57.55 94.34 88.66 96.03 57.99 81.44",
        "DINOv2": "98.47 89.28 70.89 94.82 87.92 96.39 69.42 82.60, 98.91 90.37 71.64 95.42 87.80 96.81 70.41 82.73",
    }
    points = published_points("p2_differences")
    for base, rows in table.items():
        without, ours = (np.array(row.split(), dtype=float) for row in rows.split(", "))
        np.testing.assert_allclose(points[points.base == base].difference, ours - without, atol=1e-9)


def test_published_points_of_the_scatter_and_of_the_sweep() -> None:
    scatter = published_points("p2_figure3")
    assert len(scatter) == 12
    assert scatter[["rotation", "color"]].stack().between(0, 1).all()
    sweep = published_points("p2_figure4")
    assert sorted(sweep["lambda"].dropna().unique()) == [0.1, 1, 5]
    assert (sweep.groupby("lambda").d_equi.apply(list).map(tuple) == (256, 512, 1024, 2048, 4096)).all()
    first = sweep[sweep["lambda"].isna() | (sweep["lambda"] == 0.1)]
    assert first.mean_rank.sum() == pytest.approx(6 * 3.5, abs=0.01), "ranks among the baseline and five others"


# Frames


def test_every_encoder_scored_on_both_is_a_point(tmp_path: Path) -> None:
    one = [*both("vicreg", 0.3, 0.8, encoder="ViT-S, pretrained"), *both("mine", 0.5, 0.7), *both("pixels", 0.1, 0.2)]
    one += [record("half", "rotation", "r2", 0.9)]
    again = [record("vicreg", "rotation", "r2", 0.5, seeds=Seeds(pretraining=1, probe=[0]))]
    names = tmp_path / "names.csv"
    names.write_text("encoder,method,backbone\nmine,DINO,RN50\n")
    frame = invariance_frame({"one": [*one, *again]}, read_names(names))
    own = frame[frame.source == "measured"].set_index("encoder")
    assert list(own.index) == ["vicreg", "mine"], "controls without an encoder and single tasks are no points"
    assert own.loc["vicreg", ["method", "backbone", "data"]].tolist() == ["VICReg", "ViT-S", "solids"]
    assert own.loc["mine", ["method", "backbone"]].tolist() == ["DINO", "RN50"]
    assert own.loc["vicreg", "rotation"] == pytest.approx(0.4), "the mean over seeds"
    assert own.loc["mine", ["color_low", "color_high"]].tolist() == pytest.approx([0.69, 0.72])
    assert (frame.source == "published").sum() == 12


def test_accuracies_and_ranks_are_over_what_all_share(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), ["base", "a", "b", "c"]
    values = {
        task: rng.permutation(4) / 10 for task in ("linear_dtd", "linear_pets", "ade20k", "homography", "davis2017")
    }
    kinds = dict.fromkeys(("linear_dtd", "linear_pets"), ("classification", "top1"))
    kinds |= {"ade20k": ("segmentation", "mIoU"), "homography": ("homography", "mce")}
    kinds |= {"davis2017": ("propagation", "JF")}
    records = [
        record(row, task, kinds[task][1], values[task][i], kinds[task][0])
        for task in values
        for i, row in enumerate(rows)
    ]
    records += [
        record("a", "linear_food101", "top1", 1.0, "classification"),
        record("other", "linear_dtd", "top1", 0.9),
    ]
    names = tmp_path / "names.csv"
    names.write_text("encoder,lambda,d_equi\nbase,,\na,1,256\nb,1,512\nc,5,512\n")
    frame = dimensions_frame({"sweep": records}, read_names(names))
    own = frame[frame.source == "measured"].set_index("encoder")
    assert list(own.index) == rows
    expected = np.mean([values["linear_dtd"], values["linear_pets"]], axis=0)
    np.testing.assert_allclose(own.mean_accuracy, expected)
    ranks = [rankdata(-values["ade20k"]), rankdata(values["homography"]), rankdata(-values["davis2017"])]
    np.testing.assert_allclose(own.mean_rank, np.mean(ranks, axis=0))
    assert np.isnan(own.loc["base", "lambda"])
    names.write_text("encoder,method\nbase,mine\n")
    frame = dimensions_frame({"sweep": records}, read_names(names))
    assert (frame.source == "published").all(), "nobody is a baseline of a sweep unless a sweep is told of"


def scored(folder: Path, row: str, right: float, seed: int) -> None:
    """Records and predictions of a classification in which this share of the images is right."""
    rng = np.random.default_rng(seed)
    said = np.where(rng.random(IMAGES) < right, TRUTH, (TRUTH + 1) % CLASSES)
    one = record(row, "linear_dtd", "top1", float((said == TRUTH).mean()), "classification")
    append_records(folder / "records.jsonl", [one])
    keep_predictions(
        predictions_path(folder, one.evaluation_sha256),
        {"labels": TRUTH, "full/predictions": said, "classes": np.array(CLASSES), "cluster": np.array(1),
         "headline": np.array("top1")},
    )  # fmt: skip


def test_differences_are_compare_s_in_percentage_points(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    for seed, (row, right) in enumerate((("base", 0.5), ("better", 0.8), ("constant", 0.2))):
        scored(folder, row, right, seed)
    found = figures([folder], base="base", runs=tmp_path, out=tmp_path / "out")
    own = found.frames["differences"].query("source == 'measured'")
    (expected,) = compare(f"{folder}:better", f"{folder}:base", places=[folder])
    assert own.encoder.tolist() == ["better"]
    np.testing.assert_allclose(own[["difference", "low", "high"]].iloc[0].astype(float),
                               [100 * v for v in (expected.difference, expected.low, expected.high)])  # fmt: skip
    assert own.low.iloc[0] > 0
    assert [note.split()[0] for note in found.notes] == ["invariance", "dimensions"]
    with pytest.raises(UserError, match="the base 'nobody'.*\n.*base, better"):
        figures([folder], base="nobody", out=tmp_path / "out")


# Files


def test_the_command_writes_drawings_and_their_data(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    append_records(folder / "records.jsonl", both("mine", 0.95, 0.93, encoder="RN50 of mine, trained"))
    first = CliRunner().invoke(app, ["figures", str(folder), "--out", str(tmp_path / "a")])
    assert first.exit_code == 0, first.output
    assert "published points only" in first.output
    frame = pd.read_csv(tmp_path / "a/invariance.csv")
    assert (frame.source == "measured").sum() == 1
    drawn = (tmp_path / "a/invariance.svg").read_text()
    for words in ("mine", "RN50 of mine", "MAE (published)", "Ours (P2) (published)", "R² of rotation"):
        assert words in drawn
    assert "published points only" in (tmp_path / "a/dimensions.svg").read_text()
    assert (tmp_path / "a/differences.png").read_bytes().startswith(b"\x89PNG")
    again = invariance_frame({str(folder): read_records(folder / "records.jsonl")})
    for path in write_figure(again, "invariance", tmp_path):
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes(), "equal records, equal files"


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no records.jsonl"):
        figures([tmp_path])
    names = tmp_path / "names.csv"
    for text in ("name\nx\n", "encoder,weight\nx,1\n", "encoder\nx\nx\n"):
        names.write_text(text)
        with pytest.raises(UserError, match=r"names.csv does not say what the encoders are"):
            read_names(names)
    with pytest.raises(UserError, match="cannot be read as a CSV"):
        read_names(tmp_path / "absent.csv")
