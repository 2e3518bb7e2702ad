"""Step 1, the mediator: a clusterbook of concepts found by maximising modularity.

Patches of one image are nodes of a graph; two of them belong together as far as
they share a concept. The codebook (K, D) is trained so that this agrees with the
graph's edges more than chance would (arXiv 2310.07379, section 3.2).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def modularity_matrix(
    features: Float[Tensor, "b p d"],
) -> tuple[Float[Tensor, "b p p"], Float[Tensor, "b 1 1"]]:
    """Edges minus what their degrees alone predict, W = A - d d^T / e, and the total weight e.

    A_ij = max(0, cos(x_i, x_j)) with a zero diagonal, d_i = sum_j A_ij, e = sum_ij A_ij.
    An image without any edge (e = 0) gets W = 0.
    """
    unit = F.normalize(features, dim=-1)
    edges = (unit @ unit.transpose(1, 2)).clamp(min=0)
    edges = edges - torch.diag_embed(edges.diagonal(dim1=1, dim2=2))
    degree = edges.sum(dim=2, keepdim=True)
    total = degree.sum(dim=1, keepdim=True)
    return edges - degree @ degree.transpose(1, 2) / total.clamp(min=torch.finfo(edges.dtype).tiny), total


def assign(features: Float[Tensor, "b p d"], codebook: Float[Tensor, "k d"]) -> Float[Tensor, "b p k"]:
    """Soft membership of each patch in each concept: C_ik = max(0, cos(x_i, c_k)), in 0..1."""
    return (F.normalize(features, dim=-1) @ F.normalize(codebook, dim=-1).T).clamp(min=0)


KEPT = 96  # strongest concepts of a patch that are tried first


def products_at_once(device: torch.device) -> int:
    """How many numbers to hold at once: what a CPU's caches hold; elsewhere, enough to keep the device busy."""
    return 1 << 18 if device.type == "cpu" else 1 << 26


def _by_strongest(membership: Float[Tensor, "b p k"]) -> tuple[Float[Tensor, "b p p"], Int[Tensor, "b p p"]]:
    """max_k C_ik C_jk and the winning k, exactly, for memberships (B, P, K).

    Tried over each patch's KEPT strongest concepts alone. What both patches of a pair left out is at
    most r_i r_j, the product of their strongest concepts not tried; only pairs below that bound are
    gone through in full. Memory: a few (B, P, P) and `products_at_once`, whatever K is.
    """
    (images, patches, concepts), most = membership.shape, products_at_once(membership.device)
    kept = min(KEPT, concepts)
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


class _StrongestSharedConcept(torch.autograd.Function):
    """max_k C_ik C_jk for every pair of patches, (B, P, K) -> (B, P, P), without the (B, K, P, P) tensor."""

    @staticmethod
    def forward(ctx, membership: Tensor) -> Tensor:
        ctx.together = max(1, products_at_once(membership.device) // (KEPT * membership.shape[1] ** 2))  # images
        best, winner = zip(*map(_by_strongest, membership.split(ctx.together)), strict=True)
        ctx.save_for_backward(membership, *winner)
        return torch.cat(best)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        membership, *winners = ctx.saved_tensors
        slope = torch.zeros_like(membership)
        parts = (value.split(ctx.together) for value in (slope, membership, grad))
        for winner, part, member, pull in zip(winners, *parts, strict=True):
            index = winner.long()
            # d best_ij / d C_ik = C_jk for the winner k; a pair (i, j) is met from both of its ends.
            other = member.gather(2, index.mT).mT
            part.scatter_add_(2, index, (pull + pull.mT) * other)
        return slope


def modularity_loss(
    features: Float[Tensor, "b p d"],
    codebook: Float[Tensor, "k d"],
    temperature: float = 0.1,
    objective: str = "max",
) -> Float[Tensor, ""]:
    """Minus the modularity of the grouping by shared concepts, mean over images; lower is better.

    The loss is minus sum_ij (W_ij / e) delta_ij. With objective "max", as released, delta_ij is
    max_k tanh(C_ik C_jk / temperature); tanh rises monotonically, so the maximum over concepts is taken before it.
    "tanh" is the paper's Algorithm 1,
    delta = tanh(C C^T / temperature), and "quadratic" its Eq. 3, delta = C C^T (both as quoted in public reviews).
    The graph is a constant: no gradient reaches features. Raises ValueError for another objective.
    """
    if objective not in ("max", "tanh", "quadratic"):
        raise ValueError(f"objective {objective!r} is none of max, tanh, quadratic")
    wide = features.dtype if features.dtype == torch.float64 else torch.float32
    features = features.detach().to(wide)
    graph, total = modularity_matrix(features)
    membership = assign(features, codebook.to(wide))
    if objective == "max":
        together = _StrongestSharedConcept.apply(membership)
    else:
        together = membership @ membership.transpose(1, 2)
    if objective != "quadratic":
        together = torch.tanh(together / temperature)
    weight = graph / total.clamp(min=torch.finfo(graph.dtype).tiny)
    return -(weight * together).sum(dim=(1, 2)).mean()


def quantize(
    features: Float[Tensor, "b p d"], codebook: Float[Tensor, "k d"]
) -> tuple[Float[Tensor, "b p d"], Int[Tensor, "b p"]]:
    """Each patch's nearest concept by cosine: the codes (B, P, D) and their numbers (B, P) in 0..K-1."""
    index = (F.normalize(features, dim=-1) @ F.normalize(codebook, dim=-1).T).argmax(dim=-1)
    return codebook[index], index


def draw_cells(batch: int, patches: int, cell: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """One draw in 0..cell^2-1 for each whole cell x cell block of each image, for `sample_grid`."""
    return torch.randint(cell * cell, (batch * (round(patches**0.5) // cell) ** 2,), generator=generator)


def sample_grid(features: Float[Tensor, "b p d"], cell: int, draws: Int[Tensor, " n"]) -> Float[Tensor, "b q d"]:
    """Keep one patch of each cell x cell block: (B, P, D) -> (B, Q, D), Q = floor(sqrt(P) / cell)^2.

    `draws` (B * Q) names the patch within its block, row by row. Rows and columns beyond the last whole
    block are left out, as released (23 x 23 patches of DINOv2 give 5 x 5 blocks). Raises ValueError when
    P is not a square, or is smaller than one block.
    """
    batch, patches, dim = features.shape
    side = round(patches**0.5)
    whole = side // cell
    if side * side != patches or not whole:
        raise ValueError(f"{patches} patches are not a square grid with a whole {cell} x {cell} cell")
    kept = features.view(batch, side, side, dim)[:, : whole * cell, : whole * cell]
    blocks = kept.reshape(batch, whole, cell, whole, cell, dim)
    blocks = blocks.permute(0, 1, 3, 2, 4, 5).reshape(-1, cell * cell, dim)
    return blocks[torch.arange(len(blocks)), draws.to(blocks.device)].view(batch, -1, dim)
