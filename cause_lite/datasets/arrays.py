"""One place that turns any file or array into an RGB picture with a mask of the pixels that are valid.

Begin with `as_picture`. Files go on to `picture_files`, which knows formats; what is decoded comes back as an array or
a Pillow image and is brought to colours here.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from cause_lite.datasets.readers import MOST_PIXELS
from cause_lite.datasets.values import to_bytes
from cause_lite.runtime.files import UserError

BACKGROUND = 255  # white, as viewers show what is transparent


@dataclass(frozen=True)
class Reading:
    """What a reader may be told beyond the file itself.

    Parameters
    ----------
    window
        The values that become black and white, in place of percentiles.
    bands
        Numbers, from 1, of the band to show as grey or of the three to show as red, green and blue.
    frame
        Which image, from 1, of a stack or an animation.
    """

    window: tuple[float, float] | None = None
    bands: tuple[int, ...] | None = None
    frame: int | None = None

    def over(self, other: Reading) -> Reading:
        """Return what this one says, and what `other` says where this one leaves it open."""
        frame = other.frame if self.frame is None else self.frame
        return Reading(self.window or other.window, self.bands or other.bands, frame)


def parse_bands(text: str | None) -> tuple[int, ...] | None:
    """Return the band numbers of a text such as "3,2,1".

    Raises
    ------
    UserError
        When it holds anything else than one or three whole numbers.
    """
    if text is None:
        return None
    parts = text.replace(",", " ").split()
    if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
        raise UserError(f"bands: must be one or three numbers from 1, such as 3,2,1, not {text!r}")
    return tuple(int(part) for part in parts)


@dataclass(frozen=True)
class Picture:
    """An image as a viewer shows it.

    Parameters
    ----------
    rgb
        (H, W, 3) uint8, sRGB.
    valid
        (H, W) bool, False where the source is transparent, masked, without data or not finite; None: all is valid.
    notes
        What was decided about the source that a user may want otherwise, such as the range of values.
    """

    rgb: np.ndarray
    valid: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def with_ignored(self, labels: np.ndarray) -> np.ndarray:
        """Return labels (H, W) whose pixels that are not valid hold the last value of their type."""
        if self.valid is not None:
            labels[~self.valid] = np.iinfo(labels.dtype).max
        return labels


def label_type(clusters: int) -> np.dtype:
    """Return the type of label maps: uint8 for up to 255 clusters, else uint16; the last value marks ignored pixels.

    Raises
    ------
    UserError
        When there are more than 65,535 clusters.
    """
    if clusters > np.iinfo(np.uint16).max:
        raise UserError(f"{clusters:,} clusters do not fit a 16-bit label map, which holds 65,535 at most")
    return np.dtype(np.uint8 if clusters <= np.iinfo(np.uint8).max else np.uint16)


def as_picture(source: object, reading: Reading | None = None) -> Picture:
    """Turn a file or an array into a picture.

    Parameters
    ----------
    source
        A path; a Pillow image; a numpy array (H, W), (H, W, 3) or (H, W, 4); or a torch tensor (H, W), (1, H, W),
        (3, H, W) or (4, H, W). A fourth channel is opacity. uint8 is 0 to 255, floats within 0 to 1 are intensities;
        other integers and floats are scaled by their 0.1 and 99.9 % percentiles unless a window is given.
    reading
        Window, bands and frame.

    Raises
    ------
    UserError
        Naming the file, or the shape and type, when it cannot be read as one image.
    """
    reading = reading or Reading()
    if isinstance(source, str | os.PathLike):
        from cause_lite.datasets.picture_files import read_picture

        return read_picture(Path(source), reading)
    try:
        if isinstance(source, Image.Image):
            return from_pillow(source, reading)
        if isinstance(source, Tensor):
            return from_array(_channels_last(source), reading)
        return from_array(np.ma.asarray(source) if np.ma.isMaskedArray(source) else np.asarray(source), reading)
    except UserError as error:
        raise UserError(f"image: {error}") from error
    except Exception as error:  # Pillow and numpy raise many kinds on what they cannot convert
        raise UserError(f"image: {type(source).__name__} cannot be read ({error or type(error).__name__})") from error


def is_batch(source: object) -> bool:
    """Return whether a source is an array or tensor of several images, (N, H, W, 3) or (N, 3, H, W)."""
    return isinstance(source, np.ndarray | Tensor) and source.ndim == 4


def as_pictures(source: object, reading: Reading | None = None) -> Iterator[Picture]:
    """Turn a batch into its pictures, or one source into one; see `as_picture`."""
    sources = source if is_batch(source) else [source]
    for single in sources:  # type: ignore[attr-defined]
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


def from_array(array: np.ndarray, reading: Reading, alpha: bool = True) -> Picture:
    """Turn (H, W) or (H, W, channels) into a picture.

    Parameters
    ----------
    array
        Values of any real type; masked arrays are invalid where they are masked.
    reading
        Window and bands.
    alpha
        Whether a fourth channel is opacity; else it is one more band.

    Raises
    ------
    UserError
        When the shape, type or size is not that of one image.
    """
    if array.dtype.kind not in "buif" or array.dtype == np.longdouble:
        raise UserError(f"expected numbers, not {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise UserError(f"expected (H, W), (H, W, 3) or (H, W, 4), not {array.shape}")
    if array.shape[0] * array.shape[1] > MOST_PIXELS:
        raise UserError(f"{array.shape[1]} x {array.shape[0]} pixels are more than {MOST_PIXELS:,}; scale it down")
    masked = np.ma.getmaskarray(array) if np.ma.isMaskedArray(array) else None
    array, opacity = _chosen_bands(np.ma.getdata(array), reading, alpha)
    valid = np.isfinite(array).reshape(*array.shape[:2], -1).all(2) if array.dtype.kind == "f" else None
    for part in (None if masked is None else ~masked.reshape(*masked.shape[:2], -1).any(2), opacity):
        if part is not None:
            shown = part > 0
            valid = shown if valid is None else valid & shown
    colours, note = to_bytes(array, valid if valid is not None and valid.any() else None, reading.window)
    colours = np.repeat(colours[..., None], 3, axis=2) if colours.ndim == 2 else colours
    return _finished(colours, opacity, valid, (note,) if note else ())


def _chosen_bands(array: np.ndarray, reading: Reading, alpha: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the bands to show, (H, W) or (H, W, 3), and the opacity (H, W) in 0..1 or None."""
    count = 1 if array.ndim == 2 else array.shape[2]
    if reading.bands is not None:
        if len(reading.bands) not in (1, 3) or not all(1 <= band <= count for band in reading.bands):
            shown = ",".join(map(str, reading.bands))
            raise UserError(f"bands: must be one or three numbers of 1 to {count}, not {shown}")
        stack = array.reshape(*array.shape[:2], count)[..., [band - 1 for band in reading.bands]]
        return (stack[..., 0] if len(reading.bands) == 1 else stack), None
    if count in (1, 3):
        return array, None
    if count == 4 and alpha:
        opaque = 1.0 if array.dtype.kind in "fb" else float(np.iinfo(array.dtype).max)
        opacity = np.nan_to_num(array[..., 3].astype(np.float64) / opaque, nan=0.0, posinf=1.0, neginf=0.0)
        return array[..., :3], np.clip(opacity, 0, 1)
    hint = ""
    if array.shape[0] in (1, 3, 4):
        hint = "; if channels come first, move them last with `np.moveaxis(image, 0, -1)`"
    raise UserError(f"has {count} bands; name three of them, such as --bands 3,2,1{hint}")


