"""Rendered data in the layout of 3DIEBench (docs/protocol.md 2.7), from the package's solids or from mesh files.

``ROOT/<synset>/<object>/image_{k}.jpg`` and ``latent_{k}.npy``, and at ROOT the lists of training and validation
objects. ``ROOT/render.json`` is written first, as the plan: a run that was interrupted goes on under the same settings
or not at all. A view depends on the seed, its class, its object's name and its number alone.
"""

import shutil
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from equibench.errors import UserError
from equibench.render.jobs import RENDER_VERSION, UNFINISHED, RenderSettings, Work, make_work, render_all, write_view
from equibench.utils.arrays import progress
from equibench.utils.download import exclusive
from equibench.utils.files import writable_folder, write_atomically
from equibench.utils.random import uniforms

_WORKERS = ".workers.lock"  # kept locked by every worker process until it ends
_VALIDATION_SHARE = 0.2  # of each class's objects
_BLOCK = 4096  # bytes; a file takes whole blocks of a disk
_SAMPLE_VIEWS = 2  # rendered to see how long a view takes and how large it is
_GAP = 3  # pixels between the pictures of a contact sheet
_RENDER_COMMAND = "give a folder as `equibench data render` writes it"


@dataclass(frozen=True)
class Rendered:
    """A complete set of rendered data."""

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


def render_objects(out: Path | str, settings: RenderSettings) -> Rendered:
    """Renders data in the layout of 3DIEBench into a folder; interrupted, the same call goes on where it was.

    Raises:
        UserError: the folder holds other things or was made by other settings; the disk is full; a mesh file cannot be
            read; a class has fewer than two objects.
    """
    work = make_work(out, settings)
    work.read_plan()
    try:
        with exclusive(writable_folder(work.root) / ".render.lock"):
            with exclusive(work.root / _WORKERS):
                pass  # what a killed run had left at work has ended
            return _render(work)
    except OSError as error:
        fix = "free some space or change its permissions, and run the same command again: it goes on where it was"
        raise UserError(f"{work.root} cannot be written: {error.strerror or error}", fix) from error


def estimate_rendering(out: Path | str, settings: RenderSettings) -> Estimate:
    """What `render_objects` would do, or the UserError that it would raise; nothing is written to ``out``."""
    work = make_work(out, settings)
    work.read_plan()
    return _estimate(work, work.missing())


def ensure_rendered_objects(
    root: Path | str, *, objects: int, views: int, size: int, seed: int = 0, jobs: int | None = None
) -> Path:
    """The folder below ``root``, named by these `RenderSettings`, that `render_objects` fills with the solids."""
    settings = RenderSettings(objects=objects, views=views, size=size, seed=seed, jobs=jobs)
    name = f"solids-v{RENDER_VERSION}-{objects}x{views}-{size}px-seed{seed}"
    return render_objects(Path(root).expanduser() / name, settings).root


def _render(work: Work) -> Rendered:
    """The work of `render_objects`, whose lock is ours."""
    facts, missing = work.read_plan(), work.missing()  # another run may have worked here meanwhile
    bad: dict[str, str] = {}
    if missing or not facts.get("complete"):
        for remains in work.root.glob(f"{UNFINISHED}*"):  # of a run that was killed
            shutil.rmtree(remains, ignore_errors=True)
        work.write_plan()
        found = _estimate(work, missing)
        if found.bytes > found.free:
            raise UserError(
                f"{found.missing:,} objects of {found.views} views take about {found.bytes / 1e9:,.1f} GB; "
                f"the disk has {found.free / 1e9:,.1f} GB free",
                "choose a folder on a larger disk, or fewer objects, fewer views, a smaller size",
            )
        jobs, processes = (work.job(*key) for key in missing), min(work.settings.processes, max(len(missing), 1))
        with (
            progress(f"rendering {work.root.name}", len(missing)) as advance,
            closing(render_all(jobs, processes, work.settings.skip_bad, work.root / _WORKERS)) as outcomes,
        ):
            for key, problem in outcomes:
                advance()
                if problem:
                    bad[key] = problem
        facts = _finish(work, dict(sorted(bad.items())))
    chosen = {key: facts[key] for key in ("classes", "train", "val", "left_out")}
    return Rendered(work.root, views=work.settings.views, new=len(missing) - len(bad), **chosen)


