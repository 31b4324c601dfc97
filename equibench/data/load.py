"""The datasets by name: found, checked and prepared once, then opened as memory-mapped arrays (see `utils.arrays`)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from equibench.data import cifar as cifar10
from equibench.data import solids
from equibench.data.dataset import DATASETS, Dataset, ImageSet
from equibench.errors import UserError
from equibench.utils.arrays import (
    arrays_folder,
    cache_folder,
    content_digest,
    open_arrays,
    read_json,
    store_arrays,
    writing_to_cache,
)
from equibench.utils.digests import code_digest
from equibench.utils.download import Unavailable, exclusive

# Digest of the official CIFAR-10's content: by it the prepared arrays are found when their files are gone.
CIFAR10_SHA256 = "5e5e71ed4630d506c7721247a52e06e4d8039bf51773ffa53a56d97866d045ee"
SOLIDS_SIZES = (20_000, 5_000)
SOLIDS_PIXELS = 32
RENDER_CHUNK = 250  # images between two steps of the progress bar
FOLDER_PIXELS = 224  # side of the images of a folder, unless told


def load_dataset(
    name: str | Path,
    *,
    data_root: Path | str | None = None,
    download: bool = True,
    sizes: tuple[int, int] | None = None,
    size: int = FOLDER_PIXELS,
    skip_bad: bool = False,
) -> Dataset:
    """Opens a dataset, after preparing it where this is the first time.

    Args:
        name: "cifar10", "solids", or the path of a folder of images (see `image_folder`). A folder that holds CIFAR-10
            is CIFAR-10, and one in 3DIEBench's layout brings views of objects (see `objects`).
        data_root: folder with ``cifar-10-batches-bin`` or ``cifar-10-batches-py``, or one of these itself.
            Without it CIFAR-10 is looked for in $EQUIBENCH_DATA, then in the cache, then downloaded into the
            cache. The other data take no notice of it.
        download: whether the network may be used.
        sizes: how many training and test images; for the solids only (20,000 and 5,000 unless told).
        size: side of the images in pixels; for a folder of images only.
        skip_bad: whether to go on without the images that cannot be decoded; for a folder of images only.

    Raises:
        Unavailable: (a UserError) CIFAR-10 is nowhere on this machine and cannot be downloaded.
        UserError: the name is unknown, ``data_root`` holds no CIFAR-10, a file is damaged or missing, a size
            is out of range, a folder cannot be used, or the cache folder cannot be written.
    """
    if sizes is not None and name != "solids":
        raise UserError(f"sizes={sizes} was given for {name}.", "Only the generated solids have sizes.")
    if name == "solids":
        return _load_solids(sizes or SOLIDS_SIZES)
    if name == "cifar10":
        return _load_cifar10(None if data_root is None else Path(data_root).expanduser(), download)
    if not is_folder(name):
        known = f"Known datasets: {', '.join(DATASETS)}; or give the path of a folder of images."
        raise UserError(f"There is no dataset named {str(name)!r}.", known)
    path = Path(name).expanduser()
    if path.is_dir() and cifar10.find(path):
        return _load_cifar10(path, download)
    # these need this module
    from equibench.data.folder import load_image_folder
    from equibench.data.object_layout import FOLDER
    from equibench.data.objects import load_object_folder

    if path.name == FOLDER or (path / "train_images.npy").is_file():
        return load_object_folder(path, size=size, name=path.resolve().name.lower(), skip_bad=skip_bad)
    return load_image_folder(path, size=size, skip_bad=skip_bad)


def root_of_cifar10(data_root: Path | str | None, others: bool) -> Path | None:
    """``data_root``, or None where it is a folder for ``others``, data that tasks bring along, and not for CIFAR-10."""
    root = None if data_root is None else Path(data_root).expanduser()
    return None if root and others and root.is_dir() and not cifar10.find(root) else root


def is_folder(name: str | Path) -> bool:
    """Whether a dataset's name is meant as a path: of a folder that exists, or with a separator in it."""
    if name in DATASETS or not name:
        return False
    separators = ("/", os.sep, os.altsep or os.sep)
    return isinstance(name, Path) or any(s in name for s in separators) or Path(name).expanduser().is_dir()


def load_or_generate(name: str, *, data_root: Path | str | None = None, download: bool = True) -> Dataset:
    """``load_dataset``, but the generated solids where the data are neither here nor to be downloaded.

    The exchange is told in one line on stderr. A damaged copy and a wrong ``data_root`` still raise.
    """
    try:
        return load_dataset(name, data_root=data_root, download=download)
    except Unavailable as error:
        _say(f"{error.problem.rstrip('.')}. Using the generated solids instead: these are not real images.")
        return load_dataset("solids")


def _say(line: str) -> None:
    print(f"equibench: {' '.join(line.split())}", file=sys.stderr)


# CIFAR-10: where it is


def _load_cifar10(data_root: Path | None, download: bool) -> Dataset:
    source = _local_source(data_root)
    if source is None:
        stored = _open(arrays_folder(f"cifar10-{CIFAR10_SHA256[:16]}"), "cifar10")
        if stored is not None:
            return stored
        with writing_to_cache() as cache:
            source = cifar10.fetch(cache, network=download)
    if source is None:
        raise Unavailable(
            f"CIFAR-10 is neither in $EQUIBENCH_DATA nor in the cache {cache_folder()}, and download is off.",
            f"Allow the download, or put {cifar10.ARCHIVE} from {cifar10.URL} into {cache_folder()}",
        )
    return _prepare_cifar10(source)


