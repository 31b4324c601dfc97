"""Rendering all views of one object into its folder, in this process or in several side by side.

This module imports neither torch nor scikit-learn, so that a worker process starts at once: all random numbers are
drawn by the process that hands out the jobs.
"""

from __future__ import annotations

import contextlib
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
from typing import IO

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

from equibench.errors import UserError
from equibench.render.mesh_files import read_mesh
from equibench.render.meshes import Array, Mesh, solid_object
from equibench.render.scene import render_view

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
