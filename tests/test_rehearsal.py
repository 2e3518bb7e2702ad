"""Every published row is run, from its official files to a record."""

from __future__ import annotations

import numpy as np

from cause_lite.lab import reproduce
from cause_lite.lab.recipes import rows


def test_every_row_runs(tmp_path, monkeypatch):
    """By the rehearsal itself, as a clean fit without CRF and picture: the other kinds take most of its time."""
    score = reproduce.score_segmenter
    monkeypatch.setattr(reproduce, "project_dir", lambda: tmp_path)
    monkeypatch.setattr(reproduce, "KINDS", {"clean": reproduce.KINDS["clean"]})
    monkeypatch.setattr(reproduce, "_draw", lambda *_: None)

    def without_crf(segmenter: object, config: object, crf: bool) -> dict:
        scores = score(segmenter, config, False)
        return scores | {"crf": scores["cluster"]}

    monkeypatch.setattr(reproduce, "score_segmenter", without_crf)
    said: list[str] = []
    records = list(reproduce.rehearse(said.append))
    assert [(record["row"], record["kind"]) for record in records] == [(row.key, "clean") for row in rows()]
    assert said[0].startswith(f"{len(rows())} rows went through")
    for row in rows():
        (record,) = reproduce.read_records(row, rehearsed=True)
        assert record["published"] == row.published and np.sum(record["confusion"]) > 0
        assert record["config"]["backbone"] == row.config.backbone.name
        assert record["config"]["head"]["kind"] == row.config.head.kind
    assert not any(list(reproduce.read_records(row)) for row in rows())
