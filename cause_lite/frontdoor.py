"""Step 2, the front door's inner sum: for each concept, contrast patches drawn from everywhere.

P(Y | do(T)) = sum_m P(m | T) sum_t' P(t') P(Y | t', m): given a concept m, other
patches t' from the batch and from a bank of past ones are brought in, so that the
segment feature follows the concept and not the image it came from.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.mediator import count_concepts, quantize
from cause_lite.runtime.device import to_device


class BankKeys(NamedTuple):
    """What a loss reads of a bank: unit vectors, the rows of them that count, and the concept of each such row."""

    vectors: Float[Tensor, "v j"]
    rows: Int[Tensor, " m"]
    concepts: Int[Tensor, " m"]


class ConceptBank(nn.Module):
    """The latest `capacity` teacher projections of each concept, in one preallocated ring buffer.

    `vectors` (K * capacity, J) holds unit vectors, zero where nothing is stored yet; `filled` (K,) counts the
    stored vectors of each concept, and `cursor` (K,) is the place of its next one.
    """

    vectors: Tensor
    filled: Tensor
    cursor: Tensor

    def __init__(self, num_concepts: int, dim: int, capacity: int = 100, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.num_concepts, self.capacity = num_concepts, capacity
        self.register_buffer("vectors", torch.zeros(num_concepts * capacity, dim, device=device))
        self.register_buffer("filled", torch.zeros(num_concepts, dtype=torch.long, device=device))
        self.register_buffer("cursor", torch.zeros(num_concepts, dtype=torch.long, device=device))

    def keys(self) -> BankKeys:
        """Return the stored vectors, not copied, as keys of a loss."""
        slot = torch.arange(self.capacity, device=self.filled.device)
        rows = (slot < self.filled[:, None]).flatten().nonzero()[:, 0]
        return BankKeys(self.vectors, rows, rows // self.capacity)

    @torch.no_grad()
    def update(
        self, vectors: Float[Tensor, "n j"], concepts: Int[Tensor, " n"], generator: torch.Generator, share: float = 0.5
    ) -> None:
        """Store a random `share` of each concept's new vectors, dropping its oldest beyond capacity.

        int(share * n) of n are stored: at a half, as released, a concept met once leaves nothing behind.
        """
        shuffled = to_device(torch.randperm(len(vectors), generator=generator), concepts.device)
        order = shuffled[torch.argsort(concepts[shuffled], stable=True)]
        concept, position = concepts[order], torch.arange(len(order), device=order.device)
        counts = count_concepts(concept, self.num_concepts)
        rank = position - (counts.cumsum(0) - counts)[concept]
        new = (counts * share).long().clamp(max=self.capacity)  # vectors that each concept stores
        # No shape may depend on the data, or a GPU would be waited for. So each vector writes: one that is not to be
        # stored writes the first of its concept once more or, where its concept stores none, what is there already.
        back = torch.where(rank < new[concept], 0, rank)
        slot = concept * self.capacity + (self.cursor[concept] + rank - back) % self.capacity
        written = F.normalize(vectors[order[position - back]], dim=-1).to(self.vectors.dtype)
        self.vectors[slot] = torch.where((new[concept] > 0)[:, None], written, self.vectors[slot])
        self.cursor = (self.cursor + new) % self.capacity
        self.filled = (self.filled + new).clamp(max=self.capacity)


Bank = ConceptBank | tuple[Float[Tensor, "m j"], Int[Tensor, " m"]]


def bank_keys(bank: Bank | None) -> BankKeys | None:
    """Return the keys of a ConceptBank, or of vectors and their concepts; None where there are none."""
    if bank is None:
        return None
    if isinstance(bank, tuple):
        vectors, concepts = bank
        keys = BankKeys(F.normalize(vectors, dim=-1), torch.arange(len(vectors), device=vectors.device), concepts)
    else:
        keys = bank.keys()
    return keys if len(keys.rows) else None


def threshold_cosines(
    codebook: Float[Tensor, "k d"], positive: float, negative: float, kind: str = "cosine"
) -> tuple[float, float]:
    """Return the cosines of concepts (K, D) above which they attract and below which they repel.

    By `kind`, the thresholds are these cosines, or the quantiles in 0..1 of the cosines of all pairs of different
    concepts, which fit features of any spread.
    """
    if kind == "cosine":
        return positive, negative
    unit = F.normalize(codebook.detach(), dim=-1)
    first, second = torch.triu_indices(len(unit), len(unit), offset=1)
    cosines = np.quantile((unit @ unit.T)[first, second].cpu().numpy(), (positive, negative))
    return float(cosines[0]), float(cosines[1])


def concept_contrastive_loss(
    features: Float[Tensor, "n p d"],
    codebook: Float[Tensor, "k d"],
    projected: Float[Tensor, "b p j"],
    projected_teacher: Float[Tensor, "n p j"],
    bank: Bank | None = None,
    temperature: float = 0.07,
    positive_threshold: float = 0.3,
    negative_threshold: float = 0.1,
    first: int = 0,
) -> Float[Tensor, ""]:
    """Return the concept-wise InfoNCE of student anchors against teacher patches of the batch, and of the bank.

    Two patches are positives where the cosine of their concepts exceeds `positive_threshold`, negatives where it is
    below `negative_threshold`, and are ignored otherwise. With a bank that stores vectors, the loss is the mean of
    the loss against the batch and the loss against the bank.

    Parameters
    ----------
    features, codebook
        Patch features (N, P, D), and the concepts (K, D) that they are nearest to.
    projected, projected_teacher
        The student's projections (B, P, J), which alone get a gradient, and the teacher's (N, P, J).
    bank
        A ConceptBank, or vectors (M, J) and the concept of each (M,).
    temperature, positive_threshold, negative_threshold
        Above 0; cosines in -1..1.
    first
        Where several processes share a batch, `features` and `projected_teacher` hold the images of all processes,
        and `projected` those from number `first` on. The mean over processes is the loss of the whole batch.
    """
    concept = quantize(features, codebook)[1]  # (N, P)
    unit = F.normalize(codebook.detach(), dim=-1)
    cosine = unit @ unit.T  # (K, K), of concepts
    anchor_cosine = cosine[concept[first : first + len(projected)].flatten()]  # (B P, K)
    own_key = torch.arange(len(anchor_cosine), device=cosine.device) + first * concept.shape[1]  # (B P,)

    def term(keys: Tensor, key_concept: Tensor, own_key: Tensor | None = None) -> Tensor:
        near = anchor_cosine[:, key_concept]  # (B P, M)
        return info_nce(projected, keys, near > positive_threshold, near < negative_threshold, temperature, own_key)

    loss = term(projected_teacher.detach().flatten(0, 1), concept.flatten(), own_key)
    stored = bank_keys(bank)
    return loss if stored is None else (loss + term(stored.vectors[stored.rows], stored.concepts)) / 2


def info_nce(
    anchors: Float[Tensor, "b p j"],
    keys: Float[Tensor, "m j"],
    positive: Bool[Tensor, "n m"],
    negative: Bool[Tensor, "n m"],
    temperature: float,
    own_key: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean over images of the mean over anchor-positive pairs of - log(exp(s) / sum exp(s')).

    s is the pair's cosine over the temperature; s' runs over the anchor's positives and negatives. `own_key` is the key
    that each anchor (n = B P) leaves out. An image whose anchors have no positive contributes 0.
    """
    wide = torch.promote_types(anchors.dtype, torch.float32)
    if own_key is not None:
        positive = positive.scatter(1, own_key[:, None], False)
        negative = negative.scatter(1, own_key[:, None], False)
    unit = F.normalize(anchors.to(wide), dim=-1).flatten(0, 1)  # (B P, J)
    similarity = unit @ F.normalize(keys.to(wide), dim=-1).T / temperature  # (B P, M)
    partition = (similarity.exp() * (positive | negative)).sum(dim=1, keepdim=True)  # (B P, 1)
    pairs = (partition.clamp(min=torch.finfo(wide).tiny).log() - similarity) * positive  # (B P, M)
    per_image, count = pairs.sum(1).view(len(anchors), -1).sum(1), positive.sum(1).view(len(anchors), -1).sum(1)
    return torch.where(count > 0, per_image / count.clamp(min=1), 0).mean()
