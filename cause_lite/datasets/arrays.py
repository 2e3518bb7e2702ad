"""What files and arrays hold becomes the picture that a viewer shows, with a mask of the pixels that are valid.

`picture_files` and `tiff` decode files to a `Raster`; `shown` turns any raster into a `Picture`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from cause_lite.runtime.files import UserError

MOST_PIXELS = 100_000_000
SOFTWARE = "cause-lite"  # stands in the text of every picture that is written, so that none is read as an input
BACKGROUND = 255  # white, as viewers show what is transparent
PERCENTILES = (0.1, 99.9)  # of the valid values: what lies outside is a hot or dead pixel
SAMPLE = 2_000_000  # values that percentiles are taken of
ROWS = 256  # that are scaled at once, for memory


@dataclass(frozen=True)
class Reading:
    """What a reader may be told beyond the file itself."""

    window: tuple[float, float] | None = None  # the values that become black and white, in place of percentiles
    bands: tuple[int, ...] | None = None  # from 1: the band to show as grey, or three as red, green and blue
    frame: int | None = None  # from 1: which image of a stack or an animation

    def over(self, other: Reading) -> Reading:
        """Return what this one says, and what `other` says where this one leaves it open."""
        frame = other.frame if self.frame is None else self.frame
        return Reading(self.window or other.window, self.bands or other.bands, frame)


def parse_bands(text: str | None) -> tuple[int, ...] | None:
    """Return the band numbers of a text such as "3,2,1"; raise UserError when it holds anything else."""
    if text is None:
        return None
    parts = text.replace(",", " ").split()
    if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
        raise UserError(f"bands: must be one or three numbers from 1, such as 3,2,1, not {text!r}")
    return tuple(int(part) for part in parts)


@dataclass(frozen=True)
class Picture:
    """An image as a viewer shows it: `rgb` (H, W, 3) uint8 in sRGB."""

    rgb: np.ndarray
    valid: np.ndarray | None = None  # (H, W) bool, False where transparent, masked, without data or not finite
    notes: tuple[str, ...] = ()  # what was decided that a user may want otherwise, such as the range of values

    def with_ignored(self, labels: np.ndarray) -> np.ndarray:
        """Return labels (H, W) whose pixels that are not valid hold the last value of their type."""
        if self.valid is not None:
            labels[~self.valid] = np.iinfo(labels.dtype).max
        return labels


def label_type(clusters: int) -> np.dtype:
    """Return the type of label maps, uint8 or uint16, whose last value marks ignored pixels."""
    if clusters > np.iinfo(np.uint16).max:
        raise UserError(f"{clusters:,} clusters do not fit a 16-bit label map, which holds 65,535 at most")
    return np.dtype(np.uint8 if clusters <= np.iinfo(np.uint8).max else np.uint16)


@dataclass(frozen=True)
class Raster:
    """What a file or an array holds: upright, decoded, `levels` (H, W, bands) not yet scaled or turned into colours."""

    levels: np.ndarray
    mode: str  # what the shown bands are, as Pillow calls it: L, RGB, CMYK or LAB; "" where they must be named
    opacity: np.ndarray | None = None  # (H, W) in 0..1; None: all is opaque
    valid: np.ndarray | None = None  # (H, W) bool: the pixels that the file's mask keeps; None: all
    nodata: float | None = None  # the level that the file declares to be no data
    palette: np.ndarray | None = None  # (N, 3) uint8: the colours of the numbers that `levels` then holds
    full: int | None = None  # the level of full intensity, where the format says it; None: scaled by percentiles
    profile: bytes | None = None  # of the colours
    lossy: bool = False  # whether the file's compression changes levels
    notes: tuple[str, ...] = ()  # what was decided in decoding

    def chosen(self, bands: tuple[int, ...] | None) -> tuple[np.ndarray, str]:
        """Return the bands to show, (H, W, 1, 3 or 4), and their mode; raise UserError when they must be named."""
        count = self.levels.shape[2]
        if bands is None:
            needed = {"L": 1, "RGB": 3, "CMYK": 4, "LAB": 3}.get(self.mode)
            if needed is None:
                raise UserError(f"has {count} bands; name three of them, such as --bands 3,2,1")
            return self.levels[..., :needed], self.mode
        if len(bands) not in (1, 3) or not all(1 <= band <= count for band in bands):
            raise UserError(f"bands: must be one or three numbers of 1 to {count}, not {','.join(map(str, bands))}")
        return self.levels[..., [band - 1 for band in bands]], "L" if len(bands) == 1 else "RGB"

    def kept(self, levels: np.ndarray) -> np.ndarray | None:
        """Return where the shown bands hold data, (H, W) bool; None: everywhere."""
        parts = [] if self.valid is None else [self.valid]
        if self.opacity is not None:
            parts.append(self.opacity > 0)
        if levels.dtype.kind == "f":
            parts.append(np.isfinite(levels).all(2))
        if self.nodata is not None:
            with np.errstate(over="ignore"):
                parts.append(~(levels == self.nodata).all(2))
        kept = np.logical_and.reduce(parts) if parts else None
        return None if kept is None or kept.all() else kept


def raster_of(array: np.ndarray) -> Raster:
    """Return (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), the fourth being opacity, or more bands, as a raster.

    A masked array is invalid where it is masked.
    """
    if array.dtype.kind not in "buif" or array.dtype == np.longdouble:
        raise UserError(f"expected numbers, not {array.dtype}")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise UserError(f"expected (H, W), (H, W, 3) or (H, W, 4), not {array.shape}")
    check_size(array.shape[1], array.shape[0])
    array = array.reshape(*array.shape[:2], -1)
    valid = np.logical_not(np.ma.getmaskarray(array).any(2)) if np.ma.isMaskedArray(array) else None
    levels, bands = np.ma.getdata(array), array.shape[2]
    if bands not in (1, 3, 4) and len(levels) in (1, 3, 4):
        hint = "if channels come first, move them last with `np.moveaxis(image, 0, -1)`"
        raise UserError(f"has {bands} bands; name three of them, such as --bands 3,2,1; {hint}")
    opacity = share_of_full(levels[..., 3]) if bands == 4 else None
    return Raster(levels, {1: "L", 3: "RGB", 4: "RGB"}.get(bands, ""), opacity, valid)


def check_size(width: int, height: int) -> None:
    """Raise UserError when an image is too large."""
    if width * height > MOST_PIXELS:
        raise UserError(f"{width} x {height} pixels are more than {MOST_PIXELS:,}; scale it down")


def share_of_full(levels: np.ndarray) -> np.ndarray:
    """Return levels as shares of full intensity, 0..1 float32: floats as they are, integers of their type's last."""
    full = 1.0 if levels.dtype.kind in "fb" else float(np.iinfo(levels.dtype).max)
    with np.errstate(over="ignore"):
        shares = np.nan_to_num(levels.astype(np.float64) / full, nan=0.0, posinf=1.0, neginf=0.0)
    return np.clip(shares, 0, 1).astype(np.float32)


