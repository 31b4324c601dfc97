"""The datasets by name: found, checked and prepared once, then opened as memory-mapped arrays (see `utils.arrays`)."""

import contextlib
import hashlib
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from equibench.data import cifar, solids
from equibench.data.dataset import DATASETS, Dataset, image_sets
from equibench.data.own import OWN_DATASETS, load_own
from equibench.errors import UserError
from equibench.utils.arrays import (
    StoredArrays,
    arrays_folder,
    cache_folder,
    content_digest,
    open_arrays,
    prepare_arrays,
    progress,
    read_json,
    writing_to_cache,
)
from equibench.utils.digests import code_digest
from equibench.utils.download import Unavailable
from equibench.utils.files import write_text

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
        name: "cifar10", "solids", one that is registered (see `data.own`), or the path of a folder of images (see
            `data.folder`). A folder that holds CIFAR-10 is CIFAR-10, and one in 3DIEBench's layout brings views of
            objects (see `data.objects`).
        data_root: folder with ``cifar-10-batches-bin`` or ``cifar-10-batches-py``, or one of these itself. Without it
            CIFAR-10 is looked for in $EQUIBENCH_DATA, then in the cache, then downloaded there. Registered data get it
            too.
        download: whether the network may be used.
        sizes: how many training and test images; for the solids only (20,000 and 5,000 unless told).
        size: side of the images in pixels; for a folder of images only.
        skip_bad: whether to go on without the images that cannot be decoded; for a folder of images only.

    Raises:
        Unavailable: (a UserError) CIFAR-10 is nowhere on this machine and cannot be downloaded.
        UserError: the name is unknown, ``data_root`` holds no CIFAR-10, a file is damaged or missing, a size is out of
            range, a folder cannot be used, or the cache folder cannot be written.
    """
    if sizes is not None and name != "solids":
        raise UserError(f"sizes={sizes} was given for {name}", "only the generated solids have sizes")
    if name == "solids":
        return _load_solids(sizes or SOLIDS_SIZES)
    if name == "cifar10":
        return _load_cifar10(None if data_root is None else Path(data_root).expanduser(), download)
    path, text = Path(name).expanduser(), str(name)
    like_a_path = isinstance(name, Path) or not {"/", os.sep, os.altsep}.isdisjoint(text)
    is_folder = bool(text) and (like_a_path or path.is_dir())
    # one that a file has registered goes before a folder of that name; plug-ins are looked for only where neither is
    if text in ([own.name for own in OWN_DATASETS.entries()] if is_folder else OWN_DATASETS.names()):
        return load_own(text, None if data_root is None else Path(data_root).expanduser())
    if not is_folder:
        known = (
            f"known datasets: {', '.join([*DATASETS, *OWN_DATASETS.names()])}; or give the path of a folder of images"
        )
        raise UserError(f"there is no dataset named {text!r}", known)
    if path.is_dir() and cifar.find_cifar10(path):
        return _load_cifar10(path, download)
    # these import Pillow, for which a rerun of the named datasets need not wait
    from equibench.data.folder import load_image_folder
    from equibench.data.object_layout import FOLDER
    from equibench.data.objects import load_object_folder

    if path.name == FOLDER or (path / "train_images.npy").is_file():
        return load_object_folder(path, size=size, name=path.resolve().name.lower(), skip_bad=skip_bad)
    return load_image_folder(path, size=size, skip_bad=skip_bad)


def root_of_cifar10(data_root: Path | str | None, others: bool) -> Path | None:
    """``data_root``, or None where it is a folder for ``others``, data that tasks bring along, and not for CIFAR-10."""
    root = None if data_root is None else Path(data_root).expanduser()
    return None if root and others and root.is_dir() and not cifar.find_cifar10(root) else root


def load_or_generate(name: str, *, data_root: Path | str | None = None, download: bool = True) -> Dataset:
    """``load_dataset``, but the generated solids where the data are neither here nor to be downloaded.

    The exchange is told in one line on stderr. A damaged copy and a wrong ``data_root`` still raise.
    """
    try:
        return load_dataset(name, data_root=data_root, download=download)
    except Unavailable as error:
        _say(f"{error.problem}; using the generated solids instead, which are not real images")
        return load_dataset("solids")


def _say(line: str) -> None:
    print(f"equibench: {' '.join(line.split())}", file=sys.stderr)


# CIFAR-10


def _load_cifar10(data_root: Path | None, download: bool) -> Dataset:
    """From the folder that the caller or the environment names, else from the cache, else downloaded."""
    wanted = f"{cifar.BINARY_FOLDER}/ or {cifar.PYTHON_FOLDER}/"
    named = os.environ.get("EQUIBENCH_DATA")
    root = data_root or (Path(named).expanduser() if named else None)
    files = cifar.find_cifar10(root) if root else None
    if files is None and data_root is not None:
        state = "holds no CIFAR-10" if data_root.is_dir() else "is not a folder"
        raise UserError(f"data_root {data_root} {state}", f"expected a folder that holds {wanted}")
    if files is None and named:
        _say(f"warning: $EQUIBENCH_DATA ({named}) holds no {wanted}, looking elsewhere")
    stored = None if files else open_arrays(_place_of_cifar10(CIFAR10_SHA256))
    if files is None and stored is None:
        with writing_to_cache() as cache:
            files = cifar.fetch_cifar10(cache, network=download)
    stored = _prepare_cifar10(files) if files else stored
    if stored is None:
        problem = f"CIFAR-10 is neither in $EQUIBENCH_DATA nor in the cache {cache_folder()}, and download is off"
        fix = f"allow the download, or put {cifar.ARCHIVE} from {cifar.URL} into {cache_folder()}"
        raise Unavailable(problem, fix)
    return _as_dataset("cifar10", stored, "CIFAR-10 ({} real images)", cifar.CIFAR10_CLASSES)


def _place_of_cifar10(sha256: str) -> Path:
    return arrays_folder(f"cifar10-{sha256[:16]}")


def _prepare_cifar10(files: cifar.CifarFiles) -> StoredArrays:
    """The arrays made from ``files``, which are checked and converted first where they are new."""
    stamp = files.stamp()
    place = hashlib.sha256(str(files.folder.resolve()).encode()).hexdigest()[:16]
    record_path = cache_folder() / "checked" / f"{place}.json"
    record = read_json(record_path)
    stored = open_arrays(_place_of_cifar10(str(record.get("sha256")))) if record.get("files") == stamp else None
    if stored is None:
        files.check()
        arrays = cifar.read_cifar10(files)
        digest, needed = content_digest(arrays), sum(array.nbytes for array in arrays.values())
        save, what = partial(_save, arrays=arrays), "the images of CIFAR-10"
        stored = prepare_arrays(_place_of_cifar10(digest), save, needed=needed, what=what)
        # Without the record the next start checks again, no more: a read-only cache may hold the arrays.
        with contextlib.suppress(UserError):
            write_text(record_path, json.dumps({"folder": str(files.folder), "files": stamp, "sha256": digest}))
    return stored


# The solids


def _load_solids(sizes: tuple[int, int]) -> Dataset:
    if len(sizes) != 2 or min(sizes) < 1:
        raise UserError(f"sizes={sizes} cannot be rendered", "give two numbers of 1 or more: (train, test)")
    # named by the generator's code, so that pictures of another version are not taken for its
    folder = arrays_folder(f"solids-{code_digest(solids.render_solids)[:12]}-{sizes[0]}-{sizes[1]}")

    def render(scratch: Path) -> dict[str, Any]:
        arrays: dict[str, np.ndarray] = {}
        with progress("rendering solids", sum(sizes)) as advance:
            for seed, (half, count) in enumerate(zip(("train", "test"), sizes, strict=True)):
                chunks = []
                for start in range(0, count, RENDER_CHUNK):
                    rows = min(RENDER_CHUNK, count - start)
                    chunks.append(solids.render_solids(rows, size=SOLIDS_PIXELS, seed=seed, start=start))
                    advance(rows)
                for kind in ("images", "labels"):
                    arrays[f"{half}_{kind}"] = np.concatenate([getattr(chunk, kind) for chunk in chunks])
        return _save(scratch, arrays)

    stored = prepare_arrays(folder, render, needed=sum(sizes) * 3 * SOLIDS_PIXELS**2, what=f"{sum(sizes):,} solids")
    return _as_dataset("solids", stored, "Solids ({} images generated by equibench, not real)", solids.CLASS_NAMES)


def _save(scratch: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    for key, array in arrays.items():
        np.save(scratch / f"{key}.npy", array, allow_pickle=False)
    return {}


def _as_dataset(name: str, stored: StoredArrays, description: str, class_names: tuple[str, ...]) -> Dataset:
    train, test = image_sets(stored.arrays)
    counts = f"{len(train.labels):,} + {len(test.labels):,}"
    return Dataset(name, description.format(counts), train, test, class_names, stored.sha256)
