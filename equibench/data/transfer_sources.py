"""Where the published data sets of linear transfer lie, how their lists are read, and which image is of which split."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ValidationError

from equibench.data.contents import file_digests
from equibench.data.dataset import SPLITS, Listing, draw_rows
from equibench.data.pictures import is_picture
from equibench.errors import UserError

GENERATED = "GENERATED.txt"  # lies in a folder of the same layout whose images are not the published ones


@dataclass(frozen=True)
class PublishedData:
    """What is published: how a data set is found, what its lists count, and how it is split and scored."""

    title: str
    folders: Mapping[str, Sequence[str]]  # where it may lie under a root: what such a folder holds; the usual one last
    tree: str  # which files go where
    counts: Mapping[str, int]  # images in each published list
    validation: int = 0  # how many of the training images are set apart; 0 where a validation list is published
    metric: str = "top1"  # or "mean_per_class" (docs/protocol.md 8.4: ssl-transfer's choice)
    torchvision: str = ""  # its class, which can download; "" where none can
    url: str = ""
    by_hand: str = ""  # where none can: how it is to be had

    @property
    def folder(self) -> str:
        """The name of the folder that its archive holds."""
        return list(self.folders)[-1]


SOURCES = {
    "cifar10": PublishedData(
        "CIFAR-10", {"cifar-10-batches-bin": ("test_batch.bin",)}, "", {"train": 50_000, "test": 10_000}, 5_000
    ),
    "cifar100": PublishedData(
        "CIFAR-100",
        {"cifar-100-binary": ("train.bin",), "cifar-100-python": ("meta", "train")},
        "cifar-100-python/\n  meta, train, test\nor cifar-100-binary/\n  fine_label_names.txt, train.bin, test.bin",
        {"train": 50_000, "test": 10_000},
        5_000,
        torchvision="CIFAR100",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    ),
    "food101": PublishedData(
        "Food-101",
        {"food-101": ("images", "meta")},
        "food-101/\n  images/apple_pie/1005649.jpg, ...\n  meta/train.json, meta/test.json",
        {"train": 75_750, "test": 25_250},
        7_575,
        torchvision="Food101",
        url="http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
    ),
    "sun397": PublishedData(
        "SUN397",
        {"SUN397": ("a/abbey",)},
        "SUN397/\n  a/abbey/sun_aaalbzqrimafwbiv.jpg, ...\n"
        "  Training_01.txt, Testing_01.txt    (here, in Partitions/, or beside SUN397/)",
        {"train": 19_850, "test": 19_850},
        3_970,
        by_hand="its official host serves neither the images nor the lists any more (pytorch/vision#9348): they must "
        "come from a copy;\nmirrors that others name, not checked here, are OpenDataLab's SUN397 and Kaggle's "
        "sun397-50-50",
    ),
    "dtd": PublishedData(
        "DTD",
        {"dtd/dtd": ("images", "labels"), "dtd": ("images", "labels")},  # torchvision unpacks it a folder deeper
        "dtd/\n  images/banded/banded_0002.jpg, ...\n  labels/train1.txt, labels/val1.txt, labels/test1.txt",
        {"train": 1_880, "val": 1_880, "test": 1_880},
        torchvision="DTD",
        url="https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
    ),
    "pets": PublishedData(
        "Oxford-IIIT Pet",
        {"oxford-iiit-pet": ("images", "annotations/trainval.txt")},
        "oxford-iiit-pet/\n  images/Abyssinian_1.jpg, ...\n  annotations/trainval.txt, annotations/test.txt",
        {"train": 3_680, "test": 3_669},
        740,
        "mean_per_class",
        torchvision="OxfordIIITPet",
        url="https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz and .../annotations.tar.gz",
    ),
    "aircraft": PublishedData(
        "FGVC-Aircraft",
        {"fgvc-aircraft-2013b": ("data/images", "data/variants.txt")},
        "fgvc-aircraft-2013b/\n  data/images/0034309.jpg, ...\n"
        "  data/variants.txt, data/images_variant_{train,val,test}.txt",
        {"train": 3_334, "val": 3_333, "test": 3_333},
        metric="mean_per_class",
        torchvision="FGVCAircraft",
        url="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
    ),
    "inaturalist18": PublishedData(
        "iNaturalist 2018",
        {name: ("train2018.json", "val2018.json") for name in ("inat18", "inaturalist18")},
        "inaturalist18/\n  train2018.json, val2018.json\n  train_val2018/Aves/2820/<picture>.jpg, ...",
        {"train": 437_513, "test": 24_426},
        43_751,
        by_hand="train_val2018.tar.gz (120 GB) and the two lists are linked from "
        "https://github.com/visipedia/inat_comp/tree/master/2018",
    ),
    "imagenet": PublishedData(
        "ImageNet-1k",
        {name: ("train/n01440764", "val/n01440764") for name in ("ILSVRC2012", "imagenet")},
        "imagenet/\n  train/n01440764/n01440764_18.JPEG, ...\n  val/n01440764/ILSVRC2012_val_00000293.JPEG, ...",
        {"train": 1_281_167, "test": 50_000},
        50_000,
        by_hand="ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar are to be had at https://image-net.org, with an "
        "account;\ntorchvision.datasets.ImageNet unpacks them into these folders",
    ),
}


def find_source(source: PublishedData, root: Path) -> Path | None:
    """The folder of a data set: under ``root``, or ``root`` itself; None where it is neither."""
    for name in source.folders:
        if (root / name).is_dir():
            return root / name
    held = any(all((root / path).exists() for path in holds) for holds in source.folders.values())
    return root if held or root.name in source.folders and root.is_dir() else None


def is_generated(root: Path) -> bool:
    """Whether a note in the folder says that its images are not the published ones."""
    return (root / GENERATED).is_file()


def list_transfer(name: str, root: Path, *, skip_bad: bool = False) -> Listing:
    """The images that the published lists of a data set name, in an order that depends on nothing but their paths.

    The validation images are those of the published list, else a stratified draw with seed 0 (docs/protocol.md 2.5):
    its size is the published one, or of other images the same share. With ``skip_bad``, absent images are listed too.

    Raises:
        UserError: a list is missing, malformed or of another length than the published one; an image is in two lists,
            twice in one, or absent; the classes of two lists differ; a label is out of range.
    """
    source = SOURCES[name]
    lists, class_names = _READERS[name](root)
    _check(lists, None if is_generated(root) else source)
    state = _state(root, lists, class_names, skip_bad)
    labels = {class_name: label for label, class_name in enumerate(class_names)}
    splits = {split: sorted((path, labels[kind]) for path, kind in one.entries) for split, one in lists.items()}
    if "val" not in splits:
        both = splits["train"]
        parts = set_apart([label for _, label in both], source.validation / source.counts["train"])
        splits["train"], splits["val"] = ([both[row] for row in rows] for rows in parts)
    return Listing(splits, class_names, state)


def set_apart(labels: Sequence[int], share: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and for validation, both ascending: the same share of each class, drawn with seed 0."""
    count = max(round(len(labels) * share), 1)
    sizes = np.unique(labels, return_counts=True)[1]
    every_class = sizes.min() > 1 and len(sizes) <= min(count, len(labels) - count)  # else a few images, as in a test
    return draw_rows(labels, count, every_class)


