"""The tests' own generated trees in the layouts of the transfer data sets."""

from __future__ import annotations

from pathlib import Path

import pytest
from transfer_tree import LAYOUTS, tree

from equibench.data.transfer import TRANSFER_DATASETS


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_tree_depends_on_its_seed_alone(tmp_path: Path, name: str) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    one, two, other = (
        content(tree(name, tmp_path / str(n), seed=seed, per_class=(2, 1), size=8)) for n, seed in enumerate((0, 0, 1))
    )
    assert one == two
    assert one.keys() == other.keys()
    differ = {path for path in one if one[path] != other[path]}
    images = {path for path in one if path.lower().endswith((".jpg", ".jpeg"))} or {"train", "test"}
    assert differ == images


def test_there_is_a_tree_of_every_data_set_but_cifar10() -> None:
    assert set(LAYOUTS) == set(TRANSFER_DATASETS) - {"cifar10"}
