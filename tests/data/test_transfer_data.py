"""The data sets of linear transfer: their lists against torchvision's readers, splits and places."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torchvision.datasets as published
from PIL import Image
from torchvision.transforms import v2
from transfer_tree import LAYOUTS, edit, tree

from equibench.data import cifar, transfer
from equibench.data.dataset import Dataset, ImageSet, split_indices
from equibench.data.transfer import load_transfer
from equibench.data.transfer_sources import GENERATED, SOURCES, list_transfer, set_apart
from equibench.errors import UserError
from equibench.utils.arrays import ARRAYS, content_digest
from equibench.utils.download import Unavailable

pytestmark = pytest.mark.usefixtures("cache")
LISTED = ("food101", "sun397", "dtd", "pets", "aircraft", "inaturalist18")
BY_HAND = {"sun397": "serves neither", "inaturalist18": "inat_comp", "imagenet": "image-net.org"}


# Against torchvision's readers


def readers(name: str, root: Path) -> dict[str, Any]:
    """torchvision's datasets by the published lists; each has its files in the attribute of the second place."""
    if name == "food101":
        return {split: published.Food101(root, split) for split in ("train", "test")}
    if name == "dtd":
        return {split: published.DTD(root, split) for split in ("train", "val", "test")}
    if name == "pets":
        return {"train": published.OxfordIIITPet(root), "test": published.OxfordIIITPet(root, "test")}
    return {split: published.FGVCAircraft(root, split) for split in ("train", "val", "test")}


@pytest.mark.parametrize("name", ["food101", "dtd", "pets", "aircraft"])
def test_the_lists_say_what_torchvision_reads_from_them(tmp_path: Path, name: str) -> None:
    folder = tree(name, tmp_path / "dtd" if name == "dtd" else tmp_path)
    listed = list_transfer(name, folder)
    ours = {
        split: {(str(folder / path), listed.class_names[label]) for path, label in rows}
        for split, rows in listed.splits.items()
    }
    theirs = readers(name, tmp_path)
    if "val" not in theirs:
        assert not ours["train"] & ours["val"]
        ours["train"] |= ours.pop("val")
    for split, data in theirs.items():
        files = getattr(data, "_image_files", None) or data._images
        names = [data.classes[label] for label in data._labels]
        if name == "pets":  # torchvision rewrites the names of the classes
            ours[split] = {(path, kind.replace("_", " ").title()) for path, kind in ours[split]}
        assert ours[split] == set(zip(map(str, files), names, strict=True))
        if name != "pets":
            assert list(listed.class_names) == data.classes


def test_sun397_against_torchvision(tmp_path: Path) -> None:
    folder = tree("sun397", tmp_path)
    listed = list_transfer("sun397", folder)
    data = published.SUN397(tmp_path)
    theirs = {(str(f), data.classes[label]) for f, label in zip(data._image_files, data._labels, strict=True)}
    every = [entry for rows in listed.splits.values() for entry in rows]
    assert {(str(folder / path), listed.class_names[label]) for path, label in every} == theirs
    assert "cube/hue_1" in listed.class_names, "a class may be a folder in a folder"


def test_imagenet_against_torchvision_s_folders(tmp_path: Path) -> None:
    folder = tree("imagenet", tmp_path)
    listed = list_transfer("imagenet", folder)
    for folders, splits in (("train", ("train", "val")), ("val", ("test",))):
        data = published.ImageFolder(str(folder / folders))
        ours = {(str(folder / path), label) for split in splits for path, label in listed.splits[split]}
        assert ours == set(data.samples)
        assert list(listed.class_names) == data.classes


def test_inaturalist_s_lists_joined_by_pandas(tmp_path: Path) -> None:
    folder = tree("inaturalist18", tmp_path, classes=12)  # of which "10" and "11" come last, as numbers do
    listed = list_transfer("inaturalist18", folder)
    for file, splits in (("train2018.json", ("train", "val")), ("val2018.json", ("test",))):
        text = json.loads((folder / file).read_text())
        images, said = (pd.DataFrame(text[key]) for key in ("images", "annotations"))
        joined = images.merge(said, left_on="id", right_on="image_id")
        ours = {(path, listed.class_names[label]) for split in splits for path, label in listed.splits[split]}
        assert ours == set(zip(joined.file_name, joined.category_id.astype(str), strict=True))
    assert listed.class_names == tuple(map(str, range(12)))


@pytest.mark.parametrize("size", [12, 40])
def test_pixels_are_torchvisions(tmp_path: Path, size: int) -> None:
    folder = tree("food101", tmp_path)
    for number, path in enumerate(sorted(folder.rglob("*.jpg"))):  # some wide, some high, one grey
        image = Image.open(path).resize((16 + number % 3 * 7, 16 + number % 5 * 3))
        (image.convert("L") if number == 4 else image).save(path, quality=95)
    found = load_transfer("food101", size=size, data_root=tmp_path)
    listed = list_transfer("food101", folder)
    change = v2.Compose(
        [v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(size), v2.PILToTensor()]
    )
    for split in ("train", "val", "test"):
        part = getattr(found, split)
        expected = [change(Image.open(folder / path).convert("RGB")).numpy() for path, _ in listed.splits[split]]
        np.testing.assert_array_equal(part.images, expected)
        assert part.labels.tolist() == [label for _, label in listed.splits[split]]


