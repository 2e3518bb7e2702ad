"""A split: images with their labels, as arrays or as rows that are read on demand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from cause_lite.datasets.images import LazyRows
from cause_lite.runtime.files import UserError
from cause_lite.runtime.progress import track

Pixels = np.ndarray | LazyRows


@dataclass(frozen=True)
class Split:
    """The images and labels of a part of a data set.

    Parameters
    ----------
    name, split
        The data set's name (or folder) and the part's.
    classes
        The class names, by class number.
    images
        (N, H, W, 3) uint8.
    labels
        Class numbers (N, H, W) int16, -1 where ignored; None where there are none.
    clusters
        How many clusters to find; None: as many as there are classes.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    images: Pixels
    labels: Pixels | None
    clusters: int | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_clusters(self) -> int:
        """How many clusters to find."""
        return self.clusters or len(self.classes)

    def labelled(self) -> Split:
        """Return the images that have a label map."""
        if not isinstance(self.labels, LazyRows) or None not in self.labels.files:
            return self
        kept = np.array([file is not None for file in self.labels.files], dtype=bool)
        images = self.images.only(kept) if isinstance(self.images, LazyRows) else self.images[kept]
        return replace(self, images=images, labels=self.labels.only(kept))

    def name_of(self, number: int) -> str:
        """Return what to call an image in a message: its file, or its number where it has none."""
        return self.images.name(number) if isinstance(self.images, LazyRows) else f"image {number}"

    def with_labels(self, labels: Pixels | None) -> Split:
        """Return the same images with other labels, or with none."""
        return replace(self, labels=labels)


def without_bad(split: Split) -> tuple[Split, list[str]]:
    """Return the images that can be read, with their labels, and what is wrong with each of the others.

    Raises UserError when no image is left.
    """
    if not isinstance(split.images, LazyRows):
        return split, []
    images, labels = split.images, split.labels if isinstance(split.labels, LazyRows) else None
    with ThreadPoolExecutor() as readers:
        checked = readers.map(lambda number: _fault(number, images, labels), range(len(images.files)))
        faults = list(track(checked, "Checking images", total=len(images.files)))
    kept = np.array([fault is None for fault in faults], dtype=bool)
    wrong = [fault for fault in faults if fault is not None]
    if not kept.any():
        raise UserError(f"{split.name}: none of {len(kept)} images can be read; the first: {wrong[0]}")
    return replace(split, images=images.only(kept), labels=labels.only(kept) if labels else None), wrong


def _fault(number: int, *pixels: LazyRows | None) -> str | None:
    """Return what is wrong with the file of an image or of its labels; None: nothing."""
    try:
        for rows in pixels:
            file = rows.files[number] if rows is not None else None
            if rows is not None and file is not None:
                rows.read(file)
    except UserError as error:
        return str(error)
    return None
