"""Image files of every format that is read: Pillow's, HEIC and AVIF by its plugins, multi-band TIFF by tifffile."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torchvision
from PIL import Image, UnidentifiedImageError

from cause_lite.datasets.arrays import Picture, Reading, check_frame, from_array, from_pillow
from cause_lite.datasets.readers import MOST_PIXELS
from cause_lite.runtime.files import UserError

# Formats that hold photographs. EPS and the like are left out: reading them starts other programs.
FORMATS = (
    "JPEG",
    "MPO",
    "PNG",
    "TIFF",
    "WEBP",
    "BMP",
    "DIB",
    "GIF",
    "PPM",
    "JPEG2000",
    "AVIF",
    "HEIF",
    "TGA",
)
HEIC_ENDS = (".heic", ".heif", ".hif")
IMAGE_ENDS = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".mpo",
    ".png",
    ".apng",
    ".tif",
    ".tiff",
    ".webp",
    ".bmp",
    ".dib",
    ".gif",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".jp2",
    ".j2k",
    ".avif",
    ".tga",
    *HEIC_ENDS,
)
DEEP_PNG = ("RGB;16B", "RGBA;16B", "LA;16B")  # how Pillow names what it would cut to 8 bits
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SOFTWARE = "cause-lite"  # stands in the text of every picture that is written, so that none is read as an input
OUTPUT_ENDS = (".labels.png", ".labels.tif", ".overlay.png", ".confidence.png")

# Pillow warns of sizes, which are checked here, and of damaged tags. Said once for the whole process:
# `warnings.catch_warnings` around each file would lose the warnings of other threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


@lru_cache
def heic_is_read() -> bool:
    """Return whether HEIC files can be read, which takes Pillow's plugin pillow-heif."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


@lru_cache
def _formats() -> tuple[str, ...]:
    """Return the formats that Pillow can open here."""
    heic_is_read()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def read_picture(path: Path, reading: Reading | None = None) -> Picture:
    """Read an image file as a picture.

    Raises
    ------
    UserError
        Naming the file and what is wrong with it.
    """
    reading = reading or Reading()
    with named(path):
        if _mark(path) in TIFF_MARKS:
            picture = _read_tiff(path, reading)
            if picture is not None:
                return picture
        with opened_image(path) as image:
            if _is_deep_png(image):
                return from_array(_deep_png(path, image), reading)
            image.load()
            return from_pillow(image, reading)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn every way that reading a file can fail into one UserError that names it.

    Raises
    ------
    UserError
        In place of any exception.
    """
    try:
        if not Path(path).is_file():
            raise UserError("is a folder, not an image" if Path(path).is_dir() else "no such file")
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: {_unidentified(path)}") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: has more than {MOST_PIXELS:,} pixels; scale it down") from error
    except MemoryError as error:
        raise UserError(f"{path}: needs more memory than there is; scale it down") from error
    except Exception as error:  # on damaged bytes decoders raise nearly any kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: is damaged or not readable ({reason})") from error


def _unidentified(path: Path) -> str:
    """Say why no format fits a file."""
    if path.suffix.lower() in HEIC_ENDS and not heic_is_read():
        return "HEIC is read through pillow-heif: pip install 'cause-lite[heic]'"
    if path.stat().st_size == 0:
        return "is empty"
    return "is not an image that Pillow can read"


@contextlib.contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """Open an image by Pillow, not decoded yet; too large ones are refused."""
    # By file, not by path: Pillow maps some TIFFs into memory by their path, and then forgets to turn them.
    with path.open("rb") as file, Image.open(file, formats=_formats()) as image:
        if image.width * image.height > MOST_PIXELS:
            raise UserError(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}; scale it down")
        yield image


def picture_size(path: Path) -> tuple[int, int]:
    """Return the width and height of an image as a viewer shows it, without decoding it.

    Raises
    ------
    UserError
        When the file is no image.
    """
    with named(path), opened_image(path) as image:
        # Pillow turns a TIFF as it decodes it, and gives the size that it will have
        turned = image.format != "TIFF" and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else image.size


def is_output(path: Path) -> bool:
    """Return whether a file is a picture that this package wrote: a label map, an overlay, a contact sheet."""
    if path.suffix.lower() not in (".png", ".tif", ".tiff"):
        return False
    if path.name.endswith(OUTPUT_ENDS):
        return True
    try:
        with opened_image(path) as image:
            text = image.info.get("Software") if image.format == "PNG" else image.getexif().get(305)
            return str(text).startswith(SOFTWARE)
    except Exception:  # what cannot be opened is no output; the reader says what is wrong with it
        return False


def _mark(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _is_deep_png(image: Image.Image) -> bool:
    tiles = getattr(image, "tile", None) or [(None,) * 4]
    return image.format == "PNG" and tiles[0][3] in DEEP_PNG


def _deep_png(path: Path, image: Image.Image) -> np.ndarray:
    """Return all 16 bits of a colour PNG, (H, W, 3 or 4), which Pillow would cut to 8."""
    decoded = torchvision.io.decode_image(torchvision.io.read_file(str(path))).numpy()
    levels = np.moveaxis(decoded, 0, -1)
    if levels.shape[2] == 2:  # grey and opacity
        levels = levels[..., [0, 0, 0, 1]]
    return oriented(levels, image.getexif().get(0x0112, 1))


def oriented(array: np.ndarray, orientation: int) -> np.ndarray:
    """Return (H, W, ...) turned and mirrored as an orientation tag (1 to 8) asks."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _read_tiff(path: Path, reading: Reading) -> Picture | None:
    """Read a TIFF that Pillow would cut, scale or refuse; None where Pillow does it right or tifffile is missing."""
    try:
        import tifffile
    except ImportError as error:
        if reading.bands is not None:
            raise UserError("bands of a TIFF are read through tifffile: pip install 'cause-lite[geo]'") from error
        return None
    with tifffile.TiffFile(path) as file:
        page = file.pages[0].aspage()
        colours = page.photometric in (2, 3, 5, 6, 8, 9) and page.samplesperpixel <= 4
        alpha_beside_grey = (
            page.samplesperpixel == 2 and bool(page.extrasamples) and int(page.extrasamples[0]) in (1, 2)
        )
        by_pillow = page.bitspersample <= 8 and (page.samplesperpixel == 1 or colours or alpha_beside_grey)
        nodata = page.nodata if 42113 in page.tags else None
        if reading.bands is None and nodata is None and by_pillow and _first_is_all(file):
            return None
        series = file.series[0]
        frames, levels = _tiff_levels(series, reading, _full_size_count(file))
        check_frame(frames, reading.frame)
        levels = oriented(levels, _tag(page, 274, 1))
        alpha = page.photometric == 2 and any(int(sample) in (1, 2) for sample in page.extrasamples)
        return _tiff_picture(levels, nodata, alpha, page.photometric, reading)