def _finish(work: Work, bad: dict[str, str]) -> dict[str, Any]:
    """Write the lists, then the plan as complete; returns what the plan says of it."""
    lists: dict[str, list[tuple[str, int]]] = {"train": [], "val": []}
    classes = {}
    for label, (synset, found) in enumerate(work.objects.items()):
        names = [name for name in found if f"{synset}/{name}" not in bad]
        classes[synset] = len(names)
        if len(names) < 2:
            raise UserError(
                f"of the class {synset} {len(names) or 'no'} object can be read; two are needed; "
                f"the first that cannot: {next(why for key, why in bad.items() if key.startswith(f'{synset}/'))}",
                "mend its files, or choose another folder to render to without the class",
            )
        for split, chosen in _split_objects(work.settings.seed, synset, names).items():
            lists[split] += [(f"/{synset}/{name}/", label) for name in chosen]
    for split, entries in lists.items():
        images, labels = map(np.array, zip(*entries, strict=True))
        for name, values in (("images", images), ("labels", labels.astype(np.int64))):
            write_atomically(work.root / f"{split}_{name}.npy", partial(np.save, arr=values))
    counts = {split: len(entries) for split, entries in lists.items()}
    facts = {"classes": classes, **counts, "left_out": bad, "complete": True}
    work.write_plan(**facts)
    return facts


def _split_objects(seed: int, synset: str, names: list[str]) -> dict[str, list[str]]:
    """A class's objects for training, and a fifth for validation, by a seeded hash; one at least on each side."""
    drawn = {name: float(uniforms((1, 1), "render", "split", seed, synset, name)[0, 0]) for name in names}
    count = min(max(round(_VALIDATION_SHARE * len(names)), 1), len(names) - 1)
    chosen = sorted(names, key=lambda name: (drawn[name], name))[:count]
    return {"train": sorted(set(names) - set(chosen)), "val": sorted(chosen)}


def _estimate(work: Work, missing: list[tuple[str, str]]) -> Estimate:
    """What the missing objects take, by the first of them that can be read."""
    views, seconds, taken = work.settings.views, 0.0, 0
    for job in (work.job(*key) for key in missing):
        started = time.perf_counter()
        try:
            mesh = job.mesh()
        except UserError:
            if not work.settings.skip_bad:
                raise
            continue
        built = time.perf_counter() - started
        with tempfile.TemporaryDirectory(prefix="equibench-render-") as folder:
            write_view(Path(folder), 0, mesh, job.latents[0], job.size)  # also what is computed but once
            started = time.perf_counter()
            sizes = [write_view(Path(folder), k, mesh, job.latents[k], job.size) for k in range(_SAMPLE_VIEWS)]
            view = (time.perf_counter() - started) / _SAMPLE_VIEWS
        seconds = len(missing) * (built + views * view) / work.settings.processes
        taken = len(missing) * views * (-(-max(sizes) // _BLOCK) + 1) * _BLOCK  # one block is the latents'
        break
    existing = next(folder for folder in (work.root, *work.root.absolute().parents) if folder.is_dir())
    return Estimate(work.classes, views, len(missing), seconds, taken, shutil.disk_usage(existing).free)


def write_contact_sheet(
    root: Path | str, path: Path | str, *, objects: int = 10, views: int = 8, cell: int | None = None
) -> Path:
    """Writes a PNG with one row of views for each object, and returns its path.

    At most so many rows are taken from each class in turn, objects for training first; columns are views 0, 1, ...;
    ``cell`` is each picture's side in pixels, that of the first one if not given. All are 1 or more.

    Raises:
        UserError: a list or a picture is missing or does not decode; the file cannot be written; a number is too small.
    """
    root, path = Path(root).expanduser(), Path(path).expanduser()
    for name, value in (("objects", objects), ("views", views), ("cell", cell or 1)):
        if value < 1:
            raise UserError(f"{name}={value} is too small", f"give {name} of 1 or more")
    entries = _choose(root, objects)
    side = cell or _opened(root / entries[0] / "image_0.jpg").width
    step = side + _GAP
    sheet = Image.new("RGB", (views * step + _GAP, len(entries) * step + _GAP), "white")
    for row, view in np.ndindex(len(entries), views):
        image = _opened(root / entries[row] / f"image_{view}.jpg")
        sheet.paste(image.resize((side, side), Image.Resampling.LANCZOS), (_GAP + view * step, _GAP + row * step))
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
            raise UserError(f"{file} cannot be read: {error}", _RENDER_COMMAND) from error
        for entry in sorted(str(value).strip("/") for value in entries):
            by_class.setdefault(entry.split("/")[0], []).append(entry)
    turns = zip_longest(*(by_class[name] for name in sorted(by_class)))
    chosen = [entry for turn in turns for entry in turn if entry][:count]
    if not chosen:
        raise UserError(f"{root} lists no objects", _RENDER_COMMAND)
    return sorted(chosen)


def _opened(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise UserError(f"{path} cannot be shown: {error}", "ask for fewer views, or mend the data") from error
