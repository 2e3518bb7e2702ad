"""Measure the concepts against labels, which took no part in learning them: purity, and how right positives are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cause_lite.probe import patch_labels


def concept_purity(index: Tensor, labels: np.ndarray) -> float:
    """Return the share of patches, in percent, that are of their concept's commonest class.

    Parameters
    ----------
    index
        The concept of each patch, (N, P).
    labels
        Label maps (N, H, W); a patch counts as the class at its centre.
    """
    counts = concept_counts(index, labels, int(index.max()) + 1)
    return 100 * float(counts.amax(1).sum() / counts.sum())


def concept_counts(index: Tensor, labels: np.ndarray, concepts: int) -> Tensor:
    """Return how many patches of each class each of K concepts holds, (K, C); arguments as for `concept_purity`."""
    truth = patch_labels(labels, round(index.shape[1] ** 0.5)).flatten()
    concept, labelled = index.flatten().long(), truth >= 0
    counts = torch.zeros(concepts, int(truth.max()) + 1, dtype=torch.float64)
    ones = counts.new_ones(int(labelled.sum()))
    return counts.index_put_((concept[labelled], truth[labelled]), ones, accumulate=True)


def positive_agreement(counts: Tensor, codebook: Tensor, threshold: float) -> tuple[float, float]:
    """Return precision and recall, in percent, of the contrast's positive pairs, over all pairs of patches.

    Precision is the share of positive pairs (their concepts' cosine is above `threshold`) that are of one class. Recall
    is the share of pairs of one class that are positive.

    Parameters
    ----------
    counts
        Patches by concept and class, (K, C), as `concept_counts` returns.
    codebook
        Concepts (K, D).
    threshold
        A cosine in -1..1.
    """
    unit = F.normalize(codebook.double(), dim=-1)
    positive = (unit @ unit.T > threshold).double()
    right = float((counts * (positive @ counts)).sum())
    by_concept, by_class = counts.sum(1), counts.sum(0)
    return 100 * right / float(by_concept @ positive @ by_concept), 100 * right / float(by_class.square().sum())
