"""Resize a vision transformer's position embedding as the authors' code of DINO and its successors does.

timm resizes with antialiasing to a wanted size. The authors' functions (`interpolate_pos_encoding` of DINO, DINOv2,
iBOT and MSN) resize without, by a scale factor; all but MSN's first add 0.1 to the wanted side, so that rounding does
not lose a row. The two differ at every size but the one of pre-training, also where the grid grows. Published
checkpoints were trained and scored with the authors' form.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from cause_lite.runtime.files import UserError

OFFSET = 0.1  # dinov2/models/vision_transformer.py, interpolate_offset; the same in DINO and iBOT


def resize_positions(
    positions: Float[Tensor, "1 old d"], grid: tuple[int, int], offset: float = OFFSET
) -> Float[Tensor, "1 new d"]:
    """Return position embeddings for another grid of patches, by bicubic interpolation without antialiasing.

    Along each axis, with s = (new side + offset) / old side, patch i reads the old positions at (i + 0.5) / s - 0.5
    by the cubic kernel with a = -0.75; what lies outside repeats the border. The class token's embedding comes first.
    """
    side = math.isqrt(positions.shape[1] - 1)
    if grid == (side, side):
        return positions
    wide = torch.promote_types(positions.dtype, torch.float32)
    old = positions[:, 1:].to(wide).transpose(1, 2).unflatten(2, (side, side))  # (1, D, side, side)
    scale = [(count + offset) / side for count in grid]
    new = F.interpolate(old, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)  # (1, rows * columns, D)
    return torch.cat([positions[:, :1], new.to(positions.dtype)], 1)


def check_positions(vit: VisionTransformer, name: str) -> None:
    """Raise UserError unless `vit` has what the authors' form needs: a class token and a square learned grid."""
    plain = type(vit) is VisionTransformer and vit.num_prefix_tokens == 1 and not vit.no_embed_class
    if not plain or vit.pos_embed is None or vit.pos_embed.shape[1] != math.isqrt(vit.pos_embed.shape[1] - 1) ** 2 + 1:
        raise UserError(
            f"backbone {name!r}: positions='authors' needs one class token and a square grid of learned positions, "
            f"which it does not have; use positions='timm'"
        )


def forward_features(
    vit: VisionTransformer, images: Float[Tensor, "b 3 h w"], offset: float
) -> Float[Tensor, "b tokens d"]:
    """Run `vit` as its own `forward_features` does, with positions resized in the authors' form."""
    patches = vit.patch_embed(images)  # (B, rows, columns, D)
    positions = resize_positions(vit.get_parameter("pos_embed"), (patches.shape[1], patches.shape[2]), offset)
    class_token = vit.get_parameter("cls_token").expand(len(patches), -1, -1)
    tokens = torch.cat([class_token, patches.flatten(1, 2)], 1) + positions
    return vit.norm(vit.blocks(vit.norm_pre(tokens)))
