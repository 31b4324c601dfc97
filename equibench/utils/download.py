"""Fetching one file over HTTP: checked by its MD5, resumed where it broke off, put in place when complete."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import rich.progress as bars
from rich.console import Console

from equibench.errors import UserError

BLOCK = 1 << 16  # bytes read at a time
PARTIAL_CONTENT = 206  # the reply is the range asked for
NOT_SATISFIABLE = 416  # the range asked for begins past the end of the file


class Unavailable(UserError):
    """The data are neither on this machine nor to be had over the network."""


def file_md5(path: Path) -> str:
    """The MD5 of a file's content, as 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Lets one process at a time into the block; the others wait. The lock of a killed process is void.

    It only spares work done twice: what is written inside must be put in place atomically all the same, for where the
    system has no such locks (Windows, some network file systems) nobody waits.
    """
    with lock.open("ab") as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def download(url: str, target: Path, *, md5: str, attempts: int = 4, timeout: float = 10.0, pause: float = 1.0) -> Path:
    """Fetches ``url`` to ``target`` and returns ``target``, which is never there with a wrong checksum.

    What has arrived lies beside it with ``.part`` added to its name, and the next attempt, in this process or a later
    one, asks only for the rest. Two processes must not fetch one target at a time: see ``exclusive``.

    Args:
        md5: of the whole file, hexadecimal.
        attempts: how often a transfer that broke off is taken up again, the first one included. A server that never
            answered is not asked twice: a machine without network should find out at once.
        timeout: seconds to wait for a connection, or for the next bytes.
        pause: seconds before the second attempt; each further one waits that much longer.

    Raises:
        Unavailable: the server cannot be reached or refuses the file.
        UserError: the transfer kept breaking off, the checksum is wrong, or the file cannot be written.
    """
    if target.exists():
        found = file_md5(target)
        if found == md5:
            return target
        raise UserError(f"{target} is damaged: expected MD5 {md5}, found {found}", "delete it to fetch it again")
    columns = (bars.BarColumn(), bars.DownloadColumn(), bars.TransferSpeedColumn(), bars.TimeRemainingColumn())
    progress = bars.Progress(bars.TextColumn(target.name), *columns, console=Console(stderr=True))
    part = target.with_name(target.name + ".part")
    job = _Job(url, target, part, md5, timeout, progress, progress.add_task("", total=None))
    try:
        for attempt in range(attempts):
            time.sleep(pause * attempt)
            trouble = _attempt(job)
            if trouble is None:
                os.replace(part, target)
                return target
    finally:
        if progress.live.is_started:  # by the first reply: without a server there is nothing to show
            progress.stop()
    raise UserError(
        f"the transfer of {target.name} from {url} broke off {attempts} times, last with: {trouble}",
        f"run the same command again: it continues where it stopped; or put the file at {target}",
    )


@dataclass
class _Job:
    """One download, as its attempts share it."""

    url: str
    target: Path
    part: Path
    md5: str
    timeout: float
    progress: bars.Progress
    bar: bars.TaskID
    answered: bool = False  # whether the server has ever answered


def _attempt(job: _Job) -> Exception | str | None:
    """Tries once; None when the part is complete and right, else what another try may mend. It raises all else."""
    have = job.part.stat().st_size if job.part.exists() else 0
    if have and file_md5(job.part) == job.md5:  # a process was killed between the last byte and the renaming
        return None
    request = urllib.request.Request(job.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=job.timeout) as reply:
            job.answered = True
            resumed = _receive(reply, job, have)
    except urllib.error.HTTPError as error:
        error.close()
        job.answered = True
        if error.code == NOT_SATISFIABLE:
            job.part.unlink(missing_ok=True)
        elif error.code < 500:
            raise _unavailable(job, error) from error
        return error
    except (OSError, http.client.HTTPException) as error:
        if not job.answered:
            raise _unavailable(job, getattr(error, "reason", error)) from error
        return error
    found = file_md5(job.part)
    if found == job.md5:
        return None
    job.part.unlink()
    trouble = f"expected MD5 {job.md5}, found {found}"
    if resumed:  # a part from an earlier day may be of another file; a copy fetched in one go will stay wrong
        return trouble
    raise UserError(
        f"{job.url} delivered a damaged {job.target.name}: {trouble}",
        f"try again later, or get the file elsewhere and put it at {job.target}",
    )


def _receive(reply: http.client.HTTPResponse, job: _Job, have: int) -> bool:
    """Writes a reply's bytes to the part; returns whether they continue the ``have`` bytes already there."""
    resumed = have > 0 and reply.status == PARTIAL_CONTENT
    if resumed and not reply.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
        job.part.unlink()
        raise ConnectionError("the server sent another range than the one asked for")
    got = have if resumed else 0
    announced = reply.headers.get("Content-Length")
    total = got + int(announced) if announced else None
    job.progress.start()
    job.progress.update(job.bar, completed=got, total=total)
    with _written(job.part):
        file = job.part.open("ab" if resumed else "wb")
    with file:
        while block := reply.read(BLOCK):
            with _written(job.part):
                file.write(block)
            got += len(block)
            job.progress.update(job.bar, completed=got)
    if total is not None and got < total:  # which urllib itself lets pass
        raise ConnectionError(f"the connection closed after {got:,} of {total:,} bytes")
    return resumed


def _unavailable(job: _Job, reason: object) -> Unavailable:
    return Unavailable(
        f"{job.target.name} could not be downloaded from {job.url}: {reason}",
        f"fetch that file on another machine and put it at {job.target}",
    )


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """Turns an error of the disk into a UserError, so that it is not taken for one of the network."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}",
            "free some space, or set EQUIBENCH_CACHE to a folder that can be written",
        ) from error
