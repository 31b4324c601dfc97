"""3DIEBench, and data in its layout, as arrays: images, and for each its class, its latents and its object.

Up to 8 GiB of images are decoded once into the cache; more of them, as in the published data, are decoded when they are
asked for. Which files there are stands in `object_layout`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from equibench.data.dataset import SMALLEST, Dataset, ImageSet
from equibench.data.object_layout import (
    FEWEST_VIEWS,
    LATENTS,
    TREE,
    Fault,
    LazyImages,
    ObjectListing,
    ObjectViews,
    decode_image,
    folder_states,
    list_objects,
    none_usable,
    read_latent,
    read_lists,
    too_few,
)
from equibench.errors import UserError
from equibench.utils.arrays import (
    RowWriter,
    Stored,
    arrays_folder,
    decode_all,
    open_arrays,
    progress,
    store_arrays,
    writing_to_cache,
)
from equibench.utils.download import exclusive

MOST_BYTES = 8 * 2**30  # images that take more are not decoded beforehand
VERSION = 1  # raised whenever the same files would give other arrays
HALVES = ("train", "test")
BESIDE = ("latents", "objects", "views", "paths")  # kept for each half beside the four arrays of any dataset
RENDERED = "render.json"  # stands in data that equibench has rendered


@dataclass(frozen=True)
class ObjectDataset(Dataset):
    """A training and a test set of views of objects; no object is in both.

    The views of one object stand together, ascending by their number, and objects by their path. `images` is a
    `LazyImages` where they take more than the limit, `latents` (N, 7) are in the order of `LATENTS`, and `objects` (N,)
    count from 0 in each half, without gaps.
    """

    train_objects: tuple[str, ...] = ()  # "<synset>/<object>" of each object of `train`
    test_objects: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()  # what was left out: views and whole objects, by path
    absent: int = 0  # objects that the lists name and the folder does not hold


def load_object_folder(
    root: Path | str,
    *,
    lists: Path | str | None = None,
    size: int = 224,
    name: str = "3diebench",
    skip_bad: bool = False,
    most_bytes: int = MOST_BYTES,
) -> ObjectDataset:
    """Opens 3DIEBench, or data in its layout, after preparing them in the cache where this is the first time.

    The published training objects are `train`, the published validation objects `test`. Each image is made RGB, resized
    (bicubic, the whole frame) so that its short side is ``size``, and its middle ``size`` x ``size`` pixels are taken:
    all of it, as the published images are square. The digest covers images (undecoded ones by their files' names, sizes
    and times of change), labels, latents and object indices. Files that have changed are read again; of images that are
    decoded when they are asked for, only those of objects in whose folder a file was added, removed or replaced.

    Args:
        root: the folder that holds ``<synset>/<object>/``; objects of the lists that it does not hold are counted.
        lists: the folder of the four lists, ``root`` unless told.
        size: side of the images in pixels, 8 or more.
        name: the dataset's; data that equibench has rendered are named "rendered-..." in any case.
        skip_bad: leave out views that cannot be used, and objects with fewer than two others. Where images are not
            decoded beforehand, this decodes each of them once.
        most_bytes: up to how many bytes of images are decoded beforehand.

    Raises:
        UserError: the folder is missing; a list is missing or wrong (see `read_lists`); without ``skip_bad``, a view
            cannot be used; a split has no usable object; the arrays do not fit on the disk; the size is too small.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {state}.", f"Expected\n{TREE}")
    if size < SMALLEST:
        raise UserError(f"size={size} is too small for images.", f"Give a side of {SMALLEST} pixels or more.")
    names = read_lists(Path(lists).expanduser() if lists else folder)
    states = folder_states(folder, names)
    # Undecoded images are known to be good only where skip_bad had them decoded once.
    place = _place(VERSION, size, folder.resolve(), names, states, most_bytes, skip_bad)
    prepared = _open(place)  # only lazy data lie there: to look at each of their millions of files takes minutes
    lazy = prepared is not None
    if prepared is None:
        listing = list_objects(folder, names, states, skip_bad=skip_bad)
        lazy = len(listing) * 3 * size**2 > most_bytes
        place = place if lazy else _place(VERSION, size, folder.resolve(), listing.state)
        prepared = _open(place) or _prepare(place, _Plan(folder, listing, size, lazy, skip_bad))
    if prepared.faults and not skip_bad:  # another call had asked to leave them out
        raise prepared.faults[0].error(folder)
    if (folder / RENDERED).is_file() and not name.startswith("rendered-"):
        name = f"rendered-{name}"
    train, test = (_half(prepared, half, folder, size if lazy else None) for half in HALVES)
    absent = sum(map(len, names.splits.values())) - len(states)
    return _as_dataset(name, prepared, train, test, names.class_names, absent)


