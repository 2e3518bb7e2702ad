"""Decide whether features are stored or computed again at each reading: by the rates of both, measured here.

$CAUSE_FEATURES overrules: `store` or `recompute`; `auto` is the default. What a fit computes does not depend on it.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from cause_lite.backbones.feature_pass import Computed, on_host
from cause_lite.runtime import parallel
from cause_lite.runtime.files import UserError
from cause_lite.runtime.progress import say

CHOICES = ("auto", "store", "recompute")
SMALL = 5e9  # bytes that are always stored: they serve other seeds and heads too
MEASURED = 3  # batches


@dataclass(frozen=True)
class Rates:
    """Images a second: through the backbone, to the disk, and from the disk."""

    computed: float
    written: float
    read: float

    def hours(self, images: int, stored: int, readings: int) -> float:
        """Return what `readings` of all images take when the first `stored` are written and the others computed again.

        The backbone and the disk are counted one after the other, though they overlap in part.
        """
        fill = stored * (1 / self.computed + 1 / self.written)
        again = readings * (stored / self.read + (images - stored) / self.computed)
        return (fill + again) / 3600


def chosen() -> str:
    """Return what $CAUSE_FEATURES asks for. Raises UserError for anything but `CHOICES`."""
    choice = os.environ.get("CAUSE_FEATURES", "auto")
    if choice not in CHOICES:
        raise UserError(f"CAUSE_FEATURES={choice!r}: must be one of {', '.join(CHOICES)}")
    return choice


def stored_images(
    shape: tuple[int, int, int], room: int, source: Computed, folder: Path, note: str, readings: int | None
) -> int:
    """Return how many of N images' features (N, P, D) in half precision are to be stored: `room` or none.

    Parameters
    ----------
    shape, room
        N, P and D; and how many images fit the disk's budget.
    source, folder
        What computes them, and where they would lie.
    note
        What they are called where the choice is printed.
    readings
        How often a fit reads each image; None: unknown, so they are stored.
    """
    images, patches, dim = shape
    choice, each = chosen(), 2 * patches * dim
    if choice == "recompute":
        return 0
    if choice == "store" or readings is None or images * each <= SMALL or not room:
        return room
    rates = measured_rates(source, images, folder)
    stored, again = (rates.hours(images, count, readings) for count in (room, 0))
    kept = parallel.gather_objects(room if stored <= again else 0)[0]  # every process does what the first decides
    say(
        f"{note}, {images * each / 1e9:,.0f} GB: computed at {rates.computed:,.0f} images a second, written at "
        f"{rates.written:,.0f}, read at {rates.read:,.0f}. {readings} readings take {stored:.2g} hours with "
        f"{room:,} of {images:,} stored and {again:.2g} hours computed again: "
        f"{'stored' if kept else 'computed again'} (CAUSE_FEATURES={'recompute' if kept else 'store'} overrules)"
    )
    return kept


def measured_rates(source: Computed, images: int, folder: Path) -> Rates:
    """Measure the rates on a few batches, after one that warms up; nothing stays on the disk."""
    size = source.batch if torch.accelerator.is_available() else min(source.batch, 4)
    batches = torch.arange(min(images, (1 + MEASURED) * size)).split(size)
    start, done = math.nan, 0
    vectors = torch.empty(0)
    for vectors in on_host(source.ahead(batches)):
        start = start if done else time.perf_counter()
        done += len(vectors)
    counted = done - size if done > size else done
    seconds = time.perf_counter() - start
    written, read = disk_seconds(vectors.numpy().tobytes(), folder)
    return Rates(counted / max(1e-9, seconds), len(vectors) / written, len(vectors) / read)


def disk_seconds(content: bytes, folder: Path) -> tuple[float, float]:
    """Return the seconds to write a file through to the disk, and to read it from there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".rate-{os.getpid()}"
    try:
        start = time.perf_counter()
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            written = time.perf_counter()
            if hasattr(os, "posix_fadvise"):  # else the system answers from memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        again = time.perf_counter()
        path.read_bytes()
        return written - start, time.perf_counter() - again
    finally:
        path.unlink(missing_ok=True)
