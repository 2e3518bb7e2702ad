"""What `cause-lite bench` compares with, beside the plain losses of the method: loops, as the release has them.

Nothing here is used to train or to predict.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(
    features: Tensor, codebook: Tensor, projected: Tensor, projected_teacher: Tensor,
    bank: tuple[Tensor, Tensor] | None = None, temperature: float = 0.07,
    positive_threshold: float = 0.3, negative_threshold: float = 0.1,
) -> Tensor:  # fmt: skip
    """A loop over images; each image's anchors against the whole batch, and against the bank (M, J), (M,)."""
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
    """Release: a tensor a concept; whenever the bank is read, all are joined to one, concept by concept."""

    def __init__(self, vectors: Tensor, codebook: Tensor, capacity: int) -> None:
        self.codebook, self.held = codebook, dict(enumerate(vectors.split(capacity)))

    def contents(self) -> tuple[Tensor, Tensor]:
        """Vectors (M, J) and the code of each (M, D), as the release keeps them; returns vectors and owners (M,)."""
        like = self.codebook
        vectors, codes = like.new_empty(0, self.held[0].shape[1]), like.new_empty(0, like.shape[1])
        owners = torch.empty(0, dtype=torch.long, device=like.device)
        for concept, kept in self.held.items():
            codes = torch.cat([codes, like[concept].expand(len(kept), -1)])
            vectors = torch.cat([vectors, kept])
            owners = torch.cat([owners, owners.new_full((len(kept),), concept)])
        return vectors, owners


def confusion(preds: Tensor, target: Tensor, classes: int) -> Tensor:
    """Counts of (cluster, class), one class at a time."""
    table = torch.zeros(classes, classes, dtype=torch.long)
    for cluster in range(classes):
        for label in range(classes):
            table[cluster, label] = ((preds == cluster) & (target == label)).sum()
    return table
