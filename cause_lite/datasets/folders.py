"""A folder of one's own photographs, with or without label maps beside them."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cause_lite.datasets.arrays import Reading
from cause_lite.datasets.folder_survey import Survey, survey
from cause_lite.datasets.images import LazyRows, Squaring
from cause_lite.datasets.label_table import (
    UNLABELLED,
    VOID,
    LabelTable,
    listed,
    read_classes,
    read_codes,
    read_table,
    table_of,
)
from cause_lite.datasets.picture_files import header, read_picture
from cause_lite.datasets.split import Split
from cause_lite.probe import IGNORED
from cause_lite.runtime.files import UserError, content_hash
from cause_lite.runtime.progress import track

DEFAULT_CLUSTERS = 12  # to find in a folder without labels
MOST_LISTED = 5


def folder_files(folder: Path) -> list[Path]:
    """Return the photographs under a folder, in the order of their relative paths; see `folder_survey.survey`."""
    return list(survey(Path(folder)).images)


def load_folder(folder: Path, clusters: int | None, squaring: Squaring, reading: Reading | None = None) -> Split:
    """Return the photographs under a folder, with the label maps of those that have one.

    Raises UserError when there is no photograph; when a label map has another shape than its photograph, holds ids that
    nobody declared, or ignores every pixel.
    """
    found = survey(folder)
    if not found.images:
        raise UserError("; ".join([f"{folder}: holds no image; name a folder of photographs", *found.reasons()]))
    if doubt := found.doubtful():
        warnings.warn(doubt, stacklevel=3)
    images = LazyRows(found.images, partial(read_photograph, reading=reading), squaring)
    if not found.labelled:
        names = tuple(f"cluster {number}" for number in range(clusters or DEFAULT_CLUSTERS))
        return Split(str(folder), "train", names, images, None)
    table = folder_table(found)
    labels = LazyRows(found.masks, partial(read_classes, table=table), squaring, classes=np.arange(len(table.names)))
    return Split(str(folder), "train", table.names, images, labels, clusters)


def read_photograph(path: Path, reading: Reading | None = None) -> Image.Image:
    """Read a file as an RGB image; see `arrays.Picture`."""
    return Image.fromarray(read_picture(path, reading).rgb)


def folder_table(found: Survey) -> LabelTable:
    """Return the classes of a folder's label maps, after every map was looked at once."""
    masks = tuple((image, mask) for image, mask in zip(found.images, found.masks, strict=True) if mask is not None)
    state = tuple(content_hash(mask) for _, mask in masks) + ((content_hash(found.table),) if found.table else ())
    return _checked_table(found.folder, found.table, masks, state)


class _Look(NamedTuple):
    """What was seen of a label map: its codes, and what is wrong with its shape."""

    mask: Path
    codes: frozenset[int]
    misfit: str | None


@lru_cache(maxsize=8)
def _checked_table(
    folder: Path, table_file: Path | None, masks: tuple[tuple[Path, Path], ...], state: tuple[bytes, ...]
) -> LabelTable:
    """Look at every label map; `state` makes the result depend on their content."""
    table = read_table(table_file) if table_file else None
    looks = _looks(masks, table)
    _stop(folder, "have another shape than their photographs", [look.misfit for look in looks if look.misfit])
    codes = set().union(*(look.codes for look in looks))
    if table is None:
        if codes <= {UNLABELLED, VOID}:
            raise UserError(f"{folder}: every pixel of every label map is ignored; nothing could be scored")
        table = table_of(codes, folder)
    unknown = [(look.mask, table.undeclared(look.codes)) for look in looks]
    lines = [f"{mask} holds {listed(codes)}" for mask, codes in unknown if codes]
    _stop(folder, f"hold ids that {table_file} does not declare", lines)
    void = [str(look.mask) for look in looks if all(table.class_of.get(code, IGNORED) < 0 for code in look.codes)]
    _stop(folder, "ignore every pixel; remove them, or declare their ids in labels.csv", void)
    return table


def _looks(masks: tuple[tuple[Path, Path], ...], table: LabelTable | None) -> list[_Look]:
    """Look at all label maps; those that cannot be read are left to whoever reads them, unless that is all."""

    def look(pair: tuple[Path, Path]) -> _Look | UserError:
        image, mask = pair
        try:
            codes, size = read_codes(mask, table), header(image)[:2]
        except UserError as error:
            return error
        height, width = codes.shape
        misfit = None
        if not same_aspect((width, height), size):
            misfit = f"{mask} has {width} x {height} pixels, {image.name} {size[0]} x {size[1]}"
        return _Look(mask, frozenset(np.unique(codes).tolist()), misfit)

    with ThreadPoolExecutor() as readers:
        looks = list(track(readers.map(look, masks), "Checking label maps", total=len(masks)))
    whole = [look for look in looks if isinstance(look, _Look)]
    if not whole and isinstance(looks[0], UserError):
        raise looks[0]
    return whole


def same_aspect(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Return whether two sizes (width, height) are one shape at two scales, with sides rounded to whole pixels."""
    small, large = sorted((first, second), key=lambda size: size[0] * size[1])
    lowest = max(side / (part + 1) for part, side in zip(small, large, strict=True))
    highest = min(side / (part - 0.5) for part, side in zip(small, large, strict=True))
    return lowest < highest


def _stop(folder: Path, what: str, lines: list[str]) -> None:
    """Raise UserError with the list of label maps that are wrong, if there are any."""
    if lines:
        more = f"; and {len(lines) - MOST_LISTED} more" if len(lines) > MOST_LISTED else ""
        raise UserError(f"{folder}: {len(lines)} label maps {what}: {'; '.join(lines[:MOST_LISTED])}{more}")
