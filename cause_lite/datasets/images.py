"""Images and label maps of any number, read from their files when they are asked for: cropped, squared, mirrored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import chain, groupby
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from cause_lite.runtime.files import UserError, content_hash

CROP_SIZES = {"none": (), "five": (0.5,), "double": (0.5, 0.8), "super": (0.3, 0.4, 0.5, 0.6, 0.7)}
LONGEST = 16  # times its width: a longer strip is cut before it is scaled
RESIZE = {"nearest": InterpolationMode.NEAREST, "bilinear": InterpolationMode.BILINEAR}


@dataclass(frozen=True)
class Crop:
    """A part of an image or of its mirror image: a corner (`place` 0 to 3, row by row) or the centre (4)."""

    ratio: float  # the crop's sides over the image's
    place: int
    mirrored: bool

    def cut(self, image: Image.Image) -> Image.Image:
        """Return that part of an image."""
        image = tv.horizontal_flip(image) if self.mirrored else image
        width, height = (int(side * self.ratio) for side in image.size)
        if self.place == 4:
            return tv.center_crop(image, [height, width])
        top = (self.place // 2) * (image.height - height)
        left = (self.place % 2) * (image.width - width)
        return image.crop((left, top, left + width, top + height))


@lru_cache
def crops_of(kind: str) -> tuple[Crop | None, ...]:
    """Return the crops that training makes of each image, as the release's crop_dataset.py writes them to files.

    none is the image itself; five are corners and centre at half size; double and super those and their mirror images,
    at two and at five sizes.
    """
    mirrors = (False,) if kind == "five" else (False, True)
    crops = [Crop(ratio, place, mirror) for ratio in CROP_SIZES[kind] for mirror in mirrors for place in range(5)]
    return tuple(crops) or (None,)


@dataclass(frozen=True)
class Squaring:
    """How an image becomes squares of `size` pixels a side.

    torchvision, which the release calls, rounds the longer side down and the edge of the centre square to the nearest
    pixel. `rounded` is the other way round: CamVid's recorded scores rest on it.
    """

    size: int
    crops: str = "none"  # which crops are taken of the image first; see `crops_of`
    fit: str = "centre"  # centre: the shorter side is scaled to `size`, the centre cut out; squash: both are scaled
    resize: str = "nearest"  # how colours are scaled, nearest or bilinear; label ids take the nearest pixel
    rounded: bool = field(default=False, repr=False)

    def square(self, image: Image.Image, labels: bool = False) -> Image.Image:
        """Return the square of an image or crop."""
        how = RESIZE["nearest" if labels else self.resize]
        if self.fit == "squash":
            return tv.resize(image, [self.size, self.size], how)
        image = self._without_ends(image)
        if not self.rounded:
            return tv.center_crop(tv.resize(image, [self.size], how), [self.size, self.size])
        width, height = (max(self.size, round(side * self.size / min(image.size))) for side in image.size)
        scaled = tv.resize(image, [height, width], how)
        return tv.crop(scaled, (height - self.size) // 2, (width - self.size) // 2, self.size, self.size)

    @staticmethod
    def _without_ends(image: Image.Image) -> Image.Image:
        """Cut a strip to its middle before it is scaled, so that memory does not grow with its length."""
        short, long = sorted(image.size)
        if long <= LONGEST * short:
            return image
        width, height = (min(side, LONGEST * short) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))


@dataclass(frozen=True)
class LazyRows:
    """An array (N, size, size[, 3]) whose rows are read from files on demand, by number or slice.

    Rows run over files, and within a file over its crops. Rows of label maps are class numbers, int16.
    """

    files: tuple[Path | None, ...]  # None: a label map that is not there, all of whose pixels are ignored
    read: Callable[[Path], Image.Image]
    squaring: Squaring
    mirrored: bool = False
    classes: np.ndarray | None = None  # of label maps: the class number of each id, -1 where ignored

    @property
    def crops(self) -> tuple[Crop | None, ...]:
        """The crops of each file."""
        return crops_of(self.squaring.crops)

    def __len__(self) -> int:
        return len(self.files) * len(self.crops)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the array would have."""
        size = self.squaring.size
        return (len(self), size, size) + (() if self.classes is not None else (3,))

    def __getitem__(self, which: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        numbers = np.arange(len(self))[which]
        if numbers.ndim == 0:
            return self._rows([int(numbers)])[0]
        runs = [list(run) for _, run in groupby(numbers.tolist(), lambda number: number // len(self.crops))]
        with ThreadPoolExecutor(min(8, len(runs) or 1)) as readers:
            rows = list(chain.from_iterable(readers.map(self._rows, runs)))
        kind = np.uint8 if self.classes is None else np.int16
        return np.stack(rows) if rows else np.empty((0, *self.shape[1:]), kind)

    def name(self, number: int) -> str:
        """Return the file of a row, and which of its crops it is where there are several."""
        file, crop = self.files[number // len(self.crops)], number % len(self.crops)
        return f"{file}, crop {crop}" if len(self.crops) > 1 else str(file)

    def _rows(self, numbers: list[int]) -> list[np.ndarray]:
        """Return rows of one file, which is read once."""
        file = self.files[numbers[0] // len(self.crops)]
        if file is None:
            return [np.full(self.shape[1:], -1, np.int16) for _ in numbers]
        image = self.read(file)
        return [self._squared(image, self.crops[number % len(self.crops)]) for number in numbers]

    def _squared(self, image: Image.Image, crop: Crop | None) -> np.ndarray:
        square = self.squaring.square(crop.cut(image) if crop else image, labels=self.classes is not None)
        return self._values(tv.horizontal_flip(square) if self.mirrored else square)

    def _values(self, image: Image.Image) -> np.ndarray:
        """Return the pixels of an image, or the class numbers of ids."""
        values, classes = np.asarray(image), self.classes
        if classes is None:
            return values
        known = (values >= 0) & (values < len(classes))
        return np.where(known, classes[np.where(known, values, 0)], -1).astype(np.int16)

    def whole(self, number: int) -> np.ndarray:
        """Return the image of a file, (H, W, 3) uint8, or its class numbers (H, W) int16: not cropped, not squared."""
        file = self.files[number]
        if file is None:
            raise UserError(f"row {number} has no file")
        return self._values(self.read(file))

    def only(self, kept: np.ndarray) -> LazyRows:
        """Return the rows of the files that `kept` (one bool a file) marks."""
        return replace(self, files=tuple(f for f, k in zip(self.files, kept, strict=True) if k))

    def flipped(self) -> LazyRows:
        """Return the mirror images."""
        return replace(self, mirrored=not self.mirrored)

    def fingerprint(self) -> str:
        """Return a hash of the files' content and of how it becomes rows; names and times do not count."""
        digest = hashlib.sha256(repr((self.squaring, self.mirrored, _described(self.read))).encode())
        with ThreadPoolExecutor() as readers:
            for content in readers.map(lambda file: b"" if file is None else content_hash(file), self.files):
                digest.update(content + b"\n")
        return digest.hexdigest()


def _described(read: Callable) -> str:
    """Return a reader's name and arguments, the same in every process."""
    if isinstance(read, partial):
        return f"{_described(read.func)} {read.args} {sorted(read.keywords.items())}"
    return f"{read.__module__}.{read.__qualname__}"


def flipped(images: np.ndarray | LazyRows) -> np.ndarray | LazyRows:
    """Return the mirror images of (N, H, W, 3)."""
    return images.flipped() if isinstance(images, LazyRows) else images[:, :, ::-1]


def images_fingerprint(images: np.ndarray | LazyRows) -> str:
    """Return a hash of the content that rows (N, H, W, 3) are read from, and of how it becomes rows."""
    if isinstance(images, LazyRows):
        return images.fingerprint()
    return hashlib.sha256(str(images.shape).encode() + np.ascontiguousarray(images).data).hexdigest()
