"""Data sets of one's own: registered by a file, known by content, and refused where they are no data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equibench.data.load import load_dataset
from equibench.data.own import OWN_DATASETS, OwnImages, register_dataset
from equibench.errors import UserError
from equibench.registry import load_file

FILE = """
import numpy as np
from equibench import OwnImages, register_dataset

@register_dataset("cells", "Cells")
def load(data_root):
    images = np.load(data_root / "images.npy")
    return OwnImages(images[:30], np.arange(30) % 2, images[30:], np.arange(10) % 2, ("round", "long"))
"""


@pytest.fixture(autouse=True)
def _registered_for_one_test() -> Iterator[None]:
    OWN_DATASETS.discover()
    before = dict(OWN_DATASETS._entries)
    yield
    OWN_DATASETS._entries.clear()
    OWN_DATASETS._entries.update(before)


def images(seed: int = 0, count: int = 40, side: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(count, 3, side, side), dtype=np.uint8)


def test_a_file_registers_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    assert load_file(tmp_path / "mine.py", "dataset") == ["cells"]
    digests = []
    for seed in (0, 1):
        np.save(tmp_path / "images.npy", images(seed))
        found = load_dataset("cells", data_root=tmp_path)
        digests.append(found.sha256)
        np.testing.assert_array_equal(found.test.images, images(seed)[30:])
    assert digests[0] != digests[1]
    assert (found.name, found.description) == ("cells", "Cells (30 + 10 images, 16 px)")
    assert found.class_names == ("round", "long")
    assert found.train.labels.dtype == np.int64
    with pytest.raises(UserError, match="'cells' could not be loaded: FileNotFoundError"):
        load_dataset("cells", data_root=tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"no dataset named 'cell'.*\n.*cells"):
        load_dataset("cell")


def test_a_registered_name_goes_before_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cells").mkdir()
    monkeypatch.chdir(tmp_path)
    register_dataset("cells", "Cells")(
        lambda root: OwnImages(images(), np.zeros(40, int), images(1), np.zeros(40, int))
    )
    assert load_dataset("cells").description.startswith("Cells")
    with pytest.raises(UserError, match="holds no images"):
        load_dataset("./cells")


GOOD: dict[str, Any] = {
    "train_images": images(), "train_labels": np.zeros(40, int), "test_images": images(1),
    "test_labels": np.zeros(40, int),
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_images": images().astype(float)}, r"train_images are float64"),
        ({"test_images": images().transpose(0, 2, 3, 1)}, r"test_images are uint8 \(40, 16, 16, 3\)"),
        ({"test_images": images(side=8)}, r"test images are \(3, 8, 8\)"),
        ({"train_labels": np.zeros(39, int)}, r"train_labels are int64 \(39,\) for 40 images"),
        ({"train_labels": np.ones(40, int)}, r"train_labels go to 1, and there are 0 class names"),
        ({"test_labels": np.zeros(40)}, r"test_labels are float64"),
    ],
)
def test_what_is_no_data_set_is_refused(changes: dict[str, Any], said: str) -> None:
    register_dataset("wrong", "Wrong")(lambda root: OwnImages(**{**GOOD, **changes}))
    with pytest.raises(UserError, match=said):
        load_dataset("wrong")


def test_names_that_are_taken_or_no_words_are_refused() -> None:
    with pytest.raises(UserError, match="cannot be called 'cifar10'"):
        register_dataset("cifar10", "x")
    with pytest.raises(UserError, match="cannot be called 'a/b'"):
        register_dataset("a/b", "x")
    register_dataset("mine", "x")(lambda root: OwnImages(**GOOD))
    with pytest.raises(UserError, match="registered twice"):
        register_dataset("mine", "x")(lambda root: OwnImages(**GOOD))
    register_dataset("none", "x")(lambda root: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(UserError, match="returned NoneType"):
        load_dataset("none")
