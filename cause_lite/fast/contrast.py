"""Concept-wise InfoNCE over a full bank, in chunks of keys and from products of low rank.

Whether a pair counts depends on the concepts of its two patches alone, so a (K, K) table decides; and where the
projection is a wide linear layer, keys are first brought to the width of what it is computed from.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.frontdoor import Bank, bank_keys
from cause_lite.mediator import quantize


class _InfoNCE(torch.autograd.Function):
    """Sum over anchor-positive pairs of logsumexp(positives and negatives) - similarity, per anchor.

    Where the keys are patches of the batch, anchor n is the patch of key `own` + n, which it leaves out;
    keys of a bank have `own` None.

    Similarity is anchor . key, or anchor . (weight^T key) where a weight (J, R) is given. Keys are met
    in chunks, and the anchors' gradient is gathered on the same way; the weight's takes a second way.
    Memory is bounded by anchors x chunk and keys x R. Similarities are at most 1 / temperature, which is
    subtracted for stability.
    """

    @staticmethod
    def forward(
        ctx, anchors, weight, keys, rows, anchor_concept, key_concept, positive, counted, own, temperature, chunk
    ):
        partition, pull = anchors.new_zeros(len(anchors)), torch.zeros_like(anchors)
        sums, reduced = anchors.new_zeros(len(positive), anchors.shape[1]), []
        counted = counted[anchor_concept].T.contiguous()  # (K, N), so that a key's row is copied as a whole
        room = _Room(keys, anchors, min(chunk, len(rows)))
        for part in _slices(len(rows), chunk):
            near = room.rows(keys, rows[part]) if weight is None else room.rows(keys, rows[part]) @ weight
            odds = room.odds(near, anchors, counted, key_concept[part], own, part.start, temperature)
            partition += odds.sum(dim=0)
            pull += odds.T @ near
            sums.index_add_(0, key_concept[part], near)
            reduced += [] if weight is None else [near]
        held = torch.bincount(key_concept, minlength=len(positive)).to(anchors.dtype)
        attraction, pairs = (positive @ sums)[anchor_concept], (positive @ held)[anchor_concept]
        if own is not None:
            itself, mine = positive.diagonal()[anchor_concept], slice(own, own + len(anchors))
            attraction = attraction - itself[:, None] * (keys[mine] if weight is None else torch.cat(reduced)[mine])
            pairs = pairs - itself
        partition = partition.clamp(min=torch.finfo(anchors.dtype).tiny)
        total = pairs * (partition.log() + 1 / temperature) - (anchors * attraction).sum(1) / temperature
        slope = ((pairs / partition)[:, None] * pull - attraction) / temperature
        ctx.save_for_backward(
            slope, anchors, keys, rows, anchor_concept, key_concept, positive, counted, pairs / partition, *reduced
        )
        ctx.own, ctx.temperature, ctx.chunk = own, temperature, chunk
        ctx.mark_non_differentiable(pairs)
        return total, pairs

    @staticmethod
    def backward(ctx, grad_total, grad_pairs):
        slope, anchors, keys, rows, anchor_concept, key_concept, positive, counted, share, *reduced = ctx.saved_tensors
        grad_weight = None
        if reduced:
            given = grad_total[:, None] * anchors
            by_concept = anchors.new_zeros(len(positive), anchors.shape[1]).index_add_(0, anchor_concept, given)
            from_positives = positive.T @ by_concept
            grad_weight = anchors.new_zeros(keys.shape[1], anchors.shape[1])
            room = _Room(keys, anchors, min(ctx.chunk, len(rows)))
            for part, near in zip(_slices(len(rows), ctx.chunk), reduced, strict=True):
                odds = room.odds(near, anchors, counted, key_concept[part], ctx.own, part.start, ctx.temperature)
                grad_near = odds @ (share[:, None] * given) - from_positives[key_concept[part]]
                if ctx.own is not None:
                    low, high = max(part.start, ctx.own), min(part.stop, ctx.own + len(anchors))
                    itself = positive.diagonal()[key_concept[low:high], None]
                    grad_near[low - part.start : high - part.start] += itself * given[low - ctx.own : high - ctx.own]
                grad_weight += room.rows(keys, rows[part]).T @ grad_near / ctx.temperature
        return grad_total[:, None] * slope, grad_weight, *(None,) * 9


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class _Room:
    """Memory that each chunk of M keys is worked on in, in turn: fresh pages for each took longer than the copies."""

    def __init__(self, keys: Float[Tensor, "k j"], anchors: Float[Tensor, "n r"], chunk: int) -> None:
        self._rows = keys.new_empty(chunk, keys.shape[1])
        self._counted, self._odds = anchors.new_empty(2, chunk, len(anchors))

    def rows(self, keys: Float[Tensor, "k j"], rows: Int[Tensor, " m"]) -> Float[Tensor, "m j"]:
        """keys[rows], until the next call."""
        return torch.index_select(keys, 0, rows, out=self._rows[: len(rows)])

    def odds(
        self, near: Tensor, anchors: Tensor, counted: Tensor, concept: Tensor, own: int | None, start: int,
        temperature: float,
    ) -> Float[Tensor, "m n"]:  # fmt: skip
        """exp((similarity - 1) / temperature) of keys (M, R) and anchors (N, R), until the next call.

        0 where a pair does not count by `counted` (K, N) and the keys' `concept` (M,), or is an anchor and itself.
        """
        counts = torch.index_select(counted, 0, concept, out=self._counted[: len(near)])
        odds = torch.mm(near, (anchors / temperature).T, out=self._odds[: len(near)])
        odds.sub_(1 / temperature).exp_().mul_(counts)
        if own is not None and start - own < len(anchors) and own - start < len(near):
            odds.diagonal(start - own).zero_()
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

    `projected` may be the pair (x (B, P, R), linear layer R -> J) that it is computed from: the same
    value, and gradients for x and the layer, from products of width R + 1 in place of J.

    Memory is bounded by anchors x `chunk` keys: 4,096 of them on a CPU, whose caches such a piece suits, else more. The other parameters are those of the plain form.
    """
    x, linear = projected if isinstance(projected, tuple) else (projected, None)
    batch, patches, _ = x.shape
    concept = quantize(features, codebook)[1].flatten()
    unit = F.normalize(codebook.detach(), dim=-1)
    alike = unit @ unit.T
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    positive = (alike > positive_threshold).to(wide)
    counted = ((alike > positive_threshold) | (alike < negative_threshold)).to(wide)
    mine = concept[first * patches : (first + batch) * patches]
    anchors, weight = _anchors(x.to(wide).flatten(0, 1), linear)
    keys = F.normalize(projected_teacher.detach().to(wide), dim=-1).flatten(0, 1)
    chunk = chunk or (4096 if x.device.type == "cpu" else 65536)

    def term(keys: Tensor, rows: Tensor, key_concept: Tensor, own: int | None) -> Tensor:
        total, pairs = _InfoNCE.apply(
            anchors, weight, keys, rows, mine, key_concept, positive, counted, own, temperature, chunk
        )
        per_image, pairs = total.view(batch, patches).sum(1), pairs.view(batch, patches).sum(1)
        return torch.where(pairs > 0, per_image / pairs.clamp(min=1), 0).mean()

    loss = term(keys, torch.arange(len(keys), device=keys.device), concept, own=first * patches)
    stored = bank_keys(bank)
    return loss if stored is None else (loss + term(stored.vectors.to(wide), stored.rows, stored.concepts, None)) / 2


def _anchors(x: Float[Tensor, "n r"], linear: nn.Linear | None) -> tuple[Tensor, Tensor | None]:
    """Unit anchors (N, J); or, for a wide linear layer, (x, 1) over its output's norm, and its matrix (J, R + 1)."""
    if linear is None:
        return F.normalize(x, dim=-1), None
    if 2 * (linear.in_features + 1) > linear.out_features:  # too narrow to gain anything
        return F.normalize(linear(x), dim=-1), None
    weight = torch.cat([linear.weight, linear.bias[:, None]], 1).to(x.dtype)
    extended = F.pad(x, (0, 1), value=1)
    return extended / (extended @ weight.T).norm(dim=-1, keepdim=True).clamp(min=1e-12), weight
