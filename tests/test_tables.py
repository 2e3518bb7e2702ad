"""Scores and differences are told in one way; the published rows at a glance are those of the list that ships."""

import csv
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cause_lite.pages import published, tables
from cause_lite.runtime.files import project_dir


def test_every_published_row_is_there_once_with_its_scores():
    with (project_dir() / "data" / "published.csv").open(encoding="utf-8") as file:
        rows = [line for line in csv.DictReader(file) if line["method"].startswith("CAUSE")]
    expected = sorted(f"{line['miou']} / {line['pacc'] or '-'}" for line in rows)
    frame = published.all_rows()
    assert sorted(frame["published"]) == expected
    assert not frame.duplicated(["data set", "row"]).any()
    assert (frame["memory, GB"] > 0).all()
    assert frame["hours"].dropna().gt(0).all()


@given(st.floats(-100, 100))
def test_a_difference_keeps_its_sign_unless_it_is_zero(value):
    text = tables.signed(value)
    assert abs(float(text) - value) <= 0.05 + 1e-9
    if abs(value) >= 1e-4:
        assert text[0] == ("-" if value < 0 else "+") and float(text) * value > 0
    assert abs(value) < 0.05 or len(text.partition(".")[2]) == 1


@pytest.mark.parametrize(
    "value, text", [(0.0, "0.0"), (-0.0, "0.0"), (-0.004, "-0.004"), (0.049, "+0.05"), (-0.051, "-0.1"), (1e-9, "0.0")]
)
def test_a_difference_near_zero(value, text):
    assert tables.signed(value) == text


@pytest.mark.parametrize(
    "seeds, finding, text",
    [(5, True, "-0.03 (-0.04 to -0.01)*"), (3, False, "-0.03 (-0.04 to -0.01, 3 seeds)"), (1, False, "-0.03 (1 seed)")],
)
def test_a_difference_names_few_seeds_and_marks_a_finding(seeds, finding, text):
    row = SimpleNamespace(difference=-0.03, low=-0.044, high=-0.01, seeds=seeds, finding=finding)
    assert tables.difference(row).replace(tables.NO_BREAK, " ") == text


def test_differences_of_one_label_stand_in_one_line():
    line = {"low": 1.0, "high": 3.0, "seeds": 5, "finding": False, "data": "msrc", "backbone": "photos"}
    rows = pd.DataFrame([line | {"difference": d, "score": s} for d, s in ((2.0, "mIoU"), (1.5, "pixel accuracy"))])
    told = tables.difference_list(rows, "{data}, `{backbone}`").replace(tables.NO_BREAK, " ")
    assert told == ("* MSRC, 21 classes, `photos`: +2.0 (+1.0 to +3.0) mIoU and +1.5 (+1.0 to +3.0) pixel accuracy")
