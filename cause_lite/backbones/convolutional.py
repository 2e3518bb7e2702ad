"""Convolutional networks as backbones: levels of several strides, joined on one grid of patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import Conv2dSame, get_same_padding
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.backbones import efficientnet_lite
from cause_lite.backbones.backbone import IMAGE_MEAN, IMAGE_STD, Backbone, Colour
from cause_lite.config import BackboneConfig
from cause_lite.runtime.device import seeded
from cause_lite.runtime.files import UserError, read_json

LEVELS, PATCH = (3, 4), 8  # unless settings say otherwise
AT_ONCE = 4  # images whose maps fit the caches of a CPU: twice as fast as many


def build_levels(model: str, levels: list[int], reflect: bool, **options: Any) -> nn.Module:
    """Return a timm network that returns its feature maps at some levels; untrained unless options say otherwise.

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
    network = timm.create_model(model, **{"pretrained": False} | options, features_only=True, out_indices=levels)
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
    """Let every convolution continue a map by its mirror image."""
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
    margin
        Pixels by which an image is continued at each side by its mirror image before the network sees it, and which
        are cut off its features: a border looks like nothing else to a network, and would become a cluster.
    at_once
        How many images a CPU takes at a time; None: as many as it is given.
    """

    centre: Tensor

    def __init__(
        self,
        network: nn.Module,
        name: str,
        mean: Colour,
        std: Colour,
        centre: Tensor,
        patch: int = PATCH,
        context: int = 0,
        margin: int = 0,
        at_once: int | None = None,
    ) -> None:
        super().__init__(network.forward, name, mean, std)
        self.network, self.patch, self.context = network.eval().requires_grad_(False), patch, context
        self.margin, self._at_once = margin, at_once
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
        if self.margin:
            images = F.pad(images, [self.margin] * 4, mode="reflect")
        rows, columns = (side // self.patch for side in images.shape[2:])
        maps = self._network((images - self.mean) / self.std)
        units = [averaged(F.normalize(level.to(self.dtype), dim=1), self.context) for level in maps]
        joined = torch.cat([F.interpolate(unit, size=(rows, columns), mode="bilinear") for unit in units], 1)
        edge = self.margin // self.patch
        return joined[..., edge : rows - edge, edge : columns - edge].flatten(2).transpose(1, 2) - self.centre

    def features(self, images: np.ndarray) -> Float[Tensor, "n p d"]:
        """Return half-precision features of images (N, H, W, 3) uint8, on the CPU."""
        part = self._at_once if self._at_once and self.device.type == "cpu" else len(images)
        parts = [Backbone.features(self, images[start : start + part]) for start in range(0, len(images), part)]
        return torch.cat(parts)


def load_network(choice: BackboneConfig, weights: Path | None = None) -> ConvBackbone:
    """Return EfficientNet-Lite2 or a convolutional network of timm as a backbone, without a centre.

    Parameters
    ----------
    choice
        Its name and settings.
    weights
        A local file of a timm network's weights; None: timm's hub.

    Raises
    ------
    UserError
        When the network has no such levels, or its weights cannot be had.
    """
    levels, trained = choice.levels or LEVELS, choice.untrained is None
    with seeded(choice.untrained or 0):  # random weights are drawn even where trained ones replace them
        if choice.name == efficientnet_lite.NAME:
            network, mean, std = _efficientnet(levels, trained), efficientnet_lite.MEAN, efficientnet_lite.STD
        else:
            network = _timm_network(choice.name, levels, trained, weights)
            cfg: Any = network.pretrained_cfg
            mean, std = cfg["mean"], cfg["std"]
    centre, patch = torch.zeros(sum(widths_of(network))), choice.patch or PATCH
    return ConvBackbone(
        network, choice.name, mean, std, centre, patch, choice.context or 0, choice.margin, at_once=AT_ONCE
    )


def _timm_network(name: str, levels: tuple[int, ...], trained: bool, weights: Path | None) -> nn.Module:
    """Return a convolutional network of timm at some levels, with its weights if it is to be `trained`."""
    options: dict[str, Any] = {"pretrained_cfg_overlay": {"file": str(weights)}} if weights else {}
    try:
        network = build_levels(name, list(levels), True, pretrained=trained, **options)
    except Exception as error:  # timm and its hub raise many kinds
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"backbone {name!r}: no timm network with levels {levels} and weights ({reason}); "
            f"--set backbone.levels=[2,3] names other levels"
        ) from error
    if getattr(network, "output_fmt", "NCHW") != "NCHW":
        raise UserError(f"backbone {name!r}: is neither a vision transformer (ViT) nor a convolutional network")
    return network


def _efficientnet(levels: tuple[int, ...], trained: bool) -> nn.Module:
    """Return EfficientNet-Lite2 at some levels, with its weights if it is to be `trained`."""
    try:
        network = build_levels(efficientnet_lite.MODEL, list(levels), reflect=False)
    except (AssertionError, ValueError, IndexError) as error:
        name = efficientnet_lite.NAME
        raise UserError(f"backbone {name!r}: levels are {levels}; expected some of 0 to 4") from error
    if trained:
        wanted = network.state_dict().keys()
        weights = efficientnet_lite.load_weights()
        network.load_state_dict({name: value for name, value in weights.items() if name in wanted})
    pad_by_reflection(network)
    return network.to(memory_format=torch.channels_last)  # in this order of memory a pass takes 0.6 of the time


def load_levels(folder: Path) -> ConvBackbone:
    """Return the backbone that `cause-lite pretrain photos` wrote; raise UserError naming the file at fault."""
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
