"""Encoders that timm does not know, read from the files that their authors released."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cause_lite.backbones.positions import OFFSET
from cause_lite.runtime.files import UserError, read_torch


@dataclass(frozen=True)
class ReleasedEncoder:
    """Where an encoder's file is, and what is particular to it."""

    url: str
    entry: str  # of the file that holds the encoder's tensors
    position_offset: float = OFFSET  # what the authors' code adds to a side when it resizes positions; see `positions`


RELEASED = {
    "ibot_vit_base_16": ReleasedEncoder(
        "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot/vitb_16/checkpoint_teacher.pth",
        "state_dict",
    ),
    "msn_vit_small_16": ReleasedEncoder(
        "https://dl.fbaipublicfiles.com/msn/vits16_800ep.pth.tar", "target_encoder", position_offset=0.0
    ),
}
ENCODER_NAMES = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")  # the rest is projection heads


def read_encoder(path: Path, entry: str) -> VisionTransformer:
    """Return the plain ViT that a released file holds; its sizes are read off the shapes of its tensors."""
    tensors = _encoder_tensors(path, entry)
    try:
        width, patch = tensors["cls_token"].shape[-1], tensors["patch_embed.proj.weight"].shape[-1]
        vit = VisionTransformer(
            img_size=round((tensors["pos_embed"].shape[1] - 1) ** 0.5) * patch,
            patch_size=patch,
            embed_dim=width,
            depth=1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")),
            num_heads=max(1, width // 64),
            num_classes=0,
            global_pool="",
            dynamic_img_size=True,
            qkv_bias="blocks.0.attn.qkv.bias" in tensors,
        )
        vit.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"{path}: is not a plain ViT ({' '.join(str(error).split())[:300]})") from error
    return vit


def _encoder_tensors(path: Path, entry: str) -> dict[str, Tensor]:
    """Return the encoder's tensors under plain ViT names, without projection heads."""
    content = read_torch(path)
    tensors = content.get(entry) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"{path}: holds no tensors under {entry!r}; it is not the released file")
    plain = {name.removeprefix("module.").removeprefix("backbone."): value for name, value in tensors.items()}
    return {name: value for name, value in plain.items() if name.startswith(ENCODER_NAMES)}
