"""Baselines on data whose clusters are known: colours, heights, directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import quick_config
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cause_lite.backbones.feature_store import PatchStore
from cause_lite.datasets import Split
from cause_lite.lab import baselines

SIDE, CLASSES, WIDTH = 4, 3, 6


def split(images: list[np.ndarray], labels: list[np.ndarray], name: str = "train") -> Split:
    return Split("toy", name, tuple("abcdef"[: int(labels[0].max()) + 1]), np.stack(images), np.stack(labels))


def coloured(seed: int, count: int = 6) -> Split:
    """Images of 8 x 8 blocks, each red, green or blue with a little noise; the labels are the colours."""
    rng, images, maps = np.random.default_rng(seed), [], []
    for _ in range(count):
        labels = rng.permutation(np.arange(16) % CLASSES).reshape(4, 4).repeat(8, 0).repeat(8, 1)
        noise = rng.integers(0, 20, (32, 32, 3))
        images.append((200 * np.eye(3, dtype=int)[labels] + noise).astype(np.uint8))
        maps.append(labels.astype(np.int16))
    return split(images, maps)


def test_colours_are_found():
    scores = baselines.score_colour_kmeans(coloured(0), coloured(1), seed=0).compute()
    assert scores["miou"] == scores["pacc"] == 100


@pytest.mark.parametrize("weight, low, high", [(0.0, 30, 70), (5.0, 95, 100)])
def test_height_tells_apart_what_colour_cannot(weight, low, high):
    """Grey images whose upper and lower halves are classes: only the height knows them."""
    rng, labels = np.random.default_rng(0), np.arange(2, dtype=np.int16).repeat(16)[:, None].repeat(32, 1)
    grey = split([rng.integers(100, 140, (32, 32, 3)).astype(np.uint8) for _ in range(6)], [labels] * 6)
    assert low <= baselines.score_colour_kmeans(grey, grey, seed=0, weight=weight).compute()["pacc"] <= high


@given(st.integers(0, 2**31 - 1))
def test_the_nearest_centre_is_that_of_least_distance(seed):
    draw = torch.Generator().manual_seed(seed)
    vectors, centres = torch.randn(2, 5, 4, generator=draw), 3 * torch.randn(7, 4, generator=draw)
    wanted = (vectors[:, :, None] - centres).square().sum(-1).argmin(-1)
    assert torch.equal(baselines.nearest(vectors, centres), wanted)


def store(vectors: Tensor, path: Path) -> PatchStore:
    return PatchStore(path, vectors.shape, torch.float32, vectors.__getitem__, "Vectors")


def directed(seed: int, folder: Path, count: int = 8) -> tuple[PatchStore, baselines.TestFeatures, np.ndarray]:
    """Features by class: a direction, a little noise, a length of 0.1 to 10; of images, of their mirrors, and labels.

    Labels are maps of 8 x 8 pixels of 4 x 4 patches. Length tells nothing, and is what plain k-means would find.
    """
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count, SIDE, SIDE), generator=draw)
    noise = 0.05 * torch.randn(count, SIDE, SIDE, WIDTH, generator=draw)
    length = 10 ** (2 * torch.rand(count, SIDE, SIDE, 1, generator=draw) - 1)
    vectors = (torch.eye(CLASSES, WIDTH)[labels] + noise) * length
    plain, mirrored = (
        store(v.flatten(1, 2), folder / f"{seed}-{name}") for name, v in (("p", vectors), ("m", vectors.flip(2)))
    )
    return plain, baselines.TestFeatures(plain, mirrored), np.asarray(labels, np.int16)


def test_directions_are_found_at_any_length(tmp_path):
    train, _, _ = directed(0, tmp_path)
    _, seen, labels = directed(1, tmp_path)
    scores = baselines.score_feature_kmeans(train, seen, labels, CLASSES, seed=0).compute()
    assert scores["pacc"] == scores["miou"] == 100


def test_the_supervised_probe_learns_the_directions_by_their_numbers(tmp_path):
    """Unlike k-means it is scored without a matching: renumbered labels are all wrong."""
    train, _, known = directed(0, tmp_path)
    _, seen, labels = directed(1, tmp_path)
    config = quick_config({"optimisation.batch_size": 2, "probe.epochs": 40, "probe.linear_rate": 0.05})
    found = baselines.score_supervised(train, known, seen, labels, CLASSES, config)
    assert found.unmatched()["pacc"] == 100
    other = baselines.score_supervised(train, known, seen, (labels + 1) % CLASSES, CLASSES, config)
    assert other.unmatched()["pacc"] == 0


def test_maps_are_the_mean_of_both_views(tmp_path):
    _, seen, _ = directed(0, tmp_path)
    part = slice(2, 5)
    maps = seen.maps(part, (SIDE, SIDE))
    unit = torch.nn.functional.normalize(seen.plain[part].double(), dim=-1).view(3, SIDE, SIDE, WIDTH)
    torch.testing.assert_close(maps, unit)
    turned = baselines.TestFeatures(seen.plain, seen.plain).maps(part, (SIDE, SIDE))
    torch.testing.assert_close(turned, (unit + unit.flip(2)) / 2)
    assert seen.maps(part, (2 * SIDE, 3 * SIDE)).shape == (3, 2 * SIDE, 3 * SIDE, WIDTH)
