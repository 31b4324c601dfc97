"""What a run of the generator has to do, the plan of it that it leaves in the folder, and the processes that do it.

Only NumPy, SciPy and Pillow are imported, and trimesh where meshes are read: a process has started within a second.
"""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy import ndarray as Array
from PIL import Image
from threadpoolctl import threadpool_limits

from equibench.data.object_layout import LATENTS
from equibench.data.solids import CLASS_NAMES
from equibench.errors import UserError
from equibench.render.meshes import OBJECT_DRAWS, Mesh, import_trimesh, list_meshes, read_mesh, solid_object
from equibench.render.scene import draw_latents, render_view
from equibench.utils.arrays import read_json
from equibench.utils.digests import __version__
from equibench.utils.files import digest_of, write_text
from equibench.utils.random import uniforms

RENDER_VERSION = 1  # raised whenever the same settings would give other pictures or lists
UNFINISHED = ".unfinished-"
_PLAN = "render.json"
_QUALITY = 95  # of the JPEGs, as OpenCV has it, by which the published ones were written
_LATENT_BYTES = 128 + 7 * 8  # a latent's file: NumPy's header, seven float64
_JPEG_END = b"\xff\xd9"
_locked: list[IO[bytes]] = []  # files that this process keeps open because it has locked them


@dataclass(frozen=True, kw_only=True)
class RenderSettings:
    """What is rendered, and how; a UserError where a number is too small."""

    meshes: Path | str | None = None  # a folder of mesh files, see `list_meshes`; the ten solids if not given
    objects: int = 40  # of each class, 2 or more; a class of mesh files that has fewer gives all that it has
    views: int = 50  # of each object, 2 or more; 50 are published
    size: int = 256  # side of the pictures in pixels, 16 or more; 256 is published
    seed: int = 0  # 0 or more
    jobs: int | None = None  # processes; by default as many as cores
    skip_bad: bool = False  # leave out mesh files that cannot be read, and say so in render.json

    def __post_init__(self) -> None:
        for name, least in (("objects", 2), ("views", 2), ("size", 16), ("seed", 0), ("jobs", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name}={value} is too small", f"give {name} of {least} or more")

    @property
    def processes(self) -> int:
        """As many as were asked for, else as cores."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return self.jobs or cores or 1


@dataclass(frozen=True)
class RenderJob:
    """One object: where its folder shall be, what it is, and its views."""

    root: Path
    synset: str
    name: str
    source: Path | Array  # a mesh file, or the uniform numbers that make an object of the solid ``synset``
    latents: Array  # (V, 7) float64, in the order of `LATENTS`
    size: int  # side of the pictures in pixels

    def mesh(self) -> Mesh:
        """The object's mesh; a UserError where its file cannot be read."""
        return read_mesh(self.source) if isinstance(self.source, Path) else solid_object(self.synset, self.source)


@dataclass(frozen=True)
class Work:
    """A run: its folder, its settings, and by synset and name its objects' mesh files, None for a solid."""

    root: Path
    settings: RenderSettings
    objects: dict[str, dict[str, Path | None]]

    @property
    def classes(self) -> dict[str, int]:
        """Objects by synset."""
        return {synset: len(found) for synset, found in self.objects.items()}

    def job(self, synset: str, name: str) -> RenderJob:
        """One object with what is drawn for it, which depends on the seed, its class and its name alone."""
        key = (self.settings.seed, synset, name)
        source = self.objects[synset][name] or uniforms((1, OBJECT_DRAWS), "render", "object", *key)[0]
        latents = draw_latents(uniforms((self.settings.views, len(LATENTS)), "render", "view", *key))
        return RenderJob(self.root, synset, name, source, latents, self.settings.size)

    def missing(self) -> list[tuple[str, str]]:
        """Synset and name of the objects that are not there, not complete, or older than their mesh file."""
        return [
            (synset, name)
            for synset, found in self.objects.items()
            for name, source in found.items()
            if not _is_complete(folder := self.root / synset / name, self.settings.views)
            or (source is not None and source.stat().st_mtime > folder.stat().st_mtime)
        ]

    def read_plan(self) -> dict[str, Any]:
        """An earlier run's plan, or {}; a UserError where it has other settings, or the folder holds other things."""
        root, plan = self.root, read_json(self.root / _PLAN)
        if root.exists() and not root.is_dir():
            raise UserError(f"{root} is a file", "choose a folder")
        if not plan and root.exists() and any(not path.name.startswith(".") for path in root.iterdir()):
            raise UserError(f"{root} is not empty, and has no {_PLAN} that says what it is", "choose another folder")
        before, now = plan.get("settings", {}), self._decisive().items()
        differ = [f"{key} {before.get(key)} (now {value})" for key, value in now if before.get(key) != value]
        if plan and differ:
            problem = f"{root} was rendered with other settings: {', '.join(differ)}"
            raise UserError(problem, "give the same settings to go on with it, or choose another folder")
        return plan

    def write_plan(self, **facts: Any) -> None:
        """Write the plan, with what is known of how far it is carried out."""
        made_by = {"generator": f"equibench {__version__}", "settings": self._decisive(), "latents": list(LATENTS)}
        plan = {**made_by, "classes": self.classes, "complete": False, **facts}
        write_text(self.root / _PLAN, json.dumps(plan, indent=1) + "\n")

    def _decisive(self) -> dict[str, Any]:
        """The settings that decide what the folder holds."""
        objects = digest_of([(synset, list(found)) for synset, found in self.objects.items()])[:16]
        source = "solids" if self.settings.meshes is None else f"meshes {objects}"
        numbers = {name: getattr(self.settings, name) for name in ("objects", "views", "size", "seed")}
        return {"version": RENDER_VERSION, "source": source, **numbers}


def make_work(out: Path | str, settings: RenderSettings) -> Work:
    """The work that the settings ask for; a UserError where meshes cannot be listed or read, a class has one object."""
    objects: dict[str, dict[str, Path | None]]
    if settings.meshes is None:
        names = [f"{number:05d}" for number in range(settings.objects)]
        objects = {synset: dict.fromkeys(names) for synset in sorted(CLASS_NAMES)}
    else:
        import_trimesh()
        listed = list_meshes(Path(settings.meshes).expanduser())
        objects = {synset: dict(list(found.items())[: settings.objects]) for synset, found in listed.items()}
    for synset, found in objects.items():
        if len(found) < 2:
            problem = f"the class {synset} has one object; one is needed for training and one for validation"
            raise UserError(problem, "add an object to the class or remove the class")
    return Work(Path(out).expanduser(), settings, objects)


def _is_complete(folder: Path, views: int) -> bool:
    """Whether a folder holds so many views, no file of them cut short."""
    try:
        for number in range(views):
            with (folder / f"image_{number}.jpg").open("rb") as image:
                image.seek(-len(_JPEG_END), os.SEEK_END)
                latent = (folder / f"latent_{number}.npy").stat()
                if image.read() != _JPEG_END or latent.st_size != _LATENT_BYTES:
                    return False
    except OSError:
        return False
    return not (folder / f"image_{views}.jpg").exists()


def write_view(folder: Path, number: int, mesh: Mesh, latents: Array, size: int) -> int:
    """Render one view, write its picture and its latents; returns the bytes that they take."""
    image, latent = folder / f"image_{number}.jpg", folder / f"latent_{number}.npy"
    Image.fromarray(render_view(mesh, latents, size)).save(image, quality=_QUALITY)
    np.save(latent, latents)
    return image.stat().st_size + latent.stat().st_size


def render_all(
    jobs: Iterable[RenderJob], processes: int, skip_bad: bool = False, lock: Path | None = None
) -> Generator[tuple[str, str], None, None]:
    """Carry out the jobs, each in one of so many processes; yields "<synset>/<object>" and what was wrong, or "".

    A UserError tells that a process died or, unless ``skip_bad``, that an object cannot be read. The ``lock`` is a file
    that every further process keeps locked, shared with the others, until it has ended.
    """
    if processes == 1:
        with threadpool_limits(1):  # or one process would compute other last digits than several
            for job in jobs:
                yield _render_object(job, skip_bad)
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start, (lock,))
    queue = iter(jobs)
    try:
        waiting = {pool.submit(_render_object, job, skip_bad) for job in islice(queue, 2 * processes)}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
            waiting |= {pool.submit(_render_object, job, skip_bad) for job in islice(queue, len(done))}
    except BrokenProcessPool as error:
        fix = "run the same command again, with --jobs 1 if it happens once more; what was finished is kept"
        raise UserError("a rendering process died, perhaps for want of memory", fix) from error
    finally:
        for process in list((pool._processes or {}).values()):
            process.terminate()  # after an error or an interruption; else they have nothing left to do
        pool.shutdown(cancel_futures=True)


