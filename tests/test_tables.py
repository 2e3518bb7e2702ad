"""The published rows at a glance are those of the list that ships."""

import csv

from cause_lite.pages import tables
from cause_lite.runtime.files import project_dir


def test_every_published_row_is_there_once_with_its_scores():
    with (project_dir() / "data" / "published.csv").open(encoding="utf-8") as file:
        published = [line for line in csv.DictReader(file) if line["method"].startswith("CAUSE")]
    expected = sorted(f"{line['miou']} / {line['pacc'] or '-'}" for line in published)
    frame = tables.all_rows()
    assert sorted(frame["published"]) == expected
    assert not frame.duplicated(["data set", "row"]).any()
    assert (frame["memory, GB"] > 0).all()
    assert frame["hours"].dropna().gt(0).all()
