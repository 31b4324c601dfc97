"""Progress of a plan: a bar with an ETA for the whole and one for the unit at work; else plain lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, TextColumn

Advance = Callable[[float, str], None]
QUIET_SECONDS = 15.0
"""Where there is no terminal, a line of progress is printed at most this often."""


class Progress:
    """Progress over units whose seconds are estimated beforehand and corrected by what the finished ones took.

    Args:
        estimates: seconds for each unit still to be done, by (kind, row); a unit that stands several times counts
            as often as it is run.
        console: where to print; standard error by default, so that standard output holds the table alone.
    """

    def __init__(
        self, estimates: Mapping[tuple[str, str], float], total: float, console: Console | None = None
    ) -> None:
        self.console = console or Console(stderr=True)
        self.estimates, self.remaining = dict(estimates), total
        self.expected_done, self.took = 0.0, 0.0
        self._bar = rich.progress.Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[state]}"),
            console=self.console, transient=True, disable=not self.console.is_terminal,
        )  # fmt: skip

    def __enter__(self) -> Progress:
        self._bar.start()
        self._whole = self._bar.add_task("all units", total=max(self.remaining, 1e-9), state="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @contextmanager
    def unit(self, name: str, key: tuple[str, str]) -> Iterator[Advance]:
        """Show one unit while it runs; the value is a function of (fraction done, what is going on)."""
        estimate, started, printed = self.estimates.get(key, 0.0), time.monotonic(), 0.0
        first = 0.0
        bar = self._bar.add_task(name, total=1.0, state="starting")

        def advance(fraction: float, note: str) -> None:
            nonlocal printed, first
            elapsed = time.monotonic() - started
            first = first or fraction  # a resumed unit starts beyond 0
            left = elapsed * (1 - fraction) / (fraction - first) if fraction > first else estimate * (1 - fraction)
            whole = left + self._pace() * max(self.remaining - estimate, 0.0)
            self._bar.update(bar, completed=fraction, state=f"{note}, {clock(left)} left")
            self._bar.update(
                self._whole, completed=self.expected_done + fraction * estimate, state=f"{clock(whole)} left"
            )
            if not self.console.is_terminal and time.monotonic() - printed > QUIET_SECONDS:
                printed = time.monotonic()
                self.console.print(f"{name}: {fraction:.0%}, {note}, {clock(left)} left; all: {clock(whole)} left")

        try:
            yield advance
        finally:
            self._bar.remove_task(bar)
        elapsed = time.monotonic() - started
        self.expected_done, self.took = self.expected_done + estimate, self.took + elapsed
        self.remaining -= estimate
        self.console.print(f"{name}: done in {clock(elapsed)}; all: {clock(self._pace() * self.remaining)} left")

    def warn(self, message: str) -> None:
        """Print a warning that stays on the screen."""
        self.console.print(f"warning: {message}", style="yellow")

    def _pace(self) -> float:
        """How much slower than estimated the units have been."""
        return self.took / self.expected_done if self.expected_done > 0 else 1.0


def clock(seconds: float) -> str:
    """Seconds as 45 s, 3:20 min or 2:05 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f}:{seconds % 60:02.0f} min"
    return f"{seconds // 3600:.0f}:{seconds % 3600 // 60:02.0f} h"
