"""What is prepared for a GPU, in miniature on a CPU: the whole run, what is carried in parts, and the projections."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cause_lite.backbones import load_backbone
from cause_lite.datasets import photo_parts, photos
from cause_lite.lab import cost, gpu_run, gpu_stages
from cause_lite.lab.recipes import row, rows
from cause_lite.runtime import parallel
from cause_lite.runtime.files import UserError, read_json, write_json

TINY = dataclasses.replace(gpu_run.MINIATURE, rows=("dino-b8-tr",))


@pytest.fixture
def pool(few_scenes) -> photos.Photos:
    """Twelve pictures of one colour each, which survive a JPEG."""
    colours = np.random.default_rng(0).integers(256, size=(12, 1, 1, 3), dtype=np.uint8)
    images = np.broadcast_to(colours, (12, photos.SIDE, photos.SIDE, 3)).copy()
    sources = {source.name: {"kept": 1} for source in photos.SOURCES}
    return photos.Photos(images, np.linspace(0.5, 2, 12, dtype=np.float32), {"sources": sources, "avoided": 3})


# What is carried.


@pytest.mark.parametrize("largest", [10**9, 3000])
def test_photographs_come_out_of_their_parts(pool, largest, tmp_path, monkeypatch):
    """Every one once, with its aspect, in parts no larger than asked for; a part alone is of use."""
    monkeypatch.setenv("CAUSE_CACHE", str(tmp_path / "cache"))
    each = len(photo_parts.encoded(pool.images[0]))
    parts = photo_parts.write_parts(pool, tmp_path / "parts", max(largest, 4 * each))
    assert (len(parts) > 1) is (largest == 3000)
    assert photo_parts.unpack_parts(tmp_path / "parts") == 12
    found = photos.load()
    order = np.argsort(found.aspects)
    assert np.array_equal(found.aspects[order], pool.aspects)
    assert np.abs(found.images[order].astype(int) - pool.images.astype(int)).max() <= 8
    assert found.about["avoided"] == 3
    if len(parts) > 1:  # parts of an earlier call go
        photo_parts.write_parts(pool, tmp_path / "parts")
        assert photo_parts.unpack_parts(tmp_path / "parts") == len(photos.load().images) == 12
        parts = photo_parts.write_parts(pool, tmp_path / "parts", max(largest, 4 * each))
    for path in parts[1:]:
        path.unlink()
    kept = photo_parts.unpack_parts(tmp_path / "parts")
    assert kept == len(np.load(parts[0])["aspects"]) == len(photos.load().images)


def test_parts_that_are_missing_or_damaged_are_named(pool, tmp_path, monkeypatch):
    monkeypatch.setenv("CAUSE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"holds no photos-\*\.npz"):
        photo_parts.unpack_parts(tmp_path)
    path = photo_parts.write_parts(pool, tmp_path)[0]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"photos-00\.npz: is damaged"):
        photo_parts.unpack_parts(tmp_path)


@given(st.binary(max_size=40), st.integers(1, 12))
def test_a_file_is_the_sum_of_its_parts(tmp_path_factory, content, largest):
    folder = tmp_path_factory.mktemp("parts")
    (folder / "state.pt").write_bytes(content)
    parts = photo_parts.split_file(folder / "state.pt", folder, largest)
    assert all(part.stat().st_size <= largest for part in parts)
    (folder / "state.pt").unlink()
    photo_parts.join_parts(folder, folder / "state.pt")
    assert (folder / "state.pt").read_bytes() == content
    (folder / "state.pt").write_bytes(content[:largest])
    photo_parts.split_file(folder / "state.pt", folder, largest)
    photo_parts.join_parts(folder, folder / "state.pt")
    assert (folder / "state.pt").read_bytes() == content[:largest]
    if len(parts) > 1:
        (folder / "state.pt").write_bytes(content)
        photo_parts.split_file(folder / "state.pt", folder, largest)
        parts[0].unlink()
        with pytest.raises(UserError, match=r"numbered from 00 without a gap, found \[1"):
            photo_parts.join_parts(folder, folder / "state.pt")


# The run.


def test_a_miniature_goes_through_everything_and_the_next_one_goes_on(pool, tmp_path, monkeypatch):
    monkeypatch.setenv("CAUSE_CACHE", str(tmp_path / "cache"))
    carried, out = tmp_path / "carried", tmp_path / "out"
    photo_parts.write_parts(pool, carried)
    record = gpu_run.run(out, 0.0, TINY, "cpu", carried, say=lambda line: None)
    assert record["failed"] == {} and read_json(out / gpu_run.RECORD) == record
    stages = record["sections"]["dino-b8-tr"]["stages"]
    assert list(stages) == ["features", "clusterbook", "head", "cluster probe", "linear probe", "outputs"]
    assert all(stage["crops_a_second"] > 0 and len(stage["kernels"]) == gpu_stages.KERNELS for stage in stages.values())
    for name in ("modularity", "contrast"):
        assert record["sections"]["ratios"][name]["difference"] < 1e-4
    assert record["device"] and record["environment"]["torch"] and record["date"]
    assert record["sections"]["reading"]["crops"] == 5 * TINY.photographs
    first = record["sections"]["pretraining"]
    assert load_backbone(str(out)).features(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 64, 24)
    for part in first["parts"]:
        (carried / part).write_bytes((out / part).read_bytes())
    again = gpu_run.pretraining(TINY.recipe, out, "cpu", time.monotonic(), carried)
    assert again["steps"] == first["steps"] + 1


def test_a_section_that_fails_is_noted_and_the_rest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("CAUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu_run, "ratios", lambda plan: 1 / 0)
    monkeypatch.setattr(gpu_run, "measure_row", lambda *rest: {"case": "x"})
    record = gpu_run.run(tmp_path, 0.0, TINY, "cpu", None, say=lambda line: None)
    assert record["failed"]["ratios"].startswith("ZeroDivisionError")
    assert record["failed"]["pretraining"].startswith("UserError: photos: not packed")
    assert record["sections"].keys() == {"reading", "dino-b8-tr", "scaling"}


@pytest.mark.parametrize("plan, options", [(gpu_run.MINIATURE, ["--miniature"]), (gpu_run.FULL, [])])
def test_on_two_gpus_each_process_is_told_which_plan_it_is(monkeypatch, plan, options):
    def launched(command: list[str], **_: object) -> None:
        out = command.index("--out") + 1
        assert "--nproc-per-node=2" in command and command[out + 1 :] == options
        write_json(Path(command[out]) / gpu_run.RECORD, {"stages": {"head": 3.0}})

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(gpu_run.subprocess, "run", launched)
    assert gpu_run.scaling(plan) == {"devices": 2, "stages": {"head": 3.0}}


def test_processes_that_share_a_batch_take_equally_many_steps(monkeypatch):
    """Each measures its own rate, but would wait for ever in a step that the others do not take."""
    monkeypatch.setattr(parallel, "gather_objects", lambda steps: [steps, 2])
    taken: list[int] = []
    found = gpu_stages.measure_stage(taken.append, 4, torch.device("cpu"), gpu_stages.Extent(96, 1e-3, 1))
    assert found["crops"] == 2 * 4 and 1 + 2 in taken and max(taken) <= 3


# The projections.


def stage(rate: float) -> dict:
    return {"crops_a_second": rate, "crops": 20_480}


def test_hours_follow_from_the_rates_of_a_record(tmp_path, monkeypatch):
    """Of a row that was measured: crops over each rate, as often as a fit does each."""
    rates = {
        "features": 500,
        "clusterbook": 4000,
        "head": 800,
        "outputs": 1000,
        "cluster probe": 3e3,
        "linear probe": 2e3,
    }
    section = {"case": "dino-b8-tr", "stages": {name: stage(rate) for name, rate in rates.items()}}
    record = {"device": "a GPU", "date": "2026-01-02", "sections": {"dino-b8-tr": section, "reading": stage(400)}}
    monkeypatch.setattr(cost, "record_path", lambda: tmp_path / "gpu.json")
    bench_basis, bench_hours = cost.basis(), cost.expected_cost(row("cocostuff27/dino-b8-tr")).hours
    write_json(tmp_path / "gpu.json", record)
    found = cost.expected_cost(row("cocostuff27/dino-b8-tr"))
    stored = (100e9 - 5 * 49_629 * 1600 * 90 * 2) / found.feature_bytes  # what outputs leave of the disk
    assert sum(cost.stage_hours(row("cocostuff27/dino-b8-tr")).values()) == pytest.approx(found.hours)
    passes = stored + (1 - stored) * 4  # one epoch of step 1, two of step 2, and one reading for step 3
    each = passes / 400 + 1 / 4000 + 2 / 800 + 1 / 1000 + 5 * (1 / 3e3 + 1 / 2e3)
    assert found.hours == pytest.approx(5 * 49_629 * each / 3600)
    assert found.hours != bench_hours and "640 crops" in bench_basis and "NVIDIA H100" in bench_basis
    assert cost.basis() == "at least 20,480 crops a stage on one a GPU, 2026-01-02"


@pytest.mark.parametrize(
    "backbone, sizes", [("dino-s8", (384, 8)), ("dinov2-b14", (768, 14)), ("dinov3-vits16", (384, 16))]
)
def test_a_backbones_name_says_its_sizes(backbone, sizes):
    assert cost.sizes_of(backbone) == sizes


def test_a_name_without_sizes_is_refused():
    with pytest.raises(UserError, match=r"backbone photos: size unknown; .* as in s16"):
        cost.sizes_of("photos")


def test_projections_grow_with_the_work_and_keep_to_the_disk():
    costs = {of.key: cost.expected_cost(of) for of in rows()}
    assert all(each.hours > 0 or math.isnan(each.hours) for each in costs.values())
    assert all(each.disk_bytes <= 100e9 for each in costs.values())
    assert costs["cocostuff27/dino-b8-tr"].disk_bytes < costs["cocostuff27/dino-b8-tr"].feature_bytes / 6
    assert costs["cocostuff27/dino-b8-tr"].hours > costs["cocostuff27/dino-s8-tr"].hours
    assert torch.tensor([each.memory_bytes for each in costs.values()]).gt(0).all()
