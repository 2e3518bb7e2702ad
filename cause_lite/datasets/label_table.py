"""Classes of label maps: which ids or colours mean what, as `labels.csv` declares or as the maps themselves show."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageOps

from cause_lite.datasets.arrays import Reading, choose_frame
from cause_lite.datasets.picture_files import named, opened_image
from cause_lite.probe import IGNORED
from cause_lite.runtime.files import UserError

COLOUR = 1 << 32  # a colour's code is this plus 0xRRGGBB; an id's code is the id
TRANSPARENT = -1  # the code of a pixel that a mask leaves out
VOID = 255  # the id that is ignored where no table says otherwise
YES, NO = {"1", "yes", "true", "y", "x"}, {"", "0", "no", "false", "n"}
MOST_SHOWN = 12


@dataclass(frozen=True)
class LabelTable:
    """The classes of a folder's label maps.

    Parameters
    ----------
    names
        The class names, by class number.
    class_of
        The class number of each code (an id, or a colour), -1 where it is ignored.
    """

    names: tuple[str, ...]
    class_of: Mapping[int, int] = field(default_factory=dict)

    @property
    def has_colours(self) -> bool:
        """Whether colours are declared."""
        return any(code >= COLOUR for code in self.class_of)

    @property
    def has_ids(self) -> bool:
        """Whether ids are declared."""
        return any(code < COLOUR for code in self.class_of)

    def undeclared(self, codes: Iterable[int]) -> list[int]:
        """Return the codes that stand for nothing, in order."""
        return sorted(code for code in codes if code != TRANSPARENT and code not in self.class_of)

    def class_numbers(self, codes: np.ndarray) -> np.ndarray:
        """Return the class number (H, W) int32 of each code, -1 where ignored or undeclared."""
        found, places = np.unique(codes, return_inverse=True)
        classes = np.array([self.class_of.get(int(code), IGNORED) for code in found], dtype=np.int32)
        return classes[places.reshape(codes.shape)]


def read_table(path: Path) -> LabelTable:
    """Read `labels.csv`: a line for each id or colour, with the columns id, name, colour and ignore.

    `name` is needed, and `id`, `colour` or both; names that occur twice are one class. A colour is #rrggbb, three
    numbers or a CSS name. Commas, semicolons or tabs may separate the columns.

    Raises
    ------
    UserError
        Naming the line and the column that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: could not be read as UTF-8 text ({error})") from error
    heading = text.splitlines()[0] if text.strip() else ""
    separator = max(",;\t", key=heading.count)
    rows = csv.DictReader(text.splitlines(), delimiter=separator, skipinitialspace=True)
    columns = [str(name).strip().lower().replace("color", "colour") for name in rows.fieldnames or ()]
    if "name" not in columns or not {"id", "colour"} & set(columns):
        raise UserError(f"{path}: its first line must name the columns id,name,colour,ignore, not {heading[:60]!r}")
    rows.fieldnames = columns
    names: list[str] = []
    class_of: dict[int, int] = {}
    try:
        for row in rows:
            _add_row(row, f"{path}, line {rows.line_num}", names, class_of)
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: is not valid CSV ({error})") from error
    if not names:
        raise UserError(f"{path}: declares no class that counts")
    return LabelTable(tuple(names), class_of)


def _add_row(row: Mapping[str, str | None], place: str, names: list[str], class_of: dict[int, int]) -> None:
    """Add a line's id and colour to the codes, and its name to the classes."""
    value = {key: str(row.get(key) or "").strip() for key in ("id", "name", "colour", "ignore")}
    if None in row:
        raise UserError(f"{place}: has more values than columns; quote what holds a separator")
    if not any(value.values()):
        return
    if value["ignore"].lower() not in YES | NO:
        raise UserError(f"{place}: ignore must be yes or no, not {value['ignore']!r}")
    ignored = value["ignore"].lower() in YES
    if not value["name"] and not ignored:
        raise UserError(f"{place}: has no name")
    codes = []
    if value["id"]:
        if not value["id"].isdecimal() or int(value["id"]) >= COLOUR:
            raise UserError(f"{place}: id must be a whole number from 0, not {value['id']!r}")
        codes.append(int(value["id"]))
    if value["colour"]:
        codes.append(COLOUR + _colour(value["colour"], place))
    if not codes:
        raise UserError(f"{place}: has neither id nor colour")
    if not ignored and value["name"] not in names:
        names.append(value["name"])
    for code in codes:
        if code in class_of:
            raise UserError(f"{place}: {code_name(code)} is declared twice")
        class_of[code] = IGNORED if ignored else names.index(value["name"])


