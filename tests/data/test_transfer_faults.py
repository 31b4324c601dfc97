"""What is wrong with transfer data: the error names the file, or what is bad is left out and counted."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transfer_tree import LAYOUTS, edit, tree

from equibench.data.transfer import load_transfer
from equibench.data.transfer_sources import GENERATED
from equibench.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")
LISTED = ("food101", "sun397", "dtd", "pets", "aircraft")


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
        "label 7 of .* is out of range 1 to 6",
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
    ("inaturalist18", lambda f: (f / "val2018.json").unlink(), "val2018.json is missing"),
    (
        "inaturalist18",
        lambda f: swapped(f / "val2018.json", '"image_id": 0', '"image_id": "x"'),
        r"val2018.json is not as published: annotations.0.image_id: Input should be a valid int",
    ),
    (
        "inaturalist18",
        lambda f: swapped(f / "train2018.json", '"image_id": 0', '"image_id": 1'),
        "train2018.json gives some image two classes or none",
    ),
    (
        "inaturalist18",
        lambda f: swapped(f / "train2018.json", '"file_name": "train_val2018', '"file_name": "../train_val2018'),
        r"train2018.json: the entry '../train_val2018/.*' is malformed",
    ),
    ("imagenet", lambda f: shutil.rmtree(f / "val"), "the folder .*val is missing"),
    (
        "imagenet",
        lambda f: shutil.move(next((f / "val").rglob("*.JPEG")), f / "val" / "ILSVRC2012_val_00000001.JPEG"),
        "val holds ILSVRC2012_val_00000001.JPEG outside a folder of its class",
    ),
    ("imagenet", lambda f: shutil.rmtree(f / "val" / "n00000003"), "train and .*val differ: 'n00000003'"),
    ("cifar100", lambda f: (f / "test").unlink(), "cifar-100-python/test is missing"),
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
    with pytest.raises(UserError, match="no test image of Oxford-IIIT Pet can be decoded"):
        load_transfer("pets", size=8, data_root=tmp_path, skip_bad=True)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_selection_is_not_taken_for_the_published_data(tmp_path: Path, name: str) -> None:
    (tree(name, tmp_path) / GENERATED).unlink()
    with pytest.raises(UserError, match="expected MD5" if name == "cifar100" else r"names \d+ images, that of"):
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
        UserError, match="named 'mnist'.*\n.*cifar10, cifar100, food101, sun397, dtd, pets, aircraft, inat.*, imagenet"
    ):
        load_transfer("mnist", size=8)
    with pytest.raises(UserError, match="size=7"):
        load_transfer("dtd", size=7)
    tree("dtd", tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="48 images of 8 px from DTD take 0.1 GB, and the cache .* has 0.0 GB free"):
        load_transfer("dtd", size=8, data_root=tmp_path)