def shown(raster: Raster, reading: Reading) -> Picture:
    """Return a raster as a viewer shows it: scaled, in sRGB by its profile, composited by its opacity."""
    levels, mode = raster.chosen(reading.bands)
    opacity = raster.opacity if reading.bands is None else None
    kept, notes, window = raster.kept(levels), list(raster.notes), reading.window
    if reading.bands is None and mode == "RGB" and raster.levels.shape[2] > 3 + (opacity is not None):
        notes.append(f"bands 1, 2, 3 of {raster.levels.shape[2]} are shown; name others with --bands")
    profile = raster.profile if reading.bands is None else None
    if raster.palette is not None and reading.bands is None:
        levels, mode = raster.palette[np.minimum(levels[..., 0], len(raster.palette) - 1)], "RGB"
    elif mode in ("CMYK", "LAB"):
        levels, note = in_srgb(levels, mode, profile)
        notes += [note] if note else []
        mode, profile = "RGB", None
    elif raster.full is not None:
        window = window or (0, raster.full)
    elif profile and levels.dtype.kind == "u" and levels.dtype.itemsize > 1 and window is None:
        window = (0, np.iinfo(levels.dtype).max)  # the range that a profile speaks of
        notes.append(f"values are taken as of 0..{window[1]}, for its colour profile; name others with --window")
    colours, note = to_bytes(levels, kept, window)
    notes += [note] if note else []
    if profile:
        colours, note = in_srgb(colours, mode, profile)
        notes += [note] if note else []
    if colours.shape[2] == 1:
        colours = np.repeat(colours, 3, axis=2)
    if opacity is not None and (opacity < 1).any():
        weight = opacity.astype(np.float32)[..., None]
        colours = (weight * colours + (1 - weight) * BACKGROUND + 0.5).astype(np.uint8)
    if kept is not None:
        colours = np.where(kept[..., None], colours, np.uint8(BACKGROUND))
    return Picture(np.ascontiguousarray(colours), kept, tuple(notes))


