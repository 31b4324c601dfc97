"""What a run of the generator has to do: its settings, its objects, and the plan that it leaves in the folder."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

from equibench.data.solids import CLASS_NAMES
from equibench.errors import UserError
from equibench.render.meshes import OBJECT_DRAWS, Array, Mesh, import_trimesh, list_meshes, read_mesh, solid_object
from equibench.render.scene import LATENTS, draw_latents, render_view
from equibench.utils.arrays import read_json
from equibench.utils.digests import __version__
from equibench.utils.files import digest_of, write_text
from equibench.utils.random import uniforms

VERSION = 1  # raised whenever the same settings would give other pictures or lists
PLAN = "render.json"
VALIDATION_SHARE = 0.2  # of each class's objects
SMALLEST = 16  # pixels


@dataclass(frozen=True)
class Work:
    """The settings of a run, and its objects: by synset and name their mesh files, None for a solid."""

    root: Path
    objects: dict[str, dict[str, Path | None]]
    settings: dict[str, Any]

    @property
    def views(self) -> int:
        return int(self.settings["views"])

    @property
    def counts(self) -> dict[str, int]:
        """Objects by synset."""
        return {synset: len(names) for synset, names in self.objects.items()}

    def job(self, synset: str, name: str) -> Job:
        """One object with all that is drawn for it."""
        seed = self.settings["seed"]
        source = self.objects[synset][name]
        drawn = uniforms((1, OBJECT_DRAWS), "render", "object", seed, synset, name)[0]
        latents = draw_latents(uniforms((self.views, len(LATENTS)), "render", "view", seed, synset, name))
        return Job(self.root, synset, name, drawn if source is None else source, latents, self.settings["size"])

    def missing(self) -> list[tuple[str, str]]:
        """The objects that are not there, not complete, or older than their mesh file."""
        every = ((synset, name, source) for synset, found in self.objects.items() for name, source in found.items())
        return [
            (synset, name)
            for synset, name, source in every
            if not is_complete(folder := self.root / synset / name, self.views)
            or (source is not None and source.stat().st_mtime > folder.stat().st_mtime)
        ]


def make_work(out: Path | str, meshes: Path | str | None, objects: int, views: int, size: int, seed: int) -> Work:
    """The work that the arguments of `generator.render` ask for.

    Raises:
        UserError: a number is out of range; the meshes cannot be listed; a class has one object; trimesh is missing.
    """
    limits = {"objects": (objects, 2), "views": (views, 2), "size": (size, SMALLEST), "seed": (seed, 0)}
    for name, (value, least) in limits.items():
        if value < least:
            raise UserError(f"{name}={value} is too small.", f"Give {name} of {least} or more.")
    sources: dict[str, dict[str, Path | None]]
    if meshes is None:
        names = [f"{number:05d}" for number in range(objects)]
        sources = {synset: dict.fromkeys(names) for synset in sorted(CLASS_NAMES)}
    else:
        import_trimesh()
        listed = list_meshes(Path(meshes).expanduser())
        sources = {synset: dict(list(found.items())[:objects]) for synset, found in sorted(listed.items())}
    for synset, found in sources.items():
        if len(found) < 2:
            raise UserError(
                f"The class {synset} has one object; one is needed for training and one for validation.",
                "Add an object to the class or remove the class.",
            )
    objects_digest = digest_of([(synset, list(found)) for synset, found in sources.items()])[:16]
    settings = {
        "version": VERSION,
        "source": "solids" if meshes is None else f"meshes {objects_digest}",
        "objects": objects,
        "views": views,
        "size": size,
        "seed": seed,
    }
    return Work(Path(out).expanduser(), sources, settings)


def read_plan(work: Work) -> dict[str, Any]:
    """The plan that an earlier run has left in the folder, empty if there was none.

    Raises:
        UserError: it has other settings; or there are other things in the folder.
    """
    root, plan = work.root, read_json(work.root / PLAN)
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file.", "Choose a folder.")
    if plan:
        before = plan.get("settings", {})
        differ = [key for key, value in work.settings.items() if before.get(key) != value]
        if differ:
            told = ", ".join(f"{key} {before.get(key)} (now {work.settings[key]})" for key in differ)
            raise UserError(
                f"{root} was rendered with other settings: {told}.",
                "Give the same settings to go on with it, or choose another folder.",
            )
    elif root.exists() and any(not path.name.startswith(".") for path in root.iterdir()):
        raise UserError(f"{root} is not empty, and no {PLAN} in it says what was rendered.", "Choose another folder.")
    return plan


def write_plan(work: Work, **facts: Any) -> None:
    """Write the plan, with what is known of how far it is carried out.

    Raises:
        UserError: the folder cannot be written.
    """
    plan = {
        "generator": f"equibench {__version__}",
        "settings": work.settings,
        "latents": list(LATENTS),
        "classes": work.counts,
        "complete": False,
    }
    write_text(work.root / PLAN, json.dumps(plan | facts, indent=1) + "\n")


def split_objects(seed: int, synset: str, names: list[str]) -> dict[str, list[str]]:
    """A class's objects for training, and a fifth for validation, by a seeded hash; one at least on each side."""
    drawn = {name: float(uniforms((1, 1), "render", "split", seed, synset, name)[0, 0]) for name in names}
    count = min(max(round(VALIDATION_SHARE * len(names)), 1), len(names) - 1)
    chosen = sorted(names, key=lambda name: (drawn[name], name))[:count]
    return {"train": sorted(set(names) - set(chosen)), "val": sorted(chosen)}


