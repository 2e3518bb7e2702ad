"""Run records, headline numbers and their verification."""

from __future__ import annotations

import dataclasses
import html
import json
import math
from pathlib import Path

from cause_lite.runtime.files import UserError, project_dir, read_json, write_json
from cause_lite.runtime.provenance import canonical_json, commit, config_hash, environment

FIELDS = {"key", "value", "unit", "seed", "config_hash", "commit", "environment"}


def records_dir() -> Path:
    """Where a build of the book leaves its headline numbers."""
    return project_dir() / "_build" / "records"


def expected_path() -> Path:
    return project_dir() / "data" / "expected.json"


def record(
    key: str, value: float, unit: str = "", seed: int | None = None, config: object = None, digits: int = 1
) -> None:
    """Glue a headline number into the page as `key`, and write its record for `verify`.

    Raises UserError when the value is not finite.
    """
    from myst_nb import glue

    value = float(value)
    if not math.isfinite(value):
        raise UserError(f"record {key}: {value} is not a finite number")
    entry = {
        "key": key, "value": value, "unit": unit, "seed": seed, "config_hash": config_hash(config or {}),
        "commit": commit(), "environment": environment(),
    }  # fmt: skip
    write_json(records_dir() / f"{key}.json", entry)
    text = f"{value:.{digits}f}" + (f" {unit}" if unit else "")
    glue(key, Headline(text, entry | {"configuration": canonical_json(config or {})}), display=False)


@dataclasses.dataclass(frozen=True)
class Headline:
    """A number as a page shows it: its text, and a button that tells its record (book/_static/numbers.js)."""

    text: str
    entry: dict

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.entry["environment"].items())
        told = {k: v for k, v in self.entry.items() if v not in (None, "")} | {"environment": versions}
        about = html.escape(json.dumps(told), quote=True)
        title = html.escape(f"{self.entry['key']}: show its record")
        return f'<button type="button" class="number" title="{title}" data-record="{about}">{self.text}</button>'


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of `verify`: `status` is ok, moved, missing (not computed) or new (not expected)."""

    key: str
    expected: float | None
    tolerance: float | None
    found: float | None
    status: str


def _expected(path: Path) -> dict[str, dict]:
    entries = read_json(path)
    for key, entry in entries.items():
        numbers = [entry.get(name) for name in ("value", "tolerance")] if isinstance(entry, dict) else [None]
        if (
            not all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
            or numbers[1] < 0
        ):
            raise UserError(f"{path}: {key} needs a finite `value` and a `tolerance` of at least 0")
    return {key: {"value": float(e["value"]), "tolerance": float(e["tolerance"])} for key, e in entries.items()}


def _read_records(folder: Path) -> dict[str, dict]:
    found = {}
    for path in sorted(folder.glob("*.json")):
        entry = read_json(path)
        if missing := FIELDS - entry.keys():
            raise UserError(f"{path}: lacks {', '.join(sorted(missing))}; build the book again")
        value = entry["value"]
        if not isinstance(entry["key"], str) or type(value) not in (int, float) or not math.isfinite(value):
            raise UserError(f"{path}: `key` is no name or `value` no finite number; build the book again")
        found[entry["key"]] = entry
    return found


def verify(folder: Path | None = None, expected: Path | None = None) -> list[Check]:
    """Compare what the build computed with data/expected.json; every key of either side is a line."""
    wanted, found = _expected(expected or expected_path()), _read_records(folder or records_dir())
    checks = []
    for key in sorted(wanted.keys() | found.keys()):
        want, got = wanted.get(key), found[key]["value"] if key in found else None
        if want is None:
            status = "new"
        elif got is None:
            status = "missing"
        else:
            status = "ok" if abs(got - want["value"]) <= want["tolerance"] else "moved"
        checks.append(Check(key, want and want["value"], want and want["tolerance"], got, status))
    return checks


def accept(folder: Path | None = None, expected: Path | None = None) -> int:
    """Write what the build computed as the new expectation; known tolerances stay. Returns the count.

    A number met for the first time gets a tolerance of 3 when it is a percentage, else 5% of its size.
    """
    path = expected or expected_path()
    before = _expected(path) if path.exists() else {}
    content = {}
    for key, entry in _read_records(folder or records_dir()).items():
        guess = 3.0 if entry["unit"] == "%" else 0.05 * abs(entry["value"])
        content[key] = {"value": entry["value"], "tolerance": before.get(key, {}).get("tolerance", guess)}
    write_json(path, content)
    return len(content)
