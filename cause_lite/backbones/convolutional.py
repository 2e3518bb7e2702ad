"""Convolutional networks as backbones: levels of several strides, joined on one grid of patches and centred."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import Conv2dSame, get_same_padding
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.backbones.backbone import IMAGE_MEAN, IMAGE_STD, Backbone, Colour
from cause_lite.runtime.files import UserError, read_json


def build_levels(model: str, levels: list[int], reflect: bool, **options: Any) -> nn.Module:
    """Return an untrained timm network that returns its feature maps at some levels.

    Parameters
    ----------
    model
        A timm name.
    levels
        Which maps, by timm's numbers; level 1 has a stride of about 4.
    reflect
        Let convolutions continue a map by its mirror image: zeros would mark every image's border.
    options
        Settings of the timm model.
    """
    network = timm.create_model(model, pretrained=False, features_only=True, out_indices=levels, **options)
    if reflect:
        pad_by_reflection(network)
    return network


class ReflectSameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow does ("same": more at the end), by reflection in place of zeros."""

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d x y"]:
        """Return the maps after the convolution, as many rows and columns as the stride leaves."""
        down, across = (
            get_same_padding(side, kernel, stride, 1)
            for side, kernel, stride in zip(maps.shape[2:], self.kernel_size, self.stride, strict=True)
        )
        edges = [across // 2, across - across // 2, down // 2, down - down // 2]
        return F.conv2d(F.pad(maps, edges, mode="reflect"), self.weight, self.bias, self.stride, groups=self.groups)


def pad_by_reflection(network: nn.Module) -> None:
    """Let every convolution continue a map by its mirror image: zeros would mark every image's border."""
    for path, part in list(network.named_modules()):
        if isinstance(part, nn.Conv2d) and max(part.kernel_size) > 1:
            down, across = part.kernel_size[0] // 2, part.kernel_size[1] // 2
            part.padding_mode = "reflect"
            part._reversed_padding_repeated_twice = [across, across, down, down]
        if isinstance(part, Conv2dSame):
            kernel: Any = part.kernel_size
            stride: Any = part.stride
            bias = part.bias is not None
            new = ReflectSameConv2d(part.in_channels, part.out_channels, kernel, stride, groups=part.groups, bias=bias)
            new.weight, new.bias = part.weight, part.bias
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, new)


def widths_of(network: nn.Module) -> list[int]:
    """Return the channels of each level that a network of `build_levels` returns."""
    feature_info: Any = network.feature_info
    return feature_info.channels()


def averaged(level: Float[Tensor, "b c h w"], context: int) -> Float[Tensor, "b c h w"]:
    """Return a map whose every cell is the mean of those up to `context` cells away; at an edge, of those there are."""
    return F.avg_pool2d(level, 2 * context + 1, 1, context, count_include_pad=False)


class ConvBackbone(Backbone):
    """Feature maps of a convolutional network, each of unit length, upsampled to the grid of patches and joined.

    Parameters
    ----------
    network
        Of `build_levels`; it is set to evaluation and frozen.
    name, mean, std
        As in `Backbone`.
    centre
        The mean feature (D,) of the photographs that it learned from, which is subtracted, so that cosines spread
        around 0.
    patch
        Pixels a side of a patch.
    context
        Cells of its own map to each side over which each level is averaged, once it is of unit length: a network that
        learned from the means of regions may know means better than cells. A cell of level 4 is mostly 32 pixels wide.
    """

    centre: Tensor

    def __init__(
        self, network: nn.Module, name: str, mean: Colour, std: Colour, centre: Tensor, patch: int = 8, context: int = 0
    ) -> None:
        super().__init__(network.forward, name, mean, std)
        self.network, self.patch, self.context = network.eval().requires_grad_(False), patch, context
        feature_info: Any = network.feature_info
        self.levels = tuple(feature_info.out_indices)  # in plain sight of the fingerprint
        self.dim = sum(widths_of(network))
        self.register_buffer("centre", centre)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p d"]:
        """Return the joined levels at every patch, row by row.

        Parameters
        ----------
        images
            Values in 0..1; sides divisible by the patch.
        """
        grid = images.shape[2] // self.patch, images.shape[3] // self.patch
        maps = self._network((images - self.mean) / self.std)
        units = [averaged(F.normalize(level.to(self.dtype), dim=1), self.context) for level in maps]
        joined = torch.cat([F.interpolate(unit, size=grid, mode="bilinear") for unit in units], 1)
        return joined.flatten(2).transpose(1, 2) - self.centre


def load_levels(folder: Path) -> ConvBackbone:
    """Return the backbone that `cause-lite pretrain photos` wrote into a folder.

    Raises UserError naming the file at fault.
    """
    path = folder / "network.json"
    card = read_json(path)
    try:
        shape, name, patch, context = card["architecture"], card["name"], card["patch"], card.get("context", 0)
        network = build_levels(shape["model"], shape["levels"], shape["reflect"], **shape["options"])
        if not (isinstance(name, str) and type(patch) is type(context) is int and patch > 0 <= context):
            raise ValueError("`name`, `patch` or `context` is not what a card holds")
    except (KeyError, ValueError, TypeError, RuntimeError, IndexError, AssertionError) as error:
        raise UserError(f"{path}: does not describe a network ({' '.join(str(error).split())[:300]})") from error
    path = folder / "network.safetensors"
    try:
        weights = {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
        centre = weights.pop("centre")
        network.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: is not the file that network.json describes ({str(error)[:300]})") from error
    return ConvBackbone(network, name, IMAGE_MEAN, IMAGE_STD, centre, patch, context)