QUALITY = 95  # of the JPEGs, as OpenCV has it, by which the published ones were written
UNFINISHED = ".unfinished-"
LATENT_BYTES = 128 + 7 * 8  # a latent's file: NumPy's header, seven float64
JPEG_END = b"\xff\xd9"
_locked: list[IO[bytes]] = []
"""Files that this process keeps open because it has locked them."""


@dataclass(frozen=True)
class Job:
    """One object: where its folder shall be, what it is, and its views."""

    root: Path
    synset: str
    name: str
    source: Path | Array  # a mesh file, or the uniform numbers that make an object of the solid ``synset``
    latents: Array  # (V, 7) float64, see `scene.LATENTS`
    size: int

    @property
    def folder(self) -> Path:
        return self.root / self.synset / self.name


@dataclass(frozen=True)
class Outcome:
    """What has become of an object; ``problem`` says why it could not be read, if so."""

    synset: str
    name: str
    problem: str | None = None


def build_mesh(job: Job) -> Mesh:
    """The object's mesh.

    Raises:
        UserError: its file cannot be read.
    """
    return read_mesh(job.source) if isinstance(job.source, Path) else solid_object(job.synset, job.source)


def write_view(folder: Path, number: int, mesh: Mesh, latents: Array, size: int) -> int:
    """Render one view, write its picture and its latents; returns the bytes that they take."""
    image, latent = folder / f"image_{number}.jpg", folder / f"latent_{number}.npy"
    Image.fromarray(render_view(mesh, latents, size)).save(image, quality=QUALITY)
    np.save(latent, latents)
    return image.stat().st_size + latent.stat().st_size


def render_object(job: Job, skip_bad: bool = False) -> Outcome:
    """Render all views of an object; its folder appears when all are there.

    Raises:
        UserError: the object's file cannot be read, and ``skip_bad`` is not set.
    """
    try:
        mesh = build_mesh(job)
    except UserError as error:
        if not skip_bad:
            raise
        return Outcome(job.synset, job.name, error.problem)
    scratch = job.root / f"{UNFINISHED}{uuid.uuid4().hex}"
    scratch.mkdir()
    for number, latents in enumerate(job.latents):
        write_view(scratch, number, mesh, latents, job.size)
    if job.folder.exists():  # not complete, or it would not be a job
        shutil.rmtree(job.folder)
    job.folder.parent.mkdir(exist_ok=True)
    scratch.rename(job.folder)
    return Outcome(job.synset, job.name)


def is_complete(folder: Path, views: int) -> bool:
    """Whether a folder holds so many views, no file of them cut short."""
    try:
        for number in range(views):
            if (folder / f"latent_{number}.npy").stat().st_size != LATENT_BYTES:
                return False
            with (folder / f"image_{number}.jpg").open("rb") as file:
                file.seek(-len(JPEG_END), os.SEEK_END)
                if file.read() != JPEG_END:
                    return False
    except OSError:
        return False
    return not (folder / f"image_{views}.jpg").exists()


def render_all(
    jobs: Iterable[Job], processes: int, skip_bad: bool = False, lock: Path | None = None
) -> Generator[Outcome, None, None]:
    """Carry out the jobs, each in one of so many processes; outcomes come as they are ready.

    Args:
        lock: a file that every further process keeps locked, shared with the others, until it has ended.

    Raises:
        UserError: as `render_object`; a process died.
    """
    if processes == 1:
        with threadpool_limits(1):  # or one process would compute other last digits than several
            for job in jobs:
                yield render_object(job, skip_bad)
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start, (lock,))
    queue = iter(jobs)
    try:
        waiting = {pool.submit(render_object, job, skip_bad) for job in islice(queue, 2 * processes)}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield _outcome(future)
            waiting |= {pool.submit(render_object, job, skip_bad) for job in islice(queue, len(done))}
    finally:
        for process in list((pool._processes or {}).values()):
            process.terminate()  # after an error or an interruption; else they have nothing left to do
        pool.shutdown(cancel_futures=True)


def _outcome(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "A rendering process died, perhaps for want of memory.",
            "Run the same command again, with --jobs 1 if it happens once more; what was finished is kept.",
        ) from error


def _start(lock: Path | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers an interruption, and ends its workers
    threadpool_limits(1)
    if lock is not None:
        _share(lock)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _share(lock: Path) -> None:
    """Lock a file, shared, for the rest of this process's life: as long, nobody has it alone.

    A run begins by having it alone for a moment, and so waits for what a killed run has left at work.
    """
    file = lock.open("ab")
    _locked.append(file)
    with contextlib.suppress(ImportError, OSError):  # as in `download.exclusive`
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # another run may have begun before the file was locked
        os._exit(1)


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, so they watch it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
