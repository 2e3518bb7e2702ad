"""Headline numbers: what a page shows, and a verification that names what moved, is missing or is new."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cause_lite.cli import main
from cause_lite.pages import headlines, verify
from cause_lite.runtime import provenance
from cause_lite.runtime.files import UserError, write_json

FINITE = st.floats(-1e6, 1e6)


def write_number(folder, key: str, value: float, kind: str = "score", spread: float | None = None) -> None:
    entry = dict.fromkeys(verify.FIELDS) | {"key": key, "value": value, "kind": kind, "spread": spread}
    write_json(folder / f"{key}.json", entry)


@pytest.fixture
def built(tmp_path):
    """Three computed numbers, and the expectation that they meet."""
    records, expected = tmp_path / "records", tmp_path / "expected.json"
    for key, value in {"a.x": 1.0, "b": 2.0, "c": 3.0}.items():
        write_number(records, key, value)
    write_json(
        expected, {key: {"value": value, "tolerance": 0.1} for key, value in {"a.x": 1.05, "b": 2.0, "c": 3.0}.items()}
    )
    return records, expected


def run_verify(built, monkeypatch) -> str | None:
    """The error line of `cause-lite verify`, or None where it passes."""
    records, expected = built
    monkeypatch.setattr("sys.argv", ["cause-lite", "verify", "--records", str(records), "--expected", str(expected)])
    try:
        main()
    except SystemExit as exit:
        return None if exit.code in (None, 0) else str(exit.code)
    return None


def test_numbers_within_tolerance_pass(built, monkeypatch):
    assert run_verify(built, monkeypatch) is None


@pytest.mark.parametrize("change, status", [("value", "moved"), ("remove", "new"), ("add", "missing")])
def test_a_number_that_does_not_hold_fails_and_is_named(built, monkeypatch, change, status):
    content = json.loads(built[1].read_text())
    before = built[1].read_bytes()
    if change == "value":
        content["b"]["value"] = 2.2
    elif change == "remove":
        del content["b"]
    else:
        content["d"] = {"value": 0, "tolerance": 1}
    write_json(built[1], content)
    error = run_verify(built, monkeypatch)
    assert error and f"{'d' if change == 'add' else 'b'} ({status})" in error
    built[1].write_bytes(before)
    assert run_verify(built, monkeypatch) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"a": 1}', '{"a": {"value": NaN, "tolerance": 1}}', '{"a": {"value": 1, "tolerance": -1}}']
)
def test_a_damaged_expectation_is_named(built, text):
    built[1].write_text(text)
    with pytest.raises(UserError, match=r"expected\.json"):
        verify.verify(*built)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"kind": "sum"}, "`kind` must be one of score, difference"),
        ({"spread": -1}, "`spread` must be a finite number of at least 0"),
        ({"spread": "wide"}, "`spread` must be"),
        ({"value": True}, "`value` must be a finite number"),
        ({"key": 3}, "`key` must be a name, not 3"),
    ],
)
def test_a_damaged_record_is_named(built, change, named):
    path = built[0] / "b.json"
    write_json(path, json.loads(path.read_text()) | change)
    with pytest.raises(UserError, match=rf"b\.json: {named}"):
        verify.verify(*built)


@given(value=FINITE, other=FINITE, spread=st.none() | st.floats(0, 1e6), accepted=st.none() | st.floats(0, 1e6))
def test_a_difference_never_changes_its_sign_within_its_tolerance(value, other, spread, accepted):
    limit = verify.tolerance(value, "difference", spread, accepted)
    if abs(other - value) <= limit:
        assert math.copysign(1, other) == math.copysign(1, value) or value == other == 0


@given(value=FINITE, spread=st.floats(0, 1e6), accepted=st.none() | st.floats(0, 1e6))
def test_a_tolerance_follows_the_measured_spread(value, spread, accepted):
    """Whatever it was before; with no spread, what was accepted stays, and a new number is to repeat to the bit."""
    assert verify.tolerance(value, "score", spread, accepted) == max(0.05, 2.8 * spread)
    assert verify.tolerance(value, "score", None, accepted) == (0.05 if accepted is None else accepted)


def test_a_sign_that_changed_fails_whatever_was_expected(tmp_path, monkeypatch):
    """0.68 points with a tolerance of 3 hold as a score; as a difference, -0.1 in their place does not."""
    records, expected = tmp_path / "records", tmp_path / "expected.json"
    write_json(expected, {"gain": {"value": 0.68, "tolerance": 3.0}})
    write_number(records, "gain", -0.1, "score")
    assert run_verify((records, expected), monkeypatch) is None
    write_number(records, "gain", -0.1, "difference")
    assert "gain (moved)" in (run_verify((records, expected), monkeypatch) or "")
    write_number(records, "gain", 0.5, "difference")
    assert run_verify((records, expected), monkeypatch) is None


def test_accepting_derives_tolerances(tmp_path):
    records, expected = tmp_path / "records", tmp_path / "expected.json"
    write_json(expected, {"old": {"value": 1.0, "tolerance": 0.4}, "gone": {"value": 1.0, "tolerance": 0.4}})
    write_number(records, "old", 2.0)
    write_number(records, "new", 2.0)
    write_number(records, "score", 20.0, spread=1.0)
    write_number(records, "gain", -0.5, "difference", spread=1.0)
    assert verify.accept(records, expected) == 4
    limits = {key: entry["tolerance"] for key, entry in json.loads(expected.read_text()).items()}
    assert limits == {"old": 0.4, "new": 0.05, "score": 2.8, "gain": 0.25}
    assert all(check.status == "ok" for check in verify.verify(records, expected))


@pytest.mark.parametrize(
    "options, named",
    [
        ({"value": math.nan}, "value must be a finite number, not nan"),
        ({"kind": "sum"}, "kind must be one of score, difference, not 'sum'"),
        ({"spread": -1.0}, "spread must be a finite number of at least 0, not -1"),
        ({"spread": math.nan}, "spread must be"),
    ],
)
def test_what_cannot_be_recorded_is_named(options, named):
    with pytest.raises(UserError, match=f"record a.b: {named}"):
        headlines.record("a.b", **({"value": 1.0} | options))


def test_an_empty_build_does_not_pass(tmp_path, monkeypatch):
    write_json(tmp_path / "expected.json", {})
    assert "nothing was computed" in run_verify((tmp_path / "records", tmp_path / "expected.json"), monkeypatch)


def test_equal_settings_have_equal_hashes():
    assert provenance.config_hash({"a": 1, "b": 2}) == provenance.config_hash({"b": 2, "a": 1})
    assert provenance.config_hash({"a": 1}) != provenance.config_hash({"a": 2})
