"""From features to a label map: both views agree, at any size, and the mirror is turned about its vertical axis."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cause_lite.backbones import Backbone
from cause_lite.evaluate import evaluate
from cause_lite.head import build_head
from cause_lite.probe import ClusterProbe, LinearProbe
from cause_lite.segmenter import Segmenter

SIDE, WIDTH, CLASSES = 4, 3, 3


class MeanColours(Backbone):
    """A backbone whose patch features are the mean colours of 8 x 8 pixels."""

    patch = 8

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.patch = 8

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 8).flatten(2).transpose(1, 2)


def segmenter(head: nn.Module | None = None) -> Segmenter:
    """Three clusters: red, green and blue, by colour alone unless there is a head."""
    if head is None:
        head = build_head("mlp", WIDTH, WIDTH, 1, torch.eye(WIDTH))
        head.reduce.linear.load_state_dict({"weight": torch.eye(WIDTH), "bias": torch.zeros(WIDTH)})
        nn.init.zeros_(head.reduce.nonlinear[2].weight)
        nn.init.zeros_(head.reduce.nonlinear[2].bias)
    clusters, linear = ClusterProbe(CLASSES, WIDTH), LinearProbe(CLASSES, WIDTH)
    clusters.centres.data = torch.eye(CLASSES)
    linear.classify.load_state_dict({"weight": torch.eye(CLASSES), "bias": torch.zeros(CLASSES)})
    return Segmenter(head, torch.eye(WIDTH), clusters, linear, MeanColours(), 8 * SIDE, ("r", "g", "b")).eval()


def grids(seed: int) -> Tensor:
    """Features (2, 4, 4, 3) that differ everywhere."""
    return torch.rand(2, SIDE, SIDE, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("turned", [(2,), (1,), (1, 2), ()])
def test_the_mirror_is_turned_back_about_its_vertical_axis(turned):
    """Features of the true mirror image change nothing; those of an image turned otherwise do."""
    torch.manual_seed(0)
    predicts = segmenter(build_head("mlp", WIDTH, WIDTH, 1, torch.eye(WIDTH)))
    plain = grids(1)
    mirrored = plain.flip(turned) if turned else plain
    alone = predicts.segment_features(plain.flatten(1, 2))
    both = predicts.segment_features(plain.flatten(1, 2), mirrored.flatten(1, 2))
    assert torch.allclose(both, alone, atol=1e-6) is (turned == (2,))


def test_both_views_count_alike():
    plain, mirrored = grids(1), grids(2)
    both = segmenter().segment_features(plain.flatten(1, 2), mirrored.flatten(1, 2))
    torch.testing.assert_close(both, ((plain + mirrored.flip(2)) / 2).permute(0, 3, 1, 2))


def test_rows_and_columns_of_the_map_are_those_of_the_grid():
    plain = grids(3)
    torch.testing.assert_close(segmenter().segment_features(plain.flatten(1, 2)), plain.permute(0, 3, 1, 2))


def image(height: int, width: int) -> np.ndarray:
    """Red above on the left, green above on the right, blue below."""
    found = np.zeros((height, width, 3), np.uint8)
    found[: height // 2, : width // 2, 0] = found[: height // 2, width // 2 :, 1] = found[height // 2 :, :, 2] = 200
    return found


@pytest.mark.parametrize("shape", [(32, 32), (64, 96), (96, 64), (40, 200)])
@pytest.mark.parametrize("strip", [None, 7 * 64])
def test_a_label_map_follows_its_image(shape, strip, monkeypatch):
    """Whatever the image's shape, and however few pixels are looked at together."""
    if strip:
        monkeypatch.setattr("cause_lite.backbones.tiling.STRIP", strip)
    found, truth = segmenter().segment(image(*shape)), image(*shape).argmax(2)
    assert (found == truth).mean() > 0.97
    assert np.array_equal(segmenter().segment(image(*shape)[:, ::-1].copy()), found[:, ::-1])


def test_labels_of_an_evaluation_are_matched_and_void_is_left_out():
    """Classes are numbered otherwise than clusters; the linear probe's are not matched; a quarter is void."""
    plain = torch.eye(WIDTH)[torch.arange(SIDE * SIDE).view(1, SIDE, SIDE) % 3]
    labels = ((np.arange(SIDE * SIDE) + 1) % 3).reshape(1, SIDE, SIDE).astype(np.int16)
    labels[:, :1] = -1
    scores = evaluate(segmenter(), plain.flatten(1, 2), plain.flip(2).flatten(1, 2), labels, CLASSES)
    assert scores["cluster"].compute()["pacc"] == 100
    assert scores["linear"].unmatched()["pacc"] == 0
    assert scores["cluster"].confusion.sum() == SIDE * SIDE * 3 // 4
