"""Show progress bars on a terminal, and none in pipes, notebooks and the book's build; say a line; time stages."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.progress import track as rich_track

Item = TypeVar("Item")


def _bar_console() -> tuple[Console, bool]:
    """Return the console for bars, and whether to show them on it."""
    console = Console(stderr=True, force_jupyter=False)
    # A notebook's stream says that it is a terminal.
    return console, console.is_terminal and "ipykernel" not in sys.modules


def track(items: Iterable[Item], note: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items beside a bar named `note`, which goes away when they are done."""
    console, visible = _bar_console()
    yield from rich_track(items, escape(note), total=total, console=console, transient=True, disable=not visible)


def bar() -> Progress:
    """Return a bar to be updated by hand, as a context manager."""
    console, visible = _bar_console()
    return Progress(console=console, disable=not visible)


def say(text: str) -> None:
    """Print a line about the work beside its progress, to the stream of errors: results keep the other one."""
    _bar_console()[0].print(text, markup=False, highlight=False, soft_wrap=True)


class Stopwatch:
    """Measure the seconds of stages that follow each other; `laps` holds them by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Store the seconds since the last lap, or since the start, under a stage's name."""
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 2), now
