"""Progress of a plan: a bar with an ETA for the whole and one for the job at work; else plain lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, TextColumn

Advance = Callable[[float, str], None]
_QUIET_SECONDS = 15.0  # where there is no terminal, a line of progress is printed at most this often


@dataclass
class _Active:
    """A job at work."""

    name: str
    estimate: float
    bar: rich.progress.TaskID
    started: float
    first: float = 0.0  # a resumed job starts beyond 0
    fraction: float = 0.0

    def left(self) -> float:
        elapsed = time.monotonic() - self.started
        if self.fraction > self.first:
            return elapsed * (1 - self.fraction) / (self.fraction - self.first)
        return self.estimate * (1 - self.fraction)


class Progress:
    """Progress over jobs whose seconds are estimated beforehand and corrected by what the finished ones took.

    Args:
        estimates: seconds of each job still to be done, by its number.
        console: where to print; standard error by default, so that standard output holds the table alone.
        jobs: how many jobs are worked on at a time.
    """

    def __init__(self, estimates: Sequence[float] = (), console: Console | None = None, jobs: int = 1) -> None:
        total = sum(estimates)
        self.console = console or Console(stderr=True)
        self.estimates, self.pending, self.jobs = dict(enumerate(estimates)), total, jobs
        self.expected, self.took, self.printed = 0.0, 0.0, 0.0
        self._active: dict[int, _Active] = {}
        self._bar = rich.progress.Progress(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}", markup=False),
            console=self.console, transient=True, disable=not self.console.is_terminal,
        )  # fmt: skip
        self._whole = self._bar.add_task("all jobs", total=max(total, 1e-9), state="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.stop()

    @contextmanager
    def unit(self, name: str, number: int = 0) -> Iterator[Advance]:
        """Show a part of a job while it runs; the value is a function of (fraction done, what is going on)."""
        self.start(number, name)
        yield lambda fraction, note: self.advance(number, fraction, note)
        self.stop(number)

    def start(self, number: int, name: str) -> None:
        """A part of a job begins; the number tells jobs apart that run side by side."""
        estimate = self.estimates.pop(number, 0.0)  # the first part of a job stands for all of it
        self.pending -= estimate
        bar = self._bar.add_task(name, total=1.0, state="starting")
        self._active[number] = _Active(name, estimate, bar, time.monotonic())

    def advance(self, number: int, fraction: float, note: str) -> None:
        """A job has come so far."""
        one = self._active[number]
        one.first, one.fraction = one.first or fraction, fraction
        self._bar.update(one.bar, completed=fraction, state=f"{note}, {clock(one.left())} left")
        done = self.expected + sum(u.fraction * u.estimate for u in self._active.values())
        self._bar.update(self._whole, completed=done, state=f"{clock(self.left())} left")
        if not self.console.is_terminal and time.monotonic() - self.printed > _QUIET_SECONDS:
            self.printed = time.monotonic()
            self._say(f"{one.name}: {fraction:.0%}, {note}, {clock(one.left())} left; all: {clock(self.left())} left")

    def stop(self, number: int) -> None:
        """A part of a job is done."""
        one = self._active.pop(number)
        self._bar.remove_task(one.bar)
        seconds = time.monotonic() - one.started
        self.expected, self.took = self.expected + one.estimate, self.took + seconds
        self._say(f"{one.name}: done in {clock(seconds)}; all: {clock(self.left())} left")

    def left(self) -> float:
        """Seconds until all jobs are done, at the pace so far."""
        pace = self.took / self.expected if self.expected > 0 else 1.0
        active = [one.left() for one in self._active.values()]
        return max([(sum(active) + pace * max(self.pending, 0.0)) / self.jobs, *active])

    def warn(self, message: str) -> None:
        """Print a warning that stays on the screen."""
        self.console.print(f"warning: {message}", style="yellow", soft_wrap=True, markup=False)

    def _say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)


def clock(seconds: float) -> str:
    """Seconds as 45 s, 3:20 min or 2:05 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f}:{seconds % 60:02.0f} min"
    return f"{seconds // 3600:.0f}:{seconds % 3600 // 60:02.0f} h"
