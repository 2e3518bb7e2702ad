"""Published rows end to end on the rehearsal's stage: fits, released checkpoints, what is missing, records."""

from __future__ import annotations

import itertools
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from cause_lite.backbones import load_backbone
from cause_lite.commands import experiment
from cause_lite.lab import rehearsal, reproduce
from cause_lite.lab.cost import expected_cost
from cause_lite.lab.recipes import row, rows
from cause_lite.pages import published
from cause_lite.runtime.files import UserError, write_json


@pytest.fixture
def stage(tmp_path, monkeypatch):
    rehearsal.write_stage(tmp_path / "data", {"vit_small_patch8_224.dino", "msn_vit_small_16"})
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CAUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reproduce, "project_dir", lambda: tmp_path)
    return tmp_path


def reproduced(key: str, kind: str = "clean", **options) -> dict:
    patch = load_backbone(row(key).config.backbone).patch
    adapt = partial(rehearsal.miniature, patch=patch)
    return reproduce.reproduce_row(row(key), 0, kind, "cpu", print, adapt=adapt, rehearsed=True, **options)


def test_a_row_is_scored_with_and_without_crf(stage):
    record = reproduced("cocostuff27/msn-s16-tr")
    assert record["rehearsal"] and record["crf"] and record["published"]["miou"] == 34.1
    assert np.array(record["confusion"]).shape == (27, 27)
    for name in ("without_crf", "linear", "linear_matched"):
        assert 0 <= record[name]["miou"] <= 100
    assert record["linear_matched"]["pacc"] >= record["linear"]["pacc"]


@pytest.mark.filterwarnings("ignore:label_flow")
def test_as_released_is_stamped(stage):
    record = reproduced("cityscapes/dino-s8-mlp", "as_released", crf=False)
    assert record["kind"] == "as_released"
    assert record["config"]["probe"]["label_flow"] == "as_released"
    assert record["config"]["optimisation"]["ddp"] == "as_released"


@pytest.mark.parametrize("key", ["cocostuff27/dino-s8-mlp", "cocostuff27/msn-s16-tr"])
def test_a_released_checkpoint_scores_what_its_segmenter_does(stage, key, monkeypatch):
    """A clean fit, written as the authors' files and read back, gives the same label maps.

    Scoring a release resizes a backbone's positions in the authors' form; here both sides use timm's.
    """
    monkeypatch.setattr(reproduce, "load_backbone", lambda name, positions=None: load_backbone(name))
    with pytest.raises(UserError, match=r"segment_(mlp|tr)\.pth.*README of ByungKwanLee"):
        reproduced(key, "released")
    clean = reproduced(key, crf=False)
    config = rehearsal.miniature(row(key).config, load_backbone(row(key).config.backbone).patch)
    rehearsal.write_released(reproduce.fitted(row(key), config, "clean", "cpu"), reproduce.released_files(row(key)))
    released = reproduced(key, "released", crf=False)
    assert released["kind"] == "released"
    for field in ("confusion", "miou", "linear"):
        assert released[field] == clean[field]
    with Image.open(reproduce.record_path(released).with_suffix(".png")) as picture:
        assert picture.width > 500


def test_a_fit_in_the_cache_is_of_the_same_images_and_backbone(tmp_path, monkeypatch):
    monkeypatch.setenv("CAUSE_CACHE", str(tmp_path))
    fits, two, three = [], *(np.zeros((count, 8, 8, 3), np.uint8) for count in (2, 3))
    monkeypatch.setattr(reproduce, "fit_to", lambda config, folder, device: fits.append(folder))
    monkeypatch.setattr(reproduce.checkpoints, "load", lambda folder: None)
    of = row("pascalvoc/dino-s8-mlp")
    for images, weights in ((two, "one"), (three, "one"), (two, "other"), (two, "one")):
        monkeypatch.setattr(reproduce, "load_training", lambda config, images=images: mock.Mock(images=images))
        monkeypatch.setattr(reproduce, "load_backbone", lambda name, w=weights: mock.Mock(fingerprint=lambda: w))
        reproduce.fitted(of, of.config, "clean", "cpu")
    assert len(set(fits)) == 3 and fits[0] == fits[3]


def test_a_row_on_part_of_its_data_is_neither_recorded_nor_drawn(stage, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "_missing_room", lambda row, kind: [])
    monkeypatch.setattr(reproduce, "configured", lambda row, kind, seed: rehearsal.miniature(row.config, 8))
    experiment._reproduce_rows("pascalvoc/dino-s8-mlp", "clean", 1, False, {}, "cpu")
    told = " ".join(capsys.readouterr().out.split())
    assert "not recorded, since pascalvoc/train has " in told and " of 1,464 images" in told
    assert not reproduce.records_dir().exists()