def _first_is_all(file) -> bool:
    """Return whether a TIFF's pages after the first are only smaller copies of it."""
    return _full_size_count(file) == 1 and not _has_frames(file.series[0])


def _full_size_count(file) -> int:
    """Return how many images a TIFF holds that are not smaller copies."""
    return max(1, sum(not series.keyframe.is_reduced for series in file.series))


def _has_frames(series) -> bool:
    return any(axis not in "YXSC" and size > 1 for axis, size in zip(series.axes, series.shape, strict=True))


def _tag(page, number: int, default: int) -> int:
    return int(page.tags[number].value) if number in page.tags else default


def _tiff_levels(series, reading: Reading, pages: int) -> tuple[int, np.ndarray]:
    """Return how many images a TIFF holds, and the levels (H, W, bands) of the named one."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    if not {"Y", "X"} <= sizes.keys():
        raise UserError(f"its axes are {series.axes}, not those of an image")
    if sizes["Y"] * sizes["X"] > MOST_PIXELS or int(np.prod(series.shape)) > 8 * MOST_PIXELS:
        raise UserError(f"{sizes['X']} x {sizes['Y']} pixels in {series.axes} are too many; scale it down or cut it")
    others = [axis for axis in series.axes if axis not in "YXSC"]
    inner = int(np.prod([sizes[axis] for axis in others]))
    frames = inner if inner > 1 else pages
    check_frame(frames, reading.frame)
    order = [series.axes.index(axis) for axis in [*others, "Y", "X", *(a for a in "SC" if a in sizes)]]
    array = series.asarray().transpose(order).reshape(inner, sizes["Y"], sizes["X"], -1)
    if inner == 1 and pages > 1 and reading.frame not in (None, 1):
        raise UserError(f"frame: the {pages} images of this TIFF differ in shape; split it")
    return frames, array[(reading.frame or 1) - 1 if inner > 1 else 0]


def _tiff_picture(levels: np.ndarray, nodata: float | None, alpha: bool, photometric: int, reading: Reading) -> Picture:
    """Turn levels (H, W, bands) into a picture; pixels without data in any shown band are not valid."""
    count, notes = levels.shape[2], tuple[str, ...]()
    if photometric == 0:
        raise UserError("white is its lowest value (photometric MinIsWhite); convert it")
    if photometric == 2 and count > 3 and not alpha and reading.bands is None:
        levels, notes = levels[..., :3], (f"bands 1, 2, 3 of {count} are shown; name others with --bands",)
    if nodata is not None:
        chosen = [band - 1 for band in reading.bands or range(1, count + 1) if 1 <= band <= count]
        missing = (levels[..., chosen] == nodata).all(2) | np.isnan(levels[..., chosen].astype(np.float64)).any(2)
        levels = np.ma.masked_array(levels, np.repeat(missing[..., None], levels.shape[2], axis=2))
    picture = from_array(levels, reading, alpha)
    return replace(picture, notes=notes + picture.notes)