def test_cifar100_against_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree("cifar100", tmp_path, per_class=(10, 4))
    found = load_transfer("cifar100", size=32, data_root=tmp_path)
    original = published.CIFAR100
    assert {name: md5 for name, md5 in [*original.train_list, *original.test_list]} | {
        "meta": original.meta["md5"]
    } == cifar.CIFAR100_MD5
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    train, test = (original(tmp_path, train) for train in (True, False))
    labels = np.asarray(train.targets)
    halves = [ImageSet(data.data, np.asarray(data.targets)) for data in (train, test)]
    parts = split_indices(Dataset("cifar100", "", *halves, (), ""))
    for split in ("train", "val"):
        np.testing.assert_array_equal(getattr(found, split).images, train.data.transpose(0, 3, 1, 2)[parts[split]])
        np.testing.assert_array_equal(getattr(found, split).labels, labels[parts[split]])
    np.testing.assert_array_equal(found.test.images, test.data.transpose(0, 3, 1, 2))
    assert found.test.labels.tolist() == test.targets
    assert list(found.class_names) == train.classes
    # the binary version holds the same: coarse label, fine label, planes
    binary = tmp_path / "cifar-100-binary"
    binary.mkdir()
    (binary / GENERATED).touch()
    (binary / "fine_label_names.txt").write_text("\n".join(train.classes))
    for name, data in (("train", train), ("test", test)):
        rows = [
            bytes([7, label, *image.transpose(2, 0, 1).ravel()])
            for image, label in zip(data.data, data.targets, strict=True)
        ]
        (binary / f"{name}.bin").write_bytes(b"".join(rows))
    assert load_transfer("cifar100", size=32, data_root=binary).sha256 == found.sha256


