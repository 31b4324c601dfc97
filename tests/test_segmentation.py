"""Segmentation without mmsegmentation: scores from areas, settings, jobs, checkpoints, the stub of mmcv."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score, recall_score

from equibench.errors import UserError
from equibench.metrics.segmentation import Areas, constant_areas, count_areas, resampled_scores, scores_from_areas
from equibench.segmentation import stub
from equibench.segmentation.config import SegmentationSettings
from equibench.segmentation.run import main, newest_checkpoint, read_job


def together(parts: list[Areas]) -> Areas:
    return Areas(**{name: np.concatenate([p.arrays()[name] for p in parts]) for name in parts[0].arrays()})


@pytest.fixture
def maps() -> tuple[np.ndarray, np.ndarray]:
    """Predictions and annotations of 6 images; of 7 classes, 5 is only predicted, 6 is nowhere."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, 5, size=(6, 9, 11))
    predicted = np.where(generator.random(label.shape) < 0.5, label, generator.integers(0, 6, size=label.shape))
    return predicted, np.where(generator.random(label.shape) < 0.1, 255, label)


def test_scores_are_those_of_scikit_learn(maps: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, label = maps
    areas = together([count_areas(p, t, classes=7) for p, t in zip(predicted, label, strict=True)])
    valid = label != 255
    truth, guess = label[valid], predicted[valid]
    scores = scores_from_areas(areas)
    assert scores.miou == pytest.approx(jaccard_score(truth, guess, labels=range(6), average="macro"), abs=1e-12)
    assert scores.macc == pytest.approx(recall_score(truth, guess, labels=range(5), average="macro"), abs=1e-12)
    assert scores.aacc == pytest.approx(accuracy_score(truth, guess), abs=1e-12)
    assert scores.iou[5] == 0
    assert np.isnan(scores.iou[6])


def test_the_interval_is_that_of_images_drawn_again(maps: tuple[np.ndarray, np.ndarray]) -> None:
    areas = together([count_areas(p, t, classes=7) for p, t in zip(*maps, strict=True)])
    draws = np.random.default_rng(3).multinomial(6, np.full(6, 1 / 6), size=20)
    found = resampled_scores(areas, resamples=20, seed=3)
    for draw, counts in enumerate(draws):
        rows = np.repeat(np.arange(6), counts)
        scores = scores_from_areas(Areas(**{name: array[rows] for name, array in areas.arrays().items()}))
        expected = (scores.miou, scores.macc, scores.aacc)
        np.testing.assert_allclose([found[name][draw] for name in ("mIoU", "mAcc", "aAcc")], expected, rtol=1e-12)


def test_the_floor_is_that_of_a_constant_map(maps: tuple[np.ndarray, np.ndarray]) -> None:
    _, label = maps
    truth = together([count_areas(np.zeros_like(t), t, classes=7) for t in label])
    expected = together([count_areas(np.full_like(t, 3), t, classes=7) for t in label])
    floor = constant_areas(truth.label, 3)
    for name, array in expected.arrays().items():
        np.testing.assert_array_equal(floor.arrays()[name], array)


def test_pixels_are_added_exactly_beyond_what_float32_holds() -> None:
    many = np.full((3, 2), 2**24, dtype=np.int64)
    many[1:] = 1  # float32 loses both ones
    scores = scores_from_areas(Areas(many, many + 1, many, many + 1))
    assert scores.iou[0] == (2**24 + 2) / (2**24 + 5)


def test_nothing_annotated_is_no_score() -> None:
    nothing = np.zeros((2, 3), dtype=np.int64)
    scores = scores_from_areas(Areas(nothing, nothing, nothing, nothing))
    assert np.isnan([scores.miou, scores.macc, scores.aacc]).all()


# Settings, jobs, checkpoints


@pytest.mark.parametrize(
    "wrong", [{"iterations": 0}, {"warmup": 40_000}, {"classes": 151}, {"head": "hyper"}, {"lr": 0.0}, {"crop": 4}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError):
        SegmentationSettings(**wrong)  # type: ignore[arg-type]


def test_a_job_is_read_and_a_wrong_one_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.json"
    job = {"encoder": "timm:x", "data_root": "ade", "work_dir": "w", "settings": {"head": "linear"}}
    path.write_text(json.dumps(job))
    assert read_job(path)["settings"] == SegmentationSettings(head="linear")
    path.write_text(json.dumps({**job, "settings": {"heads": 3}}))
    assert main([str(path)]) == 2
    assert "heads" in capsys.readouterr().err
    path.write_text(json.dumps({"encoder": "timm:x", "epochs": 3}))
    with pytest.raises(UserError, match=r"missing: \['data_root', 'work_dir'\], unknown: \['epochs'\]"):
        read_job(path)


def test_a_checkpoint_that_a_kill_cut_short_is_passed_over(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for iteration in (9, 10):
        torch.save({"x": torch.zeros(100)}, tmp_path / f"iter_{iteration}.pth")
    assert newest_checkpoint(tmp_path) == str(tmp_path / "iter_10.pth")
    whole = (tmp_path / "iter_10.pth").read_bytes()
    (tmp_path / "iter_10.pth").write_bytes(whole[: len(whole) // 2])
    assert newest_checkpoint(tmp_path) == str(tmp_path / "iter_9.pth")


# The stub of mmcv's operations


def test_the_stub_names_the_operation_that_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, stub.EXTENSION, raising=False)
    monkeypatch.setattr(stub.importlib.util, "find_spec", lambda name: None)
    assert stub.install_stub()
    extension = sys.modules[stub.EXTENSION]
    with pytest.raises(UserError, match="'nms_rotated'"):
        extension.nms_rotated(1, threshold=2)
    assert not stub.install_stub()  # once is enough
    assert extension.__spec__ is not None
    assert extension.__spec__.loader is None
    monkeypatch.delitem(sys.modules, stub.EXTENSION)


def test_there_is_no_stub_where_the_operations_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, stub.EXTENSION, raising=False)
    monkeypatch.setattr(stub.importlib.util, "find_spec", lambda name: object())
    assert not stub.install_stub()
    assert stub.EXTENSION not in sys.modules


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stub, "missing_packages", lambda: ("mmseg", "ftfy"))
    with pytest.raises(UserError, match=r"needs mmseg, ftfy.*\n.*equibench\[seg\]"):
        stub.require_mmseg()
