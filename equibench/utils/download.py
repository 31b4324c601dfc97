"""Fetching one file over HTTP: checked by its MD5, resumed where it broke off, put in place when complete."""

import contextlib
import hashlib
import http.client
import os
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import rich.progress as bars
from rich.console import Console

from equibench.errors import UserError

_BLOCK = 1 << 16  # bytes read at a time


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
        if (found := file_md5(target)) == md5:
            return target
        raise UserError(f"{target} is damaged: expected MD5 {md5}, found {found}", "delete it to fetch it again")
    columns = (bars.BarColumn(), bars.DownloadColumn(), bars.TransferSpeedColumn(), bars.TimeRemainingColumn())
    progress = bars.Progress(bars.TextColumn(target.name), *columns, console=Console(stderr=True))
    part = target.with_name(target.name + ".part")
    transfer = _Transfer(url, target, part, md5, timeout, progress, progress.add_task("", total=None))
    try:
        for attempt in range(attempts):
            time.sleep(pause * attempt)
            if (trouble := transfer.attempt()) is None:
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
class _Transfer:
    """One download, whose attempts go on from one another."""

    url: str
    target: Path
    part: Path
    md5: str
    timeout: float
    progress: bars.Progress
    bar: bars.TaskID
    answered: bool = False  # whether the server has ever answered

    def attempt(self) -> Exception | str | None:
        """Tries once; None when the part is complete and right, else what another try may mend. It raises all else."""
        have = self.part.stat().st_size if self.part.exists() else 0
        if have and file_md5(self.part) == self.md5:  # a process was killed between the last byte and the renaming
            return None
        request = urllib.request.Request(self.url, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                self.answered = True
                resumed = self._receive(reply, have)
        except urllib.error.HTTPError as error:
            error.close()
            self.answered = True
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                self.part.unlink(missing_ok=True)
            elif error.code < 500:
                raise self._unavailable(error) from error
            return error
        except (OSError, http.client.HTTPException) as error:
            if not self.answered:
                raise self._unavailable(getattr(error, "reason", error)) from error
            return error
        if (found := file_md5(self.part)) == self.md5:
            return None
        self.part.unlink()
        trouble = f"expected MD5 {self.md5}, found {found}"
        if resumed:  # a part from an earlier day may be of another file; a copy fetched in one go will stay wrong
            return trouble
        problem = f"{self.url} delivered a damaged {self.target.name}: {trouble}"
        raise UserError(problem, f"try again later, or get the file elsewhere and put it at {self.target}")

    def _receive(self, reply: http.client.HTTPResponse, have: int) -> bool:
        """Writes a reply's bytes to the part; returns whether they continue the ``have`` bytes already there."""
        resumed = have > 0 and reply.status == HTTPStatus.PARTIAL_CONTENT
        if resumed and not reply.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            self.part.unlink()
            raise ConnectionError("the server sent another range than the one asked for")
        got = have if resumed else 0
        announced = reply.headers.get("Content-Length")
        total = got + int(announced) if announced else None
        self.progress.start()
        self.progress.update(self.bar, completed=got, total=total)
        with _written(self.part):
            file = self.part.open("ab" if resumed else "wb")
        with file:
            while block := reply.read(_BLOCK):
                with _written(self.part):
                    file.write(block)
                got += len(block)
                self.progress.update(self.bar, completed=got)
        if total is not None and got < total:  # which urllib itself lets pass
            raise ConnectionError(f"the connection closed after {got:,} of {total:,} bytes")
        return resumed

    def _unavailable(self, reason: object) -> Unavailable:
        problem = f"{self.target.name} could not be downloaded from {self.url}: {reason}"
        return Unavailable(problem, f"fetch that file on another machine and put it at {self.target}")


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """Turns an error of the disk into a UserError, so that it is not taken for one of the network."""
    try:
        yield
    except OSError as error:
        fix = "free some space, or set EQUIBENCH_CACHE to a folder that can be written"
        raise UserError(f"{path} cannot be written: {error.strerror or error}", fix) from error
