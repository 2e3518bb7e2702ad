"""Find the strongest concept that two patches share, exactly, without the (B, K, P, P) tensor of the plain form.

Each patch's strongest concepts are tried first. What both patches of a pair leave out is bounded by the product of
their strongest concepts not tried, so only pairs below that bound are searched in full.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cause_lite.fast import tiled_modularity

TRIED_FIRST = 96  # strongest concepts of a patch


def products_at_once(device: torch.device) -> int:
    """Return how many numbers to hold at once: what fits a CPU's caches, or what keeps another device busy."""
    return 1 << 18 if device.type == "cpu" else 1 << 26


def _by_strongest(membership: Float[Tensor, "b p k"]) -> tuple[Float[Tensor, "b p p"], Int[Tensor, "b p p"]]:
    """Return max_k C_ik C_jk and the winning k for memberships (B, P, K).

    Memory: a few (B, P, P) and `products_at_once` numbers, whatever K is.
    """
    (images, patches, concepts), most = membership.shape, products_at_once(membership.device)
    kept = min(TRIED_FIRST, concepts)
    strong, which = membership.topk(min(kept + 1, concepts), dim=2)
    by_concept = membership.mT.contiguous().flatten(0, 1)
    first = torch.arange(images, device=membership.device).view(-1, 1, 1) * concepts
    tried, weight = (which[..., :kept] + first).flatten(0, 1), strong[..., :kept].flatten(0, 1)
    best = membership.new_empty(images * patches, patches)
    winner = torch.empty(images * patches, patches, dtype=torch.int32, device=membership.device)
    for rows in torch.arange(len(best), device=membership.device).split(max(1, most // (kept * patches))):
        best[rows], place = (by_concept[tried[rows]] * weight[rows, :, None]).max(dim=1)
        winner[rows] = tried[rows].gather(1, place).remainder_(concepts).to(torch.int32)
    best, winner = best.view(images, patches, patches), winner.view(images, patches, patches)
    winner = torch.where(best >= best.mT, winner, winner.mT)
    best = torch.maximum(best, best.mT)
    if kept < concepts:
        rest, flat = strong[..., kept], membership.flatten(0, 1)
        unsure = (best < rest[..., None] * rest[:, None]).triu().nonzero()
        for b, i, j in (pairs.unbind(1) for pairs in unsure.split(max(1, most // concepts))):
            found, place = (flat[b * patches + i] * flat[b * patches + j]).max(dim=1)
            best[b, i, j] = best[b, j, i] = found
            winner[b, i, j] = winner[b, j, i] = place.to(torch.int32)
    return best, winner


class StrongestSharedConcept(torch.autograd.Function):
    """max_k C_ik C_jk for every pair of patches, (B, P, K) -> (B, P, P), without the (B, K, P, P) tensor."""

    @staticmethod
    def forward(ctx: Any, membership: Float[Tensor, "b p k"]) -> Float[Tensor, "b p p"]:
        """Return the maxima, and keep the winning concepts for the gradient."""
        ctx.together = max(1, products_at_once(membership.device) // (TRIED_FIRST * membership.shape[1] ** 2))  # images
        best, winner = zip(*map(_by_strongest, membership.split(ctx.together)), strict=True)
        ctx.save_for_backward(membership, *winner)
        return torch.cat(best)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Give each pair's gradient to the memberships of both patches in the winning concept."""
        grad = grads[0]
        membership, *winners = ctx.saved_tensors
        slope = torch.zeros_like(membership)
        chunks = (value.split(ctx.together) for value in (slope, membership, grad))
        for winner, chunk_slope, member, pull in zip(winners, *chunks, strict=True):
            index = winner.long()
            # d best_ij / d C_ik = C_jk for the winner k; each pair counts from both of its ends.
            other = member.gather(2, index.mT).mT
            chunk_slope.scatter_add_(2, index, (pull + pull.mT) * other)
        return slope


def shared_concept(membership: Float[Tensor, "b p k"]) -> Float[Tensor, "b p p"]:
    """Return max_k C_ik C_jk for every pair of patches: `cause_lite.mediator.shared_concept`, faster and smaller."""
    if tiled_modularity.compiles(membership.device):
        return tiled_modularity.TiledSharedConcept.apply(membership)
    return StrongestSharedConcept.apply(membership)
