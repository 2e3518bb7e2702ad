"""The audit tells a clean fit from one that labels have a way into, by the losses' graphs and by the bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import quick_config
from PIL import Image
from test_commands import call
from user_inputs import classes, labelled_folder

from cause_lite.head import MLPHead, TRHead
from cause_lite.lab.audit import audit, labelled_leaves, leaves
from cause_lite.methods.as_released import fit
from cause_lite.probe import LinearProbe, labelled_loss
from cause_lite.runtime.files import UserError

HEADS = pytest.mark.parametrize("head, tensors", [("mlp", 6), ("tr", 25)])
DIAGNOSTIC = {"linear_probe.classify.weight", "linear_probe.classify.bias"}


@HEADS
@pytest.mark.parametrize("flow", ["clean", "detached"])
def test_a_flow_without_a_way_reaches_the_diagnostic_alone(few_scenes, small_backbone, head, tensors, flow):
    found = audit(quick_config({"head.kind": head, "probe.label_flow": flow}), few_scenes, small_backbone)
    assert found.clean and found.same_file and found.pixels == 0
    assert set(found.reached) == DIAGNOSTIC == set(found.changed)


@HEADS
def test_the_released_flow_reaches_the_whole_head(few_scenes, small_backbone, head, tensors):
    """Every tensor of the head, as many as the release's: 6 in MLP, 25 in TR."""
    found = audit(quick_config({"head.kind": head, "probe.label_flow": "as_released"}), few_scenes, small_backbone)
    assert not found.clean and not found.same_file and found.pixels > 0
    reached = [name for name in found.reached if name.startswith("head.")]
    assert len(reached) == tensors
    assert {name for name in found.changed if name.startswith("head.")} == set(reached)
    assert "cluster_probe.centres" not in found.reached  # it follows the head, not the labels


@HEADS
def test_labels_in_the_clip_show_in_the_bytes_and_not_in_the_graph(few_scenes, small_backbone, head, tensors):
    settings = {"head.kind": head, "head.clip_with_labels": True, "head.clip": 0.1}
    found = audit(quick_config(settings), few_scenes, small_backbone)
    assert set(found.reached) == DIAGNOSTIC
    assert not found.clean and not found.same_file
    assert len([name for name in found.changed if name.startswith("head.") and name != "head.codebook"]) == tensors


@pytest.mark.filterwarnings("ignore:label_flow")
@HEADS
def test_labels_in_a_clip_that_never_bites_change_nothing(few_scenes, small_backbone, head, tensors):
    """The arm draws what the clean fit draws, so the two differ in the scale of the steps alone."""
    heads = []
    for changes in ({}, {"head.clip_with_labels": True}):
        config = quick_config({"head.kind": head, "head.clip": 1e6} | changes)
        heads.append(fit(config, few_scenes, small_backbone).segmenter.head.state_dict())
    assert all(torch.equal(heads[0][name], value) for name, value in heads[1].items())


def test_ways_that_use_labels_warn_and_need_them(few_scenes, small_backbone):
    for changes in ({"probe.label_flow": "as_released"}, {"head.clip_with_labels": True}):
        config = quick_config({"head.kind": "mlp"} | changes)
        with pytest.warns(UserWarning, match="labels reach what predicts"):
            fit(config, few_scenes, small_backbone)
        with pytest.raises(UserError, match="needs labels"):
            fit(config, few_scenes.with_labels(None), small_backbone)


@pytest.mark.filterwarnings("error:label_flow")
def test_the_detached_loop_leaves_the_head_as_step_2_made_it(few_scenes, small_backbone):
    heads = []
    for flow in ("clean", "detached"):
        config = quick_config({"head.kind": "mlp", "probe.label_flow": flow})
        heads.append(fit(config, few_scenes, small_backbone).segmenter)
    assert all(torch.equal(heads[0].head.state_dict()[k], v) for k, v in heads[1].head.state_dict().items())
    assert not torch.equal(heads[0].cluster_probe.centres, heads[1].cluster_probe.centres)  # dropout is on


@pytest.mark.filterwarnings("ignore:label_flow")
def test_no_epochs_of_step_3_leave_the_head_as_it_was(few_scenes, small_backbone):
    """With none, as released equals clean: this flow acts in step 3 and nowhere else."""
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


def test_a_folder_is_audited_on_a_backbone_that_is_centred_on_it(tmp_path, monkeypatch, capsys):
    folder = labelled_folder(tmp_path / "streets", lambda number: Image.fromarray(classes(number)), count=4)
    settings = ["backbone.name=scenes", "data.size=64", "head.epochs=1", "probe.epochs=1", "clusterbook.concepts=16"]
    words = [word for setting in settings for word in ("--set", setting)]
    status, printed = call(
        monkeypatch, capsys, "audit", "--data", folder, "--images", 3, "--set", "backbone.margin=0", *words
    )
    assert status == 0 and "3 images" in printed and "Clean: labels reach the linear probe" in printed


def test_leaves_are_the_parameters_a_loss_depends_on():
    a, b, c = (torch.nn.Parameter(torch.randn(2)) for _ in range(3))
    found = {id(leaf) for leaf in leaves((a * b.detach() + c.exp()).sum())}
    assert found == {id(a), id(c)}


def test_only_labelled_losses_are_walked():
    head, linear = torch.nn.Linear(4, 3), LinearProbe(2, 3)
    with labelled_leaves() as reached:
        unlabelled = head(torch.ones(5, 4)).square().mean()
        labelled_loss(linear.classify(head(torch.ones(5, 4))), torch.zeros(5, dtype=torch.long))
    assert unlabelled.requires_grad
    assert set(reached) == {id(value) for value in (*head.parameters(), *linear.parameters())}
    with labelled_leaves() as reached:
        labelled_loss(linear(head(torch.ones(5, 4))), torch.zeros(5, dtype=torch.long))
    assert set(reached) == {id(value) for value in linear.parameters()}


def test_heads_have_as_many_tensors_as_released():
    assert len(list(MLPHead(8, 4).parameters())) == 6
    assert len(list(TRHead(8, 4, 16, torch.randn(3, 8)).parameters())) == 25
