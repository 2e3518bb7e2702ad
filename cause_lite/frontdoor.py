"""Step 2, the front door's inner sum: for each concept, contrast patches drawn from everywhere.

P(Y | do(T)) = sum_m P(m | T) sum_t' P(t') P(Y | t', m): given a concept m, other
patches t' from the batch and from a bank of past ones are brought in, so that the
segment feature follows the concept and not the image it came from.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from cause_lite.mediator import quantize


class ConceptBank:
    """The latest `capacity` teacher projections of each concept, in one preallocated ring buffer.

    `vectors` (K * capacity, J) hold unit vectors, zero where nothing is stored yet; `filled` (K,)
    counts what each concept holds, `cursor` (K,) is where its next vector goes.
    """

    def __init__(self, num_concepts: int, dim: int, capacity: int = 100, device: torch.device | str = "cpu") -> None:
        self.num_concepts, self.capacity = num_concepts, capacity
        self.vectors = torch.zeros(num_concepts * capacity, dim, device=device)
        self.filled = torch.zeros(num_concepts, dtype=torch.long, device=device)
        self.cursor = torch.zeros(num_concepts, dtype=torch.long, device=device)

    def rows(self) -> Int[Tensor, " m"]:
        """The rows of `vectors` that hold something; row // capacity is its concept."""
        slot = torch.arange(self.capacity, device=self.filled.device)
        return (slot < self.filled[:, None]).flatten().nonzero()[:, 0]

    def contents(self) -> tuple[Float[Tensor, "m j"], Int[Tensor, " m"]]:
        """All stored vectors and the concept of each."""
        rows = self.rows()
        return self.vectors[rows], rows // self.capacity

    @torch.no_grad()
    def update(
        self, vectors: Float[Tensor, "n j"], concepts: Int[Tensor, " n"], generator: torch.Generator, share: float = 0.5
    ) -> None:
        """Store a random `share` of each concept's new vectors, dropping its oldest beyond capacity.

        int(share * n) of n are kept: at a half, as released, a concept met once leaves nothing behind.
        """
        shuffled = torch.randperm(len(vectors), generator=generator).to(concepts.device)
        order = shuffled[torch.argsort(concepts[shuffled], stable=True)]
        concept = concepts[order]
        counts = torch.bincount(concept, minlength=self.num_concepts)
        rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[concept]
        kept = rank < (counts * share).long().clamp(max=self.capacity)[concept]
        order, concept, rank = order[kept], concept[kept], rank[kept]
        slot = concept * self.capacity + (self.cursor[concept] + rank) % self.capacity
        self.vectors[slot] = F.normalize(vectors[order], dim=-1).to(self.vectors.dtype)
        new = torch.bincount(concept, minlength=self.num_concepts)
        self.cursor = (self.cursor + new) % self.capacity
        self.filled = (self.filled + new).clamp(max=self.capacity)

    def state_dict(self) -> dict[str, Tensor]:
        return {"vectors": self.vectors, "filled": self.filled, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, held in self.state_dict().items():
            held.copy_(state[name])


def concept_contrastive_loss(
    features: Float[Tensor, "n p d"],
    codebook: Float[Tensor, "k d"],
    projected: Float[Tensor, "b p j"],
    projected_teacher: Float[Tensor, "n p j"],
    bank: ConceptBank | tuple[Float[Tensor, "m j"], Int[Tensor, " m"]] | None = None,
    temperature: float = 0.07,
    positive_threshold: float = 0.3,
    negative_threshold: float = 0.1,
    first: int = 0,
) -> Float[Tensor, ""]:
    """Return the concept-wise InfoNCE of student anchors against teacher patches of the batch, and of the bank.

    Two patches are positives where the cosine of their concepts exceeds `positive_threshold`, negatives where it is
    below `negative_threshold`, and are ignored otherwise. With a bank that holds something, the loss is the mean of
    the loss against the batch and the loss against the bank.

    Parameters
    ----------
    features
        Patch features (N, P, D), which decide the concepts.
    codebook
        Concepts (K, D).
    projected
        The student's projections (B, P, J). The gradient reaches them alone.
    projected_teacher
        The teacher's projections (N, P, J).
    bank
        A ConceptBank, or vectors (M, J) and the concept of each (M,).
    temperature, positive_threshold, negative_threshold
        Above 0; cosines in -1..1.
    first
        Where several processes share a batch, `features` and `projected_teacher` hold the images of all of them and
        `projected` those from number `first` on. The mean over processes is the loss of the whole batch.
    """
    concept = quantize(features, codebook)[1]  # (N, P)
    unit = F.normalize(codebook.detach(), dim=-1)
    alike = unit @ unit.T  # (K, K), cosines of concepts
    mine = alike[concept[first : first + len(projected)].flatten()]  # (B P, K)
    keys = projected_teacher.detach().flatten(0, 1)  # (N P, J)
    itself = torch.arange(len(mine), device=mine.device) + first * concept.shape[1]  # each anchor's own key

    def term(keys: Tensor, key_concept: Tensor, itself: Tensor | None = None) -> Tensor:
        near = mine[:, key_concept]  # (B P, M)
        return info_nce(projected, keys, near > positive_threshold, near < negative_threshold, temperature, itself)

    loss = term(keys, concept.flatten(), itself)
    vectors, rows, owners = held(bank)
    return loss if len(rows) == 0 else (loss + term(vectors[rows], owners)) / 2


def info_nce(
    anchors: Float[Tensor, "b p j"],
    keys: Float[Tensor, "m j"],
    positive: Bool[Tensor, "n m"],
    negative: Bool[Tensor, "n m"],
    temperature: float,
    itself: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean over images of the mean over anchor-positive pairs of - log(exp(s) / sum exp(s')).

    s is the pair's cosine over the temperature; s' runs over the anchor's positives and negatives. `itself` is the key
    that each anchor (n = B P) leaves out. An image whose anchors have no positive contributes 0.
    """
    wide = torch.promote_types(anchors.dtype, torch.float32)
    if itself is not None:
        positive = positive.scatter(1, itself[:, None], False)
        negative = negative.scatter(1, itself[:, None], False)
    unit = F.normalize(anchors.to(wide), dim=-1).flatten(0, 1)  # (B P, J)
    similarity = unit @ F.normalize(keys.to(wide), dim=-1).T / temperature  # (B P, M)
    partition = (similarity.exp() * (positive | negative)).sum(dim=1, keepdim=True)  # (B P, 1)
    pairs = (partition.clamp(min=torch.finfo(wide).tiny).log() - similarity) * positive  # (B P, M)
    per_image, count = pairs.sum(1).view(len(anchors), -1).sum(1), positive.sum(1).view(len(anchors), -1).sum(1)
    return torch.where(count > 0, per_image / count.clamp(min=1), 0).mean()


def held(
    bank: ConceptBank | tuple[Float[Tensor, "m j"], Int[Tensor, " m"]] | None,
) -> tuple[Float[Tensor, "v j"], Int[Tensor, " m"], Int[Tensor, " m"]]:
    """Return a bank's unit vectors (not copied), the rows of them that hold something, and the concept of each row."""
    if bank is None:
        nothing = torch.empty(0, dtype=torch.long)
        return torch.empty(0, 1), nothing, nothing
    if isinstance(bank, tuple):
        vectors, owners = bank
        return F.normalize(vectors, dim=-1), torch.arange(len(vectors), device=vectors.device), owners
    rows = bank.rows()
    return bank.vectors, rows, rows // bank.capacity