def _check(lists: _Lists, source: PublishedData | None) -> None:
    """Compares the lists with each other, and with ``source`` where they should be the published ones."""
    train = lists["train"]
    seen: dict[str, Path] = {}
    for split, one in lists.items():
        count = len(one.entries)
        if not count:
            raise _wrong(f"the list {one.file} names no image")
        if source and count != source.counts[split]:
            problem = f"{one.file} names {count:,} images, that of {source.title} {source.counts[split]:,}"
            raise UserError(problem, "put the published file there: a selection must not be scored under its name")
        for path, _ in one.entries:
            if path in seen:
                also = "twice" if seen[path] == one.file else f"and so does {seen[path]}"
                raise _wrong(f"{one.file} names {path}, {also}", "or test images may be trained on")
            if not {"", ".", ".."}.isdisjoint(path.split("/")):
                raise _malformed(one.file, path, "a path inside the data set's folder")
            seen[path] = one.file
        differ = sorted({kind for _, kind in one.entries} ^ {kind for _, kind in train.entries})
        if differ:
            raise _wrong(f"the classes of {train.file} and {one.file} differ: {differ[0]!r} is in one of them only")


def _state(root: Path, lists: _Lists, class_names: Sequence[str], skip_bad: bool) -> str:
    """SHA-256 of the lists and of what the images hold."""
    entries = [(split, path, kind) for split, one in sorted(lists.items()) for path, kind in sorted(one.entries)]
    state = hashlib.sha256(json.dumps(class_names).encode())
    named = {path: one.file for one in lists.values() for path, _ in one.entries}
    digests = file_digests(root, [path for _, path, _ in entries], skip_bad=skip_bad, lists=named)
    for (split, path, kind), digest in zip(entries, digests, strict=True):
        state.update(f"|{split}|{kind}|{digest}|{path}".encode())
    return state.hexdigest()


