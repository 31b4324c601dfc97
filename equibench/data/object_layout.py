"""The published layout of 3DIEBench: where it lies, and which views of which objects it holds.

A view is a pair of files, ``ROOT/<synset>/<object>/image_{k}.jpg`` and ``latent_{k}.npy``; four lists say which objects
are for training and which for testing (docs/protocol.md 2.4).
"""

import hashlib
import os
import re
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from equibench.data.dataset import data_roots
from equibench.data.pictures import read_picture, resized_part
from equibench.errors import UserError
from equibench.utils.arrays import decode_all, progress

FEWEST_VIEWS = 2  # so that an object makes a pair
LISTS = {"train": "train", "test": "val"}  # the published validation objects are what is reported
FILE = re.compile(r"image_(0|[1-9][0-9]*)\.jpg|latent_(0|[1-9][0-9]*)\.npy")

FOLDER = "3DIEBench"
_ARCHIVE = "https://dl.fbaipublicfiles.com/SIE/3DIEBench.tar.gz"
LISTS_FROM = "https://github.com/facebookresearch/SIE, folder data/"
TREE = f"""\
{FOLDER}/
    train_images.npy  train_labels.npy  val_images.npy  val_labels.npy    ({LISTS_FROM})
    02691156/
        <object>/
            image_0.jpg   ...  image_49.jpg
            latent_0.npy  ...  latent_49.npy"""

LATENTS = ("yaw", "pitch", "roll", "floor_hue", "spot_theta", "spot_phi", "spot_hue")
LOWEST = np.array([-np.pi / 2, -np.pi / 2, -np.pi / 2, 0, 0, 0, 0])
HIGHEST = np.array([np.pi / 2, np.pi / 2, np.pi / 2, 1, np.pi / 4, 2 * np.pi, 1])
_ONE_HEADER = Lock()  # Python 3.11 parses no two at once: now and then it fails on a good file ("AST constructor ...")
_TOLERANCE = 1e-6  # of the ranges, for files that were written in another precision


class Fault(NamedTuple):
    """What cannot be used, a file or a whole object: its path relative to the root, and why."""

    path: str
    reason: str

    @property
    def is_object(self) -> bool:
        return self.path.count("/") == 1

    def error(self, root: Path) -> UserError:
        fix = "unpack it again or remove it, or leave out what cannot be used with --skip-bad (skip_bad=True)"
        return UserError(f"{root / self.path} {self.reason}", fix)


class ObjectViews(NamedTuple):
    """One object and its views that have both files."""

    path: str  # "<synset>/<object>"
    label: int
    views: tuple[int, ...]  # ascending


class ObjectNames(NamedTuple):
    """What the lists name."""

    splits: dict[str, list[str]]  # "train" and "test": "<synset>/<object>", sorted
    class_names: tuple[str, ...]  # all synsets in both lists, sorted; the labels are their places


@dataclass(frozen=True)
class ObjectListing:
    """What the folder holds of that."""

    splits: dict[str, list[ObjectViews]]  # sorted by path
    faults: list[Fault]
    state: str  # digest of labels and of the files' names, sizes and times of change, without the root

    def __len__(self) -> int:
        """The number of views."""
        return sum(len(each.views) for objects in self.splits.values() for each in objects)


def find_object_data(data_root: Path | str | None = None) -> Path:
    """The folder that holds 3DIEBench: ``data_root`` or $EQUIBENCH_DATA itself, or a folder two levels down in them.

    It counts as the data where it is called 3DIEBench; the folder itself also where it holds ``train_images.npy``.
    A UserError is raised where ``data_root`` is not a folder, or the data are in neither; it tells what to download.
    """
    bases, where = data_roots(data_root, f"give the folder {FOLDER}, or one that holds it")
    for base in bases:
        itself = [base] if base.name == FOLDER or (base / "train_images.npy").is_file() else []
        for found in (*itself, base / FOLDER, *sorted(base.glob(f"*/{FOLDER}"))):
            if found.is_dir():
                return found
    fix = f"download {_ARCHIVE} (17 GB) and unpack it; give by --data-root or $EQUIBENCH_DATA a folder with\n{TREE}"
    raise UserError(f"3DIEBench is not in {where}", fix)


