"""Pre-training, from a few steps to a backbone that loads."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cause_lite.backbones import load_backbone, pretrain
from cause_lite.runtime.files import UserError

TINY = dataclasses.replace(
    pretrain.pretraining_recipe("camvid", steps=3), grid=8, crops=((32, 4), (64, 4)), window=64, width=32
)


@pytest.fixture
def scenes(few_scenes, monkeypatch):
    monkeypatch.setattr(pretrain, "load_split", lambda data, split: few_scenes)
    return few_scenes


def test_a_run_that_was_cut_off_resumes_and_exports_a_whole_backbone(one_thread, scenes, tmp_path, monkeypatch):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        advance = pretrain.Pretraining.advance

        def cut_off(run: pretrain.Pretraining) -> float:
            if run.step == 2:
                raise KeyboardInterrupt
            return advance(run)

        patched.setattr(pretrain.Pretraining, "advance", cut_off)
        pretrain.pretrain(scenes.images, TINY, stopped, save_every=1)
    for folder in (stopped, whole):
        pretrain.pretrain_and_export(TINY, folder)
    assert (stopped / "vit.safetensors").read_bytes() == (whole / "vit.safetensors").read_bytes()
    assert "No label was read" in (whole / "README.md").read_text(encoding="utf-8")
    assert load_backbone(str(whole)).features(scenes.images[:2]).shape == (2, 256, 32)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"temperature": 0.5}, {"steps": 2}, {"steps": 4}])
def test_a_run_is_not_taken_for_one_of_another_recipe(one_thread, scenes, tmp_path, changes):
    pretrain.pretrain(scenes.images, TINY, tmp_path)
    (name, value), *_ = changes.items()
    with pytest.raises(UserError, match=rf"of another recipe \({name} was {getattr(TINY, name)} and is {value}\)"):
        pretrain.pretrain(scenes.images, dataclasses.replace(TINY, **changes), tmp_path)


def test_pretraining_leaves_the_number_of_threads_as_it_was(scenes, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        pretrain.pretrain_and_export(TINY, tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
