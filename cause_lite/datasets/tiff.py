"""TIFF by tifffile: one image of a file with its mask, and where on Earth it lies."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tifffile import TiffFile, TiffPage, TiffPageSeries, imwrite

from cause_lite.datasets.arrays import MOST_PIXELS, SOFTWARE, Raster, check_size, share_of_full
from cause_lite.runtime.files import UserError

MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
WHITE_IS_LOWEST, GREY, RGB, PALETTE, CMYK, YCBCR, CIELAB, ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9  # photometric
MODES = {WHITE_IS_LOWEST: "L", GREY: "L", RGB: "RGB", PALETTE: "L", CMYK: "CMYK", YCBCR: "RGB"}
MODES |= {CIELAB: "LAB", ICCLAB: "LAB"}
RAW = (32803, 34892)  # photometric of a camera's sensor: colour filter array, linear raw
LOSSY = (6, 7, 34933, 34934)  # compression: JPEG, and JPEG XR and PNG-like ones of microscopes are not
FEW = 100  # pixels that say too little of how colours are stored
ASSOCIATED, UNASSOCIATED = 1, 2  # extra samples that are opacity
ORIENTATION, NODATA, PROFILE, ASCII = 274, 42113, 34675, 2
# ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory, GeoDoubleParams, GeoAsciiParams, RPCCoefficients
GEOREFERENCE = (33550, 33922, 34264, 34735, 34736, 34737, 50844)

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it says of damaged tags, the reader says once


def is_tiff(path: Path) -> bool:
    """Return whether a file starts as a TIFF does."""
    with path.open("rb") as file:
        return file.read(4) in MARKS


def check_frame(count: int, frame: int | None) -> None:
    """Raise UserError unless a frame is named where there are several, and exists."""
    if frame is not None and not 1 <= frame <= count:
        raise UserError(f"frame: must be 1 to {count}, not {frame}")
    if count > 1 and frame is None:
        raise UserError(f"holds {count} images (a stack or an animation); name one with --frame 1, or split it")


def oriented(array: np.ndarray, orientation: int) -> np.ndarray:
    """Return (H, W, ...) turned and mirrored as an orientation tag (1 to 8) asks."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def read_raster(path: Path, frame: int | None = None) -> Raster:
    """Decode the image of a file at full resolution, or the named one of several."""
    with TiffFile(path) as file:
        images, masks = _images(file), [s for s in file.series if s.keyframe.is_mask and not s.keyframe.is_reduced]
        frames = [(series, number) for series in images for number in range(_frames(series))]
        check_frame(len(frames), frame)
        series, number = frames[(frame or 1) - 1]
        page = series.keyframe
        turn = partial(oriented, orientation=_tag(page, ORIENTATION, 1))
        levels = turn(_levels(series, number))
        pages = [mask for series in masks for mask in series.pages]
        mask = pages[min((frame or 1), len(pages)) - 1] if pages else None
        valid = None if mask is None else turn(mask.aspage().asarray() > 0)
        if valid is not None and valid.shape != levels.shape[:2]:
            raise UserError(f"its mask has another shape, {valid.shape}, than its image, {levels.shape[:2]}")
        return _raster(page, levels, valid)


def header(path: Path) -> tuple[int, int, str]:
    """Return the width, height and kind of a file's image, upright."""
    with TiffFile(path) as file:
        page = _images(file)[0].keyframe
        size = (page.imagewidth, page.imagelength)
        turned = _tag(page, ORIENTATION, 1) in (5, 6, 7, 8)
        return (*(size[::-1] if turned else size), f"{page.dtype} {page.samplesperpixel} {page.photometric}")


def _images(file: TiffFile) -> list[TiffPageSeries]:
    """Return the images of a file: not its overviews, masks and thumbnails."""
    every = [series for series in file.series if not series.keyframe.is_mask]
    if any(series.keyframe.photometric in RAW for series in every) or _is_canon_raw(file):
        raise UserError("is a camera's raw file; develop it, and name the TIFF, PNG or JPEG")
    full = [series for series in every if not series.keyframe.is_reduced]
    largest = sorted(every, key=lambda series: series.keyframe.imagelength * series.keyframe.imagewidth)[-1:]
    if not full and not largest:
        raise UserError("is damaged: holds no image")
    return full or largest


def _is_canon_raw(file: TiffFile) -> bool:
    """Return whether a file is a CR2, whose first images are its previews."""
    file.filehandle.seek(8)
    return file.filehandle.read(2) == b"CR"


def _tag(page: TiffPage, number: int, default: Any) -> Any:
    return page.tags[number].value if number in page.tags else default


def _frames(series: TiffPageSeries) -> int:
    """Return how many images a series holds, and check its axes and size."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    if not {"Y", "X"} <= sizes.keys():
        raise UserError(f"its axes are {series.axes}, not those of an image")
    check_size(sizes["X"], sizes["Y"])
    if int(np.prod(series.shape)) > 8 * MOST_PIXELS:
        raise UserError(f"{sizes['X']} x {sizes['Y']} pixels in {series.axes} are too many; scale it down or cut it")
    return int(np.prod([size for axis, size in sizes.items() if axis not in "YXSC"]))


def _levels(series: TiffPageSeries, number: int) -> np.ndarray:
    """Return the levels (H, W, bands) of an image of a series."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    others = [axis for axis in series.axes if axis not in "YXSC"]
    order = [series.axes.index(axis) for axis in [*others, "Y", "X", *(axis for axis in "SC" if axis in sizes)]]
    return series.asarray().transpose(order).reshape(-1, sizes["Y"], sizes["X"], _bands(sizes))[number]


