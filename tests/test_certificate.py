"""Certificates: what is kept with the tasks holds their claims, and the measurement sees a leak where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from equibench import certificate
from equibench.certificate import certificate_of, certificates_path, certify
from equibench.data.datasets import Dataset
from equibench.errors import UserError
from equibench.registry import TASKS
from equibench.task import CLEAN_LEAK

KEPT = json.loads(certificates_path().read_text())


@pytest.mark.parametrize("name", TASKS.names())
def test_each_task_has_a_certificate_of_its_version_that_bears_out_its_claim(name: str) -> None:
    task, facts = TASKS.get(name), KEPT[name]
    assert facts["task_version"] == task.version
    assert facts["view2_alone_low"] <= facts["view2_alone_r2"] <= facts["view2_alone_high"]
    if task.claims_clean:
        assert facts["view2_alone_r2"] <= CLEAN_LEAK


def test_blur_is_seen_from_view_two_alone_and_flip_is_not(
    solids_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "EPOCHS", 12)
    monkeypatch.setattr(certificate, "BATCH", 32)
    blur = certificate_of(TASKS.get("blur"), solids_dataset, (500, 50, 150))
    flip = certificate_of(TASKS.get("flip"), solids_dataset, (500, 50, 150))
    assert float(str(blur["view2_alone_r2"])) > 0.3
    assert float(str(flip["view2_alone_r2"])) < CLEAN_LEAK


def test_an_unknown_task_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'rotation'"):
        certify(["rotatoin"], out=tmp_path / "certificates.json")
