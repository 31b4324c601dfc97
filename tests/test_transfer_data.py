"""The data sets of linear transfer: their lists against torchvision's readers, splits, errors, and the stand-ins."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torchvision.datasets as published
from PIL import Image
from torchvision.transforms import v2

from equibench.data import cifar100, transfer, transfer_stand_ins
from equibench.data.array_cache import ARRAYS, content_digest
from equibench.data.datasets import Dataset, ImageSet
from equibench.data.download import Unavailable
from equibench.data.pairs import split_indices
from equibench.data.transfer import TRANSFER_DATASETS, load_transfer
from equibench.data.transfer_sources import GENERATED, SOURCES, list_transfer, set_apart
from equibench.data.transfer_stand_ins import STAND_INS, write_stand_in
from equibench.errors import UserError

LISTED = ("food101", "sun397", "dtd", "pets", "aircraft")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EQUIBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tree(name: str, root: Path, **options: Any) -> Path:
    return write_stand_in(name, root, **{"classes": 6, "per_class": (6, 2), "size": 16, **options})


def edit(file: Path, change: Callable[[str], str]) -> None:
    file.write_text(change(file.read_text()))


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
    } == cifar100.MD5
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
    found = load_transfer("cifar10", size=32, data_root=tmp_path, stand_in=True)
    parts = split_indices(solids_dataset)
    assert asked == [{"data_root": tmp_path, "download": False}]
    assert (found.name, found.stand_in, found.metric) == ("cifar10", False, "top1")
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


@pytest.mark.parametrize("name", STAND_INS)
def test_every_layout(tmp_path: Path, name: str) -> None:
    folder = tree(name, tmp_path, per_class=(10, 3))
    found = load_transfer(name, size=16, data_root=tmp_path)
    listed_val = name in ("dtd", "aircraft")
    val = 30 if listed_val else 12 if name in ("sun397", "pets") else 6
    assert [len(part.labels) for part in (found.train, found.val, found.test)] == [60 - val, val, 18]
    assert found.train.images.shape == (60 - val, 3, 16, 16)
    assert (found.train.images.dtype, found.train.labels.dtype) == (np.uint8, np.int64)
    assert not found.train.images.flags.writeable
    for part, each in ((found.train, (60 - val) // 6), (found.val, val // 6), (found.test, 3)):
        assert np.bincount(part.labels).tolist() == [each] * 6
    pixels = [{image.tobytes() for image in part.images} for part in (found.train, found.val, found.test)]
    assert len(pixels[0] | pixels[1] | pixels[2]) == 78, "no image is in two splits"
    assert (found.name, found.stand_in, found.bad) == (f"{name}-generated", True, 0)
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
        patch.setattr(Path, "glob", lambda folder, pattern: [] if pattern.startswith(".") else refuse())
        two = load_transfer(name, size=8, data_root=folder)
    assert (two.sha256, two.class_names) == (one.sha256, one.class_names)


# Errors


def first_line(text: str) -> str:
    return text.split("\n")[0]


def food_entry(folder: Path, entry: object) -> None:
    edit(folder / "meta/train.json", lambda text: json.dumps({**json.loads(text), "box_0": [entry]}))


def swapped(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


WRONG: list[tuple[str, Callable[[Path], object], str]] = [
    ("food101", lambda f: (f / "meta/test.json").unlink(), "test.json is missing"),
    ("food101", lambda f: (f / "meta/test.json").write_text("{"), "test.json is no JSON"),
    ("food101", lambda f: (f / "meta/test.json").write_text("[1]"), r"test.json: the entry '\[1\]' is malformed"),
    ("food101", lambda f: food_entry(f, 7), "train.json: the entry 7 is malformed"),
    ("food101", lambda f: food_entry(f, "cone_0/1"), "train.json: the entry 'cone_0/1' is malformed"),
    ("food101", lambda f: food_entry(f, "box_0/99"), "box_0/99.jpg, which .*train.json names, cannot be read: No such"),
    ("food101", lambda f: food_entry(f, "box_0/7"), "test.json names images/box_0/7.jpg, and so does .*train.json"),
    (
        "food101",
        lambda f: (f / "images/cone_0/7.jpg").unlink(),
        "cone_0/7.jpg, which .*test.json names, cannot be read",
    ),
    ("food101", lambda f: (f / "images/cone_0/7.jpg").write_bytes(b"x"), "cone_0/7.jpg cannot be decoded"),
    (
        "food101",
        lambda f: edit(f / "meta/test.json", lambda t: json.dumps({"box_0": ["box_0/6"]})),
        "train.json and .*test.json differ: 'cone_0'",
    ),
    ("sun397", lambda f: (f / "Testing_01.txt").unlink(), "Testing_01.txt is missing"),
    (
        "sun397",
        lambda f: swapped(f / "Testing_01.txt", "/b/box_0/", "/box_0/"),
        "Testing_01.txt: the entry '/box_0/sun_",
    ),
    (
        "sun397",
        lambda f: swapped(f / "Testing_01.txt", "/b/box_0/", "/b/box_0/../"),
        r"Testing_01.txt: the entry 'b/box_0/\.\./",
    ),
    (
        "sun397",
        lambda f: edit(f / "Testing_01.txt", lambda t: t + first_line(t)),
        "Testing_01.txt names c/cube_0/sun_.*, twice",
    ),
    (
        "sun397",
        lambda f: shutil.copy(f / "Training_01.txt", f / "Testing_01.txt"),
        "Testing_01.txt names .*, and so does .*Training_01.txt",
    ),
    ("dtd", lambda f: (f / "labels/val1.txt").write_text("\n"), "val1.txt names no image"),
    ("dtd", lambda f: edit(f / "labels/val1.txt", lambda t: t + "banded"), "val1.txt: the entry 'banded' is malformed"),
    ("dtd", lambda f: (f / "labels/val1.txt").write_bytes(b"\xff"), "val1.txt cannot be read"),
    (
        "dtd",
        lambda f: shutil.copy(f / "labels/val1.txt", f / "labels/test1.txt"),
        "test1.txt names .*, and so does .*val1.txt",
    ),
    (
        "pets",
        lambda f: swapped(f / "annotations/test.txt", "box_0_6 1 1 1", "box_0_6 1 1"),
        "test.txt: the entry 'box_0_6 1 1' is malf",
    ),
    (
        "pets",
        lambda f: swapped(f / "annotations/test.txt", "box_0_6 1 1", "box_0_6 2 1"),
        "test.txt: 'box_0_6 2 1 1' gives box_0 another",
    ),
    (
        "pets",
        lambda f: [swapped(f / f"annotations/{n}.txt", " 6 1 1", " 7 1 1") for n in ("test", "trainval")],
        "label 7 of .* is out of range",
    ),
    (
        "pets",
        lambda f: [swapped(f / f"annotations/{n}.txt", " 6 1 1", " 5 1 1") for n in ("test", "trainval")],
        "label 5 of .* not its alone",
    ),
    (
        "aircraft",
        lambda f: swapped(f / "data/images_variant_val.txt", " cylinder 0", " 747"),
        "val.txt: the label of '0000001 747' is out of range",
    ),
    (
        "aircraft",
        lambda f: edit(f / "data/variants.txt", lambda t: t + "747\n"),
        "variants.txt lists a variant twice, or one without",
    ),
    (
        "aircraft",
        lambda f: edit(f / "data/images_variant_val.txt", lambda t: t + "x\n"),
        "val.txt: the entry 'x' is malformed",
    ),
    ("aircraft", lambda f: (f / "data/images_variant_train.txt").unlink(), "images_variant_train.txt is missing"),
    ("cifar100", lambda f: (f / "test").unlink(), "cifar-100-python/test cannot be read: No such file"),
    ("cifar100", lambda f: (f / "test").write_bytes(b"x"), "cifar-100-python/test is not as published"),
    ("cifar100", lambda f: (f / "meta").write_bytes(pickle.dumps({})), "cifar-100-python/meta is not as published"),
    (
        "cifar100",
        lambda f: repack(f / "train", fine_labels=[6] * 36),
        "python/train is not as published: label 6 is out of range",
    ),
    (
        "cifar100",
        lambda f: repack(f / "train", fine_labels=[1]),
        "cifar-100-python/train is not as published: 36 images",
    ),
]


def repack(file: Path, **changes: object) -> None:
    file.write_bytes(pickle.dumps({**pickle.loads(file.read_bytes()), **changes}, protocol=4))


@pytest.mark.parametrize(("name", "spoil", "problem"), WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, spoil: Callable[[Path], object], problem: str) -> None:
    folder = tree(name, tmp_path)
    spoil(folder)
    with pytest.raises(UserError, match=problem) as caught:
        load_transfer(name, size=8, data_root=tmp_path)
    assert str(folder) in caught.value.problem
    assert caught.value.fix


def test_bad_images_are_left_out_where_told(tmp_path: Path, cache: Path) -> None:
    folder = tree("pets", tmp_path)
    (folder / "images/box_0_0.jpg").unlink()
    whole = (folder / "images/box_0_6.jpg").read_bytes()
    (folder / "images/box_0_6.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="box_0_0.jpg, which .*trainval.txt names.*\n.*skip_bad"):
        load_transfer("pets", size=8, data_root=tmp_path)
    assert not (cache / "arrays").exists()
    found = load_transfer("pets", size=8, data_root=tmp_path, skip_bad=True)
    assert (found.bad, len(found.train.labels) + len(found.val.labels), len(found.test.labels)) == (2, 35, 11)
    assert "2 bad ones left out" in found.description
    shutil.copy(folder / "images/box_0_1.jpg", folder / "images/box_0_0.jpg")
    assert load_transfer("pets", size=8, data_root=tmp_path, skip_bad=True).bad == 1
    with pytest.raises(UserError, match="box_0_6.jpg cannot be decoded"):  # the arrays are in the cache by now
        load_transfer("pets", size=8, data_root=tmp_path)
    for file in (folder / "images").glob("*_[67].jpg"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="No test image of .* can be decoded"):
        load_transfer("pets", size=8, data_root=tmp_path, skip_bad=True)


@pytest.mark.parametrize("name", STAND_INS)
def test_a_selection_is_not_taken_for_the_published_data(tmp_path: Path, name: str) -> None:
    (tree(name, tmp_path) / GENERATED).unlink()
    with pytest.raises(UserError, match="expected MD5" if name == "cifar100" else r"names \d+ images; that of"):
        load_transfer(name, size=8, data_root=tmp_path)


def test_pickles_run_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    folder = tree("cifar100", tmp_path)
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": Evil()}))
    with pytest.raises(UserError, match="meta is not as published: it wants to run posix.mkdir"):
        load_transfer("cifar100", size=8, data_root=tmp_path)
    assert not (tmp_path / "executed").exists()


def test_wrong_arguments_and_a_disk_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match="named 'imagenet'.*\n.*cifar10, cifar100, food101, sun397, dtd, pets, aircraft"
    ):
        load_transfer("imagenet", size=8)
    with pytest.raises(UserError, match="size=7"):
        load_transfer("dtd", size=7)
    tree("dtd", tmp_path)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="DTD at 8 px takes 0.1 GB; the cache .* has 0.0 GB free"):
        load_transfer("dtd", size=8, data_root=tmp_path)


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
    with pytest.raises(UserError, match=f"DTD is not in {tmp_path / 'nothing'}.\n") as caught:
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


@pytest.mark.parametrize("name", STAND_INS)
def test_what_is_nowhere_is_drawn(name: str, cache: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        load_transfer(name, size=8)
    assert f"is not in {cache}" in caught.value.problem
    assert f"{SOURCES[name].folder}/" in caught.value.fix
    if name == "sun397":
        assert "official host serves neither" in caught.value.fix
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
    assert load_transfer("food101", size=8, download=True).stand_in
    assert (cache / "food-101").is_dir()
    monkeypatch.setattr(published, "DTD", lambda root, download: tree("dtd", Path(root) / "dtd"))
    assert load_transfer("dtd", size=8, download=True).stand_in
    with pytest.raises(Unavailable, match="SUN397 is not in"):
        load_transfer("sun397", size=8, download=True)


# Stand-ins


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