def test_cifar10_is_split_as_everywhere_in_the_suite(
    solids_dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(transfer, "load_dataset", lambda name, **how: asked.append(how) or solids_dataset)
    found = load_transfer("cifar10", size=32, data_root=tmp_path)
    parts = split_indices(solids_dataset)
    assert asked == [{"data_root": tmp_path, "download": False}]
    assert (found.name, found.metric) == ("cifar10", "top1")
    for split in ("train", "val"):
        np.testing.assert_array_equal(getattr(found, split).images, solids_dataset.train.images[parts[split]])
        np.testing.assert_array_equal(getattr(found, split).labels, solids_dataset.train.labels[parts[split]])
    np.testing.assert_array_equal(found.test.images, solids_dataset.test.images)
    larger = load_transfer("cifar10", size=50).test.images
    first = Image.fromarray(solids_dataset.test.images[0].transpose(1, 2, 0)).resize((50, 50), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(larger[0], np.asarray(first).transpose(2, 0, 1))


# Splits


@pytest.mark.parametrize(
    ("name", "per_class", "sizes"),
    [
        ("food101", [750] * 101, (68_175, 7_575)),
        ("pets", [100] * 30 + [96, 96, 99, 93, 98, 99, 99], (2_940, 740)),
        ("sun397", [50] * 397, (15_880, 3_970)),
        ("imagenet", [1300] * 895 + [1121] * 104 + [1083], (1_231_167, 50_000)),
    ],
)
def test_the_published_sizes(name: str, per_class: list[int], sizes: tuple[int, int]) -> None:
    labels = np.repeat(np.arange(len(per_class)), per_class)
    source = SOURCES[name]
    assert len(labels) == source.counts["train"]
    train, val = set_apart(labels.tolist(), source.validation / source.counts["train"])
    assert (len(train), len(val)) == sizes
    assert sorted([*train, *val]) == list(range(len(labels)))
    drawn = np.bincount(labels[val]) / per_class
    assert np.ptp(drawn) < 0.02, "the same share of each class"


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout(tmp_path: Path, name: str) -> None:
    folder = tree(name, tmp_path, per_class=(10, 3))
    found = load_transfer(name, size=16, data_root=tmp_path)
    val = {"dtd": 30, "aircraft": 30, "sun397": 12, "pets": 12, "imagenet": 2}.get(name, 6)
    assert [len(part.labels) for part in (found.train, found.val, found.test)] == [60 - val, val, 18]
    assert found.train.images.shape == (60 - val, 3, 16, 16)
    assert (found.train.images.dtype, found.train.labels.dtype) == (np.uint8, np.int64)
    assert not found.train.images.flags.writeable
    parts = ((found.train, (60 - val) // 6), (found.val, val // 6), (found.test, 3))
    for part, each in parts if val >= 6 else parts[2:]:  # of fewer, not every class has one
        assert np.bincount(part.labels).tolist() == [each] * 6
    pixels = [{image.tobytes() for image in part.images} for part in (found.train, found.val, found.test)]
    assert len(pixels[0] | pixels[1] | pixels[2]) == 78, "no image is in two splits"
    assert (found.name, found.bad) == (f"rendered-{name}", 0)
    assert "not real" in found.description
    assert found.metric == ("mean_per_class" if name in ("pets", "aircraft") else "top1")
    joined = {
        "train_images": np.concatenate([found.train.images, found.val.images]),
        "train_labels": np.concatenate([found.train.labels, found.val.labels]),
        "test_images": found.test.images,
        "test_labels": found.test.labels,
    }
    assert found.sha256 == content_digest(joined)
    assert set(joined) == set(ARRAYS)
    assert load_transfer(name, size=16, data_root=folder).sha256 == found.sha256, "the folder itself will do"


@pytest.mark.parametrize("name", LISTED)
def test_the_order_is_the_paths(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = load_transfer(name, size=8, data_root=tree(name, tmp_path / "1"))
    folder = tree(name, tmp_path / "2")
    backwards = lambda text: "\n".join(reversed(text.split("\n")))  # noqa: E731
    for file in folder.rglob("*.txt"):
        if file.name not in (GENERATED, "variants.txt", "ClassName.txt"):
            edit(file, backwards)
    for file in folder.rglob("*.json"):
        edit(file, lambda text: json.dumps({k: v[::-1] for k, v in reversed(json.loads(text).items())}))

    def refuse(*_: object) -> None:
        raise AssertionError("a folder was listed")

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        patch.setattr(os, "walk", refuse)
        patch.setattr(Path, "iterdir", refuse)
        glob = Path.glob
        patch.setattr(Path, "glob", lambda at, what: refuse() if at.is_relative_to(folder) else glob(at, what))
        two = load_transfer(name, size=8, data_root=folder)
    assert (two.sha256, two.class_names) == (one.sha256, one.class_names)


# Where the data are


def test_where_it_is_looked_for(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {seed: tmp_path / str(seed) for seed in (1, 2)} | {3: cache}
    found = {
        seed: load_transfer("dtd", size=8, data_root=tree("dtd", at, seed=seed)).sha256 for seed, at in places.items()
    }
    assert len(set(found.values())) == 3
    assert load_transfer("dtd", size=8).sha256 == found[3]
    monkeypatch.setenv("EQUIBENCH_DATA", str(places[2]))
    assert load_transfer("dtd", size=8).sha256 == found[2]
    assert load_transfer("dtd", size=8, data_root=places[1]).sha256 == found[1]
    deeper = tmp_path / "deeper"
    shutil.move(places[1], deeper / "dtd")  # as torchvision unpacks it
    renamed = shutil.move(places[2] / "dtd", tmp_path / "textures")
    assert load_transfer("dtd", size=8, data_root=deeper).sha256 == found[1]
    assert load_transfer("dtd", size=8, data_root=renamed).sha256 == found[2]
    monkeypatch.delenv("EQUIBENCH_DATA")
    with pytest.raises(UserError, match=f"DTD is not in {tmp_path / 'nothing'}\n") as caught:
        load_transfer("dtd", size=8, data_root=tmp_path / "nothing")
    assert not isinstance(caught.value, Unavailable)


@pytest.mark.parametrize("place", [".", "Partitions", ".."])
def test_the_lists_of_sun397_may_lie_elsewhere(tmp_path: Path, place: str) -> None:
    folder = tree("sun397", tmp_path)
    one = load_transfer("sun397", size=8, data_root=tmp_path).sha256
    for name in ("Training_01.txt", "Testing_01.txt"):
        (folder / place).mkdir(exist_ok=True)
        shutil.move(folder / name, folder / place / name)
    assert load_transfer("sun397", size=8, data_root=folder).sha256 == one


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_nowhere_is_drawn(name: str, cache: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        load_transfer(name, size=8)
    assert f"is not in {cache}" in caught.value.problem
    assert f"{SOURCES[name].folder}/" in caught.value.fix
    if name in BY_HAND:
        assert BY_HAND[name] in caught.value.fix
    else:
        kind = SOURCES[name].torchvision
        assert hasattr(published, kind)
        assert f"import {kind} as D; D('{cache}', download=True)" in caught.value.fix


def test_a_download_is_complete_or_not_there(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(root: str, download: bool) -> None:
        (Path(root) / "food-101" / "images").mkdir(parents=True)
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(published, "Food101", broken)
    with pytest.raises(
        Unavailable, match="Food-101 could not be downloaded: File not found or corrupted.\n.*food-101.tar"
    ):
        load_transfer("food101", size=8, download=True)
    assert [path.name for path in cache.iterdir() if path.is_dir()] == ["arrays"]
    monkeypatch.setattr(published, "Food101", lambda root, download: tree("food101", Path(root)))
    assert load_transfer("food101", size=8, download=True).name == "rendered-food101"
    assert (cache / "food-101").is_dir()
    monkeypatch.setattr(published, "DTD", lambda root, download: tree("dtd", Path(root) / "dtd"))
    assert load_transfer("dtd", size=8, download=True).name == "rendered-dtd"
    with pytest.raises(Unavailable, match="SUN397 is not in"):
        load_transfer("sun397", size=8, download=True)
