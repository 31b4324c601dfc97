"""Jobs side by side on a CPU: one process and one thread each.

The encoders that a CPU can train are small, and so are their matrices: two threads on one of them are hardly faster
than one, and wait for each other. One thread a row nearly doubles the throughput of two cores, and makes a number
independent of how many cores there are.
"""

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

from equibench.config import RunConfig
from equibench.errors import UserError
from equibench.evaluation.context import Context
from equibench.records import Record, append_records
from equibench.runner.open import OpenedScore, one_thread, open_context
from equibench.runner.plan import Job, Rows, TableRows, carry_out, do_job, estimate
from equibench.utils.digests import depend_on_transformations, transformation_files
from equibench.utils.progress import Advance, Progress

_here: dict[str, Any] = {}
"""This worker's rows and queue of messages: a method of `Progress`, "records" or "finished", and what goes with it."""


def default_jobs(context: Context) -> int:
    """As many jobs as cores on a CPU; one on a GPU or where a launcher has started several processes."""
    if context.device.type != "cpu" or context.several_processes:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(jobs: Sequence[Job], rows: Rows, console: Console | None = None) -> None:
    """Do the jobs that are not done, in this process or in several, with one estimate of the time for all.

    A job's UserError ends them all; finished work is kept.
    """
    to_do, context = [job for job in jobs if not job.done], rows.context
    if not to_do:
        return
    console = console or Console(stderr=True, quiet=not context.is_first)
    if isinstance(rows, OpenedScore):  # an encoder that was opened here cannot be sent to another process
        with Progress(estimate(to_do, rows), console) as progress:
            carry_out(to_do, rows, progress)
        return
    count = rows.config.jobs or default_jobs(context)
    with one_thread(context):
        seconds = estimate(to_do, rows)
        if count > 1:
            order = sorted(range(len(to_do)), key=lambda number: -seconds[number])  # longest first, for an even end
            to_do, seconds = [to_do[n] for n in order], [seconds[n] for n in order]
        with Progress(seconds, console, count) as progress:
            if count == 1:
                carry_out(to_do, rows, progress)
            else:
                _in_parallel(to_do, rows, progress, count)


def _in_parallel(jobs: Sequence[Job], rows: TableRows, progress: Progress, count: int) -> None:
    """Do the jobs in worker processes; this process alone writes the journal and draws the progress."""
    spawn = multiprocessing.get_context("spawn")
    messages: Any = spawn.Queue()
    start = (rows.config.with_(dataset=rows.context.dataset.name), messages, transformation_files())
    pool = ProcessPoolExecutor(min(count, len(jobs)), spawn, _start, start)
    try:
        futures = [pool.submit(_work, number, job) for number, job in enumerate(jobs)]
        _follow(futures, messages, rows.context, progress)
    finally:
        for process in list((pool._processes or {}).values()):
            process.terminate()  # after an error or an interruption the rest need not finish; checkpoints stay
        pool.shutdown(cancel_futures=True)


def _follow(futures: Sequence[Future[None]], messages: Any, context: Context, progress: Progress) -> None:
    """Act on the workers' messages until each job has said that it is finished."""
    left = len(futures)
    while left:
        try:
            kind, *content = messages.get(timeout=0.5)
        except queue.Empty:
            _raise_failures(futures)
            continue
        if kind == "finished":
            left -= 1
        elif kind == "records":
            append_records(context.journal, map(Record.model_validate_json, content))
        else:
            getattr(progress, kind)(*content)


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

    def __init__(self, messages: Any) -> None:
        super().__init__()
        self.messages = messages

    @contextmanager
    def unit(self, name: str, number: int = 0) -> Iterator[Advance]:
        self.messages.put(("start", number, name))
        yield lambda fraction, note: self.messages.put(("advance", number, fraction, note))
        self.messages.put(("stop", number))

    def warn(self, message: str) -> None:
        self.messages.put(("warn", message))


def _start(config: RunConfig, messages: Any, files: list[str]) -> None:
    """Prepare a worker: one thread, its own context, and an end when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers an interruption, and ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    threadpool_limits(1)
    depend_on_transformations(files)  # or its digests would not be the parent's
    _here.update(rows=TableRows(config, open_context(config)), messages=messages)


def _work(number: int, job: Job) -> None:
    messages = _here["messages"]

    def keep(records: list[Record]) -> None:
        messages.put(("records", *(record.model_dump_json() for record in records)))

    do_job(job, _here["rows"], _Remote(messages), keep, number)
    messages.put(("finished",))


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, so they watch it: two runs must never share a folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
