"""Progress bars on a terminal, and nothing where nobody watches (pipes, notebooks, the book's build)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress
from rich.progress import track as rich_track

Item = TypeVar("Item")


def _console() -> Console:
    # In a notebook rich would draw a widget, which a published page can neither show nor load offline.
    return Console(stderr=True, force_jupyter=False)


def track(items: Iterable[Item], note: str, total: int | None = None) -> Iterator[Item]:
    """The items, with a bar that goes away when they are done."""
    console = _console()
    return rich_track(items, note, total=total, console=console, transient=True, disable=not console.is_terminal)


def bar() -> Progress:
    """A bar to be updated by hand, as a context manager."""
    console = _console()
    return Progress(console=console, disable=not console.is_terminal)
