"""Kernels in Triton for CUDA: the strongest shared concept of every two patches, and its gradient.

The strongest product over concepts is a matrix product with a maximum in place of the sum. No library has it, and out
of ready-made operations it takes either a tensor of all products or the search of `modularity`, whose many small
operations leave a GPU idle. Here a tile of pairs stays in registers while concepts pass by.
"""

import triton
import triton.language as tl

SIDE = tl.constexpr(32)  # patches a side of a tile
WIDE = tl.constexpr(64)  # concepts of a tile of the gradient


@triton.jit
def strongest(by_concept, best, winner, patches, concepts):
    """Write max_k C_ik C_jk and the first winning k of memberships (B, K, P), for one tile and its mirror image."""
    image, down, across = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if across >= down:
        i, j = down * SIDE + tl.arange(0, SIDE), across * SIDE + tl.arange(0, SIDE)
        rows = by_concept + image.to(tl.int64) * concepts * patches
        top = tl.zeros((SIDE, SIDE), by_concept.dtype.element_ty) - 1
        first = tl.zeros((SIDE, SIDE), tl.int32)
        for k in range(concepts):
            left = tl.load(rows + i, mask=i < patches, other=0)
            right = tl.load(rows + j, mask=j < patches, other=0)
            product = left[:, None] * right[None, :]
            first = tl.where(product > top, k, first)
            top = tl.where(product > top, product, top)
            rows += patches
        inside = (i < patches)[:, None] & (j < patches)[None, :]
        start = image.to(tl.int64) * patches * patches
        place, mirrored = start + i[:, None] * patches + j[None, :], start + j[None, :] * patches + i[:, None]
        tl.store(best + place, top, mask=inside)
        tl.store(winner + place, first, mask=inside)
        tl.store(best + mirrored, top, mask=inside)
        tl.store(winner + mirrored, first, mask=inside)


@triton.jit
def pulled(membership, winner, pull, slope, patches, concepts):
    """Write slope_ik = sum_j pull_ij C_jk [k wins i, j], summed in the order of j; `winner`, `pull` are symmetric."""
    image = tl.program_id(0).to(tl.int64)
    i, k = tl.program_id(1) * SIDE + tl.arange(0, SIDE), tl.program_id(2) * WIDE + tl.arange(0, WIDE)
    rows, pairs = membership + image * patches * concepts, image * patches * patches + i
    total = tl.zeros((SIDE, WIDE), membership.dtype.element_ty)
    for _ in range(patches):
        other = tl.load(rows + k, mask=k < concepts, other=0)
        won = tl.load(winner + pairs, mask=i < patches, other=-1)
        force = tl.load(pull + pairs, mask=i < patches, other=0)
        total += tl.where(won[:, None] == k[None, :], force[:, None] * other[None, :], 0.0)
        rows += concepts
        pairs += patches
    place = (image * patches + i[:, None]) * concepts + k[None, :]
    tl.store(slope + place, total, mask=(i < patches)[:, None] & (k < concepts)[None, :])


def find_strongest(membership, best, winner):
    """Fill contiguous `best` and `winner` (B, P, P) for memberships (B, P, K)."""
    images, patches, concepts = membership.shape
    tiles = triton.cdiv(patches, SIDE.value)
    strongest[(images, tiles, tiles)](membership.mT.contiguous(), best, winner, patches, concepts)


def pull_back(membership, winner, grad, slope):
    """Fill contiguous `slope` (B, P, K) from memberships (B, P, K), winners and the gradients of `best` (B, P, P)."""
    images, patches, concepts = membership.shape
    grid = (images, triton.cdiv(patches, SIDE.value), triton.cdiv(concepts, WIDE.value))
    pulled[grid](membership.contiguous(), winner, (grad + grad.mT).contiguous(), slope, patches, concepts)
