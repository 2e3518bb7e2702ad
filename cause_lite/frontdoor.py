"""Step 2, the front door's inner sum: for each concept, contrast patches drawn from everywhere.

P(Y | do(T)) = sum_m P(m | T) sum_t' P(t') P(Y | t', m): given a concept m, other
patches t' from the batch and from a bank of past ones are brought in, so that the
segment feature follows the concept and not the image it came from.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
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

    def contents(self) -> tuple[Float[Tensor, "m j"], Int[Tensor, " m"]]:
        """All stored vectors and the concept of each."""
        slot = torch.arange(self.capacity, device=self.filled.device)
        held = (slot < self.filled[:, None]).flatten()
        concept = torch.arange(self.num_concepts, device=held.device).repeat_interleave(self.capacity)
        return self.vectors[held], concept[held]

    @torch.no_grad()
    def update(self, vectors: Float[Tensor, "n j"], concepts: Int[Tensor, " n"], generator: torch.Generator) -> None:
        """Store a random half of each concept's new vectors, dropping its oldest beyond capacity.

        int(n / 2) of n are kept, so a concept met once leaves nothing behind, as in the release.
        """
        shuffled = torch.randperm(len(vectors), generator=generator).to(concepts.device)
        order = shuffled[torch.argsort(concepts[shuffled], stable=True)]
        concept = concepts[order]
        counts = torch.bincount(concept, minlength=self.num_concepts)
        rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[concept]
        kept = rank < (counts // 2).clamp(max=self.capacity)[concept]
        order, concept, rank = order[kept], concept[kept], rank[kept]
        slot = concept * self.capacity + (self.cursor[concept] + rank) % self.capacity
        self.vectors[slot] = F.normalize(vectors[order], dim=-1).to(self.vectors.dtype)
        new = torch.bincount(concept, minlength=self.num_concepts)
        self.cursor = (self.cursor + new) % self.capacity
        self.filled = (self.filled + new).clamp(max=self.capacity)

    def state(self) -> dict[str, Tensor]:
        return {"vectors": self.vectors, "filled": self.filled, "cursor": self.cursor}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.vectors, self.filled, self.cursor = (state[name].clone() for name in ("vectors", "filled", "cursor"))


class _InfoNCE(torch.autograd.Function):
    """Sum over anchor-positive pairs of logsumexp(positives and negatives) - similarity, per anchor.

    Keys are met in chunks, and the gradient is gathered on the same way, so memory is bounded by
    anchors x chunk. Similarities are at most 1 / temperature, which is subtracted for stability.
    """

    @staticmethod
    def forward(ctx, anchors, keys, anchor_concept, key_concept, positive, counted, own, temperature, chunk):
        concepts, peak = len(positive), 1 / temperature
        partition = anchors.new_zeros(len(anchors))
        pull = torch.zeros_like(anchors)
        for start in range(0, len(keys), chunk):
            part = slice(start, start + chunk)
            weight = torch.exp(anchors @ keys[part].T / temperature - peak)
            weight *= counted[anchor_concept][:, key_concept[part]]
            if own:  # anchors and keys are the same patches: leave each anchor's own out
                weight.diagonal(-start).zero_() if start < len(anchors) else None
            partition += weight.sum(dim=1)
            pull += weight @ keys[part]
        sums = keys.new_zeros(concepts, keys.shape[1]).index_add_(0, key_concept, keys)
        held = torch.bincount(key_concept, minlength=concepts).to(anchors.dtype)
        attraction, pairs = (positive @ sums)[anchor_concept], (positive @ held)[anchor_concept]
        if own:
            itself = positive.diagonal()[anchor_concept]
            attraction, pairs = attraction - itself[:, None] * keys, pairs - itself
        tiny = torch.finfo(anchors.dtype).tiny
        total = pairs * (partition.clamp(min=tiny).log() + peak) - (anchors * attraction).sum(1) / temperature
        slope = ((pairs / partition.clamp(min=tiny))[:, None] * pull - attraction) / temperature
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(pairs)
        return total, pairs

    @staticmethod
    def backward(ctx, grad_total, grad_pairs):
        (slope,) = ctx.saved_tensors
        return grad_total[:, None] * slope, *(None,) * 8


def concept_contrastive_loss(
    features: Float[Tensor, "b p d"],
    codebook: Float[Tensor, "k d"],
    projected: Float[Tensor, "b p j"],
    projected_teacher: Float[Tensor, "b p j"],
    bank: ConceptBank | tuple[Float[Tensor, "m j"], Int[Tensor, " m"]] | None = None,
    temperature: float = 0.07,
    positive_threshold: float = 0.3,
    negative_threshold: float = 0.1,
    chunk: int = 4096,
) -> Float[Tensor, ""]:
    """Concept-wise InfoNCE of student anchors against teacher patches of the batch, and of the bank.

    Patches are positives of an anchor where their concepts' cosine exceeds `positive_threshold`,
    negatives below `negative_threshold`, else ignored. Per image the mean over anchor-positive pairs
    of - log(exp(s_pos / t) / sum over positives and negatives exp(s / t)), s a cosine; then the mean
    over images. With a bank that holds something, the mean of the two losses. The gradient reaches
    `projected` alone. An image whose anchors have no positive contributes nothing.
    """
    batch, patches, _ = projected.shape
    concept = quantize(features, codebook)[1].flatten()
    unit = F.normalize(codebook.detach(), dim=-1)
    alike = unit @ unit.T
    wide = projected.dtype if projected.dtype == torch.float64 else torch.float32
    positive = (alike > positive_threshold).to(wide)
    counted = ((alike > positive_threshold) | (alike < negative_threshold)).to(wide)
    anchors = F.normalize(projected.to(wide), dim=-1).flatten(0, 1)
    keys = F.normalize(projected_teacher.detach().to(wide), dim=-1).flatten(0, 1)

    def term(keys: Tensor, key_concept: Tensor, own: bool) -> Tensor:
        total, pairs = _InfoNCE.apply(anchors, keys, concept, key_concept, positive, counted, own, temperature, chunk)
        per_image, pairs = total.view(batch, patches).sum(1), pairs.view(batch, patches).sum(1)
        return torch.where(pairs > 0, per_image / pairs.clamp(min=1), 0).mean()

    loss = term(keys, concept, own=True)
    vectors, owners = bank.contents() if isinstance(bank, ConceptBank) else bank or (None, None)
    if vectors is None or len(vectors) == 0:
        return loss
    return (loss + term(F.normalize(vectors.to(wide), dim=-1), owners, own=False)) / 2
