"""Verification names what moved, what is missing and what is new."""

from __future__ import annotations

import json

import pytest

from cause_lite.cli import main
from cause_lite.pages import headlines
from cause_lite.runtime import provenance
from cause_lite.runtime.files import UserError, write_json


@pytest.fixture
def built(tmp_path):
    """Three computed numbers, and the expectation that they meet."""
    records, expected = tmp_path / "records", tmp_path / "expected.json"
    for key, value in {"a.x": 1.0, "b": 2.0, "c": 3.0}.items():
        entry = dict.fromkeys(headlines.FIELDS) | {"key": key, "value": value}
        write_json(records / f"{key}.json", entry)
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
        headlines.verify(*built)


def test_an_empty_build_does_not_pass(tmp_path, monkeypatch):
    write_json(tmp_path / "expected.json", {})
    assert "nothing was computed" in run_verify((tmp_path / "records", tmp_path / "expected.json"), monkeypatch)


def test_equal_settings_have_equal_hashes():
    assert provenance.config_hash({"a": 1, "b": 2}) == provenance.config_hash({"b": 2, "a": 1})
    assert provenance.config_hash({"a": 1}) != provenance.config_hash({"a": 2})
