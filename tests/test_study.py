"""The study engine: runs of a grid, records that hold each image's confusion, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cause_lite.lab import results, study
from cause_lite.metrics import ClusterMetrics
from cause_lite.runtime.files import UserError

GRID = """
question: Which of three is best?
data: [scenes]
seeds: 2
arms:
  constant: {title: one cluster, method: constant, seeds: 1}
  colour: {title: colour, method: colour_kmeans}
  few: {title: four clusters, method: kmeans, options: {clusters: 4, starts: 1}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, few_scenes) -> Path:
    """A study of its own, on a few scenes; records go to a folder of the test."""
    (tmp_path / "small.yaml").write_text(GRID, encoding="utf-8")
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    monkeypatch.setattr(study, "project_dir", lambda: tmp_path)
    for name in ("load_training", "load_evaluation"):
        monkeypatch.setattr(study, name, lambda *_: few_scenes)
    return tmp_path


counts = arrays.arrays(np.int64, st.tuples(*[st.integers(1, 4)] * 3), elements=st.integers(0, 2**32 - 1))


@given(counts)
def test_counts_are_unpacked_as_they_were_packed(confusions):
    record = json.loads(json.dumps({"confusions": study.packed(confusions)}))
    assert np.array_equal(study.unpacked(record), confusions)


@given(st.integers(0, 1000), st.integers(1, 3), st.integers(1, 4))
def test_counts_of_images_add_up_to_those_of_the_metrics(seed, images, clusters):
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(clusters, (images, 5, 6), generator=generator)
    truth = torch.randint(-1, 4, (images, 5, 6), generator=generator)
    each = study.counted(found, truth, clusters, 3)
    assert torch.equal(each.sum(0), ClusterMetrics(3, clusters).update(found, truth).confusion)
    alone = [study.counted(found[i : i + 1], truth[i : i + 1], clusters, 3)[0] for i in range(images)]
    assert torch.equal(each, torch.stack(alone))


def test_a_study_does_what_is_missing_seed_by_seed(folder):
    first = [key for key, _ in study.run_study("small", "scenes", seeds=1)]
    assert first == ["constant/0", "colour/0", "few/0"]
    assert [key for key, _ in study.run_study("small", "scenes")] == ["colour/1", "few/1"]
    assert not list(study.run_study("small", "scenes"))
    records = study.read_records("small", "scenes")
    shapes = {key: study.unpacked(record).shape for key, record in records.items()}
    assert shapes["constant/0"] == (24, 1, 16) and shapes["few/1"] == (24, 4, 16) and shapes["colour/0"] == (24, 16, 16)
    table = results.summary(results.frame("small", "scenes"))
    assert list(table.index) == ["one cluster", "colour", "four clusters"] and list(table["seeds"]) == [1, 2, 2]


def test_merging_clusters_is_seen(folder):
    """One cluster for everything has the pixel accuracy of the largest class, and no information."""
    dict(study.run_study("small", "scenes", seeds=1))
    scores = results.frame("small", "scenes").set_index("arm").loc["constant"]
    assert scores.pacc > 5 and scores.effective == 1 and scores.information == pytest.approx(0, abs=1e-9)


def test_a_record_of_other_settings_is_refused(folder):
    dict(study.run_study("small", "scenes", seeds=1))
    (folder / "small.yaml").write_text(GRID.replace("starts: 1", "starts: 2"), encoding="utf-8")
    with pytest.raises(UserError, match=r"few/0 was made with other settings \(options\)"):
        list(study.run_study("small", "scenes", seeds=1))


def test_a_record_without_the_confusion_of_each_image_is_refused(folder):
    path = study.records_path("small", "scenes")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"records": {"colour/0": {"confusion": [[1]], "seed": 0}}}), encoding="utf-8")
    with pytest.raises(UserError, match=r"colour/0 .*lacks the confusion of each image"):
        study.read_records("small", "scenes")


@pytest.mark.parametrize(
    "text, message",
    [
        (GRID.replace("seeds: 2", "seeds: none"), "seeds: must be a valid integer"),
        (GRID.replace("method: constant", "methods: constant"), "unknown setting 'arms.constant.methods'"),
        (GRID + "primary: x\n", "unknown setting 'primary'"),
    ],
)
def test_a_mistake_in_a_grid_names_file_and_field(folder, text, message):
    (folder / "small.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"small.yaml: .*{message}"):
        study.read_study("small")


def test_what_a_study_does_not_have_is_named(folder):
    with pytest.raises(UserError, match="no study named 'big'; must be one of small"):
        study.read_study("big")
    with pytest.raises(UserError, match="no data set 'msrc' in this study; must be one of scenes"):
        list(study.runs_of(study.read_study("small"), "msrc"))


@pytest.mark.parametrize("name", study.studies())
def test_every_study_names_methods_and_settings_that_there_are(name):
    from cause_lite.methods import find

    grid = study.read_study(name)
    for data in grid.data:
        for run in study.runs_of(grid, data):
            find(run.arm.method).options.model_validate(run.arm.options, strict=False)
            assert run.config.data.name == data


@pytest.mark.parametrize("data", ["scenes", "camvid"])
def test_every_choice_changes_something(data):
    runs = {run.arm_name: run for run in study.runs_of(study.read_study("choices"), data, 1)}
    assert len(runs) >= 30
    for name, run in runs.items():
        base = runs[f"{run.arm.head}-recipe"]
        assert name == base.arm_name or run.config != base.config


@pytest.mark.parametrize("name", study.studies())
def test_records_were_made_with_the_settings_of_their_runs(name):
    grid = study.read_study(name)
    for data in grid.data:
        records = study.read_records(name, data)
        for run in study.runs_of(grid.replace({"arithmetics": False}), data):
            for key, record in records.items():
                if key == run.key or key.startswith(run.key + "/"):
                    study.check_settings(record, run, study.records_path(name, data))
