"""`equibench score` on data of any size and with any options: what is cut, removed, planned and refused."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scored import PAIRS, FlipInvariant, Pixels, quick
from torch import nn

import equibench.evaluation.controls
import equibench.pairs.views
import equibench.runner.open
from equibench.data.dataset import Dataset, ImageSet
from equibench.errors import UserError
from equibench.profiles import get_profile
from equibench.records import read_records
from equibench.runner.open import choose_tasks
from equibench.runner.score import plan_score
from equibench.task import TASKS
from equibench.transforms.transformation import TRANSFORMATIONS

RESNET = {"pretrained": False, "size": 32}


@pytest.fixture(scope="module", autouse=True)
def _small_data(solids_dataset: Dataset) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equibench.runner.open, "load_dataset", lambda *_, **__: solids_dataset)
        patch.setattr(equibench.evaluation.controls, "POOLED_SIDE", 12)  # few pixels, whose components are had at once
        yield


def test_pairs_beyond_the_data_are_cut_and_that_is_said(tmp_path: Path) -> None:
    given: dict[str, Any] = {"tasks": ["flip"], "pairs": (9000, 32, 9000), "controls": False}
    profile = get_profile("tiny")
    short = replace(profile, probing=replace(profile.probing, batch=512, epochs=1, width=8, seeds=1))
    given["profile"] = short
    result = quick(Pixels(), tmp_path, **given)
    assert result.records[0].pairs == [4 * 540, 32, 200]
    assert (
        "2,160 training and 32 validation (an image is used up to 4 times) and 200 test" in result.files[2].read_text()
    )
    fitting = quick(Pixels(), tmp_path, **{**given, "pairs": (128, 32, 9000)})
    assert fitting.records[0].pairs == [128, 32, 200]
    assert "used up to" not in fitting.files[2].read_text()


def test_large_views_are_removed_when_a_task_is_done(
    solids_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enlarged(half: ImageSet, count: int) -> ImageSet:
        images = torch.from_numpy(np.array(half.images[:count])).float()
        large = nn.functional.interpolate(images, size=(72, 72), mode="bilinear")
        return ImageSet(large.byte().numpy(), half.labels[:count])

    train, test = enlarged(solids_dataset.train, 200), enlarged(solids_dataset.test, 64)
    data = Dataset("large", "72 px", train, test, solids_dataset.class_names, "0" * 64)
    monkeypatch.setattr(equibench.runner.open, "load_dataset", lambda *_, **__: data)
    rendered: list[int] = []
    transform = equibench.pairs.views.transform_sequence

    @functools.wraps(transform)  # so that its code is found, of which the views' digest is made
    def counted(images: torch.Tensor, *rest: Any) -> torch.Tensor:
        rendered.append(len(images))
        return transform(images, *rest)

    monkeypatch.setattr(equibench.pairs.views, "transform_sequence", counted)
    options = {"pairs": (128, 16, 64), "size": 32, "pretrained": False}
    result = quick("timm:test_resnet", tmp_path, tasks=["translation", "translation.wahba"], **options)
    assert sum(rendered) == 208 + 2 * 64
    assert all(r.interval("r2") for r in result.records if r.baseline == "pixels")
    views = tmp_path / "runs/score/large-headline/views"
    assert len(list(views.iterdir())) == 2  # the untransformed ones of the pairs and of all test images
    rendered.clear()
    quick("timm:test_resnet", tmp_path, tasks=["translation.invariance"], **options)
    assert not rendered  # the features are there, so the views are not made again
    assert len(list(views.iterdir())) == 2


def test_a_plan_changes_nothing_on_disk(tmp_path: Path) -> None:
    given: dict[str, Any] = {"profile": "tiny", "pairs": PAIRS, "runs": tmp_path / "runs", **RESNET}
    jobs, seconds = plan_score("timm:test_vit", tasks=["rotation", "flip"], **given)
    assert len(jobs) == len(seconds) == 2 * 5
    assert all(one > 0 for one in seconds)
    assert not any(job.done or job.pretrain for job in jobs)
    assert not list(tmp_path.iterdir())
    quick("timm:test_vit", tmp_path, tasks=["flip.wahba"], **RESNET)
    before = sorted(tmp_path.rglob("*"))
    left, _ = plan_score("timm:test_vit", tasks=["flip.wahba", "flip.action"], **given)
    assert {task.name for job in left for task in job.tasks} == {"flip.action"}
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"taks": ["flip"]}, "did you mean 'tasks'"),
        ({"tasks": ["rotaton"]}, "did you mean 'rotation'"),
        ({"tasks": "rotation"}, "tasks is a list"),
        ({"layers": "all"}, "layers is a list"),
        ({"layers": ["layer33"]}, "did you mean 'layer3'"),
        ({"variant": "paper"}, "did you mean 'paper_like'"),
        ({"profile": "tinny"}, "did you mean 'tiny'"),
        ({"pairs": (128, 0, 64)}, "pairs"),
        ({"pooling": "avg"}, "pooling"),
        ({"name": "oracle"}, "control"),
    ],
)
def test_a_wrong_option_is_said_with_a_hint(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        quick("timm:test_resnet", tmp_path, **RESNET, **options)
    assert not list(tmp_path.rglob("records.jsonl"))


def test_tasks_by_pattern_evaluator_and_file(tmp_path: Path) -> None:
    names = [task.name for task in choose_tasks(None)]
    assert "rotation" in names
    assert all(TASKS.get(n).evaluator == "regression" for n in names)
    assert [t.name for t in choose_tasks(["flip*", "flip"])][0] == "flip"
    assert {t.evaluator for t in choose_tasks(["retrieval"])} == {"retrieval"}
    everything = {task.name for task in choose_tasks(["all"])}
    of_objects = {task.name for task in choose_tasks(["all"], objects=True)}
    assert {n for n in TASKS.names() if TASKS.get(n).data is None} == everything | of_objects
    assert not everything & of_objects
    assert [task.name for task in choose_tasks(None, objects=True)] == ["object_rotation", "object_color"]
    assert [task.name for task in choose_tasks(["linear_pets"])] == ["linear_pets"]
    file = tmp_path / "mine.py"
    file.write_text(
        "from equibench.task import Task, register_task\n"
        "register_task(Task(name='mirror.mine', title='Mirror', version=1, transformation='flip', evaluator='wahba'))\n"
    )
    try:
        assert [t.name for t in choose_tasks([str(file), "flip"])] == ["mirror.mine", "flip"]
    finally:
        TASKS._entries.pop("mirror.mine", None)


def test_a_second_score_adds_its_tasks_to_the_folder(tmp_path: Path) -> None:
    seen = []
    for tasks, encoder in ((["rotation"], Pixels()), (["flip", "flip.wahba"], Pixels()), (["flip"], FlipInvariant())):
        result = quick(encoder, tmp_path, tasks=tasks, name="one", controls=False)
        seen.append(list(dict.fromkeys(r.task for r in result.records)))
        assert result.records == read_records(tmp_path / "out/records.jsonl")
    assert seen == [["rotation"], ["rotation", "flip", "flip.wahba"], ["flip"]], "of other weights nothing is kept"


@pytest.fixture
def _forgotten() -> Iterator[None]:
    """What a test's file registers is forgotten after it."""
    kept = [(entries, dict(entries)) for entries in (TASKS._entries, TRANSFORMATIONS)]
    modules = set(sys.modules)
    yield
    for entries, before in kept:
        entries.clear()
        entries.update(before)  # type: ignore[arg-type]
    for name in set(sys.modules) - modules:
        if name.startswith("equibench_user_"):
            del sys.modules[name]


@pytest.mark.usefixtures("_forgotten")
def test_the_command_of_a_task_of_ones_own_names_its_file(tmp_path: Path) -> None:
    example = str(Path(__file__).parents[2] / "examples/my_task.py")
    result = quick(Pixels(), tmp_path, tasks=[example, "flip"], controls=False)
    commands = {record.task: record.command for record in result.records}
    assert f"--tasks {example}" in commands["shear"]
    assert "--tasks flip" in commands["flip"]
