"""What CAUSE has to beat, and what bounds it, scored by the same harness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cause_lite.backbones.feature_store import PatchStore
from cause_lite.backbones.kmeans import kmeans, patch_kmeans
from cause_lite.config import FitConfig
from cause_lite.datasets import Split
from cause_lite.loop import Session
from cause_lite.metrics import ClusterMetrics
from cause_lite.probe import LinearProbe
from cause_lite.runtime.randomness import seeded
from cause_lite.steps import fit_linear_probe

WIDE = 256  # channels from which features are scored before they are upsampled


def colour_and_height(images: np.ndarray, weight: float) -> Tensor:
    """Pixels (N, H, W, 3) uint8 -> (N, H, W, 4): red, green, blue in 0..1 and `weight` x height in 0..1."""
    count, height, width, _ = images.shape
    rows = torch.linspace(0, weight, height).view(1, height, 1, 1).expand(count, height, width, 1)
    return torch.cat([torch.from_numpy(images).float() / 255, rows], dim=3)


def score_colour_kmeans(train: Split, test: Split, seed: int, weight: float = 0.5) -> ClusterMetrics:
    """k-means on the colour and height of single pixels."""
    classes, every = len(test.classes), 4
    rng = np.random.default_rng(seed)
    some = np.sort(rng.permutation(len(train))[:2000])
    pixels = colour_and_height(train.images[some][:, ::every, ::every], weight).flatten(0, 2)
    centres = kmeans(pixels[torch.from_numpy(rng.permutation(len(pixels))[:100_000])], classes, seed)
    metrics = ClusterMetrics(classes)
    for start in range(0, len(test), 20):
        pixels = colour_and_height(test.images[start : start + 20], weight)
        metrics.update(nearest(pixels, centres), torch.from_numpy(test.labels[start : start + 20]))
    return metrics


def nearest(vectors: Tensor, centres: Tensor) -> Tensor:
    """The nearest of centres (K, D) to each vector (..., D), Euclidean."""
    return closeness(vectors, centres).argmax(-1)


def closeness(vectors: Tensor, centres: Tensor) -> Tensor:
    """Return |v|^2 - |v - c|^2 of vectors (..., D) and centres (K, D): (..., K), largest at the nearest centre."""
    return 2 * vectors @ centres.T - centres.square().sum(1)


@dataclass(frozen=True)
class TestFeatures:
    """Backbone features of a split (N, P, D) and of its mirror images."""

    plain: PatchStore
    mirrored: PatchStore

    def maps(self, part: slice, size: tuple[int, int]) -> Tensor:
        """Unit features, mean of both views, upsampled -> (B, H, W, D)."""
        return _upsampled(self._patches(part), size)

    def scores(self, part: slice, size: tuple[int, int], affine: Callable[[Tensor], Tensor]) -> Tensor:
        """Return an affine function, (..., D) -> (..., K), of `maps` at each pixel: (B, H, W, K).

        Bilinear weights add up to 1, so wide features are scored before they are upsampled: the same scores but for
        their last bits. Narrow ones, cheap to upsample, keep the order in which records were made.
        """
        if self.plain.shape[2] < WIDE:
            return affine(self.maps(part, size))
        return _upsampled(affine(self._patches(part).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), size)

    def _patches(self, part: slice) -> Tensor:
        """Return unit features, the mean of both views: (B, D, h, w)."""
        side = round(self.plain.shape[1] ** 0.5)
        views = [
            F.normalize(f[part].float(), dim=-1).transpose(1, 2).unflatten(2, (side, side))
            for f in (self.plain, self.mirrored)
        ]
        return (views[0] + views[1].flip(3)) / 2


def _upsampled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)


def score_feature_kmeans(
    train: PatchStore, test: TestFeatures, labels: np.ndarray, classes: int, seed: int
) -> ClusterMetrics:
    """k-means on unit backbone features (N, P, D), predicted with mirror averaging and upsampling."""
    centres = patch_kmeans(train, classes, seed)
    metrics = ClusterMetrics(classes)
    for start in range(0, len(labels), 10):
        part = slice(start, start + 10)
        near = test.scores(part, labels.shape[1:], partial(closeness, centres=centres))
        metrics.update(near.argmax(-1), torch.from_numpy(labels[part]))
    return metrics


def score_supervised(
    train: PatchStore, train_labels: np.ndarray, test: TestFeatures, labels: np.ndarray, classes: int, config: FitConfig
) -> ClusterMetrics:
    """The ceiling: a linear probe trained with every label on unit backbone features (not matched)."""
    with seeded(config.seed) as generator:
        session = Session(config, generator, torch.device("cpu"))
        probe: LinearProbe = fit_linear_probe(train, train_labels, classes, session, unit=True)[0]
    metrics = ClusterMetrics(classes)
    for start in range(0, len(labels), 10):
        part = slice(start, start + 10)
        with torch.no_grad():
            logits = test.scores(part, labels.shape[1:], probe)
            metrics.update(logits.argmax(-1), torch.from_numpy(labels[part]))
    return metrics
