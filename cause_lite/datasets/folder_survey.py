"""What a folder holds: its photographs, their label maps, and what is skipped and why."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cause_lite.datasets.arrays import Reading
from cause_lite.datasets.picture_files import (
    HEIC_ENDS,
    IMAGE_ENDS,
    heic_is_read,
    is_output,
    named,
    opened_image,
    read_picture,
)
from cause_lite.runtime.files import UserError

MASK_FOLDERS = {"labels", "masks"}
IMAGE_FOLDERS = {"images", "imgs"}
RUN_MARKS = ("fit.json", "segmenter.json")  # a folder with one of them was written by `fit` or `export`
TABLE = "labels.csv"


@dataclass(frozen=True)
class Survey:
    """The files of a folder of one's own.

    Parameters
    ----------
    folder
        The folder.
    images
        Its photographs, in the order of their relative paths.
    masks
        The label map of each, None where it has none.
    table
        The file that declares the classes, None where there is none.
    skipped
        Why files are not used, and which.
    """

    folder: Path
    images: tuple[Path, ...]
    masks: tuple[Path | None, ...]
    table: Path | None
    skipped: dict[str, tuple[Path, ...]]

    @property
    def labelled(self) -> int:
        """How many photographs have a label map."""
        return sum(mask is not None for mask in self.masks)

    def summary(self) -> str:
        """Return in one line how many files are used, and how many are skipped why."""
        return "; ".join(
            [f"{self.folder}: {len(self.images)} images, {self.labelled} with a label map", *self.reasons()]
        )

    def reasons(self) -> list[str]:
        """Return how many files are skipped for each reason, with the first of them named."""
        return [
            f"{len(files)} skipped: {reason} ({', '.join(str(f.relative_to(self.folder)) for f in files[:3])}"
            + (", ...)" if len(files) > 3 else ")")
            for reason, files in sorted(self.skipped.items())
        ]


def reading_notes(images: Sequence[Path], reading: Reading | None = None) -> list[str]:
    """Return what is decided in reading photographs, such as how 16-bit levels are scaled, once for each kind of file.

    Files of one ending and one of Pillow's modes are a kind; the first of each is read. A file that cannot be read has
    no note: whoever reads all of them names it.
    """
    kinds = defaultdict(list)
    for path in images:
        kinds[path.suffix.lower(), _mode(path)].append(path)
    notes = []
    for paths in kinds.values():
        like = f" (and {len(paths) - 1} of its kind)" if len(paths) > 1 else ""
        with contextlib.suppress(UserError):
            notes += [f"{paths[0]}{like}: {note}" for note in read_picture(paths[0], reading).notes]
    return notes


def _mode(path: Path) -> str:
    with contextlib.suppress(UserError), named(path), opened_image(path) as image:
        return image.mode
    return ""


def survey(folder: Path) -> Survey:
    """Walk a folder; links are followed, hidden files and what this package wrote are skipped.

    A label map lies in a folder named `labels` or `masks`, under the relative path of its photograph with any image
    ending; folders named `images` or `imgs` do not count in it. Where photographs lie in subfolders and label maps do
    not, they pair by name, if names are unique.

    Raises
    ------
    UserError
        When two photographs claim a label map, or two label maps a photograph.
    """
    skipped: dict[str, list[Path]] = defaultdict(list)
    images, masks, tables = [], [], []
    for path, reason in _walk(folder):
        inner = path.relative_to(folder)
        reason = reason or _reason(path)
        if path.name.lower() == TABLE and reason != "hidden":
            tables.append(path)
        elif reason:
            skipped[reason].append(path)
        elif MASK_FOLDERS & {part.lower() for part in inner.parts[:-1]}:
            masks.append(path)
        else:
            images.append(path)
    if len(tables) > 1:
        raise UserError(f"{tables[1]}: the classes are declared in {tables[0]} already; keep one of them")
    pairs = _pairs(folder, images, masks)
    spare = [mask for mask in masks if mask not in pairs.values()]
    if spare:
        skipped["a label map without a photograph of its name"] = spare
    found = tuple(pairs.get(image) for image in images)
    table = tables[0] if tables else None
    return Survey(folder, tuple(images), found, table, {reason: tuple(files) for reason, files in skipped.items()})


def _walk(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Walk the files under a folder in the order of their paths, each with why it is skipped, or None."""
    seen: set[tuple[int, int]] = set()

    def inside(place: Path) -> Iterator[tuple[Path, str | None]]:
        status = place.stat()
        if (status.st_dev, status.st_ino) in seen:
            yield place, "a link to a folder that is read already"
            return
        seen.add((status.st_dev, status.st_ino))
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError:
            yield place, "a folder that cannot be opened"
            return
        written = place != folder and any(entry.name in RUN_MARKS for entry in entries)
        for entry in entries:
            path = place / entry.name
            if entry.name.startswith(".") or entry.name in ("__MACOSX", "@eaDir"):
                yield path, "hidden"
            elif written:
                yield path, "written by this program"
            elif path.is_dir():
                yield from inside(path)
            else:
                yield path, None

    yield from inside(folder)


def _reason(path: Path) -> str | None:
    """Return why a file is no photograph or label map, None where it may be one."""
    ending = path.suffix.lower()
    if not path.exists():
        return "a link that leads nowhere"
    if not path.is_file():
        return "no regular file"
    if ending in HEIC_ENDS and not heic_is_read():
        return "HEIC needs pillow-heif, pip install 'cause-lite[heic]'"
    if ending not in IMAGE_ENDS:
        return f"{ending or 'no ending'} is no image format that is read"
    return "written by this program" if is_output(path) else None


def _key(path: Path, folder: Path, left_out: set[str]) -> str:
    """Return the relative path by which photographs and label maps pair: without ending and certain folders."""
    inner = path.relative_to(folder).with_suffix("")
    return "/".join([part for part in inner.parts[:-1] if part.lower() not in left_out] + [inner.name])


def _pairs(folder: Path, images: list[Path], masks: list[Path]) -> dict[Path, Path]:
    """Return the label map of each photograph that has one."""
    if not masks:
        return {}
    by_key: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        by_key[_key(image, folder, IMAGE_FOLDERS)].append(image)
    by_name: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        by_name[image.stem].append(image)
    pairs: dict[Path, Path] = {}
    for mask in masks:
        key = _key(mask, folder, MASK_FOLDERS)
        flat = "/" not in key
        claims = by_key.get(key) or (by_name.get(key, []) if flat else [])
        if len(claims) > 1:
            names = " and ".join(str(image.relative_to(folder)) for image in claims[:3])
            raise UserError(f"{mask}: is claimed by {names}; keep label maps under the relative paths of their images")
        for image in claims:
            if image in pairs:
                raise UserError(f"{image}: has two label maps, {pairs[image]} and {mask}; keep one of them")
            pairs[image] = mask
    return pairs
