"""Compute the concept-wise InfoNCE over a bank as it lies in memory: the form for devices that work ahead.

`contrast` reads the rows of a bank that are in use, so how many there are must be known to the process that queues
the work. Here every place of the bank is read, and an empty one counts for nothing, so no shape depends on a value and
a GPU is never waited for. The places of a concept lie together, which spares the copies of keys and of masks: on a GPU
these, and not the matrix products, took most of the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cause_lite.fast.sums import KeySums
from cause_lite.frontdoor import ConceptBank

EMPTY = -1e4  # what an empty place adds to its similarity over the temperature: its exponential is 0
KEPT = 2**29  # numbers of exponentials that are kept for the gradient; beyond it they are computed again


@dataclass(frozen=True)
class BankPairs:
    """Which pairs of N anchors and the places of a bank count, by their concepts.

    `positive` is 1 where patches of two concepts are positives, `counted` where a key of a concept is a positive or a
    negative of an anchor. `concepts_at_once` bounds the memory.
    """

    bank: ConceptBank
    anchor_concept: Int[Tensor, " n"]
    positive: Float[Tensor, "k k"]
    counted: Float[Tensor, "n k"]
    temperature: float
    concepts_at_once: int

    def chunks(self) -> list[slice]:
        """Return the runs of concepts that are worked on in turn."""
        count, most = self.bank.num_concepts, self.concepts_at_once
        return [slice(start, min(start + most, count)) for start in range(0, count, most)]

    def vectors(self, concepts: slice, dtype: torch.dtype) -> Float[Tensor, "m j"]:
        """Return the places of a run of concepts, not copied."""
        capacity = self.bank.capacity
        return self.bank.vectors[concepts.start * capacity : concepts.stop * capacity].to(dtype)

    def odds(self, anchors: Float[Tensor, "n r"], near: Float[Tensor, "m r"], concepts: slice) -> Float[Tensor, "n m"]:
        """Return exp((similarity - 1) / temperature) of anchors and a run of concepts; 0 for what does not count."""
        place = torch.arange(self.bank.capacity, device=anchors.device)
        empty = (place >= self.bank.filled[concepts, None]).flatten()
        shift = torch.where(empty, EMPTY, -1 / self.temperature).to(anchors.dtype)
        odds = torch.addmm(shift, anchors / self.temperature, near.T).exp_()
        by_concept = odds.view(len(anchors), -1, self.bank.capacity)
        by_concept.mul_(self.counted[:, concepts, None])
        return odds


class BankInfoNCE(torch.autograd.Function):
    """Sum over anchor-positive pairs of logsumexp(positives and negatives) - similarity, per anchor.

    The same sum as `contrast` takes over a bank's rows. Similarity is anchor . place, or anchor . (weight^T place)
    where a weight (J, R) is given.
    """

    @staticmethod
    def forward(
        ctx: Any, anchors: Float[Tensor, "n r"], weight: Float[Tensor, "j r"] | None, pairs: BankPairs
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Return the sum over the positives of each anchor, and their number."""
        positive, bank, count_of = pairs.positive, pairs.bank, pairs.anchor_concept
        partition, pull = anchors.new_zeros(len(anchors)), torch.zeros_like(anchors)
        sums, kept = [], []
        keep = weight is not None and len(anchors) * len(bank.vectors) <= KEPT
        for concepts in pairs.chunks():
            vectors = pairs.vectors(concepts, anchors.dtype)
            near = vectors if weight is None else vectors @ weight
            odds = pairs.odds(anchors, near, concepts)
            summed = odds @ F.pad(near, (0, 1), value=1)  # the last column sums the odds
            pull += summed[:, :-1]
            partition += summed[:, -1]
            sums.append(near.view(-1, bank.capacity, near.shape[1]).sum(1))
            kept += [near, *([odds] if keep else [])] if weight is not None else []
        attraction = (positive @ torch.cat(sums))[count_of]
        count = (positive @ bank.filled.to(anchors.dtype))[count_of]
        total, slope, share = KeySums(partition, pull, attraction, count).finish(anchors, pairs.temperature)
        ctx.save_for_backward(slope, anchors, share, *kept)
        ctx.pairs, ctx.keep, ctx.projects = pairs, keep, weight is not None
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the anchors and of the weight."""
        slope, anchors, share, *kept = ctx.saved_tensors
        pairs: BankPairs = ctx.pairs
        grad_weight = None
        if ctx.projects:
            given = grads[0][:, None] * anchors
            by_concept = anchors.new_zeros(len(pairs.positive), anchors.shape[1])
            attracted = pairs.positive.T @ by_concept.index_add_(0, pairs.anchor_concept, given)
            grad_weight = anchors.new_zeros(pairs.bank.vectors.shape[1], anchors.shape[1])
            for concepts, odds in _chunks_kept(pairs, anchors, kept, ctx.keep):
                grad_near = odds.T @ (share[:, None] * given)
                grad_near.view(-1, pairs.bank.capacity, anchors.shape[1]).sub_(attracted[concepts, None])
                # An empty place is a vector of zeros, so it adds nothing here.
                grad_weight += pairs.vectors(concepts, anchors.dtype).T @ grad_near / pairs.temperature
        return grads[0][:, None] * slope, grad_weight, None


def _chunks_kept(
    pairs: BankPairs, anchors: Tensor, kept: list[Tensor], with_odds: bool
) -> Iterator[tuple[slice, Tensor]]:
    """Yield each run of concepts with its odds, as they were kept or computed again."""
    each = 2 if with_odds else 1
    for number, concepts in enumerate(pairs.chunks()):
        near = kept[each * number]
        yield concepts, kept[each * number + 1] if with_odds else pairs.odds(anchors, near, concepts)
