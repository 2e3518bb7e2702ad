"""The three steps together: the same seed gives the same bytes, and labels change no prediction."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from cause_lite import checkpoints
from cause_lite.backbones import loading
from cause_lite.backbones.feature_store import cached_features
from cause_lite.evaluate import evaluate
from cause_lite.lab import runs
from cause_lite.lab.recipes import recipe
from cause_lite.methods.as_released import fit
from cause_lite.runtime.files import UserError, write_json

HEADS = pytest.mark.parametrize("head", ["mlp", "tr"])


def folder_hash(folder) -> str:
    return hashlib.sha256((folder / "segmenter.safetensors").read_bytes()).hexdigest()


@HEADS
def test_the_same_seed_gives_the_same_bytes(quick, few_scenes, small_backbone, tmp_path, head):
    config = quick.replace({"head.kind": head})
    for name in ("first", "second"):
        checkpoints.save(fit(config, few_scenes, small_backbone).segmenter, tmp_path / name)
    assert folder_hash(tmp_path / "first") == folder_hash(tmp_path / "second")
    other = fit(config.replace({"seed": 1}), few_scenes, small_backbone)
    checkpoints.save(other.segmenter, tmp_path / "other")
    assert folder_hash(tmp_path / "other") != folder_hash(tmp_path / "first")


@HEADS
def test_labels_change_no_prediction_but_ruin_the_linear_probe(quick, few_scenes, small_backbone, head):
    config = quick.replace({"head.kind": head, "probe.epochs": 30})
    rng = np.random.default_rng(0)
    permuted = few_scenes.labels[rng.permutation(len(few_scenes))]
    noise = rng.integers(0, len(few_scenes.classes), few_scenes.labels.shape).astype(np.int16)
    features = cached_features(small_backbone, few_scenes.images, "Features")
    predictions, linear = [], []
    for labels in (few_scenes.labels, permuted, noise, None):
        segmenter = fit(config, few_scenes.with_labels(labels), small_backbone).segmenter
        predictions.append(
            segmenter.similarities(segmenter.segment_features(features[:].float()), (128, 128)).argmax(1)
        )
        scores = evaluate(segmenter, features[:].float(), None, few_scenes.labels, len(few_scenes.classes))
        linear.append(scores["linear"].confusion.diagonal().sum() / scores["linear"].confusion.sum())
    for other in predictions[1:]:
        assert torch.equal(predictions[0], other)
    assert linear[0] > linear[2] + 0.1  # true labels teach the diagnostic; noise does not


@HEADS
def test_saving_and_loading_is_exact(quick, few_scenes, small_backbone, tmp_path, head):
    fitted = fit(quick.replace({"head.kind": head}), few_scenes, small_backbone).segmenter
    checkpoints.save(fitted, tmp_path)
    loaded = checkpoints.load(tmp_path)
    weights = {k: v for k, v in fitted.state_dict().items() if not k.startswith("backbone.")}
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in weights.items())
    assert loaded.classes == fitted.classes


def test_a_damaged_segmenter_is_named(quick, few_scenes, small_backbone, tmp_path):
    checkpoints.save(fit(quick.replace({"head.kind": "mlp"}), few_scenes, small_backbone).segmenter, tmp_path)
    weights = tmp_path / "segmenter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"segmenter\.safetensors"):
        checkpoints.load(tmp_path)


def test_the_transformer_head_runs_at_another_resolution(quick, few_scenes, small_backbone):
    segmenter = fit(quick.replace({"head.kind": "tr"}), few_scenes, small_backbone).segmenter
    with pytest.warns(UserWarning, match="trained on 256 patches and runs on 64"):
        assert segmenter.segment_features(torch.randn(2, 64, 32)).shape == (2, quick.head.reduced_dim, 8, 8)


def test_an_image_of_any_shape_is_segmented_at_its_own_size(quick, few_scenes, small_backbone):
    segmenter = fit(quick.replace({"head.kind": "mlp"}), few_scenes, small_backbone).segmenter
    for shape in [(1, 1, 3), (7, 300, 3), (128, 128, 3)]:
        labels = segmenter.segment(np.full(shape, 120, dtype=np.uint8))
        assert labels.shape == shape[:2] and labels.max() < len(few_scenes.classes)


def test_a_pickle_is_refused(tmp_path):
    """A file that would run code when unpickled is named and not loaded."""
    import os
    import pickle

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    (tmp_path / "segment.pth").write_bytes(pickle.dumps(Trap()))
    np.save(tmp_path / "modular.npy", np.zeros((4, 3), dtype=np.float32))
    with pytest.raises(UserError, match=r"segment\.pth"):
        checkpoints.load_released(tmp_path / "segment.pth", tmp_path / "segment.pth", tmp_path / "modular.npy")
    assert not (tmp_path / "sprung").exists()


def test_a_fit_in_the_cache_is_not_taken_for_one_on_a_backbone_trained_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("CAUSE_CACHE", str(tmp_path))
    folders = []
    monkeypatch.setattr(runs, "fit_to", lambda config, folder: folders.append(folder))
    config = recipe("scenes", "mlp", 0, changes={"backbone": "mine"})
    write_json(tmp_path / "bundled" / "mine" / "vit.json", {"what": "a card whose weights do not ship"})
    monkeypatch.setattr(loading, "bundled_dir", lambda: tmp_path / "bundled")
    trained = tmp_path / "backbones" / "mine" / "vit.safetensors"
    trained.parent.mkdir(parents=True)
    write_json(trained.with_suffix(".json"), {"context": 3, "date": "2026-01-01"})
    for weights in (b"one", b"another", b"one"):
        trained.write_bytes(weights)
        runs.fitted_run(config)
    write_json(trained.with_suffix(".json"), {"context": 3, "date": "2026-01-02"})
    runs.fitted_run(config)
    write_json(trained.with_suffix(".json"), {"context": 0, "date": "2026-01-02"})
    runs.fitted_run(config)
    monkeypatch.setattr(runs, "this_device", lambda: "another processor")
    runs.fitted_run(config)
    assert folders[0] == folders[2] == folders[3] and len(set(folders)) == 4
