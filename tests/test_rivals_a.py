"""STEGO, HP and SmooSeg: they find obvious clusters, repeat, and see no labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import quick_config
from torch import Tensor

from cause_lite.backbones.feature_store import PatchStore, cached_features
from cause_lite.methods import Training, Views, find, stego
from cause_lite.methods.training_loop import ChannelDropout

RIVALS = ["stego", "hp", "smooseg"]


def test_dropout_of_channels_keeps_or_drops_them_whole():
    torch.manual_seed(0)
    dropped = ChannelDropout(0.25)(torch.ones(500, 3, 8))
    assert (dropped == dropped[:, :1]).all()
    assert dropped.unique().tolist() == [0, pytest.approx(4 / 3)]
    assert (dropped == 0).double().mean() == pytest.approx(0.25, abs=0.03)


def test_balanced_shifts_follow_the_mean_cosines():
    table = (torch.arange(1001) - 500).double().expand(3, -1)
    balance = stego.Balance(table, torch.full((3,), 0.5, dtype=torch.float64), stego.StegoOptions())
    assert balance.shifts().tolist() == [0, 0, 0]
    balance.move(torch.tensor([0.5, 0.15, -0.3]).double())  # codes of an image too alike, random ones too different
    high, level, low = balance.shifts().tolist()
    assert low < level == 0 < high


IMAGES, SIDE, WIDTH, CLASSES = 24, 8, 16, 4


@pytest.fixture
def obvious(tmp_path) -> tuple[PatchStore, Tensor]:
    """Features of four directions and their noise; of each image two, a half each; and the direction of each patch."""
    generator = torch.Generator().manual_seed(0)
    halves = torch.stack([torch.randperm(CLASSES, generator=generator)[:2] for _ in range(IMAGES)])
    truth = halves.repeat_interleave(SIDE // 2, 1)[:, None].expand(-1, SIDE, -1)
    vectors = torch.eye(CLASSES, WIDTH)[truth] + 0.1 * torch.randn(IMAGES, SIDE, SIDE, WIDTH, generator=generator)
    vectors = vectors.flatten(1, 2)
    return PatchStore(tmp_path / "v", tuple(vectors.shape), torch.float32, vectors.__getitem__, "v", IMAGES), truth


def learned(store: PatchStore, rival: str, options: dict[str, object], classes: int = CLASSES, **seen: object):
    config = quick_config({"optimisation.precision": "fp64"})
    training = Training(store, config, classes, lambda config: pytest.fail("no fit is asked for"), **seen)
    return find(rival)(training, options)


def scores(store: PatchStore, predict: object) -> Tensor:
    side = round(store.shape[1] ** 0.5)
    mirrored = store[:].unflatten(1, (side, side)).flip(2).flatten(1, 2)
    return predict(Views(store[:], mirrored, np.zeros((len(store), side, side, 3), np.uint8)), (side, side))


@pytest.mark.parametrize("rival", RIVALS)
def test_a_rival_finds_obvious_clusters(obvious, rival):
    store, truth = obvious
    clusters = scores(store, learned(store, rival, OBVIOUS[rival])).argmax(1)
    table = torch.zeros(CLASSES, CLASSES)
    table.index_put_((clusters.flatten(), truth.flatten()), torch.ones(truth.numel()), accumulate=True)
    assert (table.amax(1).sum() / truth.numel()) > 0.95  # each cluster is of one direction
    assert len(table.argmax(1).unique()) == CLASSES  # and each direction has one


OBVIOUS = {
    "stego": {"steps": 60, "width": 16, "points": 32, "learning_rate": 0.002},
    "hp": {"steps": 60, "width": 16, "learning_rate": 0.002},
    "smooseg": {"steps": 200, "width": 16, "learning_rate": 0.001, "prototype_rate": 0.005, "decay": 0.98},
}


@pytest.mark.parametrize("rival", RIVALS)
def test_a_rival_repeats_on_scenes_to_the_bit_with_labels_or_without(few_scenes, small_backbone, rival, one_thread):
    store, classes = cached_features(small_backbone, few_scenes.images[:8], ""), len(few_scenes.classes)
    options = {"steps": 3, "width": 12}
    first = scores(store, learned(store, rival, options, classes))
    again = scores(store, learned(store, rival, options, classes, labels=few_scenes.labels[:8]))
    assert first.shape == (8, classes, 16, 16)
    assert first.dtype == torch.float64 and bool(first.isfinite().all())
    assert torch.equal(first, again)
