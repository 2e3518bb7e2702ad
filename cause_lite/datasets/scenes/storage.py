"""Storage: each split is rendered once and lies in the cache, memory-mapped."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from cause_lite.datasets import scenes
from cause_lite.datasets.scenes.taxonomy import IMAGE_SIZE
from cause_lite.runtime.files import cache_dir, write_whole
from cause_lite.runtime.progress import track

Arrays = tuple[np.ndarray, np.ndarray]


def load(split: str, size: int = IMAGE_SIZE, resize: Image.Resampling = Image.Resampling.NEAREST) -> Arrays:
    """Return a split's images (N, size, size, 3) uint8 and labels (N, size, size) int16, rendered now if need be.

    Views are painted at 128 pixels; other sizes are scaled by `resize`, labels by the nearest pixel.
    """
    folder, count = cache_dir() / f"scenes-{split}-{source_hash()}", scenes.SPLITS[split]

    def painted(number: int) -> Arrays:
        view = scenes.render(0, split, number)
        return view.image, view.labels

    images, labels = _stored(folder, count, IMAGE_SIZE, painted, f"Rendering scenes/{split}")
    if size == IMAGE_SIZE:
        return images, labels

    def scaled(number: int) -> Arrays:
        image, classes = Image.fromarray(images[number]), Image.fromarray(labels[number])
        return np.asarray(image.resize((size, size), resize)), np.asarray(classes.resize((size, size), 0))

    folder = folder.with_name(f"{folder.name}-{size}-{resize.name.lower()}")
    return _stored(folder, count, size, scaled, f"Scaling scenes to {size} pixels")


def source_files() -> list[Path]:
    """Return the files of this package, in the order of their names."""
    return sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".py", ".yaml"))


def source_hash() -> str:
    """Return a hash of what the pixels depend on: the files of this package and numpy's version."""
    source = b"".join(file.name.encode() + file.read_bytes() for file in source_files())
    return hashlib.sha256(source + np.__version__.encode()).hexdigest()[:12]


def _stored(folder: Path, count: int, size: int, view: Callable[[int], Arrays], note: str) -> Arrays:
    """Return the arrays of a folder, which are made view by view if they are not there or damaged."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        return _loaded(folder)

    def write(part: Path) -> None:
        part.mkdir()
        new = np.lib.format.open_memmap
        images = new(part / "images.npy", "w+", np.uint8, (count, size, size, 3))
        labels = new(part / "labels.npy", "w+", np.int16, (count, size, size))
        for number in track(range(count), note):
            images[number], labels[number] = view(number)
        images.flush()
        labels.flush()

    write_whole(folder, write, over=folder.exists())
    return _loaded(folder)


def _loaded(folder: Path) -> Arrays:
    images, labels = (np.load(folder / f"{name}.npy", mmap_mode="c") for name in ("images", "labels"))
    return images, labels
