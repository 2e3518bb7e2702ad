"""Readers: a file becomes a Pillow image of colours or of label ids, or one error that names the file."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from cause_lite.datasets.mat_files import read_array
from cause_lite.runtime.files import UserError

MOST_PIXELS = 100_000_000


def read_rgb(path: Path) -> Image.Image:
    """Read an image file as RGB; 16-bit, grey, palette, CMYK and transparent ones are converted.

    Raises
    ------
    UserError
        When the file is absent, no image, damaged, or larger than 100 megapixels.
    """
    with opened(path) as image:
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            levels = np.asarray(image, dtype=np.float64)
            top = 65535 if image.mode != "F" else max(float(np.nanmax(levels)), 1e-9)
            grey = (np.clip(np.nan_to_num(levels) / top, 0, 1) * 255).astype(np.uint8)
            return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
        return image.convert("RGB")


def read_ids(path: Path) -> Image.Image:
    """Read a label file whose pixel values are ids: grey of 8 or 16 bits, or a palette, whose numbers are kept.

    Raises
    ------
    UserError
        When the file cannot be read, or holds colours.
    """
    with opened(path) as image:
        if image.mode not in ("L", "P", "1", "I", "I;16"):
            raise UserError(f"{path}: a label map is grey or has a palette; this one is {image.mode}")
        ids = np.asarray(image)
        return Image.fromarray(ids.astype(np.int32) if ids.dtype != np.uint8 else ids)


def read_mat_rgb(path: Path) -> Image.Image:
    """Read the first three channels of `img` (H, W, 4) uint8 in a file of Potsdam."""
    return Image.fromarray(np.ascontiguousarray(_mat(path, "img", 3)[..., :3].astype(np.uint8)))


def read_mat_ids(path: Path) -> Image.Image:
    """Read `gt` (H, W), the label ids in a file of Potsdam."""
    return Image.fromarray(_mat(path, "gt", 2).astype(np.int32))


def _mat(path: Path, key: str, dims: int) -> np.ndarray:
    """Return an array of a MATLAB file. Raises UserError when it is not there or of another kind."""
    value = read_array(path, key)
    if value.ndim != dims or value.dtype.kind not in "uif":
        raise UserError(f"{path}: `{key}` has shape {value.shape} and type {value.dtype}")
    return value


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image, decoded, for the length of a `with`.

    Raises
    ------
    UserError
        Naming the file, in every way that opening, decoding and converting can fail.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            if image.width * image.height > MOST_PIXELS:
                raise UserError(
                    f"{path}: {image.width} x {image.height} pixels are more than {MOST_PIXELS:,}; scale it down"
                )
            image.load()
            yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: is not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: has more than {MOST_PIXELS:,} pixels; scale it down") from error
    except Exception as error:  # on damaged bytes Pillow raises nearly any kind
        raise UserError(f"{path}: is damaged or not readable ({str(error) or type(error).__name__})") from error
