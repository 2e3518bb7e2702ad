"""Compute the concept-wise InfoNCE over a full bank, in chunks of keys and from products of low rank.

Whether a pair counts depends on the concepts of its two patches alone, so a (K, K) table decides; and where the
projection is a wide linear layer, keys are first brought to the width of its input. Keys have one of two sources:
`_Rows` copies the rows that count, `_Places` reads a bank as it lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.frontdoor import Bank, BankKeys, ConceptBank, bank_keys
from cause_lite.mediator import count_concepts, quantize
from cause_lite.runtime.device import works_ahead

EMPTY = -1e4  # what an empty place of a bank adds to its similarity over the temperature: its exponential is 0
KEPT = 2**29  # numbers of odds of a bank that are kept for the gradient; beyond it they are computed again


@dataclass(frozen=True)
class _Pairs:
    """Which pairs of N anchors and M keys count, by their concepts.

    `positive` is 1 where patches of two concepts are positives, `counted` where a key of a concept is a positive or
    negative of an anchor. Where the keys are patches of the batch, anchor n is the patch of key `own` + n, which it
    leaves out; with keys of a bank `own` is None.
    """

    keys: BankKeys | ConceptBank
    anchor_concept: Int[Tensor, " n"]
    positive: Float[Tensor, "k k"]
    counted: Float[Tensor, "k n"]
    own: int | None
    temperature: float
    chunk: int

    def source(self, anchors: Float[Tensor, "n r"]) -> _Rows | _Places:
        """Return what one pass over the keys reads them from."""
        keys = self.keys
        return _Places(self, keys, anchors) if isinstance(keys, ConceptBank) else _Rows(self, keys, anchors)

    def shared(self, chunk: slice) -> tuple[slice, slice]:
        """Return which keys of a chunk are patches of anchors, and of which anchors."""
        own, anchors = (0, 0) if self.own is None else (self.own, len(self.anchor_concept))
        low = max(chunk.start, own)
        high = max(low, min(chunk.stop, own + anchors))
        return slice(low - chunk.start, high - chunk.start), slice(low - own, high - own)


class _Rows:
    """Rows of keys, copied a chunk of M at a time into the same memory: fresh pages took longer than the copies."""

    def __init__(self, pairs: _Pairs, keys: BankKeys, anchors: Float[Tensor, "n r"]) -> None:
        size = min(pairs.chunk, len(keys.rows))
        self._pairs, self._keys, self._anchors = pairs, keys, anchors
        self._vectors = keys.vectors.new_empty(size, keys.vectors.shape[1])
        self._counted, self._odds = anchors.new_empty(2, size, len(anchors))
        self.chunks, self.keeps_odds = _slices(len(keys.rows), pairs.chunk), False
        self.counts = count_concepts(keys.concepts, len(pairs.positive)).to(anchors.dtype)

    def vectors(self, chunk: slice) -> Float[Tensor, "m j"]:
        """Return the vectors of a chunk, until the next call."""
        rows = self._keys.rows[chunk]
        vectors = torch.index_select(self._keys.vectors, 0, rows, out=self._vectors[: len(rows)])
        return vectors.to(self._anchors.dtype)

    def odds(self, near: Float[Tensor, "m r"], chunk: slice) -> Float[Tensor, "m n"]:
        """Return exp((similarity - 1) / temperature) of a chunk and all anchors, until the next call.

        It is 0 where a pair does not count, or is an anchor and itself.
        """
        pairs, count = self._pairs, len(near)
        counts = torch.index_select(pairs.counted, 0, self._keys.concepts[chunk], out=self._counted[:count])
        odds = torch.mm(near, (self._anchors / pairs.temperature).T, out=self._odds[:count])
        odds.sub_(1 / pairs.temperature).exp_().mul_(counts)
        odds[pairs.shared(chunk)].diagonal().zero_()
        return odds

    def weigh(self, odds: Tensor, near: Tensor) -> tuple[Float[Tensor, " n"], Float[Tensor, "n r"]]:
        """Return the sum of each anchor's odds, and the sum of the keys weighted by them."""
        return odds.sum(dim=0), odds.T @ near

    def add_to_concepts(self, sums: Float[Tensor, "k r"], near: Float[Tensor, "m r"], chunk: slice) -> None:
        """Add the keys of a chunk to the sums of their concepts."""
        sums.index_add_(0, self._keys.concepts[chunk], near)

    def subtract_concepts(self, near: Float[Tensor, "m r"], of: Float[Tensor, "k r"], chunk: slice) -> None:
        """Subtract from each key of a chunk what its concept has."""
        near -= of[self._keys.concepts[chunk]]


