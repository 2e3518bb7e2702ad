"""Compare the numbers that a build of the book computed with data/expected.json, within tolerances that follow spreads.

Begin with `verify`. `accept` writes the expectation, and `tolerance` says how far a number may move.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal, NamedTuple, TypeGuard

from cause_lite.runtime.files import UserError, project_dir, read_json, write_json

Kind = Literal["score", "difference"]
KINDS: tuple[Kind, ...] = ("score", "difference")
FIELDS = {"key", "value", "unit", "kind", "spread", "seed", "config_hash", "commit", "environment"}

REPEATABILITY = 2.8  # standard deviations, ISO 5725-6: see `tolerance`
EXACT = 0.05  # half of the last digit that a page shows of a percentage


class Expectation(NamedTuple):
    """The value of a number and how far from it a build may be, both finite and the tolerance at least 0."""

    value: float
    tolerance: float


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of `verify`: `status` is ok, moved, missing (not computed) or new (not expected)."""

    key: str
    expected: float | None
    tolerance: float | None
    found: float | None
    status: str


def records_dir() -> Path:
    """Return the folder in which a build of the book leaves its headline numbers."""
    return project_dir() / "_build" / "records"


def expected_path() -> Path:
    """Return the file of the expected numbers, data/expected.json."""
    return project_dir() / "data" / "expected.json"


def tolerance(value: float, kind: Kind, spread: float | None = None, accepted: float | None = None) -> float:
    """Return how far a number may move before `verify` fails.

    With a measured spread: 2.8 standard deviations, and at least `EXACT`. Two runs that vary alike differ by more
    than 1.96 sqrt(2) = 2.8 of their standard deviations in one of twenty cases (the repeatability limit of
    ISO 5725-6:1994). The spread is that of one run also where the number is a mean over runs: the room that this leaves
    is for a standard deviation which few seeds estimate poorly. By Student's t, a mean over 3 seeds that are all drawn
    anew stays within it in 92 % of cases, one over 5 seeds in 99 %.

    Without one: what was accepted before, else `EXACT`, as for a number that must repeat to the bit.

    A difference may in no case move by more than half of its absolute value, so that a change of sign always fails.

    Parameters
    ----------
    value, kind
        The number, and whether it is a score or a difference of two.
    spread
        Its measured standard deviation over seeds or over machines, in its unit; None where none was measured.
    accepted
        The tolerance that it had before, if any.
    """
    limit = EXACT if accepted is None else accepted
    if spread is not None:
        limit = max(EXACT, REPEATABILITY * spread)
    return min(limit, abs(value) / 2) if kind == "difference" else limit


def verify(folder: Path | None = None, expected: Path | None = None) -> list[Check]:
    """Compare what a build computed with what is expected; every key of either side is a line.

    Parameters
    ----------
    folder
        The build's records; by default `records_dir()`.
    expected
        The expectation; by default `expected_path()`.

    Raises
    ------
    UserError
        Naming the file that is damaged.
    """
    expectations, entries = _read_expected(expected or expected_path()), _read_records(folder or records_dir())
    return [_checked(key, expectations.get(key), entries.get(key)) for key in sorted(expectations.keys() | entries)]


def _checked(key: str, expectation: Expectation | None, entry: dict | None) -> Check:
    if expectation is None:
        return Check(key, None, None, entry["value"] if entry else None, "new")
    if entry is None:
        return Check(key, *expectation, None, "missing")
    # The expectation's tolerance may be older than the rule, so the rule's limit of a difference holds here too.
    limit = min(expectation.tolerance, tolerance(expectation.value, entry["kind"], accepted=math.inf))
    status = "ok" if abs(entry["value"] - expectation.value) <= limit else "moved"
    return Check(key, expectation.value, limit, entry["value"], status)


def accept(folder: Path | None = None, expected: Path | None = None) -> int:
    """Write what a build computed as the new expectation, each number with its `tolerance`.

    Raises UserError, and writes nothing, when the build computed none.

    Parameters
    ----------
    folder, expected
        As in `verify`. A key that the build did not compute leaves the expectation.

    Returns
    -------
    int
        The count of numbers.
    """
    path = expected or expected_path()
    before = _read_expected(path) if path.exists() else {}
    content = {}
    for key, entry in _read_records(folder or records_dir()).items():
        accepted = before[key].tolerance if key in before else None
        limit = tolerance(entry["value"], entry["kind"], entry["spread"], accepted)
        content[key] = {"value": entry["value"], "tolerance": limit}
    if not content:
        raise UserError(f"{folder or records_dir()}: holds no record of a number; run `make book` first")
    write_json(path, content)
    return len(content)


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_expected(path: Path) -> dict[str, Expectation]:
    expectations = {}
    for key, entry in read_json(path).items():
        value, limit = (entry.get("value"), entry.get("tolerance")) if isinstance(entry, dict) else (None, None)
        if not _is_finite(value) or not _is_finite(limit) or limit < 0:
            raise UserError(f"{path}: {key} needs a finite `value` and a `tolerance` of at least 0")
        expectations[key] = Expectation(float(value), float(limit))
    return expectations


def _read_records(folder: Path) -> dict[str, dict]:
    entries = {}
    for path in sorted(folder.glob("*.json")):
        entry = read_json(path)
        if missing := FIELDS - entry.keys():
            raise UserError(f"{path}: lacks {', '.join(sorted(missing))}; build the book again")
        if not isinstance(entry["key"], str):
            raise UserError(f"{path}: `key` must be a name, not {entry['key']!r}; build the book again")
        if not _is_finite(entry["value"]):
            raise UserError(f"{path}: `value` must be a finite number; build the book again")
        if entry["kind"] not in KINDS:
            raise UserError(f"{path}: `kind` must be one of {', '.join(KINDS)}; build the book again")
        if entry["spread"] is not None and not (_is_finite(entry["spread"]) and entry["spread"] >= 0):
            raise UserError(f"{path}: `spread` must be a finite number of at least 0, or null; build the book again")
        entries[entry["key"]] = entry
    return entries
