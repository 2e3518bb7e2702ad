"""From features to numbers: predict, refine, match, score."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cause_lite.backbones.feature_store import PatchStore
from cause_lite.metrics import ClusterMetrics
from cause_lite.runtime import parallel
from cause_lite.segmenter import Segmenter
from cause_lite.train import patch_labels


def predict_clusters(maps: Tensor, segmenter: Segmenter, size: tuple[int, int]) -> Tensor:
    """Head maps (B, R, h, w) -> the cluster of each pixel (B, H, W)."""
    return segmenter.similarities(maps, size).argmax(1)


def predict_linear(maps: Tensor, segmenter: Segmenter, size: tuple[int, int]) -> Tensor:
    """Head maps (B, R, h, w) -> the supervised linear probe's class of each pixel (B, H, W)."""
    logits = segmenter.linear_probe(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)


@torch.no_grad()
def evaluate(
    segmenter: Segmenter, features: PatchStore | Tensor, mirrored: PatchStore | Tensor | None,
    labels: np.ndarray, num_classes: int,
    refine: Callable[[Tensor, np.ndarray], Tensor] | None = None, images: np.ndarray | None = None,
    batch_size: int = 20,
) -> dict[str, ClusterMetrics]:  # fmt: skip
    """Score a split: features (N, P, D), of the mirror images too or None, labels (N, H, W).

    Returns metrics named `cluster` (matched by the Hungarian method over the whole split), `linear`
    (the probe's classes as they are) and, with `refine` and `images`, `crf`. Processes share the batches.
    """
    device = segmenter.codebook.device
    names = ("cluster", "linear", "crf") if refine else ("cluster", "linear")
    scores = {name: ClusterMetrics(num_classes, sync_on_compute=False).to(device) for name in names}
    mine = slice(parallel.processes().process_index, None, parallel.processes().num_processes)
    for start in range(0, len(features), batch_size)[mine]:
        part = slice(start, start + batch_size)
        views = (None if view is None else view[part].to(device) for view in (features, mirrored))
        maps = segmenter.segment_features(*views)
        target = torch.from_numpy(labels[part]).to(device)
        similar = segmenter.similarities(maps, target.shape[1:])
        scores["cluster"].update(similar.argmax(1), target)
        scores["linear"].update(predict_linear(maps, segmenter, target.shape[1:]), target)
        if refine:
            scores["crf"].update(refine(similar, images[part]).to(device), target)
    for score in scores.values():
        score.confusion = parallel.total(score.confusion)
    return scores


def concept_purity(index: Tensor, labels: np.ndarray) -> float:
    """How far concepts tell classes apart: the share of patches, in percent, in their concept's commonest class.

    `index` (N, P) are concept numbers, `labels` (N, H, W) classes; a patch counts as the class at its centre.
    """
    counts = concept_counts(index, labels, int(index.max()) + 1)
    return 100 * float(counts.amax(1).sum() / counts.sum())


def concept_counts(index: Tensor, labels: np.ndarray, concepts: int) -> Tensor:
    """How many patches of each class each concept holds, (K, C); arguments as for `concept_purity`."""
    truth = patch_labels(labels, round(index.shape[1] ** 0.5)).flatten()
    found, seen = index.flatten().long(), truth >= 0
    counts = torch.zeros(concepts, int(truth.max()) + 1, dtype=torch.float64)
    return counts.index_put_((found[seen], truth[seen]), counts.new_ones(int(seen.sum())), accumulate=True)


def positive_agreement(counts: Tensor, codebook: Tensor, threshold: float) -> tuple[float, float]:
    """What the contrast's positives are worth, over all pairs of patches counted in (K, C), in percent.

    Precision: the share of positive pairs (concepts' cosine above `threshold`) that are of one class.
    Recall: the share of pairs of one class that are positive.
    """
    unit = F.normalize(codebook.double(), dim=-1)
    positive = (unit @ unit.T > threshold).double()
    right = float((counts * (positive @ counts)).sum())
    held, classes = counts.sum(1), counts.sum(0)
    return 100 * right / float(held @ positive @ held), 100 * right / float(classes.square().sum())