class _Places:
    """All places of a bank as they lie, a run of concepts at a time: the source for devices that work ahead.

    An empty place counts for nothing, so no shape depends on a value and a GPU is never waited for. The places of a
    concept lie together, which spares copies of keys and masks: on a GPU these took longer than the matrix products.
    """

    def __init__(self, pairs: _Pairs, bank: ConceptBank, anchors: Float[Tensor, "n r"]) -> None:
        self._pairs, self._bank, self._anchors = pairs, bank, anchors
        self.chunks = _slices(bank.num_concepts, max(1, pairs.chunk // bank.capacity))
        self.keeps_odds = len(anchors) * len(bank.vectors) <= KEPT
        self.counts = bank.filled.to(anchors.dtype)

    def vectors(self, concepts: slice) -> Float[Tensor, "m j"]:
        """Return the places of a run of concepts, not copied; an empty one is a vector of zeros."""
        capacity = self._bank.capacity
        return self._bank.vectors[concepts.start * capacity : concepts.stop * capacity].to(self._anchors.dtype)

    def odds(self, near: Float[Tensor, "m r"], concepts: slice) -> Float[Tensor, "m n"]:
        """Return the odds of a run of concepts and all anchors, as `_Rows` does; 0 for an empty place."""
        capacity, temperature = self._bank.capacity, self._pairs.temperature
        empty = (torch.arange(capacity, device=near.device) >= self._bank.filled[concepts, None]).flatten()
        shift = near.new_full((len(near),), -1 / temperature).masked_fill_(empty, EMPTY)
        odds = torch.addmm(shift, self._anchors / temperature, near.T).exp_()
        odds.view(len(odds), -1, capacity).mul_(self._pairs.counted[concepts].T[..., None])
        return odds.T

    def weigh(self, odds: Tensor, near: Tensor) -> tuple[Float[Tensor, " n"], Float[Tensor, "n r"]]:
        """Return what `_Rows` does, by one product."""
        summed = odds.T @ F.pad(near, (0, 1), value=1)
        return summed[:, -1], summed[:, :-1]

    def add_to_concepts(self, sums: Float[Tensor, "k r"], near: Float[Tensor, "m r"], concepts: slice) -> None:
        """Add the places of a run of concepts to the sums of these."""
        sums[concepts] += near.view(-1, self._bank.capacity, near.shape[1]).sum(1)

    def subtract_concepts(self, near: Float[Tensor, "m r"], of: Float[Tensor, "k r"], concepts: slice) -> None:
        """Subtract from each place of a run of concepts what its concept has."""
        near.view(-1, self._bank.capacity, near.shape[1]).sub_(of[concepts, None])


def _slices(count: int, most: int) -> list[slice]:
    """Return 0..count-1 in runs of at most so many."""
    return [slice(start, min(start + most, count)) for start in range(0, count, most)]


class _InfoNCE(torch.autograd.Function):
    """Sum over anchor-positive pairs of logsumexp(positives and negatives) - similarity, per anchor.

    Similarity is anchor . key, or anchor . (weight^T key) where a weight (J, R) is given. Keys are met in chunks; the
    first pass gathers the anchors' gradient as well, the weight's takes a second pass. Memory is bounded by anchors x
    chunk, keys x R and `KEPT`. Similarities are at most 1 / temperature, which is subtracted for stability.
    """

    @staticmethod
    def forward(
        ctx: Any, anchors: Float[Tensor, "n r"], weight: Float[Tensor, "j r"] | None, pairs: _Pairs
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Return the sum over the positives of each anchor, and their number."""
        source, positive, concepts = pairs.source(anchors), pairs.positive, pairs.anchor_concept
        partition, pull, itself = anchors.new_zeros(len(anchors)), torch.zeros_like(anchors), torch.zeros_like(anchors)
        sums, reduced, kept = anchors.new_zeros(len(positive), anchors.shape[1]), [], []
        for chunk in source.chunks:
            vectors = source.vectors(chunk)
            near = vectors if weight is None else vectors @ weight
            odds = source.odds(near, chunk)
            odds_sum, weighted = source.weigh(odds, near)
            partition += odds_sum
            pull += weighted
            source.add_to_concepts(sums, near, chunk)
            own_keys, own_anchors = pairs.shared(chunk)
            itself[own_anchors] = near[own_keys]
            if weight is not None:
                reduced.append(near)
                kept += [odds] if source.keeps_odds else []
        attraction, count = (positive @ sums)[concepts], (positive @ source.counts)[concepts]
        if pairs.own is not None:
            alike = positive.diagonal()[concepts]
            attraction, count = attraction - alike[:, None] * itself, count - alike
        partition.clamp_(min=torch.finfo(anchors.dtype).tiny)
        share = count / partition
        total = count * (partition.log() + 1 / pairs.temperature) - (anchors * attraction).sum(1) / pairs.temperature
        slope = (share[:, None] * pull - attraction) / pairs.temperature
        ctx.save_for_backward(slope, anchors, share, *reduced, *kept)
        ctx.pairs = pairs
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the anchors and of the weight."""
        slope, anchors, share, *saved = ctx.saved_tensors
        pairs: _Pairs = ctx.pairs
        grad_weight = None
        if saved:
            source, positive, concepts = pairs.source(anchors), pairs.positive, pairs.anchor_concept
            reduced, kept = saved[: len(source.chunks)], saved[len(source.chunks) :]
            given, alike = grads[0][:, None] * anchors, positive.diagonal()[concepts, None]
            by_concept = anchors.new_zeros(len(positive), anchors.shape[1]).index_add_(0, concepts, given)
            attracted, pushed = positive.T @ by_concept, share[:, None] * given
            grad_weight = anchors.new_zeros(pairs.keys.vectors.shape[1], anchors.shape[1])
            for number, chunk in enumerate(source.chunks):
                odds = kept[number] if kept else source.odds(reduced[number], chunk)
                grad_near = odds @ pushed
                source.subtract_concepts(grad_near, attracted, chunk)
                own_keys, own_anchors = pairs.shared(chunk)
                grad_near[own_keys] += alike[own_anchors] * given[own_anchors]
                grad_weight += source.vectors(chunk).T @ grad_near / pairs.temperature
        return grads[0][:, None] * slope, grad_weight, None


def concept_contrastive_loss(
    features: Float[Tensor, "n p d"],
    codebook: Float[Tensor, "k d"],
    projected: Float[Tensor, "b p j"] | tuple[Float[Tensor, "b p r"], nn.Linear],
    projected_teacher: Float[Tensor, "n p j"],
    bank: Bank | None = None,
    temperature: float = 0.07,
    positive_threshold: float = 0.3,
    negative_threshold: float = 0.1,
    chunk: int | None = None,
    first: int = 0,
) -> Float[Tensor, ""]:
    """Return `cause_lite.frontdoor.concept_contrastive_loss`, faster and in bounded memory.

    Parameters
    ----------
    projected
        The student's projections (B, P, J), or the pair (x (B, P, R), linear layer R -> J) that they are computed
        from: the value is the same, and x and the layer get gradients from products of width R + 1 in place of J.
    chunk
        Keys at once; memory is bounded by anchors x `chunk`. By default 4,096 on a CPU, whose caches hold that much,
        and 65,536 on another device. The other parameters are those of the plain form.
    """
    x, linear = projected if isinstance(projected, tuple) else (projected, None)
    batch, patches, _ = x.shape
    concept = quantize(features, codebook)[1].flatten()
    unit = F.normalize(codebook.detach(), dim=-1)
    cosine = unit @ unit.T
    wide = torch.promote_types(x.dtype, torch.float32)
    positive = (cosine > positive_threshold).to(wide)
    counted = ((cosine > positive_threshold) | (cosine < negative_threshold)).to(wide)
    anchor_concept = concept[first * patches : (first + batch) * patches]
    counted = counted[anchor_concept].T.contiguous()  # (K, B P), so that a key's row is copied as a whole
    anchors, weight = _anchors(x.to(wide).flatten(0, 1), linear)
    vectors = F.normalize(projected_teacher.detach().to(wide), dim=-1).flatten(0, 1)
    chunk = chunk or (4096 if x.device.type == "cpu" else 65536)

    def term(keys: BankKeys | ConceptBank, own: int | None = None) -> Tensor:
        pairs = _Pairs(keys, anchor_concept, positive, counted, own, temperature, chunk)
        total, count = (value.view(batch, patches).sum(1) for value in _InfoNCE.apply(anchors, weight, pairs))
        return torch.where(count > 0, total / count.clamp(min=1), 0).mean()

    loss = term(BankKeys(vectors, torch.arange(len(vectors), device=vectors.device), concept), first * patches)
    if isinstance(bank, ConceptBank) and works_ahead(x.device):
        return torch.where(bank.filled.sum() > 0, (loss + term(bank)) / 2, loss)
    stored = bank_keys(bank)
    return loss if stored is None else (loss + term(stored)) / 2


def _anchors(x: Float[Tensor, "n r"], linear: nn.Linear | None) -> tuple[Tensor, Tensor | None]:
    """Return unit anchors (N, J); or, for a wide linear layer, (x, 1) over its output's norm, and its matrix."""
    if linear is None:
        return F.normalize(x, dim=-1), None
    if 2 * (linear.in_features + 1) > linear.out_features:  # too narrow to gain anything
        return F.normalize(linear(x), dim=-1), None
    weight = torch.cat([linear.weight, linear.bias[:, None]], 1).to(x.dtype)
    extended = F.pad(x, (0, 1), value=1)
    return extended / (extended @ weight.T).norm(dim=-1, keepdim=True).clamp(min=1e-12), weight
