"""Units side by side on a CPU: one process and one thread each.

The encoders that a CPU can train are small, and so are their matrices: two threads on one of them are hardly faster
than one, and wait for each other. One thread a row nearly doubles the throughput of two cores, and makes a number
independent of how many cores there are.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

import torch
from rich.console import Console
from threadpoolctl import threadpool_limits

from equibench.errors import UserError
from equibench.records import Record, append_records, read_records
from equibench.runner.open import Order, Workplace, one_thread, open_workplace
from equibench.runner.plan import Unit, carry_out, do_unit, estimate_seconds, total_seconds
from equibench.utils.digests import depend_on_transformations, transformation_files
from equibench.utils.progress import Advance, Progress

_here: dict[str, Any] = {}
"""This worker's workplace and message queue."""


def default_jobs(place: Workplace) -> int:
    """As many jobs as cores on a CPU; one on a GPU or where a launcher has started several processes."""
    if place.fabric.device.type != "cpu" or place.fabric.world_size > 1:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def carry_out_all(units: Sequence[Unit], place: Workplace, jobs: int | None, console: Console) -> None:
    """Do the units that are not done, in this process or in several, with one estimate of the time for all.

    Args:
        jobs: how many are worked on at a time; None for `default_jobs`.

    Raises:
        UserError: as raised by a unit; the others' finished work is kept.
    """
    to_do, jobs = [unit for unit in units if not unit.done], jobs or default_jobs(place)
    if not to_do:
        return
    with one_thread(place):
        estimates = estimate_seconds(to_do, read_records(place.journal), place.setting)
        with Progress(estimates, total_seconds(to_do, estimates), console, jobs) as progress:
            if jobs == 1:
                carry_out(to_do, place, progress)
            else:
                to_do.sort(key=lambda unit: -total_seconds([unit], estimates))
                carry_out_in_parallel(to_do, place, progress, jobs)


def carry_out_in_parallel(units: Sequence[Unit], place: Workplace, progress: Progress, jobs: int) -> None:
    """Do the units in worker processes; this process alone writes the journal and draws the progress.

    Args:
        units: those that are not done, longest first for an even end.

    Raises:
        UserError: as raised by a unit; the others' finished work is kept.
    """
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    pool = ProcessPoolExecutor(min(jobs, len(units)), context, _start, (place.order, messages, transformation_files()))
    try:
        futures = [pool.submit(_work, number, unit) for number, unit in enumerate(units)]
        _follow(futures, messages, place, progress)
    finally:
        for process in list((pool._processes or {}).values()):
            process.terminate()  # after an error or an interruption the rest need not finish; checkpoints stay
        pool.shutdown(cancel_futures=True)


def _follow(futures: Sequence[Future[None]], messages: Any, place: Workplace, progress: Progress) -> None:
    """Act on the workers' messages until each unit has said that it is finished."""
    left = len(futures)
    while left:
        try:
            kind, number, *content = messages.get(timeout=0.5)
        except queue.Empty:
            _raise_failures(futures)
            continue
        if kind == "start":
            progress.start(number, *content)
        elif kind == "advance":
            progress.advance(number, *content)
        elif kind == "stop":
            progress.stop(number)
        elif kind == "warn":
            progress.warn(*content)
        elif kind == "records":
            append_records(place.journal, [Record.model_validate_json(line) for line in content[0]])
        elif kind == "finished":
            left -= 1


def _raise_failures(futures: Sequence[Future[None]]) -> None:
    for future in futures:
        error = future.exception() if future.done() else None
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "a worker process died, perhaps for want of memory",
                "run again, with --jobs 1 if it happens once more; what was finished is kept",
            ) from error
        if error:
            raise error


class _Remote(Progress):
    """Progress that is sent to the parent process."""

    def __init__(self, messages: Any, number: int) -> None:
        super().__init__({}, 0.0)
        self.messages, self.number = messages, number

    @contextmanager
    def unit(self, name: str, key: tuple[str, str]) -> Iterator[Advance]:
        self.messages.put(("start", self.number, name, key))
        yield lambda fraction, note: self.messages.put(("advance", self.number, fraction, note))
        self.messages.put(("stop", self.number))

    def warn(self, message: str) -> None:
        self.messages.put(("warn", self.number, message))


def _start(order: Order, messages: Any, files: list[str]) -> None:
    """Prepare a worker: one thread, its own workplace, and an end when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers an interruption, and ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    threadpool_limits(1)
    depend_on_transformations(files)  # or its digests would not be the parent's
    _here.update(place=open_workplace(order), messages=messages)


def _work(number: int, unit: Unit) -> None:
    messages = _here["messages"]

    def keep(records: list[Record]) -> None:
        messages.put(("records", number, [record.model_dump_json() for record in records]))

    do_unit(unit, _here["place"], _Remote(messages, number), keep)
    messages.put(("finished", number))


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, so they watch it: two runs must never share a folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
