"""The published lists of the data sets of linear transfer: which image is of which class and split.

They are read directly, not through torchvision's classes: these stop with a traceback at a missing file or a malformed
line, SUN397's has no splits, and none looks for an image that is in two of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from equibench.errors import UserError


class Split(NamedTuple):
    """One published list as it was read."""

    file: Path
    entries: list[tuple[str, str]]  # (path relative to the root, class)


Lists = dict[str, Split]


def _food101(root: Path) -> tuple[Lists, tuple[str, ...]]:
    lists = {}
    for split in ("train", "test"):
        file, entries = root / "meta" / f"{split}.json", []
        text = _read(file)
        try:
            classes = json.loads(text)
        except ValueError as error:
            raise UserError(f"{file} is no JSON: {error}", "Replace it by the published file.") from error
        if not isinstance(classes, dict) or not all(isinstance(paths, list) for paths in classes.values()):
            raise malformed(file, text[:60], '{"apple_pie": ["apple_pie/1005649", ...], ...}')
        for kind, paths in classes.items():
            for path in paths:
                if not isinstance(path, str) or path.split("/")[:-1] != [kind]:
                    raise malformed(file, path, f"{kind}/NUMBER")
                entries.append((f"images/{path}.jpg", kind))
        lists[split] = Split(file, entries)
    return lists, _sorted_classes(lists)


def _sun397(root: Path) -> tuple[Lists, tuple[str, ...]]:
    """A class is the path of a folder without its initial, as in SUN397's own list of classes."""
    lists = {}
    for split, name in (("train", "Training_01.txt"), ("test", "Testing_01.txt")):
        places = [folder / name for folder in (root, root / "Partitions", root.parent / "Partitions", root.parent)]
        file = next((path for path in places if path.is_file()), places[0])
        found = _matches(file, r"/?(\w/(.+)/[^/]+\.jpg)", "/a/abbey/sun_aaalbzqrimafwbiv.jpg")
        lists[split] = Split(file, [(match[1], match[2]) for match in found])
    return lists, _sorted_classes(lists)


def _dtd(root: Path) -> tuple[Lists, tuple[str, ...]]:
    """Partition 1, the one of ten that is usually reported."""
    lists = {}
    for split in ("train", "val", "test"):
        file = root / "labels" / f"{split}1.txt"
        found = _matches(file, r"([^/]+)/[^/]+\.jpg", "banded/banded_0002.jpg")
        lists[split] = Split(file, [(f"images/{match[0]}", match[1]) for match in found])
    return lists, _sorted_classes(lists)


def _pets(root: Path) -> tuple[Lists, tuple[str, ...]]:
    """A class has a number from 1 on, and the name that its images' names begin with."""
    lists: Lists = {}
    numbers: dict[str, int] = {}
    for split, name in (("train", "trainval.txt"), ("test", "test.txt")):
        lists[split] = one = Split(root / "annotations" / name, [])
        for match in _matches(one.file, r"((\S+)_\d+) (\d+) [12] \d+", "Abyssinian_100 1 1 1"):
            kind, number = match[2], int(match[3])
            if numbers.setdefault(kind, number) != number:
                problem = f"{one.file}: {match[0]!r} gives {kind} another label than {numbers[kind]}."
                raise UserError(problem, "Replace the lists by the published ones.")
            one.entries.append((f"images/{match[1]}.jpg", kind))
    kinds = sorted(numbers, key=numbers.__getitem__)
    for place, kind in enumerate(kinds):
        if numbers[kind] != place + 1:
            problem = f"{lists['train'].file}: label {numbers[kind]} of {kind} is out of range or not its alone."
            raise UserError(problem, f"The lists name {len(kinds)} classes: expected labels 1 to {len(kinds)}.")
    return lists, tuple(kinds)


def _aircraft(root: Path) -> tuple[Lists, tuple[str, ...]]:
    """The classes are the variants, in the order of their own list."""
    variants = root / "data" / "variants.txt"
    class_names = tuple(_lines(variants))
    lists, known = {}, set(class_names)
    for split in ("train", "val", "test"):
        file = root / "data" / f"images_variant_{split}.txt"
        found = list(_matches(file, r"([^ /]+) (.+)", "0034309 707-320"))
        for match in found:
            if match[2] not in known:
                problem = f"{file}: the label of {match[0]!r} is out of range: {variants} does not list it."
                raise UserError(problem, "Replace both files by the published ones.")
        lists[split] = Split(file, [(f"data/images/{match[1]}.jpg", match[2]) for match in found])
    if sorted(class_names) != list(_sorted_classes(lists)):
        raise UserError(f"{variants} lists a variant twice, or one without images.", "Replace it by the published one.")
    return lists, class_names


READERS: dict[str, Callable[[Path], tuple[Lists, tuple[str, ...]]]] = {
    "food101": _food101,
    "sun397": _sun397,
    "dtd": _dtd,
    "pets": _pets,
    "aircraft": _aircraft,
}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise UserError(f"The list {path} {reason}.", "Put the published file there.") from error


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _read(path).splitlines() if line.strip()]


def _matches(file: Path, pattern: str, expected: str) -> Iterator[re.Match[str]]:
    """Each line of a list as the pattern takes it apart."""
    for line in _lines(file):
        match = re.fullmatch(pattern, line)
        if not match:
            raise malformed(file, line, expected)
        yield match


def malformed(file: Path, entry: object, expected: str) -> UserError:
    """The error of a list whose entry does not look as expected."""
    return UserError(f"{file}: the entry {entry!r} is malformed.", f"Expected the like of: {expected}")


def _sorted_classes(lists: Lists) -> tuple[str, ...]:
    return tuple(sorted({kind for one in lists.values() for _, kind in one.entries}))
