"""Work on many images: decoding them on several threads, and a progress bar for it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

MOST_THREADS = 8
AHEAD = 4  # items for each thread that are decoded before their turn: memory stays bounded

Item = TypeVar("Item")
Decoded = TypeVar("Decoded")


def decode_all(items: Iterable[Item], decode: Callable[[Item], Decoded]) -> Generator[Decoded, None, None]:
    """What ``decode`` makes of each item, in their order, a few at a time on several threads.

    What it raises is raised where the item's turn is. When the generator ends or is closed, what waits is cancelled.
    """
    count = threads()
    pool = ThreadPoolExecutor(count)  # a thread starts when there is work for it: one item takes one
    waiting: deque[Future[Decoded]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(decode, item))
            if len(waiting) >= AHEAD * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def threads() -> int:
    """On how many threads images are decoded: Pillow works outside the GIL."""
    return min(os.cpu_count() or 1, MOST_THREADS)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[..., None]]:
    """Shows a bar with the time that remains on standard error; yields what advances it, by one unless told."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        yield partial(shown.advance, shown.add_task(title, total=total))
