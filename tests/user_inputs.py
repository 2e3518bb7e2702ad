"""Files and folders of the kinds that users bring: turned, deep or transparent images, and folders with label maps."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from cause_lite.datasets import scenes

TURNED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # what was done to the stored image, which each orientation tag undoes


def photograph(number: int = 0, height: int = 100, width: int = 128) -> Image.Image:
    """A rendered view, cut to a size of at most 128 x 128."""
    return Image.fromarray(scenes.render(0, "train", number).image[:height, :width])


def classes(number: int = 0, height: int = 100, width: int = 128) -> np.ndarray:
    """The eight coarse classes of that view."""
    table = np.array(scenes.FINE_TO_COARSE, dtype=np.uint8)
    return table[scenes.render(0, "train", number).labels[:height, :width]]


def with_orientation(image: Image.Image, tag: int, path: Path) -> Path:
    """Store an image turned, with the tag that turns it back."""
    exif = Image.Exif()
    exif[0x0112] = tag
    stored = image if TURNED[tag] is None else image.transpose(TURNED[tag])
    stored.save(path, exif=exif, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return path


def deep_png(levels: np.ndarray, path: Path) -> Path:
    """Write (H, W, 2 to 4) uint16 as a PNG of 16 bits, which Pillow cannot write."""
    height, width, bands = levels.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in levels)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    kind = {2: 4, 3: 2, 4: 6}[bands]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def labelled_folder(root: Path, mask, count: int = 3, ending: str = "png") -> Path:
    """Photographs 0.jpg, 1.jpg, ... with `mask(number)`, an image, as their label maps in labels/."""
    (root / "labels").mkdir(parents=True)
    for number in range(count):
        photograph(number).save(root / f"{number}.jpg", quality=95)
        mask(number).save(root / "labels" / f"{number}.{ending}")
    return root
