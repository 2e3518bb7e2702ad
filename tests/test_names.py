"""A path is a path, and any name can be printed: names that ship, brackets, long names, names that are no text."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_commands import call, model  # noqa: F401

import cause_lite
from cause_lite import checkpoints
from cause_lite.backbones import load_backbone
from cause_lite.runtime.files import UserError, is_path, project_dir, read_json, write_json


def clusters_of(name: str | Path) -> int:
    return len(checkpoints.load(name, with_backbone=False).cluster_probe.centres)


def photograph(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    "name, path", [("photos", False), ("./photos", True), ("~/photos", True), (Path("photos"), True), ("a/b", True)]
)
def test_what_looks_like_a_path_is_one(name, path):
    assert is_path(name) == path


def test_a_run_in_a_folder_of_a_name_that_ships_is_that_run(model, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    own, shipped = clusters_of(model), clusters_of("photos")
    assert own != shipped
    with pytest.raises(UserError, match="no folder there holds"):
        checkpoints.load("./photos")
    shutil.copytree(model, tmp_path / "photos")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("./photos", Path("photos"), "~/photos", str(tmp_path / "photos")):
            assert clusters_of(name) == own
        monkeypatch.chdir(project_dir() / "data" / "segmenters")
        assert clusters_of("photos") == shipped
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="photos: the folder of that name is taken, not the segmenter that ships"):
        assert clusters_of("photos") == own


def test_a_backbone_in_a_folder_of_a_name_that_ships_is_told_apart(model, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "scenes")  # holds a backbone of 32 channels
    for name in ("./scenes", str(tmp_path / "scenes")):
        assert load_backbone(name).dim == 32
    with pytest.raises(UserError, match=r"backbone 'scenes': is the name of one that ships .* write ./scenes for the"):
        load_backbone("scenes")
    assert checkpoints.load(project_dir() / "data" / "segmenters" / "scenes").backbone.dim != 32
    shutil.rmtree(tmp_path / "scenes")
    assert load_backbone("scenes").dim != 32
    with pytest.raises(UserError, match="neither bundled, a folder"):
        load_backbone("./scenes")


BRACKETS, LONG, BYTES = "IMG [edited].png", "word " * 20 + ".png", os.fsdecode(b"caf\xe9.png")


def test_paths_are_printed_as_they_are_one_a_line(model, tmp_path):  # noqa: F811
    """Whatever the names hold, the program does all files, and a pipe gets each output's exact path."""
    names = [BRACKETS, LONG, "set[/01].png", ":smile:.png", "z.png", BYTES]
    for name in names:
        photograph(tmp_path / "in[/x]" / name)
    words = ["segment", tmp_path / "in[/x]", "--model", model, "--out", tmp_path / "out[/b]"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict", "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-m", "cause_lite", *words], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    printed = [Path(os.fsdecode(line)) for line in done.stdout.splitlines()]
    assert len(printed) == 2 * len(names) and all(path.is_file() for path in printed)


def test_a_fit_in_a_folder_of_any_name_is_whole(tmp_path, monkeypatch, capfd):
    folder = tmp_path / "w[/x]" / os.fsdecode(b"caf\xe9")
    for number in range(3):
        photograph(folder / f"{number}.png")
    small = ("data.size=64", "head.epochs=1", "probe.epochs=1", "clusterbook.concepts=16", "backbone=scenes")
    words = ["--head", "mlp", "--clusters", 2, *(word for setting in small for word in ("--set", setting))]
    status, printed = call(monkeypatch, capfd, "fit", "--data", folder, *words, "--out", tmp_path / "run")
    assert status == 0, printed
    assert read_json(tmp_path / "run" / "fit.json")["config"]["data"]["name"] == str(folder)


def test_json_keeps_names_that_are_no_text(tmp_path):
    write_json(tmp_path / "a.json", {"é": BYTES})
    assert read_json(tmp_path / "a.json") == {"é": BYTES}


def test_what_was_decided_about_an_image_is_a_warning(model):  # noqa: F811
    segmenter = cause_lite.load(model)
    deep = np.random.default_rng(0).integers(0, 60_000, (24, 24), np.uint16)
    with pytest.warns(UserWarning, match="0 and|black|percentile|scaled|values"):
        segmenter.segment(deep)