def _finished(
    colours: np.ndarray, opacity: np.ndarray | None, valid: np.ndarray | None, notes: tuple[str, ...]
) -> Picture:
    """Composite colours onto the background by their opacity (H, W) in 0..1, and paint what is not valid like it."""
    if opacity is not None and (opacity < 1).any():
        weight = opacity.astype(np.float32)[..., None]
        colours = (weight * colours + (1 - weight) * BACKGROUND + 0.5).astype(np.uint8)
    if valid is None or valid.all():
        return Picture(np.ascontiguousarray(colours), None, notes)
    colours = np.where(valid[..., None], colours, np.uint8(BACKGROUND))
    return Picture(np.ascontiguousarray(colours), valid, notes)


def from_pillow(image: Image.Image, reading: Reading) -> Picture:
    """Turn an image into a picture: turned by its orientation tag, in sRGB by its profile, composited by its opacity.

    Raises
    ------
    UserError
        When it has several frames and none is named, or is too large.
    """
    if image.width * image.height > MOST_PIXELS:
        raise UserError(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}; scale it down")
    choose_frame(image, reading)
    image = ImageOps.exif_transpose(image) or image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return from_array(np.asarray(image), reading)
    profile = image.info.get("icc_profile")
    opacity = None
    if image.has_transparency_data or image.mode in ("LA", "PA", "La", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        opacity = np.asarray(image.getchannel("A"), dtype=np.float32) / 255
        image = Image.merge("RGB", image.split()[:3])
    if reading.bands is not None:
        return from_array(np.asarray(image), reading)
    colours, notes = _in_srgb(image, profile)
    levels, note = to_bytes(colours, None, reading.window)
    return _finished(levels, opacity, None if opacity is None else opacity > 0, notes + ((note,) if note else ()))


def choose_frame(image: Image.Image, reading: Reading) -> None:
    """Move to the named frame of a stack or an animation.

    Raises
    ------
    UserError
        When there are several frames and none, or one that does not exist, is named.
    """
    count = getattr(image, "n_frames", 1)
    if image.format in ("MPO", "HEIF", "AVIF", "PSD", "ICO") and reading.frame is None:
        return  # the first is the photograph, the others are its depth, gain map or thumbnails
    check_frame(count, reading.frame)
    if count > 1 and reading.frame is not None:
        image.seek(reading.frame - 1)


def check_frame(count: int, frame: int | None) -> None:
    """Raise UserError unless a frame is named where there are several, and exists."""
    if frame is not None and not 1 <= frame <= count:
        raise UserError(f"frame: must be 1 to {count}, not {frame}")
    if count > 1 and frame is None:
        raise UserError(f"holds {count} images (a stack or an animation); name one with --frame 1, or split it")


def _in_srgb(image: Image.Image, profile: bytes | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the colours (H, W, 3) uint8 in sRGB, by the embedded profile where there is one."""
    if image.mode == "P":
        image = image.convert("RGB")
    if image.mode == "1":
        image = image.convert("L")
    srgb = ImageCms.createProfile("sRGB")
    if image.mode == "LAB":
        image = ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), srgb, outputMode="RGB") or image
        profile = None
    if not profile:
        return np.asarray(image.convert("RGB")), ()
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        if not ImageCms.getProfileDescription(source).strip().startswith("sRGB"):
            image = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        note = f"its colour profile cannot be applied ({error}); colours are taken as sRGB"
        return np.asarray(image.convert("RGB")), (note,)
    return np.asarray(image.convert("RGB")), ()
