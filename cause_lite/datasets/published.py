"""A published data set: its files, read as they are stored, and how they are fetched. `registry` holds them all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from cause_lite.datasets.archives import Archive, fetch_archive
from cause_lite.datasets.images import LazyRows, Squaring
from cause_lite.datasets.picture_files import stored_ids, stored_rgb
from cause_lite.datasets.split import Split
from cause_lite.runtime.files import UserError, data_dir, locked

Pairs = list[tuple[Path, Path]]
MOST_READ = 1000  # images that are all read when a data set is checked
Files = Callable[[Path], Pairs]  # from a data set's folder to the image and label files of a split


@dataclass(frozen=True)
class Published:
    """A published data set."""

    folder: str  # under the data root
    classes: tuple[str, ...]  # names by class number
    class_of_id: np.ndarray  # the class number of each label id, -1 where ignored
    splits: dict[str, tuple[Files, int | None]]  # the files of each, and how many are published (None: not known)
    terms: str  # of use; where nothing can be downloaded, what to do by hand
    archives: tuple[Archive, ...] = ()  # what is downloaded
    read_image: Callable[[Path], Image.Image] = stored_rgb
    read_label: Callable[[Path], Image.Image] = stored_ids
    resize: str = "nearest"  # unless asked otherwise; see `Squaring`
    rounded: bool = False
    in_memory: bool = False  # squares of a small data set that is read often
    sha256: str = ""  # of the names and bytes of all files, where they are checked

    @property
    def root(self) -> Path:
        """Where it lies."""
        return data_dir() / self.folder

    def files(self, name: str, split: str) -> Pairs:
        """Return the (image, label) files of a split; raise UserError naming the first file that is absent."""
        pairs = self.splits[split][0](self.root)
        if not pairs:
            raise UserError(f"{name}: no images of {split} under {self.root}; run `cause-lite data {name}`")
        for file in (file for pair in pairs for file in pair):
            if not file.is_file():
                raise UserError(f"{name}: {file} is missing; `cause-lite data {name}` says how to get it")
        return pairs

    def counts(self, name: str) -> dict[str, int]:
        """Return how many images each split has; VOC's trainaug, which few have, is left out."""
        return {split: len(self.files(name, split)) for split in self.splits if split != "trainaug"}

    def load(self, name: str, split: str, squaring: Squaring) -> Split:
        """Return a split; crops are taken of training images alone."""
        images, labels = zip(*self.files(name, split), strict=True)
        squaring = replace(
            squaring, rounded=self.rounded, crops=squaring.crops if split.startswith("train") else "none"
        )
        rows = LazyRows(images, self.read_image, squaring)
        classes = LazyRows(labels, self.read_label, squaring, classes=self.class_of_id)
        pixels = (rows[:], classes[:]) if self.in_memory else (rows, classes)
        return Split(name, split, self.classes, *pixels)

    def fetch(self, say: Callable[[str], None]) -> None:
        """Download and unpack what is not there yet, each archive once; raise UserError where it is had by hand."""
        if not self.archives:
            raise UserError(self.terms.format(root=self.root))
        with locked(self.root):
            say(self.terms)
            for archive in self.archives:
                fetch_archive(archive, self.root, say)

    def check(self, name: str) -> None:
        """Raise UserError unless the content is the expected one, where that is known, and whole, where it is small."""
        if self.sha256 and self.content_sha256() != self.sha256:
            raise UserError(f"{self.root}: its files differ from those of {name}; remove the folder and run this again")
        pairs = [pair for split in self.counts(name) for pair in self.splits[split][0](self.root)]
        for image, label in pairs if len(pairs) <= MOST_READ else ():
            if self.read_label(label).size != self.read_image(image).size:
                raise UserError(f"{name}: {label} has another size than {image.name}; restore the official files")

    def content_sha256(self) -> str:
        """Return one digest over the names and bytes of all images and labels."""
        digest = hashlib.sha256()
        for listing, _ in self.splits.values():
            for files in zip(*listing(self.root), strict=True):
                for file in files:
                    inner = file.relative_to(self.root).as_posix()
                    digest.update(f"{inner}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()


def _listed(path: Path) -> list[str]:
    """Return the names in a list file, a line each; raise UserError when it is absent, damaged, or leads elsewhere."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: could not be read ({error}); it is part of the data set") from error
    names = [name for name in names if name]
    for name in names:
        if Path(name).name != name or len(name.encode()) > 200 or "\0" in name:
            raise UserError(f"{path}: {name[:60]!r} is not a plain file name")
    return names


def pairs(image: str, label: str, *lists: str, names_like: str = "*") -> Files:
    """Return the files whose paths hold a name in place of {}: each name of the lists, or each that is found."""

    def files(root: Path) -> Pairs:
        if lists:
            names = [name for each in lists for name in _listed(root / each)]
        else:
            start, end = image.split("{}")
            found = (path.relative_to(root).as_posix() for path in sorted(root.glob(image.replace("{}", names_like))))
            names = [path.removeprefix(start).removesuffix(end) for path in found]
        return [(root / image.format(name), root / label.format(name)) for name in names]

    return files
