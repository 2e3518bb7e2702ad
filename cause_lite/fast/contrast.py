"""Compute the concept-wise InfoNCE over a full bank, in chunks of keys and from products of low rank.

Whether a pair counts depends on the concepts of its two patches alone, so a (K, K) table decides; and where the
projection is a wide linear layer, keys are first brought to the width of its input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.fast.sums import KeySums
from cause_lite.fast.whole_bank import BankInfoNCE, BankPairs
from cause_lite.frontdoor import Bank, BankKeys, ConceptBank, bank_keys
from cause_lite.mediator import count_concepts, quantize
from cause_lite.runtime.device import works_ahead


@dataclass(frozen=True)
class _Pairs:
    """Which pairs of N anchors and M keys count, by their concepts.

    `positive` is 1 where patches of two concepts are positives, `counted` where a key of a concept is a positive or
    negative of an anchor. Where the keys are patches of the batch, anchor n is the patch of key `own` + n, which it
    leaves out; with keys of a bank `own` is None.
    """

    anchor_concept: Int[Tensor, " n"]
    keys: BankKeys
    positive: Float[Tensor, "k k"]
    counted: Float[Tensor, "k n"]
    own: int | None
    temperature: float
    chunk: int

    def chunks(self) -> list[slice]:
        """Return the runs of rows that are worked on in turn."""
        count = len(self.keys.rows)
        return [slice(start, min(start + self.chunk, count)) for start in range(0, count, self.chunk)]


class _InfoNCE(torch.autograd.Function):
    """Sum over anchor-positive pairs of logsumexp(positives and negatives) - similarity, per anchor.

    Similarity is anchor . key, or anchor . (weight^T key) where a weight (J, R) is given. Keys are met
    in chunks; the first pass gathers the anchors' gradient as well, the weight's takes a second pass.
    Memory is bounded by anchors x chunk and keys x R. Similarities are at most 1 / temperature, which is
    subtracted for stability.
    """

    @staticmethod
    def forward(
        ctx: Any, anchors: Float[Tensor, "n r"], weight: Float[Tensor, "j r"] | None, pairs: _Pairs
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Return the sum over the positives of each anchor, and their number."""
        positive, own, temperature = pairs.positive, pairs.own, pairs.temperature
        keys, anchor_concept, key_concept = pairs.keys, pairs.anchor_concept, pairs.keys.concepts
        partition, pull = anchors.new_zeros(len(anchors)), torch.zeros_like(anchors)
        sums, reduced = anchors.new_zeros(len(positive), anchors.shape[1]), []
        workspace = _Workspace(anchors, pairs)
        for rows in pairs.chunks():
            vectors = workspace.vectors(rows)
            near = vectors if weight is None else vectors @ weight
            odds = workspace.odds(near, rows)
            partition += odds.sum(dim=0)
            pull += odds.T @ near
            sums.index_add_(0, key_concept[rows], near)
            reduced += [] if weight is None else [near]
        key_count = count_concepts(key_concept, len(positive)).to(anchors.dtype)
        attraction, count = (positive @ sums)[anchor_concept], (positive @ key_count)[anchor_concept]
        if own is not None:
            itself, own_keys = positive.diagonal()[anchor_concept], slice(own, own + len(anchors))
            own_vectors = keys.vectors[own_keys] if weight is None else torch.cat(reduced)[own_keys]
            attraction = attraction - itself[:, None] * own_vectors
            count = count - itself
        total, slope, share = KeySums(partition, pull, attraction, count).finish(anchors, temperature)
        ctx.save_for_backward(slope, anchors, share, *reduced)
        ctx.pairs = pairs
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the anchors and of the weight."""
        slope, anchors, share, *reduced = ctx.saved_tensors
        pairs: _Pairs = ctx.pairs
        grad_total, grad_weight = grads[0], None
        if reduced:
            key_concept, own = pairs.keys.concepts, pairs.own
            given = grad_total[:, None] * anchors
            by_concept = anchors.new_zeros(len(pairs.positive), anchors.shape[1])
            from_positives = pairs.positive.T @ by_concept.index_add_(0, pairs.anchor_concept, given)
            grad_weight = anchors.new_zeros(pairs.keys.vectors.shape[1], anchors.shape[1])
            workspace = _Workspace(anchors, pairs)
            for rows, near in zip(pairs.chunks(), reduced, strict=True):
                odds = workspace.odds(near, rows)
                grad_near = odds @ (share[:, None] * given) - from_positives[key_concept[rows]]
                if own is not None:
                    low, high = max(rows.start, own), min(rows.stop, own + len(anchors))
                    itself = pairs.positive.diagonal()[key_concept[low:high], None]
                    grad_near[low - rows.start : high - rows.start] += itself * given[low - own : high - own]
                grad_weight += workspace.vectors(rows).T @ grad_near / pairs.temperature
        return grad_total[:, None] * slope, grad_weight, None


class _Workspace:
    """Memory that each chunk of M keys is worked on in, in turn: fresh pages for each took longer than the copies."""

    def __init__(self, anchors: Float[Tensor, "n r"], pairs: _Pairs) -> None:
        size = min(pairs.chunk, len(pairs.keys.rows))
        self._pairs, self._anchors = pairs, anchors
        self._vectors = pairs.keys.vectors.new_empty(size, pairs.keys.vectors.shape[1])
        self._counted, self._odds = anchors.new_empty(2, size, len(anchors))

    def vectors(self, rows: slice) -> Float[Tensor, "m j"]:
        """Return the vectors of a chunk of keys, until the next call."""
        chosen = self._pairs.keys.rows[rows]
        return torch.index_select(self._pairs.keys.vectors, 0, chosen, out=self._vectors[: len(chosen)])

    def odds(self, near: Float[Tensor, "m r"], rows: slice) -> Float[Tensor, "m n"]:
        """Return exp((similarity - 1) / temperature) of a chunk of keys and all anchors, until the next call.

        It is 0 where a pair does not count, or is an anchor and itself.
        """
        pairs, count = self._pairs, len(near)
        counts = torch.index_select(pairs.counted, 0, pairs.keys.concepts[rows], out=self._counted[:count])
        odds = torch.mm(near, (self._anchors / pairs.temperature).T, out=self._odds[:count])
        odds.sub_(1 / pairs.temperature).exp_().mul_(counts)
        if pairs.own is not None and -count < rows.start - pairs.own < len(self._anchors):
            odds.diagonal(rows.start - pairs.own).zero_()
        return odds


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
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    positive = (cosine > positive_threshold).to(wide)
    counted = ((cosine > positive_threshold) | (cosine < negative_threshold)).to(wide)
    anchor_concept = concept[first * patches : (first + batch) * patches]
    counted = counted[anchor_concept].T.contiguous()  # (K, B P), so that a key's row is copied as a whole
    anchors, weight = _anchors(x.to(wide).flatten(0, 1), linear)
    vectors = F.normalize(projected_teacher.detach().to(wide), dim=-1).flatten(0, 1)
    chunk = chunk or (4096 if x.device.type == "cpu" else 65536)

    def mean_over_images(total: Tensor, count: Tensor) -> Tensor:
        per_image, count = total.view(batch, patches).sum(1), count.view(batch, patches).sum(1)
        return torch.where(count > 0, per_image / count.clamp(min=1), 0).mean()

    def term(keys: BankKeys, own: int | None) -> Tensor:
        pairs = _Pairs(anchor_concept, keys, positive, counted, own, temperature, chunk)
        return mean_over_images(*_InfoNCE.apply(anchors, weight, pairs))

    batch_keys = BankKeys(vectors, torch.arange(len(vectors), device=vectors.device), concept)
    loss = term(batch_keys, own=first * patches)
    if isinstance(bank, ConceptBank) and works_ahead(x.device):
        pairs = BankPairs(bank, anchor_concept, positive, counted.T, temperature, max(1, chunk // bank.capacity))
        banked = mean_over_images(*BankInfoNCE.apply(anchors, weight, pairs))
        return torch.where(bank.filled.sum() > 0, (loss + banked) / 2, loss)
    stored = bank_keys(bank)
    if stored is None:
        return loss
    return (loss + term(stored._replace(vectors=stored.vectors.to(wide)), own=None)) / 2


def _anchors(x: Float[Tensor, "n r"], linear: nn.Linear | None) -> tuple[Tensor, Tensor | None]:
    """Return unit anchors (N, J); or, for a wide linear layer, (x, 1) over its output's norm, and its matrix."""
    if linear is None:
        return F.normalize(x, dim=-1), None
    if 2 * (linear.in_features + 1) > linear.out_features:  # too narrow to gain anything
        return F.normalize(linear(x), dim=-1), None
    weight = torch.cat([linear.weight, linear.bias[:, None]], 1).to(x.dtype)
    extended = F.pad(x, (0, 1), value=1)
    return extended / (extended @ weight.T).norm(dim=-1, keepdim=True).clamp(min=1e-12), weight
