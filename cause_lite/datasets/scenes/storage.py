"""Storage: each split is rendered once and lies in the cache, memory-mapped."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from functools import partial
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

    Parameters
    ----------
    split
        A key of `SPLITS`.
    size
        Pixels a side. Views are painted at 128 pixels and scaled to other sizes.
    resize
        How images are scaled; labels take the nearest pixel.
    """
    folder = cache_dir() / f"scenes-{split}-{source_hash()}"
    arrays = _stored(folder, lambda part: _render(split, part))
    if size == IMAGE_SIZE:
        return arrays
    scaled = folder.with_name(f"{folder.name}-{size}-{resize.name.lower()}")
    return _stored(scaled, lambda part: _scale(arrays, size, resize, part))


def source_files() -> list[Path]:
    """Return the files of this package, in the order of their names."""
    return sorted(Path(__file__).parent.glob("*.py"))


def source_hash() -> str:
    """Return a hash of what the pixels depend on: the files of this package and numpy's version."""
    source = b"".join(file.name.encode() + file.read_bytes() for file in source_files())
    return hashlib.sha256(source + np.__version__.encode()).hexdigest()[:12]


def _stored(folder: Path, write: Callable[[Path], None]) -> Arrays:
    """Return the arrays of a folder, which `write` fills if they are not there or damaged."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        return _loaded(folder)
    write_whole(folder, write, over=folder.exists())
    return _loaded(folder)


def _loaded(folder: Path) -> Arrays:
    images, labels = (np.load(folder / f"{name}.npy", mmap_mode="c") for name in ("images", "labels"))
    return images, labels


def _new_arrays(folder: Path, count: int, size: int) -> tuple[np.memmap, np.memmap]:
    """Make the folder and its two arrays, which are still empty."""
    folder.mkdir()
    new = partial(np.lib.format.open_memmap, mode="w+")
    images = new(folder / "images.npy", dtype=np.uint8, shape=(count, size, size, 3))
    return images, new(folder / "labels.npy", dtype=np.int16, shape=(count, size, size))


def _render(split: str, folder: Path) -> None:
    images, labels = _new_arrays(folder, scenes.SPLITS[split], IMAGE_SIZE)
    for number in track(range(len(images)), f"Rendering scenes/{split}"):
        view = scenes.render(0, split, number)
        images[number], labels[number] = view.image, view.labels
    images.flush()
    labels.flush()


def _scale(arrays: Arrays, size: int, resize: Image.Resampling, folder: Path) -> None:
    images, labels = _new_arrays(folder, len(arrays[0]), size)
    for number in track(range(len(images)), f"Scaling scenes to {size} pixels"):
        image, classes = (array[number] for array in arrays)
        images[number] = np.asarray(Image.fromarray(image).resize((size, size), resize))
        labels[number] = np.asarray(Image.fromarray(classes).resize((size, size), Image.Resampling.NEAREST))
    images.flush()
    labels.flush()
