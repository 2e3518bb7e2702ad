"""Pre-training of the small ViT, from a few steps to a backbone that loads."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cause_lite.backbones import load_backbone, pretrain_patches
from cause_lite.backbones.pretrain import RECIPES, pretrain, pretrain_and_export, pretraining_recipe
from cause_lite.backbones.pretrain_patches import PatchPretraining
from cause_lite.cli import main
from cause_lite.runtime.files import UserError, read_json

TINY = dataclasses.replace(pretraining_recipe("camvid", steps=3), grid=8, crops=((32, 4), (64, 4)), window=64, width=32)
CPU = torch.device("cpu")


@pytest.fixture
def scenes(few_scenes, monkeypatch):
    monkeypatch.setattr(pretrain_patches, "load_split", lambda data, split: few_scenes)
    return few_scenes


def test_a_run_that_was_cut_off_resumes_and_exports_a_whole_backbone(one_thread, scenes, tmp_path, monkeypatch):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        advance = PatchPretraining.advance

        def cut_off(run: PatchPretraining) -> None:
            if run.step == 2:
                raise KeyboardInterrupt
            advance(run)

        patched.setattr(PatchPretraining, "advance", cut_off)
        pretrain(PatchPretraining(scenes.images, TINY, CPU), stopped, save_every=1)
    for folder in (stopped, whole):
        pretrain_and_export(TINY, folder)
    assert (stopped / "vit.safetensors").read_bytes() == (whole / "vit.safetensors").read_bytes()
    assert "No label was read" in (whole / "README.md").read_text(encoding="utf-8")
    assert len(read_json(stopped / "vit.json")["curve"]) == 3
    assert load_backbone(str(whole)).features(scenes.images[:2]).shape == (2, 256, 32)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"seed": 1}, r"of another recipe \(seed was 0 and is 1\)"),
        ({"temperature": 0.5}, r"of another recipe \(temperature was 0.1 and is 0.5\)"),
        ({"steps": 4}, r"of another recipe \(steps was 3 and is 4\)"),
        ({"steps": 2}, "has gone on to step 3; ask for as many, or name another folder"),
    ],
)
def test_a_run_is_not_taken_for_one_of_another_recipe(one_thread, scenes, tmp_path, changes, reason):
    pretrain(PatchPretraining(scenes.images, TINY, CPU), tmp_path)
    with pytest.raises(UserError, match=reason):
        pretrain(PatchPretraining(scenes.images, dataclasses.replace(TINY, **changes), CPU), tmp_path)


@pytest.mark.parametrize(
    "state", [[], {}, {"step": 1}, {"step": "one"}, {"step": 3, "recipe": dataclasses.asdict(TINY)}]
)
def test_a_state_that_holds_too_little_is_refused(scenes, tmp_path, state):
    torch.save(state, tmp_path / "pretrain.pt")
    with pytest.raises(UserError, match=r"pretrain\.pt: is of another recipe"):
        pretrain(PatchPretraining(scenes.images, TINY, CPU), tmp_path)


def test_a_state_of_an_earlier_version_goes_on(one_thread, scenes, tmp_path):
    """It called the recipe `config`, and did not tell the number of images."""
    run = PatchPretraining(scenes.images, TINY, CPU)
    run.advance()
    run.save(tmp_path / "pretrain.pt")
    state = torch.load(tmp_path / "pretrain.pt", weights_only=True)
    state["config"] = state.pop("recipe")
    del state["pools"]
    torch.save(state, tmp_path / "pretrain.pt")
    later = PatchPretraining(scenes.images, TINY, CPU)
    for each in (run, later):
        pretrain(each, tmp_path)
    assert later.curve == run.curve and later.step == 3


def test_pretraining_leaves_the_number_of_threads_as_it_was(scenes, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        pretrain_and_export(TINY, tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_run_takes_the_device_that_is_asked_for(scenes, monkeypatch):
    """Everything of a step but the views is on it; torch's `meta`, a device without numbers, stands for a GPU."""
    monkeypatch.setattr(pretrain_patches, "choose_device", torch.device)
    run = TINY.start("meta")
    (loss,) = run.losses()
    assert loss.device == run.device == torch.device("meta")
    assert TINY.start("auto").device == CPU


def test_the_command_makes_a_backbone_and_names_a_device_that_is_not_there(scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(RECIPES, "camvid", TINY)
    words = ["cause-lite", "pretrain", "camvid", "--steps", "2", "--seed", "5", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", words)
    main()
    card = read_json(tmp_path / "out" / "vit.json")
    assert (card["config"]["steps"], card["config"]["seed"], card["device"]) == (2, 5, "cpu")
    assert "Backbone written to" in capsys.readouterr().out
    if not torch.cuda.is_available():
        monkeypatch.setattr("sys.argv", [*words, "--device", "cuda"])
        with pytest.raises(SystemExit, match="--device cuda: this machine has none that torch can use"):
            main()
