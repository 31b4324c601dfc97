"""Segmentation without mmsegmentation: settings, jobs, checkpoints, the stub of mmcv."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from equibench import segmentation
from equibench.errors import UserError
from equibench.segmentation.config import SegmentationSettings
from equibench.segmentation.run import newest_checkpoint, read_job, run_job

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
    assert run_job([str(path)]) == 2
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
    monkeypatch.delitem(sys.modules, segmentation.EXTENSION, raising=False)
    monkeypatch.setattr(segmentation.importlib.util, "find_spec", lambda name: None)
    assert segmentation.install_stub()
    extension = sys.modules[segmentation.EXTENSION]
    with pytest.raises(UserError, match="'nms_rotated'"):
        extension.nms_rotated(1, threshold=2)
    assert not segmentation.install_stub()  # once is enough
    assert extension.__spec__ is not None
    assert extension.__spec__.loader is None
    monkeypatch.delitem(sys.modules, segmentation.EXTENSION)


def test_there_is_no_stub_where_the_operations_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, segmentation.EXTENSION, raising=False)
    monkeypatch.setattr(segmentation.importlib.util, "find_spec", lambda name: object())
    assert not segmentation.install_stub()
    assert segmentation.EXTENSION not in sys.modules


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "missing_packages", lambda: ("mmseg", "ftfy"))
    with pytest.raises(UserError, match=r"needs mmseg, ftfy.*\n.*equibench\[seg\]"):
        segmentation.require_mmseg()
