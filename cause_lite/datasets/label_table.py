"""Classes of label maps: which ids or colours mean what, as `labels.csv` declares or as the maps themselves show."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image, ImageColor
from pydantic import BaseModel, BeforeValidator, ValidationError

from cause_lite.datasets.arrays import Reading, shown
from cause_lite.datasets.picture_files import named, read_raster
from cause_lite.probe import IGNORED
from cause_lite.runtime.files import UserError

COLOUR = 1 << 32  # a colour's code is this plus 0xRRGGBB; an id's code is the id
UNLABELLED = -1  # the code of a pixel that is transparent, masked or without data
VOID = 255  # the id that is ignored where no table says otherwise
MOST_SHOWN = 12
COLUMNS = "id,name,colour,ignore"


@dataclass(frozen=True)
class LabelTable:
    """The classes of label maps: their names, and the class number of each code (-1 where it is ignored)."""

    names: tuple[str, ...]
    class_of: Mapping[int, int] = field(default_factory=dict)
    strange: float = 0.0  # the share of a map's pixels that may have undeclared codes and are then ignored

    @property
    def of_colours(self) -> bool:
        """Whether colours are declared and no ids."""
        return bool(self.class_of) and all(code >= COLOUR for code in self.class_of)

    def undeclared(self, codes: Iterable[int]) -> list[int]:
        """Return the codes that stand for nothing, in order."""
        return sorted(code for code in codes if code != UNLABELLED and code not in self.class_of)

    def class_numbers(self, codes: np.ndarray) -> np.ndarray:
        """Return the class number (H, W) int32 of each code, -1 where ignored or undeclared."""
        found, places = np.unique(codes, return_inverse=True)
        classes = np.array([self.class_of.get(int(code), IGNORED) for code in found], dtype=np.int32)
        return classes[places.reshape(codes.shape)]


def _whole(text: str) -> int | None:
    if text and not (text.isdecimal() and int(text) < COLOUR):
        raise ValueError
    return int(text) if text else None


def _colour(text: str) -> int | None:
    """Return 0xRRGGBB of #rrggbb, "255 0 0" or a CSS name."""
    if not text:
        return None
    parts = text.strip("()[]").replace(",", " ").replace(";", " ").replace("/", " ").split()
    if len(parts) == 3 and all(part.isdecimal() and int(part) < 256 for part in parts):
        red, green, blue = map(int, parts)
    else:
        red, green, blue = ImageColor.getrgb(text)[:3]
    return red << 16 | green << 8 | blue


class _Row(BaseModel):
    """A line of `labels.csv`."""

    id: Annotated[int | None, BeforeValidator(_whole)] = None
    name: str = ""
    colour: Annotated[int | None, BeforeValidator(_colour)] = None
    ignore: Annotated[bool, BeforeValidator(lambda text: {"": "no", "x": "yes"}.get(text.lower(), text))] = False

    @property
    def codes(self) -> list[int]:
        """The codes of the id and of the colour."""
        return [code for code in (self.id, None if self.colour is None else COLOUR + self.colour) if code is not None]


WANTED = {
    "id": "a whole number from 0",
    "colour": "#rrggbb or three numbers of 0 to 255",
    "ignore": "yes or no",
    "name": "text",
}


def read_table(path: Path) -> LabelTable:
    """Read `labels.csv`: a line for each id or colour, with the columns id, name, colour and ignore.

    `name` is needed, and `id`, `colour` or both; names that occur twice are one class. A colour is #rrggbb, three
    numbers or a CSS name. Commas, semicolons or tabs may separate the columns. Raises UserError naming the line and the
    column that is wrong.
    """
    names: list[str] = []
    class_of: dict[int, int] = {}
    for line, values in _lines(path):
        place = f"{path}, line {line}"
        try:
            row = _Row(**values)
        except ValidationError as error:
            (column, *_), given = error.errors()[0]["loc"], error.errors()[0]["input"]
            raise UserError(f"{place}: {column} must be {WANTED[str(column)]}, not {given!r}") from error
        if not row.codes:
            raise UserError(f"{place}: has neither id nor colour")
        if not row.name and not row.ignore:
            raise UserError(f"{place}: has no name")
        if not row.ignore and row.name not in names:
            names.append(row.name)
        for code in row.codes:
            if code in class_of:
                raise UserError(f"{place}: {code_name(code)} is declared twice")
            class_of[code] = IGNORED if row.ignore else names.index(row.name)
    if not names:
        raise UserError(f"{path}: declares no class that counts")
    return LabelTable(tuple(names), class_of)


