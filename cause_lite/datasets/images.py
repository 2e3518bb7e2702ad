"""Images and label maps of any number, read from their files when they are asked for: squared, cropped, mirrored."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image, UnidentifiedImageError
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from cause_lite.runtime.content import content_hash
from cause_lite.runtime.files import UserError
from cause_lite.runtime.progress import track

MOST_PIXELS = 100_000_000
CROP_SIZES = {"none": (), "five": (0.5,), "double": (0.5, 0.8), "super": (0.3, 0.4, 0.5, 0.6, 0.7)}
RESIZE = {"nearest": InterpolationMode.NEAREST, "bilinear": InterpolationMode.BILINEAR}


@dataclass(frozen=True)
class Crop:
    """A part of an image, or of its mirror image: `ratio` of its sides, at a corner (0 to 3, row by row) or the
    centre (4).
    """

    ratio: float
    place: int
    mirrored: bool

    def cut(self, image: Image.Image) -> Image.Image:
        image = tv.horizontal_flip(image) if self.mirrored else image
        width, height = (int(side * self.ratio) for side in image.size)
        if self.place == 4:
            return tv.center_crop(image, [height, width])
        top = (self.place // 2) * (image.height - height)
        left = (self.place % 2) * (image.width - width)
        return image.crop((left, top, left + width, top + height))


def crops_of(kind: str) -> tuple[Crop | None, ...]:
    """The crops that training makes of each image, as the release's crop_dataset.py does, without files of their own.

    none: the image; five: corners and centre at half size; double, super: those and their mirror images, at
    two and five sizes.
    """
    mirrors = (False,) if kind == "five" else (False, True)
    cut = [Crop(ratio, place, mirror) for ratio in CROP_SIZES[kind] for mirror in mirrors for place in range(5)]
    return tuple(cut) or (None,)


@dataclass(frozen=True)
class Lazy:
    """What an array (N, size, size[, 3]) would hold, read on demand: `len`, `shape`, and rows by number or slice.

    `read` turns a file into an image; `fit` is "centre" (shorter side to `size`, then the centre square) or
    "squash". Rows run over images, and within an image over its crops. With `classes`, values are label ids
    and rows are class numbers, int16, -1 where the table has none.
    """

    files: tuple[Path, ...]
    size: int
    read: Callable[[Path], Image.Image]
    fit: str = "centre"
    resize: str = "nearest"
    crops: tuple[Crop | None, ...] = (None,)
    mirrored: bool = False
    classes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.files) * len(self.crops)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), self.size, self.size) + (() if self.classes is not None else (3,))

    def __getitem__(self, which: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        numbers = np.arange(len(self))[which]
        if numbers.ndim == 0:
            return self._row(int(numbers))
        with ThreadPoolExecutor(min(8, len(numbers) or 1)) as readers:
            rows = list(readers.map(self._row, numbers.tolist()))
        kind = np.uint8 if self.classes is None else np.int16
        return np.stack(rows) if rows else np.empty((0, *self.shape[1:]), kind)

    def name(self, number: int) -> str:
        """The file of a row, and which of its crops it is where there are several."""
        file, crop = self.files[number // len(self.crops)], number % len(self.crops)
        return f"{file}, crop {crop}" if len(self.crops) > 1 else str(file)

    def _row(self, number: int) -> np.ndarray:
        image, crop = self.read(self.files[number // len(self.crops)]), self.crops[number % len(self.crops)]
        image = crop.cut(image) if crop else image
        labels = self.classes is not None
        how = RESIZE["nearest" if labels else self.resize]
        if self.fit == "squash":
            image = tv.resize(image, [self.size, self.size], how)
        else:
            image = tv.center_crop(tv.resize(image, [self.size], how), [self.size, self.size])
        values = np.asarray(tv.horizontal_flip(image) if self.mirrored else image)
        return self._classes(values, number) if labels else values

    def _classes(self, ids: np.ndarray, number: int) -> np.ndarray:
        known = (ids >= 0) & (ids < len(self.classes))
        return np.where(known, self.classes[np.where(known, ids, 0)], -1).astype(np.int16)

    def only(self, kept: np.ndarray) -> Lazy:
        """The rows of those files that `kept` (one bool a file) marks."""
        return replace(self, files=tuple(f for f, k in zip(self.files, kept, strict=True) if k))

    def flipped(self) -> Lazy:
        """The mirror images."""
        return replace(self, mirrored=not self.mirrored)

    def fingerprint(self) -> str:
        """Return a hash of every file's content and of how files become rows, as hexadecimal digits."""
        about = (self.size, self.fit, self.resize, self.crops, self.mirrored, self.read.__qualname__)
        digest = hashlib.sha256(repr(about).encode())
        with ThreadPoolExecutor() as readers:
            for of_file in readers.map(content_hash, self.files):
                digest.update(of_file)
        return digest.hexdigest()


