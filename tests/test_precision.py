"""Half precision and compilation are options: results agree with full precision within their tolerance."""

from __future__ import annotations

import pytest
import torch
from conftest import quick_config, random_backbone

from cause_lite.backbones.feature_store import cached_features
from cause_lite.evaluate import evaluate
from cause_lite.methods.as_released import fit


@pytest.mark.parametrize("precision, tolerance", [("bf16", 2e-2), ("fp16", 3e-3)])
def test_features_in_half_precision_are_near(few_scenes, precision, tolerance):
    backbone = random_backbone()
    wide = backbone.features(few_scenes.images).float()
    backbone.prepare(precision)
    near = torch.nn.functional.cosine_similarity(backbone.features(few_scenes.images).float(), wide, dim=-1)
    assert float(1 - near.min()) < tolerance
    assert not torch.equal(backbone.features(few_scenes.images).float(), wide)


def test_features_of_another_precision_are_not_taken_from_the_cache():
    backbone = random_backbone()
    before = backbone.fingerprint()
    backbone.prepare("bf16")
    assert backbone.fingerprint() != before


@pytest.mark.parametrize("head", ["mlp", "tr"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_fit_in_half_precision_learns_as_much(few_scenes, head, precision):
    """The losses of each stage stay finite and end near those of full precision; so does the supervised probe."""
    ends = {}
    for kind in ("fp32", precision):
        backbone = random_backbone()
        settings = {"head.kind": head, "optimisation.precision": kind, "probe.epochs": 10, "head.learning_rate": 3e-4}
        config = quick_config(settings | {"clusterbook.init": "patches", "head.dropout": 0.0})
        fitted = fit(config, few_scenes, backbone)
        losses = {stage: torch.tensor(values) for stage, values in fitted.losses.items()}
        assert all(torch.isfinite(values).all() for values in losses.values())
        features = cached_features(backbone, few_scenes.images, "Features")
        score = evaluate(fitted.segmenter, features, None, few_scenes.labels, 16)["linear"].compute()["pacc"]
        ends[kind] = {stage: float(values[-4:].mean()) for stage, values in losses.items()} | {"pacc": score / 100}
    for stage, wide in ends["fp32"].items():
        assert ends[precision][stage] == pytest.approx(wide, rel=0.05, abs=0.05), stage


@pytest.mark.parametrize("head", ["mlp", "tr"])
def test_a_compiled_fit_is_equal_within_tolerance(few_scenes, head):
    found, how = [], {"optimisation.precision": "fp64"}
    for compiled in (False, True):
        backbone = random_backbone()
        fitted = fit(
            quick_config({"head.kind": head, "head.dropout": 0.0} | how | {"optimisation.compiled": compiled}),
            few_scenes,
            backbone,
        )
        found.append(torch.tensor(fitted.losses["head"]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)
