"""Generated data in the published layout of 3DIEBench (PROTOCOL 1.1), from the package's solids or from mesh files.

``ROOT/<synset>/<object>/image_{k}.jpg`` and ``latent_{k}.npy``, and at ROOT the lists of training and validation
objects. ``ROOT/render.json`` is written first, as the plan: a run that was interrupted goes on under the same settings
or not at all. A view depends on the seed, its class, its object's name and its number alone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from equibench.errors import UserError
from equibench.render.jobs import (
    UNFINISHED,
    VERSION,
    Work,
    build_mesh,
    make_work,
    read_plan,
    render_all,
    split_objects,
    write_plan,
    write_view,
)
from equibench.utils.arrays import progress
from equibench.utils.download import exclusive
from equibench.utils.files import writable_folder, write_atomically

WORKERS = ".workers.lock"  # kept locked by every worker process until it ends
BLOCK = 4096  # bytes; a file takes whole blocks of a disk
SAMPLE_VIEWS = 2  # rendered to see how long a view takes and how large it is


@dataclass(frozen=True)
class Rendered:
    """A complete set of generated data."""

    root: Path
    classes: dict[str, int]  # objects by synset, sorted
    views: int  # of each object
    train: int  # objects
    val: int  # objects
    left_out: dict[str, str]  # why an object could not be read, by <synset>/<object>
    new: int  # objects that this run has rendered


@dataclass(frozen=True)
class Estimate:
    """What a run would do; seconds and bytes are extrapolated from a few views of one object."""

    classes: dict[str, int]  # objects by synset, those included that may turn out not to be readable
    views: int  # of each object
    missing: int  # objects that are not there yet
    seconds: float
    bytes: int  # on the disk
    free: int  # bytes on the disk


def render(
    out: Path | str,
    *,
    meshes: Path | str | None = None,
    objects: int = 40,
    views: int = 50,
    size: int = 256,
    seed: int = 0,
    jobs: int | None = None,
    skip_bad: bool = False,
) -> Rendered:
    """Generates data in the layout of 3DIEBench; interrupted, the same call goes on where it was.

    Args:
        out: the folder; it is made, or holds what an earlier call with the same settings has left there.
        meshes: a folder of mesh files, see `mesh_files.list_meshes`; the ten solids if not given.
        objects: of each class, 2 or more; a class of mesh files that has fewer gives all that it has.
        views: of each object, 2 or more; 50 are published.
        size: side of the pictures in pixels, 16 or more; 256 is published.
        seed: 0 or more.
        jobs: processes; by default as many as cores.
        skip_bad: leave out mesh files that cannot be read, and say so in render.json.

    Raises:
        UserError: a number is out of range; the folder holds other things or was made by other settings; the disk is
            full; a mesh file cannot be read; a class has fewer than two objects.
    """
    work, processes = make_work(out, meshes, objects, views, size, seed), _processes(jobs)
    read_plan(work)
    with _writing(work.root), exclusive(work.root / ".render.lock"):
        with exclusive(work.root / WORKERS):
            pass  # what a killed run had left at work has ended
        plan, missing = read_plan(work), work.missing()  # another run may have worked here meanwhile
        if plan.get("complete") and not missing:
            return _rendered(work, plan, new=0)
        for remains in work.root.glob(f"{UNFINISHED}*"):  # of a run that was killed: the lock is ours
            shutil.rmtree(remains, ignore_errors=True)
        write_plan(work)
        _check_disk(_estimate(work, missing, skip_bad))
        bad = _carry_out(work, missing, processes, skip_bad)
        return _rendered(work, _finish(work, bad), new=len(missing) - len(bad))


def estimate(
    out: Path | str,
    *,
    meshes: Path | str | None = None,
    objects: int = 40,
    views: int = 50,
    size: int = 256,
    seed: int = 0,
    jobs: int | None = None,
    skip_bad: bool = False,
) -> Estimate:
    """What `render` would do with the same arguments; nothing is written to ``out``.

    Raises:
        UserError: as `render`, as far as it can be seen beforehand.
    """
    work, processes = make_work(out, meshes, objects, views, size, seed), _processes(jobs)
    read_plan(work)
    found = _estimate(work, work.missing(), skip_bad)
    return replace(found, seconds=found.seconds / processes)


def ensure_rendered_objects(
    root: Path | str, *, objects: int, views: int, size: int, seed: int = 0, jobs: int | None = None
) -> Path:
    """The folder below ``root`` that holds the generated solids with these settings, rendered as far as it is missing.

    Its name tells the settings, so that each has a folder of its own.

    Raises:
        UserError: as `render`.
    """
    folder = Path(root).expanduser() / f"solids-v{VERSION}-{objects}x{views}-{size}px-seed{seed}"
    return render(folder, objects=objects, views=views, size=size, seed=seed, jobs=jobs).root


# The work


def _carry_out(work: Work, missing: list[tuple[str, str]], processes: int, skip_bad: bool) -> dict[str, str]:
    """Render the missing objects; returns why some of them could not be read."""
    bad = {}
    jobs = (work.job(synset, name) for synset, name in missing)
    processes = min(processes, max(len(missing), 1))
    with (
        progress(f"rendering {work.root.name}", len(missing)) as advance,
        closing(render_all(jobs, processes, skip_bad, work.root / WORKERS)) as outcomes,
    ):
        for outcome in outcomes:
            advance()
            if outcome.problem:
                bad[f"{outcome.synset}/{outcome.name}"] = outcome.problem
    return dict(sorted(bad.items()))


def _finish(work: Work, bad: dict[str, str]) -> dict[str, Any]:
    """Write the lists, then the plan as complete; returns what the plan says of it."""
    kept = {s: [name for name in names if f"{s}/{name}" not in bad] for s, names in work.objects.items()}
    lists: dict[str, list[tuple[str, int]]] = {"train": [], "val": []}
    for label, (synset, names) in enumerate(kept.items()):
        if len(names) < 2:
            raise UserError(
                f"Of the class {synset} {len(names) or 'no'} object can be read; two are needed. "
                f"The first that cannot: {next(why for key, why in bad.items() if key.startswith(f'{synset}/'))}",
                "Mend its files, or choose another folder to render to without the class.",
            )
        for split, chosen in split_objects(work.settings["seed"], synset, names).items():
            lists[split] += [(f"/{synset}/{name}/", label) for name in chosen]
    for split, entries in lists.items():
        images, labels = zip(*entries, strict=True)
        for name, values in (("images", np.array(images)), ("labels", np.array(labels, np.int64))):
            write_atomically(work.root / f"{split}_{name}.npy", partial(_save, values))
    facts = {
        "classes": {synset: len(names) for synset, names in kept.items()},
        "train": len(lists["train"]),
        "val": len(lists["val"]),
        "left_out": bad,
        "complete": True,
    }
    write_plan(work, **facts)
    return facts


def _save(values: np.ndarray, path: Path) -> None:
    np.save(path, values)


def _rendered(work: Work, facts: dict[str, Any], new: int) -> Rendered:
    chosen = {key: facts[key] for key in ("classes", "train", "val", "left_out")}
    return Rendered(work.root, views=work.views, new=new, **chosen)


def _processes(jobs: int | None) -> int:
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs={jobs} is too small.", "Give 1 or more.")
    return jobs or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


# Time and space


def _estimate(work: Work, missing: list[tuple[str, str]], skip_bad: bool) -> Estimate:
    """Seconds on one process and bytes for the missing objects."""
    seconds, taken = _measure(work, missing, skip_bad)
    existing = next(folder for folder in (work.root, *work.root.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    return Estimate(work.counts, work.views, len(missing), len(missing) * seconds, len(missing) * taken, free)


def _measure(work: Work, missing: list[tuple[str, str]], skip_bad: bool) -> tuple[float, int]:
    """Seconds and bytes that the first readable object takes with all its views."""
    for synset, name in missing:
        job = work.job(synset, name)
        started = time.perf_counter()
        try:
            mesh = build_mesh(job)
        except UserError:
            if not skip_bad:
                raise
            continue
        built = time.perf_counter() - started
        with tempfile.TemporaryDirectory(prefix="equibench-render-") as folder:
            write_view(Path(folder), 0, mesh, job.latents[0], job.size)  # also what is computed but once
            started = time.perf_counter()
            sizes = [write_view(Path(folder), k, mesh, job.latents[k], job.size) for k in range(SAMPLE_VIEWS)]
            view = (time.perf_counter() - started) / SAMPLE_VIEWS
        blocks = -(-max(sizes) // BLOCK) + 1  # the picture's, and one for the latents
        return built + work.views * view, work.views * blocks * BLOCK
    return 0.0, 0


def _check_disk(found: Estimate) -> None:
    if found.bytes > found.free:
        raise UserError(
            f"{found.missing:,} objects of {found.views} views take about {found.bytes / 1e9:,.1f} GB; "
            f"the disk has {found.free / 1e9:,.1f} GB free.",
            "Choose a folder on a larger disk, or fewer objects, fewer views, a smaller size.",
        )


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    """Makes the folder, and turns what goes wrong with writing into it into a UserError."""
    try:
        writable_folder(root)
        yield
    except OSError as error:
        raise UserError(
            f"{root} cannot be written: {error.strerror or error}",
            "Free some space or change its permissions, and run the same command again: it goes on where it was.",
        ) from error


GAP = 3  # pixels between the pictures


def contact_sheet(
    root: Path | str, path: Path | str, *, objects: int = 10, views: int = 8, cell: int | None = None
) -> Path:
    """Writes a PNG with one row of views for each object, and returns its path.

    The objects are taken from each class in turn, those for training before those for validation.

    Args:
        root: the folder that holds train_images.npy and val_images.npy.
        objects: rows at most, 1 or more.
        views: columns, views 0, 1, ...; 1 or more.
        cell: side of each picture in pixels; that of the first one if not given.

    Raises:
        UserError: a list or a picture is missing or does not decode; the file cannot be written; a number is too small.
    """
    root, path = Path(root).expanduser(), Path(path).expanduser()
    for name, value in (("objects", objects), ("views", views), ("cell", cell or 1)):
        if value < 1:
            raise UserError(f"{name}={value} is too small.", f"Give {name} of 1 or more.")
    rows = [[root / entry / f"image_{view}.jpg" for view in range(views)] for entry in _choose(root, objects)]
    with _open(rows[0][0]) as first:
        side = cell or first.width
    step = side + GAP
    sheet = Image.new("RGB", (views * step + GAP, len(rows) * step + GAP), "white")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            with _open(picture) as opened:
                image = opened.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(image, (GAP + column * step, GAP + row * step))
    write_atomically(path, lambda temporary: sheet.save(temporary, "PNG", optimize=True))
    return path


def _choose(root: Path, count: int) -> list[str]:
    """The first of each class, then the second of each, as paths below the root."""
    by_class: dict[str, list[str]] = {}
    for split in ("train", "val"):
        file = root / f"{split}_images.npy"
        try:
            entries = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{file} cannot be read: {error}", "Give a folder as `equibench data render` writes it."
            ) from error
        for entry in sorted(str(value).strip("/") for value in entries):
            by_class.setdefault(entry.split("/")[0], []).append(entry)
    turns = zip_longest(*(by_class[name] for name in sorted(by_class)))
    chosen = [entry for turn in turns for entry in turn if entry][:count]
    if not chosen:
        raise UserError(f"{root} lists no objects.", "Give a folder as `equibench data render` writes it.")
    return sorted(chosen)


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise UserError(f"{path} cannot be shown: {error}", "Ask for fewer views, or mend the data.") from error
