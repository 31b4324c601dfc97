"""Generated trees in the layouts of the transfer data sets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transfer_tree import tree

from equibench.data import transfer_stand_ins
from equibench.data.transfer import TRANSFER_DATASETS, load_transfer
from equibench.data.transfer_stand_ins import STAND_INS, write_stand_in
from equibench.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("name", STAND_INS)
def test_a_stand_in_depends_on_its_seed_alone(tmp_path: Path, name: str) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    one, two, other = (
        content(tree(name, tmp_path / str(n), seed=seed, per_class=(2, 1), size=8)) for n, seed in enumerate((0, 0, 1))
    )
    assert one == two
    assert one.keys() == other.keys()
    differ = {path for path in one if one[path] != other[path]}
    images = {path for path in one if path.endswith(".jpg")} or {"train", "test"}
    assert differ == images
    with pytest.raises(UserError, match="is there already"):
        tree(name, tmp_path / "0")


def test_stand_ins_are_written_into_the_cache_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = transfer_stand_ins.write_stand_in
    picture = transfer_stand_ins._picture

    def stops(name: str, sample: Any, *rest: Any) -> np.ndarray:
        if sample.number == 3:
            raise KeyboardInterrupt
        return picture(name, sample, *rest)

    monkeypatch.setattr(transfer_stand_ins, "_picture", stops)
    with pytest.raises(KeyboardInterrupt):
        load_transfer("dtd", size=16, stand_in=True)
    assert [path for path in (cache / "stand-ins").iterdir() if path.is_dir()] == []
    monkeypatch.setattr(transfer_stand_ins, "_picture", picture)
    calls = []
    monkeypatch.setattr(transfer_stand_ins, "write_stand_in", lambda *a, **k: calls.append(a) or write(*a, **k))
    one = load_transfer("dtd", size=16, stand_in=True)
    two = load_transfer("dtd", size=24, stand_in=True)
    assert len(calls) == 1
    assert (one.name, len(one.class_names), len(one.test.labels)) == ("dtd-generated", 10, 200)
    assert two.test.images.shape == (200, 3, 24, 24)


def test_a_class_is_a_solid_before_a_band_of_hues(tmp_path: Path) -> None:
    found = load_transfer(
        "food101", size=32, data_root=tree("food101", tmp_path, classes=10, per_class=(2, 12), size=16)
    )
    border = found.test.images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].mean(-1).astype(np.uint8)  # (N, 3)
    hue = np.asarray(Image.fromarray(border[None]).convert("HSV"))[0, :, 0] / 256
    band = np.array([int(name.rsplit("_", 1)[1]) for name in found.class_names])[found.test.labels]
    agree = ((hue >= 0.5) == band).mean()
    assert agree > 0.85, "the background tells the band"
    assert Counter(name.rsplit("_", 1)[0] for name in found.class_names) == dict.fromkeys(
        ("ellipsoid", "cube", "box", "cylinder", "cone"), 2
    )


def test_stand_ins_out_of_range(tmp_path: Path) -> None:
    assert set(STAND_INS) == set(TRANSFER_DATASETS) - {"cifar10"}
    with pytest.raises(UserError, match="'cifar10' has no stand-in"):
        write_stand_in("cifar10", tmp_path)
    for options in ({"classes": 1}, {"per_class": (1, 1)}, {"per_class": (2, 0)}, {"size": 7}, {"seed": -1}):
        with pytest.raises(UserError, match="A stand-in cannot have"):
            tree("dtd", tmp_path, **options)
    assert list(tmp_path.iterdir()) == []
