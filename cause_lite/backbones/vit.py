"""Vision transformers as backbones, and the architecture of the small ones that this project pre-trains."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from lightly.models.utils import initialize_2d_sine_cosine_positional_embedding
from timm.layers import GroupNorm1, HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

from cause_lite.backbones import positions
from cause_lite.backbones.backbone import Backbone, Colour


def build_vit(grid: int, patch: int, width: int, depth: int, heads: int) -> VisionTransformer:
    """Return timm's ViT on a convolutional stem, with frozen sine-cosine positions and random weights.

    The stem (3x3 convolutions of stride 2; arXiv 2106.14881) learns in a fifth of the steps that a plain patch
    projection needs.

    Parameters
    ----------
    grid
        Positions a side, so that an image of `grid * patch` pixels a side needs no resized positions.
    patch
        Pixels a side of a patch, a power of two.
    width
        Channels of a token.
    depth
        Number of transformer blocks.
    heads
        Number of attention heads, a divisor of `width`.
    """
    halvings = patch.bit_length() - 1
    stem = ConvStem(
        depth=halvings + 1,
        channels=(*(width // 2 ** max(0, halvings - 1 - step) for step in range(halvings)), width),
        kernel_size=(*(3,) * halvings, 1),
        stride=(*(2,) * halvings, 1),
        padding=(*(1,) * halvings, 0),
        norm_layer=GroupNorm1,
        act_layer=nn.GELU,
    )
    vit = VisionTransformer(
        img_size=grid * patch,
        patch_size=1,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=0,
        global_pool="",
        dynamic_img_size=True,
        embed_layer=partial(HybridEmbed, backbone=stem, proj=False),
    )
    embedding = vit.get_parameter("pos_embed")
    initialize_2d_sine_cosine_positional_embedding(embedding, has_class_token=True)
    embedding.requires_grad = False
    return vit


class VitBackbone(Backbone):
    """Any timm ViT; patch size, prefix tokens and normalisation are read off the model.

    With a window, images are cut into tiles of that side, and each tile is seen on its own: a small ViT that was only
    shown crops of that size takes place for content when it is shown more.

    Parameters
    ----------
    vit
        The transformer; it is set to evaluation and frozen.
    name, mean, std
        As in `Backbone`.
    window
        Pixels a side of a tile, a multiple of the patch; None: the whole image at once.
    position_offset
        Resize positions in the authors' form with this offset (see `positions`); None: as timm does.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        name: str,
        mean: Colour,
        std: Colour,
        window: int | None = None,
        position_offset: float | None = None,
    ) -> None:
        if position_offset is None:
            network = vit.forward_features
        else:
            positions.check_positions(vit, name)
            network = partial(positions.forward_features, vit, offset=position_offset)
        super().__init__(network, name, mean, std)
        self.vit, self.window, self.position_offset = vit.eval(), window, position_offset
        self.vit.requires_grad_(False)
        self.patch, self.dim = int(vit.patch_embed.feat_ratio()), int(vit.embed_dim)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p d"]:
        """Return the last layer's normalised patch tokens, row by row.

        Parameters
        ----------
        images
            Values in 0..1; sides divisible by the patch, and by the window where there is one.
        """
        images = (images - self.mean) / self.std
        if self.window is None:
            return self._network(images)[:, self.vit.num_prefix_tokens :]
        batch, side = len(images), self.window // self.patch
        down, across = images.shape[2] // self.window, images.shape[3] // self.window
        tiles = images.unflatten(3, (across, self.window)).unflatten(2, (down, self.window))
        tokens = self._network(tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2))
        grid = tokens[:, self.vit.num_prefix_tokens :].view(batch, down, across, side, side, self.dim)
        return grid.transpose(2, 3).reshape(batch, down * side * across * side, self.dim)
