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


class _StrongestSharedConcept(torch.autograd.Function):
    """max_k C_ik C_jk for every pair of patches, without the (B, K, P, P) tensor.

    Row by row and for j >= i only, since the product is symmetric: peak memory is one
    (B, P, K) buffer. The winning concept of each pair is kept for the backward pass.
    """

    @staticmethod
    def forward(ctx, membership: Tensor) -> Tensor:
        batch, patches, concepts = membership.shape
        best = membership.new_empty(batch, patches, patches)
        winner = torch.empty(batch, patches, patches, dtype=torch.int32, device=membership.device)
        buffer = membership.new_empty(batch * patches * concepts)
        for row in range(patches):
            rest = membership[:, row:]
            product = buffer[: rest.numel()].view(rest.shape)
            torch.mul(rest, membership[:, row : row + 1], out=product)
            best[:, row, row:], index = product.max(dim=-1)
            winner[:, row, row:] = index.to(torch.int32)
            best[:, row + 1 :, row], winner[:, row + 1 :, row] = best[:, row, row + 1 :], winner[:, row, row + 1 :]
        ctx.save_for_backward(membership, winner)
        return best

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        membership, winner = ctx.saved_tensors
        index = winner.long()
        # d best_ij / d C_ik = C_jk for the winner k; a pair (i, j) is met from both of its ends.
        other = membership.gather(2, index.transpose(1, 2)).transpose(1, 2)
        return torch.zeros_like(membership).scatter_add_(2, index, (grad + grad.transpose(1, 2)) * other)


def modularity_loss(
    features: Float[Tensor, "b p d"],
    codebook: Float[Tensor, "k d"],
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Minus the modularity of the grouping by shared concepts, mean over images; lower is better.

    - sum_ij (W_ij / e) max_k tanh(C_ik C_jk / temperature). tanh rises monotonically, so the
      maximum over concepts is taken before it. The graph is a constant: no gradient reaches features.
    """
    graph, total = modularity_matrix(features.detach())
    together = torch.tanh(_StrongestSharedConcept.apply(assign(features.detach(), codebook)) / temperature)
    weight = graph / total.clamp(min=torch.finfo(graph.dtype).tiny)
    return -(weight * together).sum(dim=(1, 2)).mean()


def quantize(
    features: Float[Tensor, "b p d"], codebook: Float[Tensor, "k d"]
) -> tuple[Float[Tensor, "b p d"], Int[Tensor, "b p"]]:
    """Each patch's nearest concept by cosine: the codes (B, P, D) and their numbers (B, P) in 0..K-1."""
    index = (F.normalize(features, dim=-1) @ F.normalize(codebook, dim=-1).T).argmax(dim=-1)
    return codebook[index], index


def draw_cells(batch: int, patches: int, cell: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """One draw in 0..cell^2-1 for each cell x cell block of each image, for `sample_grid`."""
    return torch.randint(cell * cell, (batch * patches // cell**2,), generator=generator)


def sample_grid(features: Float[Tensor, "b p d"], cell: int, draws: Int[Tensor, " n"]) -> Float[Tensor, "b q d"]:
    """Keep one patch of each cell x cell block: (B, P, D) -> (B, P / cell^2, D).

    `draws` (B * P / cell^2) names the patch within its block, row by row. Raises ValueError
    when P is not a square of a multiple of `cell`.
    """
    batch, patches, dim = features.shape
    side = round(patches**0.5)
    if side * side != patches or side % cell:
        raise ValueError(f"{patches} patches are not a square grid that divides into {cell} x {cell} cells")
    blocks = features.view(batch, side // cell, cell, side // cell, cell, dim)
    blocks = blocks.permute(0, 1, 3, 2, 4, 5).reshape(-1, cell * cell, dim)
    return blocks[torch.arange(len(blocks)), draws.to(blocks.device)].view(batch, -1, dim)