class _Split(NamedTuple):
    file: Path  # the published list
    entries: list[tuple[str, str]]  # (path relative to the root, class)


_Lists = dict[str, _Split]


def _food101(root: Path) -> tuple[_Lists, tuple[str, ...]]:
    lists = {}
    for split in ("train", "test"):
        file = root / "meta" / f"{split}.json"
        text = _read(file)
        try:
            classes = json.loads(text)
        except ValueError as error:
            raise _wrong(f"{file} is no JSON: {error}") from error
        if not isinstance(classes, dict) or not all(isinstance(paths, list) for paths in classes.values()):
            raise _malformed(file, text[:60], '{"apple_pie": ["apple_pie/1005649", ...], ...}')
        named = [(path, kind) for kind, paths in classes.items() for path in paths]
        for path, kind in named:
            if not isinstance(path, str) or path.split("/")[:-1] != [kind]:
                raise _malformed(file, path, f"{kind}/NUMBER")
        lists[split] = _Split(file, [(f"images/{path}.jpg", kind) for path, kind in named])
    return lists, _sorted_classes(lists)


def _sun397(root: Path) -> tuple[_Lists, tuple[str, ...]]:
    """A class is the path of a folder without its initial, as in SUN397's own list of classes."""
    lists = {}
    for split, name in (("train", "Training_01.txt"), ("test", "Testing_01.txt")):
        places = [folder / name for folder in (root, root / "Partitions", root.parent / "Partitions", root.parent)]
        file = next((path for path in places if path.is_file()), places[0])
        found = _matches(file, r"/?(\w/(.+)/[^/]+\.jpg)", "/a/abbey/sun_aaalbzqrimafwbiv.jpg")
        lists[split] = _Split(file, [(match[1], match[2]) for match in found])
    return lists, _sorted_classes(lists)


def _dtd(root: Path) -> tuple[_Lists, tuple[str, ...]]:
    """Partition 1, the one of ten that is usually reported."""
    lists = {}
    for split in SPLITS:
        file = root / "labels" / f"{split}1.txt"
        found = _matches(file, r"([^/]+)/[^/]+\.jpg", "banded/banded_0002.jpg")
        lists[split] = _Split(file, [(f"images/{match[0]}", match[1]) for match in found])
    return lists, _sorted_classes(lists)


def _pets(root: Path) -> tuple[_Lists, tuple[str, ...]]:
    """A class has a number from 1 on, and the name that its images' names begin with."""
    lists: _Lists = {}
    numbers: dict[str, int] = {}
    for split, name in (("train", "trainval.txt"), ("test", "test.txt")):
        lists[split] = one = _Split(root / "annotations" / name, [])
        for match in _matches(one.file, r"((\S+)_\d+) (\d+) [12] \d+", "Abyssinian_100 1 1 1"):
            kind, number = match[2], int(match[3])
            if numbers.setdefault(kind, number) != number:
                raise _wrong(f"{one.file}: {match[0]!r} gives {kind} another label than {numbers[kind]}")
            one.entries.append((f"images/{match[1]}.jpg", kind))
    kinds = sorted(numbers, key=numbers.__getitem__)
    for expected, kind in enumerate(kinds, start=1):
        if numbers[kind] != expected:
            found = f"{lists['train'].file}: label {numbers[kind]} of {kind}"
            raise _wrong(f"{found} is out of range 1 to {len(kinds)}, or not its alone")
    return lists, tuple(kinds)


