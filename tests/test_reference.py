"""Parity with the published implementation, through the public names, on its reference vectors."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from conftest import REFERENCE, relative_error

from cause_lite.checkpoints import load_released
from cause_lite.fast import contrast as fast_contrast
from cause_lite.fast import modularity as fast_modularity
from cause_lite.frontdoor import concept_contrastive_loss
from cause_lite.head import ema_update
from cause_lite.mediator import assign, modularity_loss, modularity_matrix, quantize, sample_grid, shared_concept
from cause_lite.metrics import ClusterMetrics
from cause_lite.probe import ClusterProbe

CASES = pytest.mark.parametrize("case", [0, 1, 2])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
CLOSE = 1e-5  # of values that were published in float32
CONTRASTS = {
    "plain": concept_contrastive_loss,
    "fast, 5 keys at once": partial(fast_contrast.concept_contrastive_loss, chunk=5),
    "fast, 4,096 keys at once": partial(fast_contrast.concept_contrastive_loss, chunk=4096),
}


def widened(given: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}


@CASES
@DTYPES
@pytest.mark.parametrize("way", [shared_concept, fast_modularity.shared_concept])
def test_modularity(reference, case, way, dtype):
    given = widened(reference(f"modularity_{case}"), dtype)
    codebook = given["codebook"].requires_grad_()
    graph, total = modularity_matrix(given["feat"])
    loss = modularity_loss(given["feat"], codebook, float(given["temp"]), shared_concept=way)
    loss.backward()
    assert relative_error(graph, given["W"]) < CLOSE
    assert relative_error(total, given["e"]) < CLOSE
    assert relative_error(assign(given["feat"], codebook), given["assignment"]) < CLOSE
    assert relative_error(loss, given["loss"]) < CLOSE
    assert relative_error(codebook.grad, given["grad_codebook"]) < CLOSE


@CASES
def test_quantize(reference, case):
    given = reference(f"quantise_{case}")
    codes, index = quantize(given["feat"], given["codebook"])
    assert torch.equal(index, given["index"])
    assert torch.equal(codes, given["vq"])


@CASES
def test_sample_grid(reference, case):
    given = reference(f"grid_sampling_{case}")
    assert torch.equal(sample_grid(given["feat"], int(given["k"]), given["order"]), given["pooled"])


@CASES
@DTYPES
@pytest.mark.parametrize("kind", ["nobank", "bank"])
@pytest.mark.parametrize("form", CONTRASTS)
def test_contrastive_loss(reference, case, kind, form, dtype):
    given = widened(reference(f"contrastive_{kind}_{case}"), dtype)
    projected = given["proj"].requires_grad_()
    loss = CONTRASTS[form](
        given["feat"],
        given["codebook"],
        projected,
        given["proj_ema"],
        (given["bank"], given["bank_index"]),
        float(given["temp"]),
        float(given["pos_thresh"]),
        float(given["neg_thresh"]),
    )
    loss.backward()
    assert relative_error(loss, given["loss"]) < CLOSE
    assert relative_error(projected.grad, given["grad_proj"]) < CLOSE


@CASES
def test_cluster_probe(reference, case):
    given = reference(f"probe_{case}")
    probe = ClusterProbe(*given["cluster_probe"].shape)
    probe.centres.data.copy_(given["cluster_probe"])
    log_probs = probe.log_probs(given["feat"]).transpose(1, 2).reshape(given["log_probs"].shape)
    assert torch.equal(probe.labels(given["feat"]).view(given["labels"].shape), given["labels"])
    assert relative_error(log_probs, given["log_probs"]) < CLOSE
    assert relative_error(probe.loss(given["feat"]), given["loss"]) < CLOSE


@CASES
def test_metrics(reference, case):
    given = reference(f"metrics_{case}")
    metrics = ClusterMetrics(int(given["n_classes"]))
    for preds, labels in zip(given["preds"], given["labels"], strict=True):
        metrics.update(preds, labels)
    scores = metrics.compute()
    assert scores["miou"] == pytest.approx(float(given["miou"]), rel=CLOSE)
    assert scores["pacc"] == pytest.approx(float(given["accuracy"]), rel=CLOSE)
    # What the release calls mean recall divides by the predicted pixels: it is the mean precision.
    assert scores["mean_precision"] == pytest.approx(float(given["mean_recall"]), rel=CLOSE)
    np.testing.assert_allclose(100 * scores["iou"], given["iou_per_class"].numpy(), rtol=CLOSE)
    assert np.array_equal(metrics.matching()[given["preds"][1].flatten()], given["hungarian"].numpy())


@CASES
def test_ema(reference, case):
    given = reference(f"ema_{case}")
    student, teacher = torch.nn.Module(), torch.nn.Module()
    student.weight, teacher.weight = (torch.nn.Parameter(given[who].clone()) for who in ("student", "teacher"))
    ema_update(teacher, student, float(given["decay"]))
    assert relative_error(teacher.weight.detach(), given["teacher_after"]) < CLOSE


@CASES
@pytest.mark.parametrize("kind", ["mlp", "tr"])
@pytest.mark.parametrize("student", [True, False])
def test_released_checkpoint(reference, case, kind, student):
    given = reference(f"head_{kind}_{case}")
    segmenter = load_released(
        segment=REFERENCE / f"segment_{kind}_{case}.pth",
        cluster=REFERENCE / f"cluster_{case}.pth",
        modular=REFERENCE / f"modular_{case}.npy",
        student=student,
    )
    with torch.no_grad():
        output = segmenter.head(given["feat"])
        assert relative_error(output, given["head" if student else "head_ema"]) < CLOSE
        logits = segmenter.linear_probe(given["head_ema"]).transpose(1, 2).reshape(given["linear_logits"].shape)
        assert relative_error(logits, given["linear_logits"]) < CLOSE
