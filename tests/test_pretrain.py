"""Pre-training, from a few steps to a backbone that loads."""

from __future__ import annotations

import dataclasses

from cause_lite.backbones import load_backbone, pretrain


def test_a_run_of_few_steps_resumes_and_exports_a_whole_backbone(one_thread, few_scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "load_split", lambda data, split: few_scenes)
    config = dataclasses.replace(
        pretrain.pretraining_recipe("camvid", steps=3), grid=8, crops=((32, 4), (64, 4)), window=64, width=32
    )
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    pretrain.pretrain(few_scenes.images, dataclasses.replace(config, steps=2), stopped)
    for folder in (stopped, whole):
        pretrain.pretrain_and_export(config, folder)
    assert (stopped / "vit.safetensors").read_bytes() == (whole / "vit.safetensors").read_bytes()
    assert "No label was read" in (whole / "README.md").read_text(encoding="utf-8")
    assert load_backbone(str(whole)).features(few_scenes.images[:2]).shape == (2, 256, 32)
