"""Headline numbers: `record` glues one into a page and writes its record, which `verify` compares."""

from __future__ import annotations

import dataclasses
import html
import json
import math

from cause_lite.pages.verify import KINDS, Kind, records_dir
from cause_lite.runtime.files import UserError, write_json
from cause_lite.runtime.provenance import canonical_json, commit, config_hash, environment


@dataclasses.dataclass(frozen=True)
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
    kind: Kind = "score",
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
        Decimals on the page.
    kind
        `score`, or `difference`: then a change of its sign fails the build.
    spread
        Its measured standard deviation over seeds or over machines, from which `verify.tolerance` derives how far it
        may move. None for a number that must repeat to the bit, such as one read from a committed record.

    Raises
    ------
    UserError
        When the value is not finite, the kind is unknown, or the spread is negative or not finite.
    """
    from myst_nb import glue  # slow to import, and only a page glues

    value = float(value)
    if not math.isfinite(value):
        raise UserError(f"record {key}: value must be a finite number, not {value}")
    if kind not in KINDS:
        raise UserError(f"record {key}: kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if spread is not None and not (math.isfinite(spread) and spread >= 0):
        raise UserError(f"record {key}: spread must be a finite number of at least 0, not {spread}")
    about = {"key": key, "value": value, "unit": unit, "kind": kind, "seed": seed}
    origin = {"config_hash": config_hash(config or {}), "commit": commit(), "environment": environment()}
    entry = about | {"spread": None if spread is None else float(spread)} | origin
    write_json(records_dir() / f"{key}.json", entry)
    text = f"{value:.{digits}f}" + (f" {unit}" if unit else "")
    glue(key, Headline(text, entry | {"configuration": canonical_json(config or {})}), display=False)