def _local_source(data_root: Path | None) -> cifar10.CifarFiles | None:
    """The copy that the caller or the environment names; None where neither does."""
    wanted = f"{cifar10.BINARY_FOLDER}/ or {cifar10.PYTHON_FOLDER}/"
    if data_root is not None:
        source = cifar10.find(data_root)
        if source is None:
            state = "holds no CIFAR-10" if data_root.is_dir() else "is not a folder"
            raise UserError(f"data_root {data_root} {state}.", f"Expected a folder that holds {wanted}")
        return source
    named = os.environ.get("EQUIBENCH_DATA")
    if not named:
        return None
    source = cifar10.find(Path(named).expanduser())
    if source is None:
        _say(f"warning: $EQUIBENCH_DATA ({named}) holds no {wanted}, looking elsewhere.")
    return source


def _prepare_cifar10(source: cifar10.CifarFiles) -> Dataset:
    """Opens the arrays made from ``source``; checks and converts it first where it is new."""
    stamp = cifar10.stamp(source)
    place = hashlib.sha256(str(source.folder.resolve()).encode()).hexdigest()[:16]
    record_path = cache_folder() / "checked" / f"{place}.json"
    record = read_json(record_path)
    if record.get("files") == stamp:
        stored = _open(arrays_folder(f"cifar10-{str(record.get('sha256'))[:16]}"), "cifar10")
        if stored is not None:
            return stored
    cifar10.check(source)
    arrays = cifar10.read(source)
    digest = content_digest(arrays)
    folder = arrays_folder(f"cifar10-{digest[:16]}")
    dataset = _open(folder, "cifar10")
    if dataset is None:
        dataset = _store(folder, arrays, "cifar10")
    # Without the record the next start checks again, no more: a read-only cache may hold the arrays.
    with contextlib.suppress(OSError):
        record_path.parent.mkdir(parents=True, exist_ok=True)
        scratch = record_path.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps({"folder": str(source.folder), "files": stamp, "sha256": digest}))
        os.replace(scratch, record_path)
    return dataset


# The solids


def _load_solids(sizes: tuple[int, int]) -> Dataset:
    if len(sizes) != 2 or min(sizes) < 1:
        raise UserError(f"sizes={sizes} cannot be rendered.", "Give two numbers of 1 or more: (train, test).")
    # named by the generator's code, so that pictures of another version are not taken for its
    folder = arrays_folder(f"solids-{code_digest(solids.render)[:12]}-{sizes[0]}-{sizes[1]}")
    dataset = _open(folder, "solids")
    if dataset is not None:
        return dataset
    with writing_to_cache(), exclusive(folder.parent / ".render.lock"):
        dataset = _open(folder, "solids")  # another process may have rendered it while this one waited
        if dataset is None:
            dataset = _store(folder, _render_solids(sizes), "solids")
    return dataset


def _render_solids(sizes: tuple[int, int]) -> dict[str, np.ndarray]:
    """Renders both sets, the training set with seed 0 and the test set with seed 1."""
    arrays: dict[str, np.ndarray] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("rendering solids", total=sum(sizes))
        for seed, (half, count) in enumerate(zip(("train", "test"), sizes, strict=True)):
            images = np.empty((count, 3, SOLIDS_PIXELS, SOLIDS_PIXELS), np.uint8)
            labels = np.empty(count, np.int64)
            for start in range(0, count, RENDER_CHUNK):
                rows = min(RENDER_CHUNK, count - start)
                chunk = solids.render(rows, size=SOLIDS_PIXELS, seed=seed, start=start)
                images[start : start + rows], labels[start : start + rows] = chunk.images, chunk.labels
                progress.advance(task, rows)
            arrays |= {f"{half}_images": images, f"{half}_labels": labels}
    return arrays


# Their arrays in the cache


def _open(folder: Path, name: str) -> Dataset | None:
    """The dataset prepared in ``folder``; None where there is none that can be used."""
    stored = open_arrays(folder)
    if stored is None:
        return None
    train = ImageSet(stored.arrays["train_images"], stored.arrays["train_labels"])
    test = ImageSet(stored.arrays["test_images"], stored.arrays["test_labels"])
    counts = f"{len(train.labels):,} + {len(test.labels):,}"
    description = f"Solids ({counts} images generated by equibench, not real)"
    if name == "cifar10":
        description = f"CIFAR-10 ({counts} real images)"
    classes = cifar10.CLASS_NAMES if name == "cifar10" else solids.CLASS_NAMES
    return Dataset(name, description, train, test, classes, stored.sha256)


def _store(folder: Path, arrays: Mapping[str, np.ndarray], name: str) -> Dataset:
    """Writes arrays as ``folder``, all or nothing, and opens them."""

    def write(scratch: Path) -> None:
        for key, array in arrays.items():
            np.save(scratch / f"{key}.npy", array, allow_pickle=False)

    store_arrays(folder, write)
    dataset = _open(folder, name)
    assert dataset is not None
    return dataset
