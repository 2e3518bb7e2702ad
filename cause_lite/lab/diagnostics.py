"""Measure the concepts against labels, which taught them nothing: purity, and what positives are worth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cause_lite.probe import patch_labels


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