def readable(images: Lazy, labels: Lazy | None) -> tuple[np.ndarray, list[str]]:
    """Which files can be read, with their labels and at equal sizes, and what is wrong with each that can not."""

    def wrong(number: int) -> str | None:
        try:
            seen = images.read(images.files[number])
            if labels is not None and labels.read(labels.files[number]).size != seen.size:
                return f"{labels.files[number]}: its size is not that of {images.files[number]}"
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as readers:
        found = list(track(readers.map(wrong, range(len(images.files))), "Checking images", total=len(images.files)))
    return np.array([reason is None for reason in found], dtype=bool), [reason for reason in found if reason]


def flipped(images: np.ndarray | Lazy) -> np.ndarray | Lazy:
    """The mirror images of (N, H, W, 3)."""
    return images.flipped() if isinstance(images, Lazy) else images[:, :, ::-1]


def read_rgb(path: Path) -> Image.Image:
    """An image file as RGB; 16-bit, grey, palette, CMYK and transparent ones are converted.

    Raises UserError when the file is absent, no image, damaged, or larger than 100 megapixels.
    """
    with _opened(path) as image:
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            levels = np.asarray(image, dtype=np.float64)
            top = 65535 if image.mode != "F" else max(float(np.nanmax(levels)), 1e-9)
            grey = (np.clip(np.nan_to_num(levels) / top, 0, 1) * 255).astype(np.uint8)
            return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
        return image.convert("RGB")


def read_ids(path: Path) -> Image.Image:
    """A label file whose pixel values are ids: grey of 8 or 16 bits, or a palette, whose numbers are kept."""
    with _opened(path) as image:
        if image.mode not in ("L", "P", "1", "I", "I;16"):
            raise UserError(f"{path}: a label map is grey or has a palette; this one is {image.mode}")
        ids = np.asarray(image)
        return Image.fromarray(ids.astype(np.int32) if ids.dtype != np.uint8 else ids)


def read_mat_rgb(path: Path) -> Image.Image:
    """Potsdam: a .mat file's `img` (H, W, 4) uint8, its first three channels."""
    return Image.fromarray(np.ascontiguousarray(_mat(path, "img", 3)[..., :3].astype(np.uint8)))


def read_mat_ids(path: Path) -> Image.Image:
    """Potsdam: a .mat file's `gt` (H, W)."""
    return Image.fromarray(_mat(path, "gt", 2).astype(np.int32))


def _mat(path: Path, key: str, dims: int) -> np.ndarray:
    try:
        value = scipy.io.loadmat(path, variable_names=[key])[key]
    except Exception as error:  # scipy raises many kinds on damaged bytes
        raise UserError(f"{path}: is not a MATLAB file with `{key}` ({type(error).__name__})") from error
    if value.ndim != dims or value.dtype.kind not in "uif":
        raise UserError(f"{path}: `{key}` has shape {value.shape} and type {value.dtype}")
    return value


class _opened:  # noqa: N801
    """An opened image within a `with`; every way that it can fail becomes one UserError naming the file."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def __enter__(self) -> Image.Image:
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                self._image = Image.open(self.path)
                if self._image.width * self._image.height > MOST_PIXELS:
                    raise UserError(
                        f"{self.path}: {self._image.width} x {self._image.height} pixels are more than "
                        f"{MOST_PIXELS:,}; scale it down"
                    )
                self._image.load()
        except UserError:
            self._image.close()
            raise
        except Exception as error:
            raise self._named(error) from error
        return self._image

    def __exit__(self, kind, error, trace) -> None:
        self._image.close()
        if error is not None and not isinstance(error, UserError) and isinstance(error, Exception):
            raise self._named(error) from error

    def _named(self, error: Exception) -> UserError:
        if isinstance(error, UnidentifiedImageError):
            return UserError(f"{self.path}: is not an image that Pillow can read")
        if isinstance(error, Image.DecompressionBombError):
            return UserError(f"{self.path}: has more than {MOST_PIXELS:,} pixels; scale it down")
        return UserError(f"{self.path}: is damaged or not readable ({str(error) or type(error).__name__})")
