"""The audit tells a clean fit from one in which labels train the head, by its graph and by its bytes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import quick_config

from cause_lite.head import MLPHead, TRHead
from cause_lite.lab import studies
from cause_lite.lab.audit import audit, leaves
from cause_lite.lab.label_flow import fit
from cause_lite.runtime.files import UserError

HEADS = pytest.mark.parametrize("head, tensors", [("mlp", 6), ("tr", 25)])


@HEADS
def test_the_clean_flow_reaches_the_diagnostic_alone(few_scenes, small_backbone, head, tensors):
    found = audit(quick_config({"head.kind": head}), few_scenes, small_backbone)
    assert found.clean and found.same_file and found.pixels == 0
    assert set(found.reached) == {"linear_probe.classify.weight", "linear_probe.classify.bias"} == set(found.changed)


@HEADS
def test_the_released_flow_reaches_the_whole_head(few_scenes, small_backbone, head, tensors):
    """Every tensor of the head, as many as the release's: 6 in MLP, 25 in TR."""
    found = audit(quick_config({"head.kind": head, "probe.label_flow": "as_released"}), few_scenes, small_backbone)
    assert not found.clean and not found.same_file and found.pixels > 0
    reached = [name for name in found.reached if name.startswith("head.")]
    assert len(reached) == tensors
    assert {name for name in found.changed if name.startswith("head.")} == set(reached)
    assert "cluster_probe.centres" not in found.reached  # it follows the head, not the labels


def test_the_released_flow_warns_and_needs_labels(few_scenes, small_backbone):
    config = quick_config({"head.kind": "mlp", "probe.label_flow": "as_released"})
    with pytest.warns(UserWarning, match="labels train the head"):
        fit(config, few_scenes, small_backbone)
    with pytest.raises(UserError, match="needs labels"):
        fit(config, few_scenes.with_labels(None), small_backbone)


@pytest.mark.filterwarnings("ignore:label_flow")
def test_no_epochs_of_step_3_leave_the_head_as_it_was(few_scenes, small_backbone):
    """With none, as released equals clean: the flow acts in step 3 and nowhere else."""
    heads = []
    for flow in ("clean", "as_released"):
        config = quick_config({"head.kind": "mlp", "probe.epochs": 0, "probe.label_flow": flow})
        heads.append(fit(config, few_scenes, small_backbone).segmenter.head.state_dict())
    assert all(torch.equal(heads[0][name], value) for name, value in heads[1].items())


def test_an_audit_without_labels_or_of_equal_labels_is_refused(few_scenes, small_backbone):
    with pytest.raises(UserError, match="no labels"):
        audit(quick_config({"head.kind": "mlp"}), few_scenes.with_labels(None), small_backbone)
    same = np.zeros_like(few_scenes.labels)
    with pytest.raises(UserError, match="changes nothing"):
        audit(quick_config({"head.kind": "mlp"}), few_scenes.with_labels(same), small_backbone)


def test_leaves_are_the_parameters_a_loss_depends_on():
    a, b, c = (torch.nn.Parameter(torch.randn(2)) for _ in range(3))
    found = {id(leaf) for leaf in leaves((a * b.detach() + c.exp()).sum())}
    assert found == {id(a), id(c)}


def test_relabelling_keeps_what_it_says():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (20, 4, 4)).astype(np.int16)
    images = studies.permuted_images(labels, np.random.default_rng(1))
    assert sorted(map(bytes, images)) == sorted(map(bytes, labels)) and not np.array_equal(images, labels)
    pixels = studies.permuted_pixels(labels, np.random.default_rng(1))
    assert not np.array_equal(pixels, images)
    assert np.array_equal(np.sort(pixels.reshape(20, -1)), np.sort(images.reshape(20, -1)))
    few = studies.keep(0.1)(labels, np.random.default_rng(1))
    assert ((few != -1).any(axis=(1, 2))).sum() == 2


def test_differences_are_paired_by_seed():
    records = {}
    for seed, base in enumerate((10.0, 20.0, 30.0)):
        for name, gain in (("clean", 0.0), ("other", 1.0 + 0.1 * seed)):
            records[f"{name}/{seed}"] = {
                "method": "CAUSE-MLP", "name": name, "title": name, "seed": seed, "miou": base + gain,
            }  # fmt: skip
    table = studies.paired(records, "clean").set_index("name")
    assert table.loc["clean", "difference"] == 0
    other = table.loc["other"]
    assert other["difference"] == pytest.approx(1.1) and 1.0 <= other["low"] < 1.1 < other["high"] <= 1.2
    assert isinstance(table, pd.DataFrame) and other["seeds"] == 3


def test_a_study_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "project_dir", lambda: tmp_path)
    done = []

    def work(number: int) -> dict:
        done.append(number)
        return {"miou": float(number)}

    config = quick_config({"head.kind": "mlp"})
    runs = [studies.Run(str(n), f"run {n}", config.replace({"seed": n}), lambda n=n: work(n)) for n in range(3)]
    assert [key for key, _ in studies.run_study("ablations", "scenes", iter(runs[:2]))] == ["mlp/0/0", "mlp/1/1"]
    assert [key for key, _ in studies.run_study("ablations", "scenes", iter(runs))] == ["mlp/2/2"]
    assert done == [0, 1, 2] and len(studies.read_study("ablations", "scenes")) == 3


def test_heads_have_as_many_tensors_as_released():
    assert len(list(MLPHead(8, 4).parameters())) == 6
    assert len(list(TRHead(8, 4, 16, torch.randn(3, 8)).parameters())) == 25
