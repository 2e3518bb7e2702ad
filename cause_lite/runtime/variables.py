"""Set environment variables for a while: any, or that of the cache."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def environment_variables(**values: str) -> Iterator[None]:
    """Set environment variables within the block; put back after it what they were, or remove them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def empty_cache() -> Iterator[None]:
    """Let the cache be an empty folder within the block."""
    with tempfile.TemporaryDirectory() as folder, environment_variables(CAUSE_CACHE=folder):
        yield
