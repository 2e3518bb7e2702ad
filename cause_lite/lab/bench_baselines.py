"""Loops as the release has them, which `cause-lite bench` compares with beside the method's plain losses.

Nothing here is used to train or to predict.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(
    features: Tensor,
    codebook: Tensor,
    projected: Tensor,
    projected_teacher: Tensor,
    bank: tuple[Tensor, Tensor] | None = None,
    temperature: float = 0.07,
    positive_threshold: float = 0.3,
    negative_threshold: float = 0.1,
) -> Tensor:
    """Return the loss of step 2 by a loop over images: the anchors of each against the whole batch and the bank.

    Parameters
    ----------
    features, codebook
        Patch features (B, P, D) and concepts (K, D), which choose positives and negatives.
    projected, projected_teacher
        Anchors and keys (B, P, J).
    bank
        Further keys (M, J), and the concept of each (M,).
    temperature, positive_threshold, negative_threshold
        As in `cause_lite.frontdoor.concept_contrastive_loss`.
    """
    codes = F.normalize(codebook, dim=-1)
    alike = codes @ codes.T
    concept = (F.normalize(features, dim=-1) @ codes.T).argmax(-1)
    keys = F.normalize(projected_teacher.detach(), dim=-1).flatten(0, 1)
    stores = [(keys, concept.flatten())]
    if bank is not None and len(bank[0]):
        stores.append((F.normalize(bank[0], dim=-1), bank[1]))
    patches, means = features.shape[1], []
    for vectors, owners in stores:
        images = []
        for number, image in enumerate(projected):
            similarity = F.normalize(image, dim=-1) @ vectors.T / temperature
            near = alike[concept[number]][:, owners]
            positive, negative = near > positive_threshold, near < negative_threshold
            if vectors is keys:
                positive[torch.arange(patches), number * patches + torch.arange(patches)] = False
            partition = (similarity.exp() * (positive | negative)).sum(1, keepdim=True)
            pairs = partition.expand_as(similarity)[positive].log() - similarity[positive]
            images.append(pairs.mean() if len(pairs) else similarity.sum() * 0)
        means.append(torch.stack(images).mean())
    return torch.stack(means).mean()


class ReleasedBank:
    """Keep a tensor a concept, as released; whenever the bank is read, all are joined to one, concept by concept."""

    def __init__(self, vectors: Tensor, codebook: Tensor, capacity: int) -> None:
        self.codebook, self.by_concept = codebook, dict(enumerate(vectors.split(capacity)))

    def contents(self) -> tuple[Tensor, Tensor]:
        """Join vectors (M, J), concepts (M,) and, as the release does, codes (M, D); return the first two."""
        like = self.codebook
        vectors, codes = like.new_empty(0, self.by_concept[0].shape[1]), like.new_empty(0, like.shape[1])
        owners = torch.empty(0, dtype=torch.long, device=like.device)
        for concept, stored in self.by_concept.items():
            codes = torch.cat([codes, like[concept].expand(len(stored), -1)])
            vectors = torch.cat([vectors, stored])
            owners = torch.cat([owners, owners.new_full((len(stored),), concept)])
        return vectors, owners


def confusion(preds: Tensor, target: Tensor, classes: int) -> Tensor:
    """Count the pixels of each cluster and class (C, C), one pair at a time; both maps hold numbers of one shape."""
    table = torch.zeros(classes, classes, dtype=torch.long)
    for cluster in range(classes):
        for label in range(classes):
            table[cluster, label] = ((preds == cluster) & (target == label)).sum()
    return table