def test_a_row_without_data_is_told_all_that_is_missing(stage, monkeypatch):
    monkeypatch.setenv("CAUSE_DATA", str(stage / "nowhere"))
    with pytest.raises(UserError, match="cannot start; missing: Cityscapes needs an account"):
        experiment._reproduce_rows("cityscapes/dino-s8-tr", "clean", 1, False, {}, "cpu")


def test_everything_missing_is_listed_before_the_start(stage, monkeypatch):
    monkeypatch.setenv("CAUSE_DATA", str(stage / "nowhere"))
    with pytest.raises(UserError, match=r"cannot start; missing: Cityscapes needs an account.*; the authors'"):
        reproduce.reproduce_row(row("cityscapes/dino-s8-tr"), 0, "released", "cpu", print)
    assert not (stage / "cache" / "rows").exists()


def test_room_is_asked_of_a_full_run_and_not_of_a_rehearsal(stage, monkeypatch):
    """A small disk and little memory stop a row at its published size, and no miniature."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: mock.Mock(free=1e9))
    monkeypatch.setattr("psutil.virtual_memory", lambda: mock.Mock(total=1e9))
    with pytest.raises(UserError, match=r"missing: disk: features need 5 GB in .*cache.*; memory: about \d+ GB"):
        reproduce.reproduce_row(row("cocostuff27/dino-s8-mlp"), 0, "clean", "cpu", print)
    assert reproduced("cocostuff27/dino-s8-mlp", crf=False)["rehearsal"]


def test_a_rehearsal_is_never_taken_for_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "project_dir", lambda: tmp_path)
    record = {"rehearsal": True, "row": "coco81/dino-s8-tr", "kind": "clean", "seed": 0, "miou": 99.0}
    reproduce.write_record(record)
    assert list(reproduce.read_records(row(record["row"]))) == []
    assert list(reproduce.read_records(row(record["row"]), rehearsed=True)) == [record]
    write_json(reproduce.records_dir() / record["row"] / "clean-0.json", record)
    with pytest.raises(UserError, match="`rehearsal` must be false"):
        list(reproduce.read_records(row(record["row"])))


def test_a_table_asks_for_what_was_not_run(tmp_path, monkeypatch):
    """Three kinds of run a row, and nothing once each has a record; hours of those whose stages were timed."""
    monkeypatch.setattr(reproduce, "project_dir", lambda: tmp_path)
    asked = published.missing_table("cityscapes")
    assert len(asked) == 3 * len(rows("cityscapes")) and asked["hours a seed"].dropna().gt(0).all()
    assert asked["hours a seed"].isna().equals(asked["command"].str.contains("--as-released"))
    run = {"rehearsal": False, "seed": 0, "miou": 1.0, "pacc": 2.0, "date": "2026-01-02T03:04:05", "device": "cpu"}
    for of, kind in itertools.product(rows("cityscapes"), reproduce.KINDS):
        reproduce.write_record(run | {"row": of.key, "kind": kind})
    assert published.missing_table("cityscapes").empty
    assert set(published.published_table("cityscapes")["our clean run"]) == {"1.0 / 2.0"}
    addresses = published.runs_table("cityscapes")["record"]
    assert addresses.str.endswith("blob/main/data/records/rows/cityscapes/dino-s8-tr/clean-0.json").sum() == 1


def test_expected_costs_grow_as_they_should():
    costs = {r.key: expected_cost(r) for r in rows()}
    small, large = costs["cocostuff27/dino-s8-tr"], costs["cocostuff27/dino-b8-tr"]
    assert small.crops == 5 * 49_629 and small.patches == 1600
    assert large.hours > small.hours > costs["cocostuff27/dino-s8-mlp"].hours
    assert costs["cocostuff27/dinov2-b14-tr"].patches == 23**2
    scored = expected_cost(row("cocostuff27/dino-s8-mlp"), "released")
    assert (scored.crops, scored.patches, scored.feature_bytes) == (2175, 1600, 0)
    assert scored.hours < costs["cocostuff27/dino-s8-mlp"].hours


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2.lvd142m", "vit_small_patch16_dinov3.lvd1689m"])
def test_newer_backbones_cost_no_code(stage, name):
    """Patch size, prefix tokens and normalisation are read off the model."""
    rehearsal.write_weights(name, stage / "data" / "weights")
    backbone = load_backbone(name)
    side = 4 * backbone.patch
    assert backbone.vit.num_prefix_tokens == 5
    assert backbone.features(np.zeros((2, side, side, 3), np.uint8)).shape == (2, 16, rehearsal.WIDTH)


@pytest.mark.parametrize("content", [b"torn", None])
def test_a_weights_file_of_no_use_is_named(stage, content):
    path = stage / "data" / "weights" / "ibot_vit_base_16.pth"
    if content is None:
        torch.save({"state_dict": {"cls_token": torch.zeros(1, 1, 8)}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"ibot_vit_base_16\.pth"):
        load_backbone("ibot_vit_base_16")
    (stage / "data" / "weights" / "vit_base_patch16_224.mae.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="mae"):
        load_backbone("vit_base_patch16_224.mae")
