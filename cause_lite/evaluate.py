"""Predict a split, refine the prediction, and score it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cause_lite.backbones.feature_store import PatchStore
from cause_lite.datasets.images import LazyRows
from cause_lite.metrics import ClusterMetrics
from cause_lite.runtime import parallel
from cause_lite.segmenter import Segmenter

Refinement = Callable[[Tensor, np.ndarray], Tensor]  # cosines (B, n, H, W) and images (B, H, W, 3) -> clusters


def linear_logits(
    maps: Float[Tensor, "b r h w"], segmenter: Segmenter, size: tuple[int, int]
) -> Float[Tensor, "b c x y"]:
    """Return the supervised linear probe's logits of each pixel, upsampled to `size`."""
    logits = segmenter.linear_probe(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


@torch.no_grad()
def evaluate(
    segmenter: Segmenter,
    features: PatchStore | Tensor,
    mirrored: PatchStore | Tensor | None,
    labels: np.ndarray | LazyRows,
    num_classes: int,
    refine: Refinement | None = None,
    images: np.ndarray | LazyRows | None = None,
    batch_size: int = 10,
) -> dict[str, ClusterMetrics]:
    """Score a split; processes share the batches.

    Parameters
    ----------
    features, mirrored
        Features (N, P, D) of the images, and of their mirror images, whose head outputs are averaged; or None.
    labels
        Classes (N, H, W), -1 where a pixel does not count.
    refine, images
        A refinement such as a CRF and the images (N, H, W, 3) that it needs, both or neither.

    Returns
    -------
    dict
        Metrics of the `cluster` probe, of the `linear` probe, a diagnostic, and, with a refinement, of the `crf`.
    """
    device = segmenter.codebook.device
    linear = segmenter.linear_probe.classify.out_features == num_classes  # it may have learned other classes, or none
    counts = {"cluster": len(segmenter.cluster_probe.centres)} | ({"linear": num_classes} if linear else {})
    counts |= {"crf": counts["cluster"]} if refine else {}
    scores = {name: ClusterMetrics(num_classes, count).to(device) for name, count in counts.items()}
    process = parallel.processes()
    for start in range(0, len(features), batch_size)[process.process_index :: process.num_processes]:
        rows = slice(start, start + batch_size)
        mirror = None if mirrored is None else mirrored[rows].to(device)
        maps = segmenter.segment_features(features[rows].to(device), mirror)
        target = torch.from_numpy(labels[rows]).to(device)
        size = (target.shape[1], target.shape[2])
        similar = segmenter.similarities(maps, size)
        scores["cluster"].update(similar.argmax(1), target)
        if linear:
            scores["linear"].update(linear_logits(maps, segmenter, size).argmax(1), target)
        if refine and images is not None:
            scores["crf"].update(refine(similar, images[rows]).to(device), target)
    for score in scores.values():
        score.confusion = parallel.total(score.confusion)
    return scores