def read_lists(lists: Path) -> ObjectNames:
    """The objects that the four lists in a folder name; neither their order nor naming one twice matters.

    A UserError names a list that is missing, cannot be read, names no object, or contradicts itself or another.
    """
    named: dict[str, list[str]] = {}
    label_of: dict[str, Any] = {}
    synset_of: dict[Any, str] = {}
    for split, prefix in LISTS.items():
        images_file, labels_file = (lists / f"{prefix}_{kind}.npy" for kind in ("images", "labels"))
        paths = [_object_path(images_file, entry) for entry in _read_list(images_file)]
        labels = _read_list(labels_file)
        if len(paths) != len(labels):
            problem = f"{labels_file} holds {len(labels):,} labels for {len(paths):,} objects"
            raise UserError(problem, "expected one for each")
        for path, label in zip(paths, labels, strict=True):
            synset = path.split("/")[0]
            for one, other, known in ((synset, label, label_of), (label, synset, synset_of)):
                if known.setdefault(one, other) != other:
                    problem = f"gives {path} the label {label!r}; {one!r} already went with {known[one]!r}"
                    fix = "expected one label for each synset, the same in both lists"
                    raise UserError(f"{labels_file} {problem}", fix)
        named[split] = sorted(set(paths))
    shared = sorted(set(named["train"]) & set(named["test"]))
    if shared:
        problem = f"names {shared[0]}, which train_images.npy names too ({len(shared):,} in all)"
        raise UserError(f"{lists / 'val_images.npy'} {problem}", "an object is for training or for testing")
    return ObjectNames(named, tuple(sorted(label_of)))