def _lines(path: Path) -> Iterable[tuple[int, dict[str, str]]]:
    """Return the number and the values by column of each line of a table that holds any."""
    import pandas as pd  # here: nothing else that segments pictures needs it, and it is slow to import

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: could not be read as UTF-8 text ({error})") from error
    heading = text.splitlines()[0] if text.strip() else ""
    plain: dict = {"dtype": str, "keep_default_na": False, "skip_blank_lines": False, "skipinitialspace": True}
    try:
        rows = pd.read_csv(io.StringIO(text), sep=max(",;\t", key=heading.count), header=None, **plain)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        reason = " ".join(str(error).split())
        if "Expected" in reason and "saw" in reason:
            raise UserError(f"{path}: has more values than columns; quote what holds a separator ({reason})") from error
        raise UserError(f"{path}: must name the columns {COLUMNS} in its first line ({reason})") from error
    table = rows.fillna("").map(str.strip)
    columns = [name.lower().replace("color", "colour") for name in table.iloc[0]]
    if "name" not in columns or not {"id", "colour"} & set(columns):
        raise UserError(f"{path}: its first line must name the columns {COLUMNS}, not {heading[:60]!r}")
    known = [number for number, name in enumerate(columns) if name in WANTED]
    lines = [(n, {columns[k]: values[k] for k in known}) for n, *values in table.iloc[1:].itertuples()]
    return [(number + 1, values) for number, values in lines if any(values.values())]


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

    255 beside them is ignored, as in Pascal VOC and Cityscapes. Raises UserError listing ids or colours that are
    anything else.
    """
    found = sorted(code for code in codes if code != UNLABELLED)
    declare = f"declare them in {place / 'labels.csv'}, with the columns {COLUMNS}"
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
    colours. What the file declares to be transparent, masked or without data has the code -1. The orientation tag is
    obeyed, as for photographs.
    """
    with named(path):
        raster = read_raster(path)
        if raster.lossy:
            raise UserError("is a JPEG, whose compression changes ids; save label maps as PNG")
        levels, mode = raster.chosen(None)
        kept = raster.kept(levels)
        if raster.palette is not None and table is not None and table.of_colours:
            codes = _colour_codes(raster.palette[np.minimum(levels[..., 0], len(raster.palette) - 1)])
        elif mode == "L" or (mode == "RGB" and _holds_ids(levels, table)):
            codes = _ids(levels[..., 0], kept)
        elif levels.dtype == np.uint8:
            codes = _colour_codes(levels if mode == "RGB" else shown(raster, Reading()).rgb)
        else:
            raise UserError(f"a label map of colours has 8 bits a channel; this one is {levels.dtype}")
        if kept is not None:
            codes[~kept] = UNLABELLED
        if codes.min() < UNLABELLED:
            raise UserError(f"a label map holds numbers from 0; this one has {codes.min()}")
        return codes


def _holds_ids(levels: np.ndarray, table: LabelTable | None) -> bool:
    """Return whether three bands are one, and the table does not speak of their colours."""
    if (levels != levels[..., :1]).any():
        return False
    if table is None or levels.dtype != np.uint8:
        return True
    return not table.of_colours and bool(table.undeclared(np.unique(_colour_codes(levels)).tolist()))


def _ids(values: np.ndarray, kept: np.ndarray | None) -> np.ndarray:
    """Return values (H, W) as whole numbers; only what is kept must be one."""
    if values.dtype.kind == "f":
        values = values if kept is None else np.where(kept, values, 0)
        if (values != np.floor(values)).any():
            raise UserError("a label map holds whole numbers; this one has fractions")
    return values.astype(np.int64)


def _colour_codes(colours: np.ndarray) -> np.ndarray:
    wide = colours.astype(np.int64)
    return COLOUR + (wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2])


def read_classes(path: Path, table: LabelTable) -> Image.Image:
    """Read a label map as class numbers, int32, -1 where ignored; raise UserError when it holds undeclared codes."""
    codes = read_codes(path, table)
    if unknown := table.undeclared(np.unique(codes).tolist()):
        share = np.isin(codes, unknown).mean()
        if share > table.strange:
            raise UserError(f"{path}: {share:.0%} of its pixels hold {listed(unknown)}, which nobody declared")
    return Image.fromarray(table.class_numbers(codes))
