"""Backbones by name, and the frozen self-supervised vision transformer among them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import timm
import torch
from jaxtyping import Float
from lightly.models.utils import initialize_2d_sine_cosine_positional_embedding
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.layers import GroupNorm1, HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

from cause_lite.backbones.convolutional import load_levels
from cause_lite.backbones.frozen import IMAGE_MEAN, IMAGE_STD, Backbone
from cause_lite.datasets.downloads import download
from cause_lite.runtime.files import UserError, cache_dir, data_dir, project_dir, read_json, read_torch

ENDS = (".safetensors", ".pth", ".pth.tar")
# Files that timm does not know, as their authors released them, and the entry that holds the encoder.
RELEASED = {
    "ibot_vit_base_16": (
        "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot/vitb_16/checkpoint_teacher.pth",
        "state_dict",
    ),
    "msn_vit_small_16": ("https://dl.fbaipublicfiles.com/msn/vits16_800ep.pth.tar", "target_encoder"),
}


def build_vit(grid: int, patch: int, width: int, depth: int, heads: int) -> VisionTransformer:
    """timm's ViT on a convolutional stem, with a frozen sine-cosine position grid of `grid` a side.

    The stem (3x3 convolutions of stride 2; arXiv 2106.14881) learns in a fifth of the steps that a
    plain patch projection needs. `patch` is a power of two.
    """
    halvings = patch.bit_length() - 1
    channels = tuple(width // 2 ** max(0, halvings - 1 - i) for i in range(halvings))
    stem = ConvStem(
        depth=halvings + 1, channels=(*channels, width), kernel_size=(*(3,) * halvings, 1),
        stride=(*(2,) * halvings, 1), padding=(*(1,) * halvings, 0), norm_layer=GroupNorm1, act_layer=nn.GELU,
    )  # fmt: skip
    vit = VisionTransformer(
        img_size=grid * patch, patch_size=1, embed_dim=width, depth=depth, num_heads=heads, num_classes=0,
        global_pool="", dynamic_img_size=True, embed_layer=partial(HybridEmbed, backbone=stem, proj=False),
    )  # fmt: skip
    initialize_2d_sine_cosine_positional_embedding(vit.pos_embed, has_class_token=True)
    vit.pos_embed.requires_grad = False
    return vit


class VitBackbone(Backbone):
    """Any timm ViT; patch size, prefix tokens and normalisation are read off the model.

    With a `window` (pixels), images are cut into tiles of that side, each seen on its own: a small ViT
    that was only ever shown crops of that size takes place for content when shown more.
    """

    def __init__(self, vit: VisionTransformer, name: str, mean: tuple, std: tuple, window: int | None = None) -> None:
        super().__init__(vit.forward_features, name, mean, std)
        self.vit, self.window = vit.eval().requires_grad_(False), window
        self.patch, self.dim = vit.patch_embed.feat_ratio(), vit.embed_dim

    def about(self) -> str:
        return f"window {self.window}"

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p d"]:
        """Images in 0..1, sides divisible by the patch (and the window) -> the last layer's normalised patch tokens."""
        images = (images - self.mean) / self.std
        if self.window is None:
            return self._network(images)[:, self.vit.num_prefix_tokens :]
        batch, side = len(images), self.window // self.patch
        down, across = images.shape[2] // self.window, images.shape[3] // self.window
        tiles = images.unflatten(3, (across, self.window)).unflatten(2, (down, self.window))
        tokens = self._network(tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2))
        grid = tokens[:, self.vit.num_prefix_tokens :].view(batch, down, across, side, side, self.dim)
        return grid.transpose(2, 3).reshape(batch, down * side * across * side, self.dim)


def bundled_dir() -> Path:
    """The backbones that ship, or whose cards do."""
    return project_dir() / "data" / "backbones"


def pretrained_dir(name: str) -> Path:
    """Where `cause-lite pretrain NAME` leaves a backbone unless told otherwise."""
    return cache_dir() / "backbones" / name