def folder_states(root: Path, names: ObjectNames) -> dict[str, tuple[int, int, int]]:
    """The named objects whose folders are there, each with what changes when files are added, removed or replaced."""
    states = {}
    for split, paths in names.splits.items():
        for path in paths:
            try:
                state = os.stat(root / path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise _unreadable(root / path, error) from error
            if stat.S_ISDIR(state.st_mode):
                states[path] = (state.st_ino, state.st_mtime_ns, state.st_ctime_ns)
        if states.keys().isdisjoint(paths):
            problem = f"{root} holds none of the {len(paths):,} objects that {LISTS[split]}_images.npy names"
            raise UserError(problem, f"expected\n{TREE}")
    return states


def list_objects(root: Path, names: ObjectNames, present: Collection[str], *, skip_bad: bool = False) -> ObjectListing:
    """The views of the objects that are present. What lacks a file, or a second view, is a fault, and not listed."""
    digest = hashlib.sha256(f"{names.class_names}".encode())
    splits: dict[str, list[ObjectViews]] = {}
    faults: list[Fault] = []
    with progress(f"looking through {root.name}", len(present)) as advance:
        for split, paths in names.splits.items():
            splits[split] = []
            for path in (path for path in paths if path in present):
                views, wrong, state = _scan(root, path)
                advance()
                if wrong and not skip_bad:
                    raise wrong[0].error(root)
                faults += wrong
                label = names.class_names.index(path.split("/")[0])
                digest.update(f"|{split}|{label}|{path}|".encode(errors="surrogateescape") + state)
                if len(views) >= FEWEST_VIEWS:
                    splits[split].append(ObjectViews(path, label, views))
            if not splits[split]:
                raise none_usable(root, split, faults)
    return ObjectListing(splits, faults, digest.hexdigest())


def none_usable(root: Path, split: str, faults: Sequence[Fault]) -> UserError:
    """The error of a split in which nothing is left."""
    last = f"the last of {len(faults):,} faults: {faults[-1].path} {faults[-1].reason}"
    return UserError(f"no {split} object of {root} can be used", last)


def _read_list(path: Path) -> list[Any]:
    fix = f"expected a row of text or of numbers, saved without pickle, as in {LISTS_FROM}"
    if not path.is_file():
        raise UserError(f"the list {path} is missing", fix)
    try:
        array = _read_array(path)
    except (OSError, ValueError) as error:
        raise UserError(f"the list {path} is of no use: {error}", fix) from error
    if array.ndim != 1 or not len(array):
        raise UserError(f"the list {path} does not hold a row of entries", fix)
    return list(array.tolist())


def _object_path(source: Path, entry: object) -> str:
    text = os.fsdecode(entry) if isinstance(entry, bytes) else str(entry)
    parts = text.strip().strip("/").split("/")
    if len(parts) != 2 or not all(part.strip(".") for part in parts):  # ".." would lead out of the root
        raise UserError(f"{source} names {text!r}, which is no object", "entries look like /<synset>/<object>/")
    return "/".join(parts)


def _scan(root: Path, path: str) -> tuple[tuple[int, ...], list[Fault], bytes]:
    """One object's views, what is wrong with it, and a digest of its files' names, sizes and times of change."""
    try:
        with os.scandir(root / path) as entries:  # is_file() is False for a link that leads nowhere
            states = {entry.name: entry.stat() for entry in entries if FILE.fullmatch(entry.name) and entry.is_file()}
    except OSError as error:
        raise _unreadable(root / path, error) from error
    files = {name: (state.st_size, state.st_mtime_ns) for name, state in states.items()}
    faults, views = [], []
    for number in sorted({int(name[name.index("_") + 1 : -4]) for name in files}):
        image, latent = f"image_{number}.jpg", f"latent_{number}.npy"
        if image in files and latent in files:
            views.append(number)
        else:
            there, lacking = (image, latent) if image in files else (latent, image)
            faults.append(Fault(f"{path}/{lacking}", f"is missing, while {there} is there"))
    if len(views) < FEWEST_VIEWS:
        faults.append(too_few(path, len(views)))
    return tuple(views), faults, hashlib.sha256(repr(sorted(files.items())).encode()).digest()


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be read: {error.strerror or error}", "change its permissions")


def too_few(path: str, count: int) -> Fault:
    return Fault(path, f"has {count} usable view{'s' * (count != 1)}, fewer than {FEWEST_VIEWS}")


class LazyImages:
    """Images (N, 3, S, S) uint8 that are decoded when they are asked for, on several threads.

    Indexed by a number, a slice, or an array of numbers or of truths (N,), it gives an array, in the order asked for.
    A file that has become unreadable raises a UserError that names it.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self, root: Path, objects: tuple[str, ...], object_index: np.ndarray, views: np.ndarray, size: int
    ) -> None:
        self.root, self.objects, self.object_index, self.views = root, objects, object_index, views
        self.shape = (len(views), 3, size, size)

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        which, views = np.asarray(self.object_index[rows]), np.asarray(self.views[rows])
        names = [f"{self.objects[o]}/image_{k}.jpg" for o, k in zip(which.flat, views.flat, strict=True)]
        images = np.empty((len(names), *self.shape[1:]), np.uint8)
        for row, image in enumerate(decode_all(names, self._decode)):
            images[row] = image
        return images.reshape(*which.shape, *self.shape[1:])

    def _decode(self, file: str) -> NDArray[np.uint8]:
        try:
            return decode_image(self.root / file, self.shape[-1])
        except ValueError as error:
            raise Fault(file, str(error)).error(self.root) from error


def read_latent(path: Path) -> NDArray[np.float64]:
    """One view's latents (7,), in the order of LATENTS: angles and directions in radians, hues in turns.

    A ValueError says, to be read after the file's name, why they cannot be used.
    """
    try:
        latent = _read_array(path)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from error
    if latent.dtype.kind not in "fiu":
        raise ValueError("does not hold real numbers")
    if latent.shape != (len(LATENTS),):
        told = " (3DIEBench's readme says nine values, its files hold seven)" if latent.size == 9 else ""
        raise ValueError(f"has the shape {latent.shape}, expected the 7 values {', '.join(LATENTS)}{told}")
    latent = latent.astype(np.float64)
    inside = (latent >= LOWEST - _TOLERANCE) & (latent <= HIGHEST + _TOLERANCE)  # false for nan
    if not inside.all():
        k = int(np.argmin(inside))
        raise ValueError(f"has {LATENTS[k]} = {latent[k]}, expected {LOWEST[k]:.4f} to {HIGHEST[k]:.4f}")
    return latent


def _read_array(path: Path) -> np.ndarray:
    """What an ``.npy`` file holds; pickled objects are refused, since unpickling runs code."""
    with path.open("rb") as file, _ONE_HEADER:
        try:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
        except Exception as error:  # NumPy's parser raises more than ValueError on a damaged header
            raise ValueError(f"cannot be read: {error}") from error


def decode_image(path: Path, size: int) -> NDArray[np.uint8]:
    """One image as (3, size, size); a ValueError says, to be read after the file's name, why it cannot be had."""
    try:
        image = read_picture(path, turn=False)
        wide, high = (max(size, round(size * side / min(image.size))) for side in image.size)
        return resized_part(image, (wide, high), ((wide - size) // 2, (high - size) // 2), size)
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        raise ValueError(f"cannot be decoded: {type(error).__name__}: {error}") from error
