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
    scores = {name: ClusterMetrics(num_classes).to(device) for name in names}
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