def _render_object(job: RenderJob, skip_bad: bool) -> tuple[str, str]:
    """Render all views of an object; its folder appears when all are there."""
    key = f"{job.synset}/{job.name}"
    try:
        mesh = job.mesh()
    except UserError as error:
        if not skip_bad:
            raise
        return key, error.problem
    scratch, folder = job.root / f"{UNFINISHED}{uuid.uuid4().hex}", job.root / key
    scratch.mkdir()
    for number, latents in enumerate(job.latents):
        write_view(scratch, number, mesh, latents, job.size)
    if folder.exists():  # not complete, or it would not be a job
        shutil.rmtree(folder)
    folder.parent.mkdir(exist_ok=True)
    scratch.rename(folder)
    return key, ""


def _start(lock: Path | None) -> None:
    """Set up a worker: it leaves interruptions to its parent, holds the lock as long as it lives, ends with its parent.

    A run begins by having the lock alone for a moment, and so waits for what a killed run has left at work.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpool_limits(1)
    if lock is not None:
        _locked.append(lock.open("ab"))
        with contextlib.suppress(ImportError, OSError):  # as in `download.exclusive`
            import fcntl

            fcntl.flock(_locked[-1], fcntl.LOCK_SH)
    parent = multiprocessing.parent_process()
    assert parent is not None, "only further processes are set up"
    if not parent.is_alive():  # another run may have begun before the file was locked
        os._exit(1)

    def end_with_parent() -> None:  # one that is killed cannot end its workers, so they watch it
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
