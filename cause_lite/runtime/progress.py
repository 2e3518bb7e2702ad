"""Progress bars on a terminal, and nothing where nobody watches (pipes, notebooks, the book's build)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress
from rich.progress import track as rich_track

Item = TypeVar("Item")


def _watched() -> tuple[Console, bool]:
    """The console for bars, and whether somebody sees it; a notebook's stream calls itself a terminal."""
    console = Console(stderr=True, force_jupyter=False)
    return console, console.is_terminal and "ipykernel" not in sys.modules


def track(items: Iterable[Item], note: str, total: int | None = None) -> Iterator[Item]:
    """The items, with a bar that goes away when they are done."""
    console, watched = _watched()
    return rich_track(items, note, total=total, console=console, transient=True, disable=not watched)


def bar() -> Progress:
    """A bar to be updated by hand, as a context manager."""
    console, watched = _watched()
    return Progress(console=console, disable=not watched)


class Stopwatch:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Note the seconds since the last lap, or since the start."""
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 2), now