def load_backbone(name: str) -> Backbone:
    """A backbone that ships or was pre-trained here (`scenes`, `camvid`, `photos`), a folder that `cause-lite pretrain`
    wrote, a released file (`ibot_vit_base_16`, `msn_vit_small_16`), or a timm name.

    Weights that lie in `$CAUSE_DATA`/weights/NAME.safetensors, .pth or .pth.tar are taken from there. Raises
    UserError when the name is unknown or its weights cannot be had.
    """
    for folder in (bundled_dir() / name, pretrained_dir(name), Path(name)):
        if (folder / "vit.safetensors").exists():
            return _ours(folder)
        if (folder / "network.safetensors").exists():
            return load_levels(folder)
    if any((bundled_dir() / name / card).exists() for card in ("vit.json", "network.json")):
        raise UserError(f"backbone {name!r}: its weights do not ship; make them with `cause-lite pretrain {name}`")
    if name in RELEASED:
        url, key = RELEASED[name]
        path = local_weights(name) or download(url, weights_dir() / f"{name}.pth")
        return VitBackbone(_vit_of(_tensors(path, key), path), name, IMAGE_MEAN, IMAGE_STD)
    return _from_timm(name)


def weights_dir() -> Path:
    return data_dir() / "weights"


def local_weights(name: str) -> Path | None:
    """The weights file of that name that lies on this machine, if one does."""
    return next((p for end in ENDS if (p := weights_dir() / f"{name}{end}").is_file()), None)


def _from_timm(name: str) -> Backbone:
    """A timm ViT with its weights, from a local file or timm's hub."""
    path, options = local_weights(name), {}
    if path is not None:
        options = {"pretrained_cfg_overlay": {"file": str(path)}} | _narrowed(path)
    try:
        vit = timm.create_model(name, pretrained=True, num_classes=0, dynamic_img_size=True, **options)
    except Exception as error:
        raise UserError(
            f"backbone {name!r}: neither bundled, a folder, nor a timm model with weights at hand "
            f"({' '.join(str(error).split())[:300]}); a file can lie in {weights_dir()}"
        ) from error
    return VitBackbone(vit, name, vit.pretrained_cfg["mean"], vit.pretrained_cfg["std"])


def _narrowed(path: Path) -> dict[str, int]:
    """The width and depth of a rehearsal's stand-in, which says in its header that it is one; else nothing."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: is not a safetensors file ({error}); delete it") from error
    return {key: int(about[key]) for key in ("embed_dim", "depth", "num_heads")} if "rehearsal" in about else {}


def _tensors(path: Path, key: str) -> dict[str, Tensor]:
    """The released encoder's tensors under plain ViT names; projection heads are left out."""
    content = read_torch(path)
    held = content.get(key) if isinstance(content, dict) else None
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise UserError(f"{path}: holds no tensors under {key!r}; it is not the released file")
    plain = {name.removeprefix("module.").removeprefix("backbone."): value for name, value in held.items()}
    return {
        k: v for k, v in plain.items() if k.startswith(("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm."))
    }


def _vit_of(tensors: dict[str, Tensor], path: Path) -> VisionTransformer:
    """The plain ViT that the tensors are of: its sizes are read off their shapes."""
    try:
        width, patch = tensors["cls_token"].shape[-1], tensors["patch_embed.proj.weight"].shape[-1]
        grid = round((tensors["pos_embed"].shape[1] - 1) ** 0.5)
        depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        vit = VisionTransformer(
            img_size=grid * patch, patch_size=patch, embed_dim=width, depth=depth, num_heads=max(1, width // 64),
            num_classes=0, global_pool="", dynamic_img_size=True, qkv_bias="blocks.0.attn.qkv.bias" in tensors,
        )  # fmt: skip
        vit.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"{path}: is not a plain ViT ({' '.join(str(error).split())[:300]})") from error
    return vit


def _ours(folder: Path) -> Backbone:
    card, path = read_json(folder / "vit.json"), folder / "vit.json"
    shape, name, window = card.get("architecture"), card.get("name"), card.get("window")
    if not isinstance(shape, dict) or shape.keys() != {"grid", "patch", "width", "depth", "heads"}:
        raise UserError(f"{path}: `architecture` does not hold grid, patch, width, depth and heads")
    if not all(type(size) is int and 1 <= size <= 4096 for size in shape.values()) or shape["width"] % shape["heads"]:
        raise UserError(f"{path}: `architecture` holds sizes that no backbone has: {shape}")
    if not isinstance(name, str) or not (window is None or (type(window) is int and window >= shape["patch"])):
        raise UserError(f"{path}: `name` or `window` is not what a card holds")
    path = folder / "vit.safetensors"
    try:
        weights = load_file(path)
        if sum(value.numel() for value in weights.values()) < shape["depth"] * shape["width"] ** 2:
            raise UserError(f"{path}: is smaller than the network that vit.json describes")
        vit = build_vit(**shape)
        vit.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: is not the file that vit.json describes ({reason})") from error
    return VitBackbone(vit, name, IMAGE_MEAN, IMAGE_STD, window)
