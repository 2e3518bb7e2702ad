"""Headline numbers: `record` glues one into a page and writes its record, which `verify` compares."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass

from pydantic import ValidationError

from cause_lite.pages.verify import Number, first_problem, records_dir
from cause_lite.runtime.device import this_device
from cause_lite.runtime.files import UserError, write_json
from cause_lite.runtime.provenance import canonical_json, commit, config_hash, environment


@dataclass(frozen=True)
class Headline:
    """A number as a page shows it: its text, and a button that shows its record (book/_static/numbers.js)."""

    text: str
    entry: dict

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.entry["environment"].items())
        shown = {k: v for k, v in self.entry.items() if v not in (None, "")} | {"environment": versions}
        content = html.escape(json.dumps(shown), quote=True)
        title = html.escape(f"{self.entry['key']}: show its record")
        return f'<button type="button" class="number" title="{title}" data-record="{content}">{self.text}</button>'


def record(
    key: str,
    value: float,
    unit: str = "",
    *,
    seed: int | None = None,
    config: object = None,
    digits: int = 1,
    spread: float | None = None,
) -> None:
    """Glue a headline number into the page, and write its record for `verify`.

    Parameters
    ----------
    key
        Its name, as in `scenes.tr_miou`; the page shows it by ``{glue:}`key` ``.
    value, unit
        The number, and its unit.
    seed, config
        What it was computed with; the record holds the hash of `config`, the page its text.
    digits
        Decimals on the page; a build may be off by half a unit of the last one.
    spread
        Its measured standard deviation over seeds, by which it may move where a GPU computes it; None elsewhere.

    Raises
    ------
    UserError
        When a field is wrong, such as a value that is not finite.
    """
    from myst_nb import glue  # slow to import, and only a page glues

    about = {"key": key, "value": float(value), "unit": unit, "digits": digits, "seed": seed}
    about["spread"] = None if spread is None else float(spread)
    about |= {"config_hash": config_hash(config or {}), "commit": commit()}
    try:
        about["environment"] = environment() | {"processor": this_device()}
        entry = Number.model_validate(about).model_dump()
    except ValidationError as error:
        raise UserError(f"record {key}: {first_problem(error)}") from error
    write_json(records_dir() / f"{key}.json", entry)
    text = f"{entry['value']:.{digits}f}" + (f" {unit}" if unit else "")
    glue(key, Headline(text, entry | {"configuration": canonical_json(config or {})}), display=False)