def _colour(text: str, place: str) -> int:
    """Return 0xRRGGBB of #rrggbb, "255 0 0" or a CSS name."""
    parts = text.strip("()[]").replace(",", " ").replace(";", " ").replace("/", " ").split()
    try:
        if len(parts) == 3 and all(part.isdecimal() and int(part) < 256 for part in parts):
            red, green, blue = (int(part) for part in parts)
        else:
            red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise UserError(f"{place}: colour must be #rrggbb or three numbers of 0 to 255, not {text!r}") from error
    return red << 16 | green << 8 | blue


def code_name(code: int) -> str:
    """Return how a code is shown: its number, or its colour as #rrggbb."""
    return f"#{code - COLOUR:06x}" if code >= COLOUR else str(code)


def listed(codes: Iterable[int]) -> str:
    """Return codes as text, the first dozen of many."""
    codes = list(codes)
    more = f" and {len(codes) - MOST_SHOWN} more" if len(codes) > MOST_SHOWN else ""
    return ", ".join(code_name(code) for code in codes[:MOST_SHOWN]) + more


def table_of(codes: Iterable[int], place: Path) -> LabelTable:
    """Return the classes of maps that no table describes: ids 0, 1, 2, ..., at least half of which occur.

    255 beside them is ignored, as in Pascal VOC and Cityscapes.

    Raises
    ------
    UserError
        Listing the ids or colours, when they are anything else.
    """
    found = sorted(code for code in codes if code != TRANSPARENT)
    declare = f"declare them in {place / 'labels.csv'}, with the columns id,name,colour,ignore"
    if any(code >= COLOUR for code in found):
        raise UserError(f"{place}: the label maps hold the colours {listed(found)}; {declare}")
    ids = [code for code in found if code != VOID]
    if VOID in found and len(ids) == 1:
        raise UserError(
            f"{place}: the label maps hold the ids {listed(found)}, and 255 may be ignored or not; {declare}"
        )
    count = max(ids, default=0) + 1
    if count > 2 * len(ids):
        raise UserError(f"{place}: the label maps hold the ids {listed(found)}, not 0, 1, 2, ...; {declare}")
    names = tuple(f"class {number}" for number in range(count))
    return LabelTable(names, {VOID: IGNORED} | {number: number for number in range(count)})


def read_codes(path: Path, table: LabelTable | None = None) -> np.ndarray:
    """Read a label map as codes (H, W) int64: ids, or colours where the file holds colours.

    Grey and palette files hold ids, and so do colour files whose channels are equal, unless the table declares their
    colours. What is transparent has the code -1. The orientation tag is obeyed, as for photographs.

    Raises
    ------
    UserError
        Naming the file, when it cannot be read, holds fractions, or is a JPEG, whose compression makes up ids.
    """
    with named(path), opened_image(path) as image:
        if image.format in ("JPEG", "MPO"):
            raise UserError(f"{path}: is a JPEG, whose compression changes ids; save label maps as PNG")
        image.load()
        choose_frame(image, Reading())
        shown = image.format == "GIF"  # whose writers renumber the palette: its colours are meant
        image = ImageOps.exif_transpose(image) or image
        hidden = None
        if image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
            hidden = np.asarray(image.getchannel("A")) == 0
            image = image.convert("RGB") if image.mode in ("RGBA", "RGBa") else image.getchannel(0)
        if image.mode == "P" and (shown or (table is not None and table.has_colours and not table.has_ids)):
            image = image.convert("RGB")
        codes = _codes(image, table)
        if hidden is not None and hidden.any():
            codes[hidden] = TRANSPARENT
        return codes


def _codes(image: Image.Image, table: LabelTable | None) -> np.ndarray:
    values = np.asarray(image)
    if values.ndim == 2:
        if values.dtype.kind == "f" and not (values == np.floor(values)).all():
            raise UserError("a label map holds whole numbers; this one has fractions")
        if values.dtype.kind in "if" and values.size and values.min() < TRANSPARENT:
            raise UserError(f"a label map holds numbers from 0; this one has {values.min():g}")
        return values.astype(np.int64)
    if image.mode != "RGB":
        values = np.asarray(image.convert("RGB"))
    wide = values.astype(np.int64)
    colours = COLOUR + (wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2])
    grey = (values[..., 0] == values[..., 1]).all() and (values[..., 1] == values[..., 2]).all()
    if not grey:
        return colours
    declared = table is not None and not table.undeclared(np.unique(colours).tolist())
    return colours if declared else wide[..., 0]


def read_classes(path: Path, table: LabelTable) -> Image.Image:
    """Read a label map as class numbers, int32, -1 where ignored.

    Raises
    ------
    UserError
        Naming the file and the ids that the table does not declare.
    """
    codes = read_codes(path, table)
    if unknown := table.undeclared(np.unique(codes).tolist()):
        raise UserError(f"{path}: holds {listed(unknown)}, which labels.csv does not declare")
    return Image.fromarray(table.class_numbers(codes))