def _place(*key: object) -> Path:
    return arrays_folder(f"objects-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}")


@dataclass(frozen=True)
class _Plan:
    """What is to be prepared, and how."""

    folder: Path
    listing: ObjectListing
    size: int
    lazy: bool
    skip_bad: bool


@dataclass(frozen=True)
class _Prepared:
    """What a folder of the cache holds."""

    stored: Stored
    beside: dict[str, np.ndarray]  # "train_latents", ...
    faults: tuple[Fault, ...]


def _half(prepared: _Prepared, half: str, folder: Path, lazy_size: int | None) -> ImageSet:
    images, labels = (prepared.stored.arrays[f"{half}_{key}"] for key in ("images", "labels"))
    latents, objects, views, paths = (prepared.beside[f"{half}_{key}"] for key in BESIDE)
    if lazy_size:  # the rest of the suite asks for its shape and length, and for rows
        images = cast(np.ndarray, LazyImages(folder, tuple(paths.tolist()), objects, views, lazy_size))
    return ImageSet(images, labels, latents, objects)


def _as_dataset(
    name: str, prepared: _Prepared, train: ImageSet, test: ImageSet, class_names: tuple[str, ...], absent: int
) -> ObjectDataset:
    paths = [tuple(prepared.beside[f"{half}_paths"].tolist()) for half in HALVES]
    objects_out = sum(fault.is_object for fault in prepared.faults)
    views_out = len(prepared.faults) - objects_out
    notes = (
        f"{len(paths[0]):,} + {len(paths[1]):,} objects",
        f"{len(train.labels):,} + {len(test.labels):,} views",
        f"{train.images.shape[-1]} px",
        f"unusable and left out: {views_out:,} views, {objects_out:,} objects" if prepared.faults else "",
        f"{absent:,} listed objects not there" if absent else "",
    )
    sha256 = hashlib.sha256(f"{prepared.stored.sha256}|{prepared.stored.facts['beside']}".encode()).hexdigest()
    return ObjectDataset(
        name=name,
        description=f"{name} ({', '.join(note for note in notes if note)})",
        train=train,
        test=test,
        class_names=class_names,
        sha256=sha256,
        left_out=views_out,
        train_objects=paths[0],
        test_objects=paths[1],
        faults=prepared.faults,
        absent=absent,
    )


# From files to arrays


