"""GeoTIFF: read where on Earth an image lies, and write label maps that lie there too. Needs tifffile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cause_lite.datasets.picture_files import SOFTWARE, TIFF_MARKS, named, opened_image
from cause_lite.runtime.files import UserError

# ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory, GeoDoubleParams, GeoAsciiParams, RPCCoefficients
TAGS = (33550, 33922, 34264, 34735, 34736, 34737, 50844)
ORIENTATION, NODATA, ASCII = 274, 42113, 2


@dataclass(frozen=True)
class Georeference:
    """The tags of a TIFF that say where it lies: each as code, type, count and value, the way tifffile writes them."""

    tags: tuple[tuple[int, int, int, Any, bool], ...]


def read_georeference(path: Path) -> Georeference | None:
    """Return where the image of a TIFF file lies; None for other files, and for a TIFF without a georeference.

    Raises
    ------
    UserError
        Naming the file, when it has a georeference that cannot be kept: tifffile is missing, or the image is stored
        turned, so that its pixels are not where the tags say.
    """
    with named(path):
        with path.open("rb") as file:
            if file.read(4) not in TIFF_MARKS:
                return None
        try:
            import tifffile
        except ImportError:
            if _has_georeference(path):
                raise UserError("its georeference is kept through tifffile: pip install 'cause-lite[geo]'") from None
            return None
        with tifffile.TiffFile(path) as stored:
            found = stored.pages[0].aspage().tags
            present = [found[code] for code in TAGS if code in found]
            tags = tuple((tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in present)
            turned = ORIENTATION in found and int(found[ORIENTATION].value) != 1
        if not tags:
            return None
        if turned:
            raise UserError("is stored turned, so its georeference is not kept; rewrite it upright")
        return Georeference(tags)


def _has_georeference(path: Path) -> bool:
    with opened_image(path) as image:
        return any(code in image.getexif() for code in TAGS)


def write_labels(labels: np.ndarray, reference: Georeference, path: Path) -> None:
    """Write a label map (H, W), uint8 or uint16, as a GeoTIFF; its type's last value is declared to be no data."""
    import tifffile

    last = str(np.iinfo(labels.dtype).max)
    tags = (*reference.tags, (NODATA, ASCII, len(last) + 1, last, True))
    tifffile.imwrite(
        path,
        labels,
        photometric="minisblack",
        compression="zlib",
        software=SOFTWARE,
        metadata=None,
        extratags=tags,
    )