def in_srgb(levels: np.ndarray, mode: str, profile: bytes | None) -> tuple[np.ndarray, str | None]:
    """Return colours (H, W, 3) uint8 in sRGB by their profile, and what kept it from being applied."""
    image = Image.fromarray(np.ascontiguousarray(levels[..., 0] if mode == "L" else levels), mode)
    srgb, note = ImageCms.createProfile("sRGB"), None
    try:
        if mode == "LAB":
            image = ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), srgb, outputMode="RGB") or image
        elif profile:
            source = ImageCms.getOpenProfile(io.BytesIO(profile))
            if not ImageCms.getProfileDescription(source).strip().startswith("sRGB"):
                image = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        note = f"its colour profile cannot be applied ({error}); colours are taken as sRGB"
    return np.asarray(image.convert("RGB")), note


def to_bytes(
    levels: np.ndarray, valid: np.ndarray | None = None, window: tuple[float, float] | None = None
) -> tuple[np.ndarray, str | None]:
    """Scale levels (H, W, bands) to uint8, all bands by one range, so that colours keep their hue; say what was done.

    Without a window, 8 bits are taken as they are, bool and floats within 0 to 1 as 0 to full intensity, and others are
    scaled by the percentiles of their finite values where `valid`, (H, W) bool.
    """
    if window is None and levels.dtype == np.uint8:
        return levels, None
    if window is None and levels.dtype == np.bool_:
        return levels.astype(np.uint8) * 255, None
    if window is None and levels.dtype == np.int8:
        note = "values of -128 to 127 are shown as 0 to 255; name another range with --window LOW HIGH"
        return levels.view(np.uint8) ^ np.uint8(128), note
    if window is not None:
        if not (np.isfinite(window).all() and window[0] < window[1]):
            raise UserError(f"window: must be two numbers LOW < HIGH, not {window[0]:g} {window[1]:g}")
        return _scaled(levels, *window), None
    values = _values(levels, valid)
    least, most = float(values.min()), float(values.max())
    if levels.dtype.kind == "f" and least >= 0 and most <= 1:
        return _scaled(levels, 0.0, 1.0), None
    if values.size > SAMPLE:
        values = values[np.random.default_rng(0).integers(0, values.size, SAMPLE)]
    low, high = np.percentile(values.astype(np.float64), PERCENTILES).tolist()
    low, high = (low, high) if low < high else (least, most)
    if low == high:
        return np.full(levels.shape, 128, np.uint8), f"all values are {low:g}: shown as grey"
    note = f"values of {least:g} to {most:g} are scaled from {low:g}..{high:g} to 0..255"
    return _scaled(levels, low, high), f"{note}; name another range with --window LOW HIGH"


def _values(levels: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """Return the finite values of all bands where `valid`; raise UserError when there is none."""
    values = levels.reshape(-1) if valid is None else levels[valid].reshape(-1)
    if levels.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if not values.size and valid is not None:
        return _values(levels, None)
    if not values.size:
        raise UserError("holds no finite value")
    return values


def _scaled(levels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map low..high to 0..255, some rows at a time; what is not finite becomes 0 or 255."""
    largest = max(abs(low), abs(high), 1e-300)
    shrink = largest if largest > 1e30 else 1.0  # keeps high - low finite
    kind: type = (
        np.float32 if shrink == 1 and (levels.dtype.itemsize <= 2 or levels.dtype == np.float32) else np.float64
    )
    low, high = low / shrink, high / shrink
    scaled = np.empty(levels.shape, np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(levels), ROWS):
            shares = (levels[start : start + ROWS].astype(kind) / kind(shrink) - kind(low)) / kind(high - low)
            shares = np.clip(np.nan_to_num(shares, nan=0, posinf=1, neginf=0), 0, 1)
            scaled[start : start + ROWS] = shares * 255 + 0.5
    return scaled
