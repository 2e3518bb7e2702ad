"""Each record of a study was made with the settings, and on the backbone, that its run has now."""

from __future__ import annotations

from datetime import datetime

import pytest

from cause_lite.backbones.loading import bundled_dir
from cause_lite.checkpoints.config_records import read_config
from cause_lite.lab import backbone_seeds, concept_seeds, contexts, machines, photographs, studies
from cause_lite.lab.studies import changed_settings, read_study, records_path
from cause_lite.runtime.files import read_json

STUDIES = {
    ("ablations", "scenes"): studies.ablation_runs,
    ("ablations", "camvid"): studies.ablation_runs,
    ("labels", "scenes"): studies.label_runs,
    ("labels", "camvid"): studies.label_runs,
    (backbone_seeds.STUDY, "scenes"): backbone_seeds.backbone_runs,
    (concept_seeds.STUDY, "scenes"): concept_seeds.concept_runs,
    (machines.STUDY, "scenes"): machines.machine_runs,
    **{
        (module.STUDY, data): runs
        for data in photographs.CENTRES
        for module, runs in (
            (photographs, photographs.photograph_runs),
            (contexts, contexts.context_runs),
        )
    },
}


OTHERS = {
    "labels-camvid-early",  # older runs, scored on test frames, which no command makes now
    "objectives-msrc",  # made once; the commit of each record has the code
    "objectives-camvid",
    "scenes",  # of `reproduce`, as the next
    "camvid",
    "bench-cpu",
    "bench-cuda",
    "torture",
}


def test_every_study_that_ships_is_looked_at():
    shipped = {path.stem for path in records_path("labels", "scenes").parent.glob("*.json")}
    assert shipped == {f"{study}-{data}" for study, data in STUDIES} | OTHERS


@pytest.mark.parametrize("study, data", STUDIES)
def test_records_have_the_settings_of_their_runs(study, data):
    records = read_study(study, data).values()
    runs = list(STUDIES[study, data](data, 1 + max(record["seed"] for record in records)))
    now = {(name_of(study, run.name), run.config.seed, run.config.head.kind): run.config for run in runs}
    changed = []
    for record in records:
        name = name_of(study, record["name"]), record["seed"], read_config(record["config"]).head.kind
        changed += [(name, words) for words in changed_settings(record, now[name])]
    assert not changed


def name_of(study: str, name: str) -> str:
    """Return the name of a run; in the study of machines it is that of this machine, and is no setting."""
    return "" if study == machines.STUDY else name


@pytest.mark.parametrize("study, data", STUDIES)
def test_records_on_the_backbone_of_photographs_are_younger_than_it(study, data):
    shipped = read_json(bundled_dir() / "photos" / "network.json")["date"]
    dates = [
        record["date"]
        for record in read_study(study, data).values()
        if read_config(record["config"]).backbone.partition("?")[0] == "photos"
    ]
    assert all(datetime.fromisoformat(date) > datetime.fromisoformat(shipped) for date in dates)
    assert dates or "photographs" not in study
