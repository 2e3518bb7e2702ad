"""Find the strongest concept that two patches share by `kernels`, on a GPU for which Triton compiles."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class TiledSharedConcept(torch.autograd.Function):
    """max_k C_ik C_jk for every pair of patches, (B, P, K) -> (B, P, P); sums are made in a fixed order."""

    @staticmethod
    def forward(ctx: Any, membership: Float[Tensor, "b p k"]) -> Float[Tensor, "b p p"]:
        """Return the maxima, and keep the winning concepts for the gradient."""
        from cause_lite.fast import kernels

        images, patches, _ = membership.shape
        best = membership.new_empty(images, patches, patches)
        winner = torch.empty(best.shape, dtype=torch.int32, device=best.device)
        kernels.find_strongest(membership.mT.contiguous(), best, winner)
        ctx.save_for_backward(membership, winner)
        return best

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Give each pair's gradient to the memberships of both patches in the winning concept."""
        from cause_lite.fast import kernels

        membership, winner = ctx.saved_tensors
        slope = torch.empty_like(membership, memory_format=torch.contiguous_format)
        kernels.pull_back(membership.contiguous(), winner, (grads[0] + grads[0].mT).contiguous(), slope)
        return slope


@functools.cache
def compiles(device: torch.device) -> bool:
    """Return whether the kernels compile for a device and find there what a plain product finds; warn where not."""
    if device.type != "cuda":
        return False
    membership = torch.rand(2, 37, 70, generator=torch.Generator().manual_seed(0)).to(device)
    plain, tiled = membership.clone().requires_grad_(), membership.clone().requires_grad_()
    try:
        wanted = (plain.mT[..., :, None] * plain.mT[..., None, :]).amax(dim=1)
        found = TiledSharedConcept.apply(tiled)
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