def _bands(sizes: dict[str, int]) -> int:
    return sizes.get("S", 1) * sizes.get("C", 1)


def _raster(page: TiffPage, levels: np.ndarray, valid: np.ndarray | None) -> Raster:
    """Return levels (H, W, bands) as what the page's tags say that they are."""
    kind, extras = int(page.photometric), [int(sample) for sample in page.extrasamples]
    if kind not in MODES:
        raise UserError(f"its colours are stored as {page.photometric!s}, which is not read; convert it to RGB")
    opacity = None
    if places := [number for number, extra in enumerate(extras) if extra in (ASSOCIATED, UNASSOCIATED)]:
        place = levels.shape[2] - len(extras) + places[0]
        opacity = share_of_full(levels[..., place])
        if extras[places[0]] == ASSOCIATED:
            levels = _unmultiplied(levels, opacity, place)
    mode, bits, notes = MODES[kind], int(page.bitspersample), tuple[str, ...]()
    shown = [number for number in range(levels.shape[2]) if opacity is None or number != place]
    if mode == "L" and len(shown) > 1:
        mode = "RGB" if shown == [0, 1, 2] else ""
    if kind == WHITE_IS_LOWEST:
        levels = ~levels if bits == levels.dtype.itemsize * 8 or levels.dtype == bool else (1 << bits) - 1 - levels
    if kind == YCBCR and int(page.compression) not in LOSSY:
        levels = np.asarray(Image.fromarray(np.ascontiguousarray(levels), "YCbCr").convert("RGB"))
    if mode in ("CMYK", "LAB") and levels.dtype.itemsize == 2:
        levels = (levels.view(np.uint16) >> 8).astype(np.uint8)
    if mode == "LAB":
        levels, notes = _signed(levels, kind)
    return Raster(
        levels=levels,
        mode=mode,
        opacity=opacity,
        valid=valid,
        nodata=_nodata(page),
        palette=_palette(page) if kind == PALETTE else None,
        full=(1 << bits) - 1 if 1 < bits < 8 else None,
        profile=_tag(page, PROFILE, None),
        lossy=int(page.compression) in LOSSY,
        notes=notes,
    )


def _unmultiplied(levels: np.ndarray, opacity: np.ndarray, place: int) -> np.ndarray:
    """Return levels that were multiplied by their opacity, the band at `place`, as they were before."""
    plain = np.where(opacity[..., None] > 0, levels / np.maximum(opacity, 1e-6)[..., None], 0)
    if levels.dtype.kind in "iu":
        plain = np.clip(np.rint(plain), np.iinfo(levels.dtype).min, np.iinfo(levels.dtype).max)
    plain[..., place] = levels[..., place]
    return plain.astype(levels.dtype)


def _signed(levels: np.ndarray, kind: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return L, a and b (H, W, 3) uint8 with the bits of signed a and b, as Pillow takes them.

    ICCLab stores them with an offset of 128. So do some writers of CIELab, against its definition: that is seen by
    colours that would else lie at the far ends.
    """
    moved = levels.copy()
    moved[..., 1:3] ^= 128
    far, near = (np.abs(each[..., 1:3].view(np.int8).astype(np.float32)).mean() for each in (levels, moved))
    if kind == CIELAB and (far <= 4 * near or levels[..., 0].size < FEW):  # sRGB's blue has 2.7 times
        return levels, ()
    return moved, () if kind == ICCLAB else ("its a and b are taken as stored with an offset of 128, as ICCLab",)


def _nodata(page: TiffPage) -> float | None:
    """Return the level that GDAL declared to be no data; None where there is none."""
    try:
        return float(str(_tag(page, NODATA, "")).strip().strip("\0").replace(",", "."))
    except ValueError:
        return None


def _palette(page: TiffPage) -> np.ndarray:
    """Return the colours (N, 3) uint8 of a page's palette; some writers give them 8 bits in place of 16."""
    colours = np.asarray(page.colormap).T
    return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)


@dataclass(frozen=True)
class Georeference:
    """The tags of a TIFF that say where it lies: each as code, type, count and value, the way tifffile writes them."""

    tags: tuple[tuple[int, int, int, Any, bool], ...]


def read_georeference(path: Path) -> Georeference | None:
    """Return where the image of a TIFF file lies; None for other files, and for a TIFF without a georeference.

    Raises UserError when the image is stored turned, so that its pixels are not where the tags say.
    """
    if not is_tiff(path):
        return None
    try:
        with TiffFile(path) as stored:
            found = _images(stored)[0].keyframe.tags
            present = [found[code] for code in GEOREFERENCE if code in found]
            tags = tuple((tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in present)
            turned = ORIENTATION in found and int(found[ORIENTATION].value) != 1
    except Exception as error:  # on damaged bytes tifffile raises nearly any kind
        raise UserError(f"{path}: its georeference is damaged ({error})") from error
    if tags and turned:
        raise UserError(f"{path}: is stored turned, so its georeference is not kept; rewrite it upright")
    return Georeference(tags) if tags else None


def write_labels(labels: np.ndarray, reference: Georeference, path: Path) -> None:
    """Write a label map (H, W), uint8 or uint16, as a GeoTIFF; its type's last value is declared to be no data."""
    last = str(np.iinfo(labels.dtype).max)
    tags = (*reference.tags, (NODATA, ASCII, len(last) + 1, last, True))
    plain: dict[str, Any] = {"photometric": "minisblack", "compression": "zlib", "metadata": None}
    imwrite(path, labels, software=SOFTWARE, extratags=tags, **plain)
