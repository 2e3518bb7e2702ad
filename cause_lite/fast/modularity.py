"""Find the strongest concept that two patches share, exactly, without the (B, K, P, P) tensor of the plain form.

On a CPU each patch's strongest concepts are tried first. What both patches of a pair leave out is bounded by the
product of their strongest concepts not tried, so only pairs below that bound are searched in full. On a GPU for which
Triton compiles, `kernels` look at all products. Both have a `find_strongest` and a `pull_back` of the same arguments.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

TRIED_FIRST = 96  # strongest concepts of a patch


def products_at_once(device: torch.device) -> int:
    """Return how many numbers to hold at once: what fits a CPU's caches, or what keeps another device busy."""
    return 1 << 18 if device.type == "cpu" else 1 << 26


def images_at_once(device: torch.device, patches: int) -> int:
    """Return how many images to search at once."""
    return max(1, products_at_once(device) // (TRIED_FIRST * patches**2))


def find_strongest(
    membership: Float[Tensor, "b p k"], best: Float[Tensor, "b p p"], winner: Int[Tensor, "b p p"]
) -> None:
    """Write max_k C_ik C_jk and the winning k of memberships (B, P, K) into `best` and `winner`."""
    together = images_at_once(membership.device, membership.shape[1])
    for parts in zip(*(value.split(together) for value in (membership, best, winner)), strict=True):
        _search(*parts)


def _search(membership: Float[Tensor, "b p k"], best: Float[Tensor, "b p p"], winner: Int[Tensor, "b p p"]) -> None:
    """Do it for a few images. Memory: a few (B, P, P) and `products_at_once` numbers, whatever K is."""
    (images, patches, concepts), most = membership.shape, products_at_once(membership.device)
    kept = min(TRIED_FIRST, concepts)
    strong, which = membership.topk(min(kept + 1, concepts), dim=2)
    by_concept = membership.mT.contiguous().flatten(0, 1)
    first = torch.arange(images, device=membership.device).view(-1, 1, 1) * concepts
    tried, weight = (which[..., :kept] + first).flatten(0, 1), strong[..., :kept].flatten(0, 1)
    tops, wins = torch.empty_like(best).flatten(0, 1), torch.empty_like(winner).flatten(0, 1)
    for rows in torch.arange(len(tops), device=membership.device).split(max(1, most // (kept * patches))):
        tops[rows], place = (by_concept[tried[rows]] * weight[rows, :, None]).max(dim=1)
        wins[rows] = tried[rows].gather(1, place).remainder_(concepts).to(torch.int32)
    tops, wins = tops.view_as(best), wins.view_as(winner)
    winner.copy_(torch.where(tops >= tops.mT, wins, wins.mT))
    torch.maximum(tops, tops.mT, out=best)
    if kept < concepts:
        rest, flat = strong[..., kept], membership.flatten(0, 1)
        unsure = (best < rest[..., None] * rest[:, None]).triu().nonzero()
        for b, i, j in (pairs.unbind(1) for pairs in unsure.split(max(1, most // concepts))):
            found, place = (flat[b * patches + i] * flat[b * patches + j]).max(dim=1)
            best[b, i, j] = best[b, j, i] = found
            winner[b, i, j] = winner[b, j, i] = place.to(torch.int32)


def pull_back(membership: Tensor, winner: Tensor, grad: Tensor, slope: Tensor) -> None:
    """Give each pair's gradient to the memberships of both patches in the winning concept: fill `slope` (B, P, K)."""
    slope.zero_()
    together = images_at_once(membership.device, membership.shape[1])
    for few in zip(*(value.split(together) for value in (membership, winner, grad, slope)), strict=True):
        member, won, pull, part = few
        index = won.long()
        # d best_ij / d C_ik = C_jk for the winner k; each pair counts from both of its ends.
        part.scatter_add_(2, index, (pull + pull.mT) * member.gather(2, index.mT).mT)


class StrongestSharedConcept(torch.autograd.Function):
    """max_k C_ik C_jk for every pair of patches, (B, P, K) -> (B, P, P), by the kernels or by the search."""

    @staticmethod
    def forward(ctx: Any, membership: Float[Tensor, "b p k"], by_kernels: bool) -> Float[Tensor, "b p p"]:
        """Return the maxima, and keep the winning concepts for the gradient."""
        images, patches, _ = membership.shape
        best = membership.new_empty(images, patches, patches)
        winner = torch.empty(best.shape, dtype=torch.int32, device=best.device)
        (_kernels().find_strongest if by_kernels else find_strongest)(membership, best, winner)
        ctx.save_for_backward(membership, winner)
        ctx.pull_back = _kernels().pull_back if by_kernels else pull_back
        return best

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Give each pair's gradient to the memberships of both patches in the winning concept."""
        membership, winner = ctx.saved_tensors
        slope = torch.empty_like(membership, memory_format=torch.contiguous_format)
        ctx.pull_back(membership, winner, grads[0], slope)
        return slope, None


def shared_concept(membership: Float[Tensor, "b p k"]) -> Float[Tensor, "b p p"]:
    """Return max_k C_ik C_jk for every pair of patches: `cause_lite.mediator.shared_concept`, faster and smaller."""
    return StrongestSharedConcept.apply(membership, kernels_work(membership.device))


def _kernels() -> ModuleType:
    """Return the module of the kernels, whose import takes Triton."""
    return importlib.import_module("cause_lite.fast.kernels")


@functools.cache
def kernels_work(device: torch.device) -> bool:
    """Return whether the kernels compile for a device and find there what a plain product finds; warn where not."""
    if device.type != "cuda":
        return False
    membership = torch.rand(2, 37, 70, generator=torch.Generator().manual_seed(0)).to(device)
    plain, tiled = membership.clone().requires_grad_(), membership.clone().requires_grad_()
    try:
        wanted = (plain.mT[..., :, None] * plain.mT[..., None, :]).amax(dim=1)
        found = StrongestSharedConcept.apply(tiled, True)
        weight = torch.rand(found.shape, generator=torch.Generator().manual_seed(1)).to(device)
        (wanted * weight).sum().backward()
        (found * weight).sum().backward()
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(tiled.grad, plain.grad)
    except Exception as error:  # without a compiler, or on a GPU that Triton does not know, it raises many kinds
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"modularity without its kernels, which fail on {device} ({reason})", stacklevel=2)
        return False
    return True
