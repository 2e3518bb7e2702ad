"""Pictures from any source: image files, arrays, tensors and Pillow images. Begin with `as_picture`.

TIFF is read by tifffile with imagecodecs, everything else by Pillow. Of 60 kinds of TIFF (types, compressions, bands,
masks, overviews), tifffile with imagecodecs read all; rasterio none of Lab, turned or stacked ones and not the
compressions of microscopes; Pillow no deep colour, no bands and no masks; imageio is tifffile or Pillow behind one
more layer. Wheels: tifffile is pure Python, imagecodecs 26 MB and rasterio 36 MB, for Linux, macOS and Windows.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cause_lite.datasets import tiff
from cause_lite.datasets.arrays import (
    MOST_PIXELS,
    SOFTWARE,
    Picture,
    Raster,
    Reading,
    check_size,
    raster_of,
    shown,
)
from cause_lite.runtime.files import UserError

# Formats that hold photographs. EPS and the like are left out: reading them starts other programs.
FORMATS = ["JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF", "TGA"]
HEIC_ENDS = (".heic", ".heif", ".hif")
IMAGE_ENDS = (
    *[".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".tif", ".tiff", ".webp", ".bmp", ".dib", ".gif"],
    *[".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".tga"],
    *HEIC_ENDS,
)
DEEP_PNG = ("RGB;16B", "RGBA;16B", "LA;16B")  # how Pillow names what it would cut to 8 bits
ONE_PICTURE = ("MPO", "HEIF", "AVIF")  # the first is the photograph, others are its depth, gain map or thumbnails
OUTPUT_ENDS = (".labels.png", ".labels.tif", ".overlay.png", ".confidence.png")

# Pillow warns of sizes, which are checked here, and of damaged tags. Said once for the whole process:
# `warnings.catch_warnings` around each file would lose the warnings of other threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def as_picture(source: object, reading: Reading | None = None) -> Picture:
    """Turn a file or an array into a picture; raise UserError naming the file, or what is wrong with the array.

    A source is a path; a Pillow image; a numpy array (H, W), (H, W, 3) or (H, W, 4); or a torch tensor (H, W),
    (1, H, W), (3, H, W) or (4, H, W). A fourth channel is opacity. uint8 is 0 to 255, floats within 0 to 1 are
    intensities; others are scaled by their 0.1 and 99.9 % percentiles unless a window is given.
    """
    reading = reading or Reading()
    if isinstance(source, str | os.PathLike):
        return read_picture(Path(source), reading)
    try:
        if isinstance(source, Image.Image):
            return shown(_raster_of_image(source, reading.frame), reading)
        if isinstance(source, Tensor):
            return shown(raster_of(_channels_last(source)), reading)
        return shown(raster_of(np.ma.asarray(source) if np.ma.isMaskedArray(source) else np.asarray(source)), reading)
    except UserError as error:
        raise UserError(f"image: {error}") from error
    except Exception as error:  # Pillow and numpy raise many kinds on what they cannot convert
        raise UserError(f"image: {type(source).__name__} cannot be read ({error or type(error).__name__})") from error


def is_batch(source: object) -> bool:
    """Return whether a source is an array or tensor of several images, (N, H, W, 3) or (N, 3, H, W)."""
    return isinstance(source, np.ndarray | Tensor) and source.ndim == 4


def as_pictures(source: object, reading: Reading | None = None) -> Iterator[Picture]:
    """Turn a batch into its pictures, or one source into one; see `as_picture`."""
    for single in source if is_batch(source) else [source]:  # type: ignore[attr-defined]
        yield as_picture(single, reading)


def _channels_last(image: Tensor) -> np.ndarray:
    """Return (H, W) or (H, W, channels) of a tensor whose channels come first."""
    if image.ndim == 3 and image.shape[0] not in (1, 3, 4):
        hint = "; move the channels first with `.permute(2, 0, 1)`" if image.shape[2] in (1, 3, 4) else ""
        raise UserError(f"expected a tensor (3, H, W), not {tuple(image.shape)}{hint}")
    if image.dtype in (torch.bfloat16, torch.float16):
        image = image.float()
    array = image.detach().cpu().numpy()
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array


def read_picture(path: Path, reading: Reading | None = None) -> Picture:
    """Read an image file as a picture; raise UserError naming the file and what is wrong with it."""
    reading = reading or Reading()
    with named(path):
        return shown(read_raster(path, reading.frame), reading)


def read_raster(path: Path, frame: int | None = None) -> Raster:
    """Decode an image file, or the named image of a stack or an animation."""
    if tiff.is_tiff(path):
        return tiff.read_raster(path, frame)
    with opened(path) as image:
        if image.format == "PNG" and any(tile[3] in DEEP_PNG for tile in getattr(image, "tile", ())):
            return _deep_png(path, image)
        return _raster_of_image(image, frame)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn every way that reading a file can fail into one UserError that names it."""
    try:
        if not Path(path).is_file():
            raise UserError("is a folder, not an image" if Path(path).is_dir() else "no such file")
        yield
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(f"{path}: ") else f"{path}: {error}") from error
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
    return "is empty" if path.stat().st_size == 0 else "is not an image that Pillow can read"


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


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image by Pillow, not decoded yet; too large ones are refused."""
    with Image.open(path, formats=_formats()) as image:
        check_size(image.width, image.height)
        yield image


def header(path: Path) -> tuple[int, int, str]:
    """Return the width and height of an image as a viewer shows it, and its kind, without decoding it."""
    with named(path):
        if tiff.is_tiff(path):
            return tiff.header(path)
        with opened(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (*(image.size[::-1] if turned else image.size), image.mode)


def is_output(path: Path) -> bool:
    """Return whether a file is a picture that this package wrote: a label map, an overlay, a contact sheet."""
    if path.suffix.lower() not in (".png", ".tif", ".tiff"):
        return False
    if path.name.endswith(OUTPUT_ENDS):
        return True
    try:
        with Image.open(path) as image:
            text = image.info.get("Software") if image.format == "PNG" else image.getexif().get(305)
            return str(text).startswith(SOFTWARE)
    except Exception:  # what cannot be opened is no output; the reader says what is wrong with it
        return False


def _deep_png(path: Path, image: Image.Image) -> Raster:
    """Decode all 16 bits of a colour PNG, which Pillow would cut to 8."""
    import imagecodecs

    levels = tiff.oriented(imagecodecs.png_decode(path.read_bytes()), image.getexif().get(0x0112, 1))
    levels = levels.reshape(*levels.shape[:2], -1)
    opacity = levels[..., -1] / np.float32(65535) if levels.shape[2] in (2, 4) else None
    return Raster(levels, "L" if levels.shape[2] < 3 else "RGB", opacity, profile=image.info.get("icc_profile"))


def _raster_of_image(image: Image.Image, frame: int | None = None) -> Raster:
    """Decode a Pillow image, turned by its orientation tag."""
    check_size(image.width, image.height)
    count = getattr(image, "n_frames", 1)
    if image.format not in ONE_PICTURE or frame is not None:
        tiff.check_frame(count, frame)
        if count > 1:
            image.seek((frame or 1) - 1)
    profile, mark, kind = image.info.get("icc_profile"), image.info.get("transparency"), image.format
    lossy = kind in ("JPEG", "MPO")
    image.load()
    image = ImageOps.exif_transpose(image) or image
    if kind == "GIF" and image.mode in ("P", "PA", "L"):  # whose writers renumber the palette: its colours are meant
        image, mark = image.convert("RGBA" if image.has_transparency_data else "RGB"), None
    if image.mode == "P" and image.has_transparency_data and mark is None:
        image = image.convert("RGBA")
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    opacity = None
    if image.mode in ("LA", "PA", "RGBA"):
        opacity = np.asarray(image.getchannel("A"), dtype=np.float32) / 255
    palette = None
    if image.mode in ("P", "PA"):
        palette = np.array(image.getpalette("RGB") or [0] * 3, np.uint8).reshape(-1, 3)
        image = image.getchannel("P") if image.mode == "PA" else image
    elif image.mode in ("LA", "RGBA"):
        image = image.getchannel("L") if image.mode == "LA" else image.convert("RGB")
    elif image.mode not in ("1", "L", "RGB", "CMYK", "LAB", "I", "F") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")
    levels = np.asarray(image)
    levels = levels.reshape(*levels.shape[:2], -1)
    if mark is not None and opacity is None:
        opacity = _marked(levels, mark)
    mode = image.mode if image.mode in ("RGB", "CMYK", "LAB") else "L"
    return Raster(levels, mode, opacity, None, None, palette, None, profile, lossy)


def _marked(levels: np.ndarray, mark: int | bytes | tuple[int, ...]) -> np.ndarray:
    """Return the opacity (H, W) of levels by a PNG's transparency: of each palette entry, or one level or colour."""
    if isinstance(mark, bytes):
        table = np.ones(256, np.float32)
        table[: len(mark)] = np.frombuffer(mark, np.uint8)[:256] / np.float32(255)
        return table[levels[..., 0]]
    mark = bool(mark) if levels.dtype == bool else mark
    return 1 - (levels == np.asarray(mark)).all(2).astype(np.float32)


def stored_rgb(path: Path) -> Image.Image:
    """Read a published photograph as it is stored, as its label map is: not turned, and by no colour profile."""
    with named(path), opened(path) as image:
        return image.convert("RGB")


def stored_ids(path: Path) -> Image.Image:
    """Read a published label map whose pixel values are ids: grey, or a palette, whose numbers are kept."""
    with named(path), opened(path) as image:
        if image.mode not in ("L", "P", "1", "I", "I;16"):
            raise UserError(f"a label map is grey or has a palette; this one is {image.mode}")
        ids = np.asarray(image)
        return Image.fromarray(ids.astype(np.int32) if ids.dtype != np.uint8 else ids)
