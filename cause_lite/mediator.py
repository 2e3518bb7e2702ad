"""Step 1, the mediator: a clusterbook of concepts found by maximising modularity.

Patches of one image are nodes of a graph; two of them belong together as far as
they share a concept. The codebook (K, D) is trained so that this agrees with the
graph's edges more than chance would (arXiv 2310.07379, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def modularity_matrix(
    features: Float[Tensor, "b p d"],
) -> tuple[Float[Tensor, "b p p"], Float[Tensor, "b 1 1"]]:
    """Return the edges minus what their degrees alone predict, W = A - d d^T / e, and the total weight e.

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
    """Return the soft membership of each patch in each concept, C_ik = max(0, cos(x_i, c_k)), in 0..1."""
    return (F.normalize(features, dim=-1) @ F.normalize(codebook, dim=-1).T).clamp(min=0)


def shared_concept(membership: Float[Tensor, "b p k"]) -> Float[Tensor, "b p p"]:
    """Return max_k C_ik C_jk, how strongly two patches share their best common concept."""
    by_concept = membership.transpose(1, 2)  # (B, K, P)
    return (by_concept[..., :, None] @ by_concept[..., None, :]).amax(dim=1)  # (B, K, P, P) -> (B, P, P)


def modularity_loss(
    features: Float[Tensor, "b p d"],
    codebook: Float[Tensor, "k d"],
    temperature: float = 0.1,
    objective: str = "max",
    shared_concept: Callable[[Tensor], Tensor] = shared_concept,
) -> Float[Tensor, ""]:
    """Return minus the modularity of the grouping by shared concepts, a mean over images; lower is better.

    The loss is - sum_ij (W_ij / e) delta_ij. No gradient reaches the features: the graph is a constant.

    Parameters
    ----------
    temperature
        Of the tanh, above 0.
    objective
        Chooses delta. "max", as released: max_k tanh(C_ik C_jk / temperature), where the maximum is taken before the
        tanh, which rises. "tanh", the paper's Algorithm 1: tanh(C C^T / temperature). "quadratic", the paper's Eq. 3:
        C C^T (both as quoted in public reviews of the paper).
    shared_concept
        Finds the maximum over concepts; `cause_lite.fast.modularity.shared_concept` needs no (B, K, P, P) tensor.

    Raises
    ------
    ValueError
        When the objective is another one.
    """
    if objective not in ("max", "tanh", "quadratic"):
        raise ValueError(f"objective must be one of max, tanh, quadratic, not {objective!r}")
    wide = torch.promote_types(features.dtype, torch.float32)
    features, codebook = features.detach().to(wide), codebook.to(wide)
    graph, total = modularity_matrix(features)  # (B, P, P), (B, 1, 1)
    membership = assign(features, codebook)  # (B, P, K)
    delta = shared_concept(membership) if objective == "max" else membership @ membership.transpose(1, 2)  # (B, P, P)
    if objective != "quadratic":
        delta = torch.tanh(delta / temperature)
    weight = graph / total.clamp(min=torch.finfo(wide).tiny)
    return -(weight * delta).sum(dim=(1, 2)).mean()


def quantize(
    features: Float[Tensor, "b p d"], codebook: Float[Tensor, "k d"]
) -> tuple[Float[Tensor, "b p d"], Int[Tensor, "b p"]]:
    """Return each patch's nearest concept by cosine: its code, and its number in 0..K-1."""
    index = (F.normalize(features, dim=-1) @ F.normalize(codebook, dim=-1).T).argmax(dim=-1)
    return codebook[index], index


def count_concepts(index: Int[Tensor, " n"], concepts: int) -> Int[Tensor, " k"]:
    """Return how many of some patches have each concept; unlike `bincount`, a GPU is not waited for."""
    counts = torch.zeros(concepts, dtype=torch.long, device=index.device)
    return counts.index_add_(0, index, torch.ones_like(index))


def draw_cells(batch: int, patches: int, cell: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Draw a number in 0..cell^2-1 for each whole cell x cell block of each image, for `sample_grid`."""
    return torch.randint(cell * cell, (batch * (round(patches**0.5) // cell) ** 2,), generator=generator)


def sample_grid(features: Float[Tensor, "b p d"], cell: int, draws: Int[Tensor, " n"]) -> Float[Tensor, "b q d"]:
    """Keep one patch of each cell x cell block: (B, P, D) -> (B, Q, D), Q = floor(sqrt(P) / cell)^2.

    `draws` (B * Q) numbers the patch within its block, row by row. Rows and columns beyond the last whole
    block are left out, as released (23 x 23 patches of DINOv2 give 5 x 5 blocks).

    Raises
    ------
    ValueError
        When P is not a square, or is smaller than one block.
    """
    batch, patches, dim = features.shape
    side = round(patches**0.5)
    blocks = side // cell
    if side * side != patches or not blocks:
        raise ValueError(f"{patches} patches are not a square grid with a whole {cell} x {cell} cell")
    whole = features.view(batch, side, side, dim)[:, : blocks * cell, : blocks * cell]
    cells = whole.reshape(batch, blocks, cell, blocks, cell, dim)
    cells = cells.permute(0, 1, 3, 2, 4, 5).reshape(-1, cell * cell, dim)  # (B Q, cell^2, D)
    return cells[torch.arange(len(cells), device=cells.device), draws.to(cells.device)].view(batch, -1, dim)