def _aircraft(root: Path) -> tuple[_Lists, tuple[str, ...]]:
    """The classes are the variants, in the order of their own list."""
    variants = root / "data" / "variants.txt"
    class_names = tuple(_lines(variants))
    lists = {}
    for split in SPLITS:
        file = root / "data" / f"images_variant_{split}.txt"
        lists[split] = one = _Split(file, [])
        for match in _matches(file, r"([^ /]+) (.+)", "0034309 707-320"):
            if match[2] not in class_names:
                raise _wrong(f"{file}: the label of {match[0]!r} is out of range: {variants} does not list it")
            one.entries.append((f"data/images/{match[1]}.jpg", match[2]))
    if sorted(class_names) != list(_sorted_classes(lists)):
        raise _wrong(f"{variants} lists a variant twice, or one without images")
    return lists, class_names


class _InatImage(BaseModel):
    id: int
    file_name: str  # relative to the data set's folder


class _InatAnnotation(BaseModel):
    image_id: int
    category_id: int


class _InatList(BaseModel):
    """What is read of the competition's lists, which are in COCO's format."""

    images: list[_InatImage]
    annotations: list[_InatAnnotation]


def _inaturalist18(root: Path) -> tuple[_Lists, tuple[str, ...]]:
    """A class is the number of a category; their names were withheld during the competition."""
    lists = {}
    for split, name in (("train", "train2018.json"), ("test", "val2018.json")):
        file = root / name
        try:
            read = _InatList.model_validate_json(_read(file))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise _wrong(f"{file} is not as published: {where}: {first['msg']}") from error
        files = {image.id: image.file_name for image in read.images}
        category = {one.image_id: str(one.category_id) for one in read.annotations}
        if len(files) < len(read.images) or len(category) < len(read.annotations) or files.keys() != category.keys():
            raise _wrong(f"{file} gives some image two classes or none, or a class to an image that it does not list")
        lists[split] = _Split(file, [(path, category[number]) for number, path in files.items()])
    return lists, tuple(sorted({kind for one in lists.values() for _, kind in one.entries}, key=int))


def _imagenet(root: Path) -> tuple[_Lists, tuple[str, ...]]:
    """The folders are the lists: a class is a folder, named by its synset."""
    lists = {}
    for split, name in (("train", "train"), ("test", "val")):
        folder = root / name
        if not folder.is_dir():
            raise UserError(f"the folder {folder} is missing", f"expected:\n{SOURCES['imagenet'].tree}")
        lists[split] = one = _Split(folder, [])
        for inner in os.scandir(folder):
            if is_picture(inner.name):
                problem = f"{folder} holds {inner.name} outside a folder of its class"
                raise UserError(problem, "torchvision.datasets.ImageNet unpacks the archives into folders of classes")
            if inner.is_dir() and not inner.name.startswith("."):
                names = (entry.name for entry in os.scandir(inner) if is_picture(entry.name))
                one.entries.extend((f"{name}/{inner.name}/{file}", inner.name) for file in names)
    return lists, _sorted_classes(lists)


_READERS = {
    "food101": _food101, "sun397": _sun397, "dtd": _dtd, "pets": _pets, "aircraft": _aircraft,
    "inaturalist18": _inaturalist18, "imagenet": _imagenet,
}  # fmt: skip


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise _wrong(f"the list {path} {reason}") from error


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _read(path).splitlines() if line.strip()]


def _matches(file: Path, pattern: str, expected: str) -> Iterator[re.Match[str]]:
    """Each line of a list as the pattern takes it apart."""
    for line in _lines(file):
        match = re.fullmatch(pattern, line)
        if not match:
            raise _malformed(file, line, expected)
        yield match


def _malformed(file: Path, entry: object, expected: str) -> UserError:
    return UserError(f"{file}: the entry {entry!r} is malformed", f"expected the like of: {expected}")


def _wrong(problem: str, reason: str = "") -> UserError:
    return UserError(problem, f"put the published lists there{', ' * bool(reason)}{reason}")


def _sorted_classes(lists: _Lists) -> tuple[str, ...]:
    return tuple(sorted({kind for one in lists.values() for _, kind in one.entries}))
