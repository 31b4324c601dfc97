"""3DIEBench, and data in its layout, as arrays: images, and for each its class, its latents and its object.

Up to 8 GiB of images are decoded once into the cache; more of them, as in the published data, are decoded when they are
asked for. Which files there are stands in `object_layout`.
"""

import hashlib
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from equibench.data import object_layout as layout
from equibench.data.contents import file_digests
from equibench.data.dataset import Dataset, ImageSet, check_size, existing_folder
from equibench.utils.arrays import (
    StoredArrays,
    arrays_folder,
    decode_all,
    open_arrays,
    prepare_arrays,
    progress,
    row_writer,
    update_digest,
)

MOST_BYTES = 8 * 2**30  # images that take more are not decoded beforehand
_VERSION = 2  # raised whenever the same files would give other arrays
HALVES = ("train", "test")
_RENDERED = "render.json"  # stands in data that equibench has rendered


@dataclass(frozen=True)
class ObjectDataset(Dataset):
    """A training and a test set of views of objects; no object is in both.

    The views of one object stand together, ascending by their number, and objects by their path. `images` is a
    `LazyImages` where they take more than the limit, `latents` (N, 7) are in the order of `LATENTS`, and `objects` (N,)
    count from 0 in each half, without gaps.
    """

    train_objects: tuple[str, ...] = ()  # "<synset>/<object>" of each object of `train`
    test_objects: tuple[str, ...] = ()
    faults: tuple[layout.Fault, ...] = ()  # what was left out: views and whole objects, by path
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
    (bicubic) so that its short side is ``size``, and its middle ``size`` x ``size`` pixels are taken. The digest covers
    images (undecoded ones by their files' names, sizes and times of change), labels, latents and object indices. Files
    whose content has changed are read again; of undecoded images, where a file was added, removed or replaced in the
    folder.

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
    folder = existing_folder(root, f"expected\n{layout.TREE}")
    check_size(size)
    names = layout.read_lists(Path(lists).expanduser() if lists else folder)
    states = layout.folder_states(folder, names)
    # Undecoded images are known to be good only where skip_bad had them decoded once.
    place = _place(_VERSION, size, folder.resolve(), names, states, most_bytes, skip_bad)
    stored = open_arrays(place)  # only lazy data lie there: to look at each of their millions of files takes minutes
    lazy = stored is not None
    if stored is None:
        listing = layout.list_objects(folder, names, states, skip_bad=skip_bad)
        lazy = len(listing) * 3 * size**2 > most_bytes
        place = place if lazy else _place(_VERSION, size, listing.state, _content(folder, listing))
        write = partial(_write, folder, listing, size, lazy, skip_bad)
        needed = len(listing) * ((0 if lazy else 3 * size**2) + 8 * (len(layout.LATENTS) + 3))
        stored = prepare_arrays(place, write, needed=needed, what=f"{len(listing):,} views of {size} px")
    faults = tuple(layout.Fault(*fault) for fault in stored.facts["faults"])
    if faults and not skip_bad:  # another call had asked to leave them out
        raise faults[0].error(folder)
    if (folder / _RENDERED).is_file() and not name.startswith("rendered-"):
        name = f"rendered-{name}"
    train, test = (_half(stored, half, folder, size if lazy else None) for half in HALVES)
    train_objects, test_objects = (tuple(stored.arrays[f"{half}_paths"].tolist()) for half in HALVES)
    views_out, absent = sum(not fault.is_object for fault in faults), sum(map(len, names.splits.values())) - len(states)
    notes = (
        f"{len(train_objects):,} + {len(test_objects):,} objects",
        f"{len(train.labels):,} + {len(test.labels):,} views",
        f"{size} px",
        f"unusable and left out: {views_out:,} views, {len(faults) - views_out:,} objects" if faults else "",
        f"{absent:,} listed objects not there" if absent else "",
    )
    return ObjectDataset(
        name=name,
        description=f"{name} ({', '.join(filter(None, notes))})",
        train=train,
        test=test,
        class_names=names.class_names,
        sha256=hashlib.sha256(f"{stored.sha256}|{stored.facts['beside']}".encode()).hexdigest(),
        left_out=views_out,
        train_objects=train_objects,
        test_objects=test_objects,
        faults=faults,
        absent=absent,
    )


def _content(folder: Path, listing: layout.ObjectListing) -> str:
    """SHA-256 of what the files of all views hold."""
    views = [(each.path, k) for objects in listing.splits.values() for each in objects for k in each.views]
    files = [f"{path}/{name}" for path, k in views for name in (f"image_{k}.jpg", f"latent_{k}.npy")]
    digest = hashlib.sha256()
    for found in file_digests(folder, files, skip_bad=True):
        digest.update(found.encode())
    return digest.hexdigest()


def _place(*key: object) -> Path:
    return arrays_folder(f"objects-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}")


def _half(stored: StoredArrays, half: str, folder: Path, lazy_size: int | None) -> ImageSet:
    images, labels, latents, objects, views, paths = (
        stored.arrays[f"{half}_{key}"] for key in ("images", "labels", "latents", "objects", "views", "paths")
    )
    if lazy_size:  # the rest of the suite asks for its shape and length, and for rows
        images = cast(np.ndarray, layout.LazyImages(folder, tuple(paths.tolist()), objects, views, lazy_size))
    return ImageSet(images, labels, latents, objects)


def _write(
    folder: Path, listing: layout.ObjectListing, size: int, lazy: bool, skip_bad: bool, scratch: Path
) -> dict[str, Any]:
    """Reads all views into the arrays of both halves; returns what was left out, and a digest of what is beside."""
    rows: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
        "images": ((3, size, size), np.uint8),  # stays empty where the images are lazy
        "latents": ((len(layout.LATENTS),), np.float64),
        **dict.fromkeys(("labels", "objects", "views"), ((), np.int64)),
    }
    faults = list(listing.faults)
    items = ((each, number) for half in HALVES for each in listing.splits[half] for number in each.views)
    with ExitStack() as stack:
        advance = stack.enter_context(progress(f"reading {folder.name}", len(listing)))
        read = partial(_read_view, folder, size, lazy, skip_bad)
        views = stack.enter_context(closing(decode_all(items, read)))
        for half in HALVES:
            add = {key: stack.enter_context(row_writer(scratch / f"{half}_{key}.npy", *rows[key])) for key in rows}
            paths: list[str] = []
            before = len(faults)
            for each in listing.splits[half]:
                found = list(islice(views, len(each.views)))
                advance(len(found))
                wrong = [view for view in found if isinstance(view, layout.Fault)]
                good = [view for view in found if not isinstance(view, layout.Fault)]
                if wrong and not skip_bad:
                    raise wrong[0].error(folder)
                faults += wrong
                if len(good) < layout.FEWEST_VIEWS:
                    faults.append(layout.too_few(each.path, len(good)))
                    continue
                for view in good:
                    for key, value in {**view, "labels": each.label, "objects": len(paths)}.items():
                        add[key](value)
                paths.append(each.path)
            if not paths:
                raise layout.none_usable(folder, half, faults[before:])
            np.save(scratch / f"{half}_paths.npy", np.array(paths), allow_pickle=False)
    digest = hashlib.sha256(f"{size}|{listing.state}".encode() if lazy else b"")
    for key in (f"{half}_{key}" for half in HALVES for key in ("latents", "objects")):
        update_digest(digest, key, np.load(scratch / f"{key}.npy", mmap_mode="r", allow_pickle=False))
    return {"faults": faults, "beside": digest.hexdigest()}


def _read_view(
    folder: Path, size: int, lazy: bool, skip_bad: bool, item: tuple[layout.ObjectViews, int]
) -> dict[str, Any] | layout.Fault:
    """A view, given by its object and its number, as it is to be stored, or what is wrong with it."""
    each, number = item
    file = f"{each.path}/latent_{number}.npy"
    try:
        view = {"views": number, "latents": layout.read_latent(folder / file)}
        file = f"{each.path}/image_{number}.jpg"
        image = layout.decode_image(folder / file, size) if skip_bad or not lazy else None
    except ValueError as error:
        return layout.Fault(file, str(error))
    return view if lazy else {**view, "images": image}
