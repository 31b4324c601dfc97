"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from object_tree import make_tree

from equibench.data.dataset import Dataset
from equibench.data.load import load_dataset


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the tests' own, and one thread, so that sums are always taken in the same order."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUIBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("EQUIBENCH_DATA", raising=False)
        yield


@pytest.fixture(scope="session")
def solids_dataset(own_cache: None) -> Dataset:
    """The generated images of the tiny profile: 600 for training, 200 for testing."""
    return load_dataset("solids", sizes=(600, 200))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test."""
    monkeypatch.setenv("EQUIBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def published_objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree in 3DIEBench's layout, to be copied and not to be changed."""
    return make_tree(tmp_path_factory.mktemp("published") / "3DIEBench")
