"""Headline numbers: what a page shows, and a verification that names what moved, is missing or is new."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cause_lite.cli import main
from cause_lite.pages import extension, headlines, verify
from cause_lite.runtime import provenance
from cause_lite.runtime.files import UserError, read_json, write_json

THEN = {"torch": "2.6", "python": "3.11"}
GPU = {"accelerator": "a GPU"}


def number(key: str, value: float, digits: int = 1, spread: float | None = None, environment: dict | None = None):
    about = {"unit": "", "seed": None, "config_hash": "x", "commit": "c", "environment": environment or THEN}
    return verify.Number(key=key, value=value, digits=digits, spread=spread, **about)


def write_number(folder, *about, **more) -> None:
    one = number(*about, **more)
    write_json(folder / f"{one.key}.json", one.model_dump())


@pytest.fixture
def built(tmp_path):
    """Three computed numbers, and the expectation that they meet."""
    records, expected = tmp_path / "records", tmp_path / "expected.json"
    for key, value in {"a.x": 1.0, "b": 2.0, "c": 3.0}.items():
        write_number(records, key, value)
    numbers = {key: {"value": value, "digits": 1} for key, value in {"a.x": 1.05, "b": 2.0, "c": 3.0}.items()}
    write_json(expected, {"environment": THEN, "numbers": numbers})
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


def test_numbers_that_are_equal_to_the_last_printed_digit_pass(built, monkeypatch):
    assert run_verify(built, monkeypatch) is None


@pytest.mark.parametrize("change, status", [("value", "moved"), ("remove", "new"), ("add", "missing")])
def test_a_number_that_does_not_hold_fails_and_is_named(built, monkeypatch, change, status):
    content = json.loads(built[1].read_text())
    before, numbers = built[1].read_bytes(), content["numbers"]
    if change == "value":
        numbers["b"]["value"] = 2.2
    elif change == "remove":
        del numbers["b"]
    else:
        numbers["d"] = {"value": 0, "digits": 1}
    write_json(built[1], content)
    error = run_verify(built, monkeypatch)
    assert error and f"{'d' if change == 'add' else 'b'} ({status})" in error
    built[1].write_bytes(before)
    assert run_verify(built, monkeypatch) is None


def test_what_moved_is_told_with_both_values_and_what_differs_in_the_environment(built, monkeypatch):
    write_number(built[0], "b", 2.2, environment={"torch": "2.7", "python": "3.11"})
    error = run_verify(built, monkeypatch)
    assert "1 of 3 numbers do not hold" in error
    assert "b (moved): 2.00 in the record, 2.20 in this build; allowed: 0.05" in error
    assert "torch: 2.6 in the record, 2.7 in this build" in error and "python" not in error


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.integers(0, 3))
def test_a_number_holds_where_it_is_off_by_half_of_its_last_printed_digit(value, other, digits):
    wanted = verify.Expected(environment={}, numbers={"a": {"value": value, "digits": digits}})
    check = verify._checked("a", wanted, number("a", other, digits))
    assert (check.status == "ok") == (abs(other - value) <= 0.5 * 10**-digits * (1 + 1e-9))
    if check.status == "ok" and abs(value) >= 10**-digits:
        assert math.copysign(1, value) == math.copysign(1, other)


@given(spread=st.none() | st.floats(0, 1e3), gpu=st.booleans(), digits=st.integers(0, 3))
def test_only_what_a_gpu_computes_may_be_further_off(spread, gpu, digits):
    allowed, computed_by = verify.allowance(number("a", 1.0, digits, spread, GPU if gpu else None))
    half = 0.5 * 10**-digits
    assert allowed == (max(half, 2.8 * (spread or 0)) if gpu else half)
    assert (computed_by is not None) == (allowed > half)


def test_a_wider_allowance_is_said(built, monkeypatch):
    write_number(built[0], "b", 2.2, spread=1.0, environment=THEN | GPU)
    assert run_verify(built, monkeypatch) is None
    told = {check.key: check.told() for check in verify.verify(*built)}
    assert told["b"].endswith("allowed: 2.80, since a GPU computed it")
    assert told["c"].endswith("allowed: 0.05")


DAMAGED = [
    "",
    "{",
    "[]",
    '{"a": 1}',
    '{"environment": {}, "numbers": {"a": 1}}',
    '{"environment": {}, "numbers": {"a": {"value": NaN, "digits": 1}}}',
    '{"environment": {}, "numbers": {"a": {"value": 1, "digits": -1}}}',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_expectation_is_named(built, text):
    built[1].write_text(text)
    with pytest.raises(UserError, match=r"expected\.json"):
        verify.verify(*built)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"digits": 1.5}, "`digits`: .* valid integer, not 1.5"),
        ({"spread": -1}, "`spread`: .* greater than or equal to 0, not -1"),
        ({"spread": "wide"}, "`spread`: .* valid number, not 'wide'"),
        ({"value": True}, "`value`: .* valid number, not True"),
        ({"key": 3}, "`key`: .* valid string, not 3"),
    ],
)
def test_a_damaged_record_is_named(built, change, named):
    path = built[0] / "b.json"
    write_json(path, json.loads(path.read_text()) | change)
    with pytest.raises(UserError, match=rf"b\.json: {named}; build the book again"):
        verify.verify(*built)


def test_accepting_writes_values_digits_and_environment(built):
    records, expected = built
    write_number(records, "b", 2.26, 2)
    (records / "c.json").unlink()
    assert verify.accept(records, expected) == 2
    numbers = {"a.x": {"value": 1.0, "digits": 1}, "b": {"value": 2.26, "digits": 2}}
    assert read_json(expected) == {"environment": THEN, "numbers": numbers}
    assert all(check.status == "ok" for check in verify.verify(records, expected))


@pytest.mark.parametrize(
    "options, named",
    [
        ({"value": math.nan}, "`value`: .* finite number, not nan"),
        ({"digits": -1}, "`digits`: .*, not -1"),
        ({"spread": -1.0}, "`spread`: .*, not -1.0"),
        ({"spread": math.nan}, "`spread`: .*, not nan"),
    ],
)
def test_what_cannot_be_recorded_is_named(options, named):
    with pytest.raises(UserError, match=f"record a.b: {named}"):
        headlines.record("a.b", **({"value": 1.0} | options))


def test_a_page_says_which_of_its_numbers_moved(built, monkeypatch):
    write_number(built[0], "b", 2.2, environment=THEN | {"torch": "<2.7>"})
    write_number(built[0], "c", 4.0)
    monkeypatch.setattr(verify, "records_dir", lambda: built[0])
    monkeypatch.setattr(verify, "expected_path", lambda: built[1])
    extension._moved.cache_clear()
    note = extension.moved_note(["a.x", "b"])
    assert all(text in note for text in ("<td>b</td>", "<td>2.00</td>", "<td>2.20</td>", "torch: 2.6 in the record"))
    assert "<td>c</td>" not in note and "<2.7>" not in note
    assert extension.moved_note(["a.x"]) == ""
    extension._moved.cache_clear()


def test_an_empty_build_does_not_pass(tmp_path, monkeypatch):
    write_json(tmp_path / "expected.json", {"environment": {}, "numbers": {}})
    assert "nothing was computed" in run_verify((tmp_path / "records", tmp_path / "expected.json"), monkeypatch)


def test_equal_settings_have_equal_hashes():
    assert provenance.config_hash({"a": 1, "b": 2}) == provenance.config_hash({"b": 2, "a": 1})
    assert provenance.config_hash({"a": 1}) != provenance.config_hash({"a": 2})
