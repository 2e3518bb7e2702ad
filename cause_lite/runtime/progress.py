"""Progress bars on a terminal, and nothing where nobody watches (pipes, notebooks, the book's build)."""

from __future__ import annotations

import sys
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
