"""Arrays of real numbers in MATLAB files of version 5, read here: on a damaged tag scipy's reader ends the process.

The format is public: "MAT-File Format", The MathWorks. A file is a header of 128 bytes and elements. An element is a
tag (type and size) and its content. A variable is an element whose content is four elements: flags, shape, name and
numbers.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cause_lite.runtime.files import UserError

HEADER = 128
ORDERS = {b"IM": "<", b"MI": ">"}  # the last two bytes of the header
NAME, SHAPE, VARIABLE, COMPRESSED = 1, 5, 14, 15  # types of elements
# Types of elements that hold real numbers, and classes of variables that do, by numpy's names.
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
COMPLEX = 0x0800
MOST_BYTES = 1 << 28  # of a variable, decompressed


class Element(NamedTuple):
    """An element of a file: its type and content, and where the next one starts."""

    kind: int
    content: bytes
    following: int


def read_array(path: Path, key: str) -> np.ndarray:
    """Return the array of real numbers that a MATLAB file holds under a name; raise UserError without a whole one."""
    try:
        return _array(path.read_bytes(), key)
    except (OSError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{path}: is not a MATLAB file with `{key}` ({error or type(error).__name__})") from error


def read_mat_rgb(path: Path) -> Image.Image:
    """Read the first three channels of `img` (H, W, 4) uint8 in a file of Potsdam."""
    return Image.fromarray(np.ascontiguousarray(_of_shape(path, "img", 3)[..., :3].astype(np.uint8)))


def read_mat_ids(path: Path) -> Image.Image:
    """Read `gt` (H, W), the label ids in a file of Potsdam."""
    return Image.fromarray(_of_shape(path, "gt", 2).astype(np.int32))


def _of_shape(path: Path, key: str, dims: int) -> np.ndarray:
    array = read_array(path, key)
    if array.ndim != dims or 0 in array.shape:
        raise UserError(f"{path}: `{key}` has shape {array.shape}")
    return array


def _array(data: bytes, key: str) -> np.ndarray:
    """Return the array of that name; raise ValueError when there is none."""
    order = ORDERS.get(data[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("its header is of no known version")
    at = HEADER
    while at < len(data):
        element = _element(data, at, order)
        at = element.following
        if element.kind == COMPRESSED:
            element = _element(zlib.decompressobj().decompress(element.content, MOST_BYTES), 0, order)
        if element.kind != VARIABLE:
            raise ValueError(f"an element is of type {element.kind}")
        array = _variable(element.content, order, key)
        if array is not None:
            return array
    raise ValueError("it has no variable of that name")


def _element(data: bytes, at: int, order: str) -> Element:
    kind, size = struct.unpack_from(f"{order}II", data, at)
    small = kind >> 16  # bytes of a small element, whose content lies within the tag
    start, end = (at + 4, at + 4 + small) if small else (at + 8, at + 8 + size)
    if end > len(data) or small > 4:
        raise ValueError("an element is longer than the file")
    following = at + 8 if small else end + (-size % 8 if kind != COMPRESSED else 0)
    return Element(kind & 0xFFFF, data[start:end], following)


def _variable(data: bytes, order: str, key: str) -> np.ndarray | None:
    """Return the numbers of a variable of that name; None for another; raise ValueError when it has no real numbers."""
    flags = _element(data, 0, order)
    shape = _element(data, flags.following, order)
    name = _element(data, shape.following, order)
    if name.kind != NAME or name.content.decode("latin-1") != key:
        return None
    numbers = _element(data, name.following, order)
    (bits,) = struct.unpack_from(f"{order}I", flags.content)
    if bits & 0xFF not in CLASSES or bits & COMPLEX or numbers.kind not in NUMBERS or shape.kind != SHAPE:
        raise ValueError("it holds no real numbers")
    sides = np.frombuffer(shape.content, f"{order}i4").tolist()
    if min(sides, default=-1) < 0:
        raise ValueError(f"its shape is {sides}")
    values = np.frombuffer(numbers.content, order + NUMBERS[numbers.kind]).reshape(sides, order="F")
    return values.astype(CLASSES[bits & 0xFF])