def _open(place: Path) -> _Prepared | None:
    """What was prepared there; None where nothing was, or a file was cut or removed since."""
    stored = open_arrays(place)
    if stored is None:
        return None
    try:
        files = {key: place / f"{key}.npy" for key in stored.facts["bytes"]}
        if any(path.stat().st_size != stored.facts["bytes"][key] for key, path in files.items()):
            return None
        beside = {key: np.load(path, mmap_mode="r", allow_pickle=False) for key, path in files.items()}
        return _Prepared(stored, beside, tuple(Fault(*fault) for fault in stored.facts["faults"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _prepare(place: Path, plan: _Plan) -> _Prepared:
    row = (0 if plan.lazy else 3 * plan.size**2) + 8 * (len(LATENTS) + 3)
    needed = len(plan.listing) * row
    space = f"{max(needed / 1e9, 0.1):,.1f} GB"
    with writing_to_cache(space) as cache:
        free = shutil.disk_usage(cache).free
        if needed * 1.01 > free:
            raise UserError(
                f"{len(plan.listing):,} views of {plan.size} px take {space}; the cache {cache} has "
                f"{free / 1e9:,.1f} GB free.",
                "Set EQUIBENCH_CACHE to a folder on a larger disk, or choose a smaller size.",
            )
        with exclusive(place.parent / f".{place.name}.lock"):
            prepared = _open(place)  # another process may have prepared them while this one waited
            if prepared is None:
                shutil.rmtree(place, ignore_errors=True)  # its four arrays may be whole, and would be kept
                store_arrays(place, partial(_write, plan=plan), space=space)
                prepared = _open(place)
    if prepared is None:
        raise UserError(f"{place} could not be written.", "Delete it, or set EQUIBENCH_CACHE to another.")
    return prepared


def _write(scratch: Path, *, plan: _Plan) -> dict[str, Any]:
    """Reads all views into the arrays of both halves; returns what was left out, and a digest of what is beside."""
    faults = list(plan.listing.faults)
    with progress(f"reading {plan.folder.name}", len(plan.listing)) as advance:
        for half in HALVES:
            faults += _write_half(scratch, plan, half, advance)
    paths = {f"{half}_{key}": scratch / f"{half}_{key}.npy" for half in HALVES for key in BESIDE}
    digest = hashlib.sha256(f"{plan.size}|{plan.listing.state}".encode() if plan.lazy else b"")
    for key, path in paths.items():
        if key.endswith(("_latents", "_objects")):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            digest.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.data)
    sizes = {key: path.stat().st_size for key, path in paths.items()}
    return {"faults": faults, "beside": digest.hexdigest(), "bytes": sizes}


def _write_half(scratch: Path, plan: _Plan, half: str, advance: Callable[..., None]) -> list[Fault]:
    """Writes the arrays of one half, object by object; returns what was left out."""
    faults: list[Fault] = []
    paths: list[str] = []
    with ExitStack() as stack:

        def writer(key: str, shape: tuple[int, ...], dtype: type[np.generic]) -> RowWriter:
            return stack.enter_context(RowWriter(scratch / f"{half}_{key}.npy", shape, dtype))

        images = writer("images", (3, plan.size, plan.size), np.uint8)  # stays empty where the images are lazy
        latents = writer("latents", (len(LATENTS),), np.float64)
        numbers = {key: writer(key, (), np.int64) for key in ("labels", "objects", "views")}
        items = ((each, number) for each in plan.listing.splits[half] for number in each.views)
        read = stack.enter_context(closing(decode_all(items, partial(_read_view, plan))))
        for each in plan.listing.splits[half]:
            found = list(islice(read, len(each.views)))
            advance(len(each.views))
            wrong = [view for view in found if isinstance(view, Fault)]
            if wrong and not plan.skip_bad:
                raise wrong[0].error(plan.folder)
            faults += wrong
            good = [view for view in found if not isinstance(view, Fault)]
            if len(good) < FEWEST_VIEWS:
                faults.append(too_few(each.path, len(good)))
                continue
            for view in good:
                latents.append(view.latent)
                if view.image is not None:
                    images.append(view.image)
                for key, value in (("labels", each.label), ("objects", len(paths)), ("views", view.number)):
                    numbers[key].append(value)
            paths.append(each.path)
    if not paths:
        raise none_usable(plan.folder, half, faults)
    np.save(scratch / f"{half}_paths.npy", np.array(paths), allow_pickle=False)
    return faults


# One view


@dataclass(frozen=True)
class _View:
    number: int
    latent: NDArray[np.float64]
    image: NDArray[np.uint8] | None  # None where the images are lazy


def _read_view(plan: _Plan, item: tuple[ObjectViews, int]) -> _View | Fault:
    """A view, given by its object and its number, as it is to be stored, or what is wrong with it."""
    each, number = item
    file = f"{each.path}/latent_{number}.npy"
    try:
        latent, image = read_latent(plan.folder / file), None
        file = f"{each.path}/image_{number}.jpg"
        if plan.skip_bad or not plan.lazy:
            image = decode_image(plan.folder / file, plan.size)
    except ValueError as error:
        return Fault(file, str(error))
    return _View(number, latent, None if plan.lazy else image)
