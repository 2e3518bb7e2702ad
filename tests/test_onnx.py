"""The ONNX file computes what PyTorch computes, for every kind of backbone and head."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import random_backbone

from cause_lite.backbones.backbone import IMAGE_MEAN, IMAGE_STD, Backbone
from cause_lite.backbones.centred import CentredBackbone
from cause_lite.backbones.convolutional import ConvBackbone, build_levels, widths_of
from cause_lite.backbones.tiling import plan_tiles, tiled_maps
from cause_lite.checkpoints.onnx_export import TileNetwork, write_onnx
from cause_lite.datasets import scenes
from cause_lite.head import build_head
from cause_lite.probe import ClusterProbe, LinearProbe
from cause_lite.runtime.files import UserError, read_json
from cause_lite.segmenter import Segmenter

SIZE, CLUSTERS, REDUCED, CONCEPTS = 64, 5, 6, 7


def windowed_backbone() -> Backbone:
    """A ViT that sees each image in tiles of its own."""
    backbone = random_backbone()
    backbone.window = 32
    return backbone


def convolutional_backbone() -> Backbone:
    """A small network of three levels that pads by reflection, with a centre and a context, as `photos` has."""
    torch.manual_seed(0)
    network = build_levels("resnet18", [2, 3, 4], reflect=True, channels=[8, 8, 16, 16])
    centre = 0.1 * torch.randn(sum(widths_of(network)))
    return ConvBackbone(network, "convolutional", IMAGE_MEAN, IMAGE_STD, centre, context=1)


def centred_backbone() -> Backbone:
    """A ViT whose mean patch is subtracted."""
    return CentredBackbone(random_backbone(), torch.randn(32), "centred")


def segmenter(backbone: Backbone, head: str) -> Segmenter:
    """A segmenter with random weights on a backbone."""
    codebook = torch.randn(CONCEPTS, backbone.dim)
    return Segmenter(
        build_head(head, backbone.dim, REDUCED, (SIZE // backbone.patch) ** 2, codebook),
        codebook,
        ClusterProbe(CLUSTERS, REDUCED),
        LinearProbe(CLUSTERS, REDUCED),
        backbone,
        SIZE,
    ).eval()


# Each kind of backbone and each head once: a file takes seconds to write.
KINDS = [(windowed_backbone, "tr"), (convolutional_backbone, "mlp"), (centred_backbone, "mlp")]


@pytest.mark.parametrize(("build", "head"), KINDS)
def test_onnx_equals_pytorch(build, head, tmp_path):
    torch.manual_seed(0)
    backbone = build()
    model = segmenter(backbone, head)
    write_onnx(model, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "segmenter.onnx")
    network, random = TileNetwork(model, backbone).eval(), np.random.default_rng(0)
    for tile in random.random((3, 1, 3, SIZE, SIZE), np.float32):
        with torch.no_grad():
            wanted = network(torch.from_numpy(tile))
        for name, found, tensor in zip(("features", "logits"), session.run(None, {"tile": tile}), wanted, strict=True):
            np.testing.assert_allclose(found, tensor.numpy(), atol=1e-3, err_msg=name)
    assert read_json(tmp_path / "onnx.json") == {
        "size": SIZE,
        "patch": 8,
        "clusters": CLUSTERS,
        "dim": backbone.dim,
        "classes": [],
    }


@pytest.mark.parametrize("head", ["mlp", "tr"])
def test_the_largest_logit_is_the_nearest_cluster(head):
    """Cosines and logits rank alike, in every pixel, also where tiles overlap."""
    torch.manual_seed(0)
    backbone = random_backbone()
    model, image = segmenter(backbone, head), np.tile(scenes.render(0, "val", 0).image, (1, 2, 1))
    network, tiling = TileNetwork(model, backbone).eval(), plan_tiles(image.shape[:2], SIZE, backbone.patch)
    assert len(tiling.places) > 1
    with torch.no_grad():
        views = lambda tiles: torch.cat([network(tile[None])[1] for tile in tiles])  # noqa: E731
        logits = tiled_maps(views, image, tiling, torch.device("cpu"))
    pixels = torch.nn.functional.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=False)
    labels = pixels.argmax(1)[0].numpy()
    assert len(np.unique(labels)) > 1
    assert (labels == model.segment(image)).mean() > 0.999


def test_without_a_backbone_there_is_nothing_to_write(tmp_path):
    model = segmenter(random_backbone(), "mlp")
    model.backbone = None
    with pytest.raises(UserError, match="has no backbone"):
        write_onnx(model, tmp_path)
