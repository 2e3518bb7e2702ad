"""Arrays in MATLAB files of version 5, checked before scipy reads them: on a damaged tag its reader ends the process.

The format is public: "MAT-File Format", The MathWorks. A file is a header of 128 bytes and elements. An element is a
tag (type and size) and its content. A variable is an element whose content is four elements: flags, shape, name and
numbers.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io
from PIL import Image

from cause_lite.runtime.files import UserError

HEADER = 128
ORDERS = {b"IM": "<", b"MI": ">"}  # the last two bytes of the header
VARIABLE, COMPRESSED = 14, 15  # types of elements in a file
NAME = 1  # the type of a name
NUMBERS = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13}  # types of elements that hold real numbers
CLASSES = range(6, 16)  # of a variable: double, single, and integers of 8 to 64 bits
COMPLEX = 0x0800
MOST_BYTES = 1 << 28  # of a variable, decompressed


class Element(NamedTuple):
    """An element of a file: its type, where its content starts and ends, and where the next one starts."""

    kind: int
    start: int
    end: int
    following: int


def read_array(path: Path, key: str) -> np.ndarray:
    """Return the array of real numbers that a MATLAB file holds under a name; raise UserError without a whole one."""
    try:
        data = path.read_bytes()
        _check(data, key)
        return scipy.io.loadmat(io.BytesIO(data), variable_names=[key])[key]
    except Exception as error:  # scipy raises many kinds on damaged bytes
        raise UserError(f"{path}: is not a MATLAB file with `{key}` ({error or type(error).__name__})") from error


def read_mat_rgb(path: Path) -> Image.Image:
    """Read the first three channels of `img` (H, W, 4) uint8 in a file of Potsdam."""
    return Image.fromarray(np.ascontiguousarray(_read(path, "img", 3)[..., :3].astype(np.uint8)))


def read_mat_ids(path: Path) -> Image.Image:
    """Read `gt` (H, W), the label ids in a file of Potsdam."""
    return Image.fromarray(_read(path, "gt", 2).astype(np.int32))


def _read(path: Path, key: str, dims: int) -> np.ndarray:
    """Return an array of a MATLAB file; raise UserError when it has another shape or type."""
    value = read_array(path, key)
    if value.ndim != dims or value.dtype.kind not in "uif":
        raise UserError(f"{path}: `{key}` has shape {value.shape} and type {value.dtype}")
    return value


def _check(data: bytes, key: str) -> None:
    """Raise ValueError unless the variable is whole and of real numbers."""
    order = ORDERS.get(data[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("its header is of no known version")
    at, found = HEADER, False
    while at < len(data):
        element = _element(data, at, order)
        if element.kind == COMPRESSED:
            content = zlib.decompressobj().decompress(data[element.start : element.end], MOST_BYTES)
            found |= _is_whole(content, _element(content, 0, order), order, key)
        else:
            found |= _is_whole(data, element, order, key)
        at = element.following
    if not found:
        raise ValueError("it has no variable of that name")


def _element(data: bytes, at: int, order: str) -> Element:
    kind, size = struct.unpack_from(f"{order}II", data, at)
    if kind >> 16:  # a small element: its content lies within the tag
        element = Element(kind & 0xFFFF, at + 4, at + 4 + (kind >> 16), at + 8)
    else:
        padding = -size % 8 if kind != COMPRESSED else 0
        element = Element(kind, at + 8, at + 8 + size, at + 8 + size + padding)
    if element.end > len(data) or (kind >> 16) > 4:
        raise ValueError("an element is longer than the file")
    return element


def _is_whole(data: bytes, variable: Element, order: str, key: str) -> bool:
    """Return whether a variable is the one of that name; raise ValueError when that one is not of real numbers."""
    if variable.kind != VARIABLE:
        raise ValueError(f"an element is of type {variable.kind}")
    flags = _element(data, variable.start, order)
    shape = _element(data, flags.following, order)
    name = _element(data, shape.following, order)
    if name.kind != NAME or data[name.start : name.end].decode("latin-1") != key:
        return False
    numbers = _element(data, name.following, order)
    (bits,) = struct.unpack_from(f"{order}I", data, flags.start)
    if bits & 0xFF not in CLASSES or bits & COMPLEX or numbers.kind not in NUMBERS:
        raise ValueError("it holds no real numbers")
    return True
