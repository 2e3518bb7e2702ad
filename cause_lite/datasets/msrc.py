"""The Microsoft Research Cambridge set, version 2 (MSRC): its files, splits, classes, and both encodings of its masks.

Photographs lie in Images/C_N_s.bmp (or .jpg, .png) and masks in GroundTruth/C_N_s_GT.bmp (or .png), where C is a
category and N a number within it. A mask holds the official colours, directly or in its palette.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from cause_lite.datasets.readers import read_rgb
from cause_lite.runtime.files import UserError

FOLDER = "MSRC"
SPLITS = {"train": (1, 198), "val": (2, 197), "test": (0, 196)}  # N mod 3, and the number of photographs
IMAGE_NAME = re.compile(r"(\d{1,4}_(\d{1,4})_s)\.(bmp|jpg|jpeg|png)", re.IGNORECASE)
MASK_ENDS = ("_GT.png", "_GT.bmp")
# Every kind of pixel by its colour. Horse (three photographs) and mountain are left out by custom, like void.
COLOURS = {
    "void": (0, 0, 0),
    "building": (128, 0, 0),
    "grass": (0, 128, 0),
    "tree": (128, 128, 0),
    "cow": (0, 0, 128),
    "horse": (128, 0, 128),
    "sheep": (0, 128, 128),
    "sky": (128, 128, 128),
    "mountain": (64, 0, 0),
    "aeroplane": (192, 0, 0),
    "water": (64, 128, 0),
    "face": (192, 128, 0),
    "car": (64, 0, 128),
    "bicycle": (192, 0, 128),
    "flower": (64, 128, 128),
    "sign": (192, 128, 128),
    "bird": (0, 64, 0),
    "book": (128, 64, 0),
    "chair": (0, 192, 0),
    "road": (128, 64, 128),
    "cat": (0, 192, 128),
    "dog": (128, 192, 128),
    "body": (64, 64, 0),
    "boat": (192, 64, 0),
}
LEFT_OUT = ("void", "horse", "mountain")
CLASSES = tuple(name for name in COLOURS if name not in LEFT_OUT)
CLASS_OF_ID = np.array([CLASSES.index(name) if name in CLASSES else -1 for name in COLOURS])
MOST_UNKNOWN = 0.01  # of a mask's pixels that may have other colours and are taken for void


def split_files(split: str) -> Callable[[Path], list[tuple[Path, Path]]]:
    """Return a function from MSRC's folder to the (photograph, mask) files of a split, by category and number."""

    def files(root: Path) -> list[tuple[Path, Path]]:
        found = []
        for path in (root / "Images").glob("*"):
            name = IMAGE_NAME.fullmatch(path.name)
            if name and int(name[2]) % len(SPLITS) == SPLITS[split][0]:
                found.append((path, mask_of(root, name[1])))
        return sorted(found, key=lambda pair: [int(part) for part in pair[0].name.split("_")[:2]])

    return files


def mask_of(root: Path, stem: str) -> Path:
    """Return the mask of the photograph C_N_s: a PNG where there is one, else the official BMP."""
    masks = [root / "GroundTruth" / f"{stem}{end}" for end in MASK_ENDS]
    return next((mask for mask in masks if mask.is_file()), masks[0])


def read_mask(path: Path) -> Image.Image:
    """Return a mask as ids, the positions of `COLOURS`, from its colours (direct, or of its palette).

    Raises
    ------
    UserError
        When the file cannot be read, or more than 1 % of its pixels have a colour that MSRC does not use.
    """
    colours = np.asarray(read_rgb(path)).astype(np.int64) @ (1 << 16, 1 << 8, 1)
    known = np.array(list(COLOURS.values())) @ (1 << 16, 1 << 8, 1)
    order = np.argsort(known)
    place = np.searchsorted(known, colours, sorter=order).clip(max=len(known) - 1)
    ids = order[place]
    unknown = known[ids] != colours
    if unknown.mean() > MOST_UNKNOWN:
        raise UserError(
            f"{path}: {unknown.mean():.0%} of its pixels have colours that MSRC's masks do not use, such as "
            f"#{colours[unknown][0]:06x}; expected a mask in the official colours"
        )
    return Image.fromarray(np.where(unknown, 0, ids).astype(np.uint8))


def check(root: Path) -> int:
    """Check that every photograph has a mask of its size in the official colours, and return how many there are.

    Raises
    ------
    UserError
        Naming the first file that is missing, damaged or of another size.
    """
    pairs = [pair for split in SPLITS for pair in split_files(split)(root)]
    for image, mask in pairs:
        if not mask.is_file():
            raise UserError(f"msrc: {mask} is missing; it is the mask of {image.name}")
        if read_mask(mask).size != read_rgb(image).size:
            raise UserError(f"msrc: {mask} has another size than {image.name}; restore the official files")
    return len(pairs)
