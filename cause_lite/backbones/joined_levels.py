"""Convolutional networks by name: any of timm's, and EfficientNet-Lite2 from its package.

Settings follow the name after a question mark: `resnet18.a1_in1k?levels=3,4&patch=8&centre=msrc`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.backbones import efficientnet_lite
from cause_lite.backbones.backbone import Backbone, Colour
from cause_lite.backbones.centred import CentredBackbone
from cause_lite.backbones.convolutional import ConvBackbone, pad_by_reflection, widths_of
from cause_lite.backbones.feature_store import cached_features
from cause_lite.datasets import load_split
from cause_lite.datasets.images import LazyRows
from cause_lite.runtime.device import seeded
from cause_lite.runtime.files import UserError

SIZE = 320  # pixels a side of the photographs that give a centre
FITS = ("squash", "centre")
TRAINING = "training"  # the centre of whatever images a fit learns from
CPU_BATCH = 4  # images at once


@dataclass(frozen=True)
class JoinSettings:
    """How the levels of a network become patch features.

    Parameters
    ----------
    levels
        The numbers of the feature maps to join, as timm counts them (mostly 3: stride 16, 4: stride 32).
    patch
        Pixels a side of a patch.
    centre
        The data set whose mean training patch is subtracted; `training`: that of the fit; empty: nothing is subtracted.
    fit
        How its photographs become squares: `squash` or `centre`.
    untrained
        The seed of random weights, in place of the trained ones; None: trained.
    margin
        Pixels by which an image is continued at each side by its mirror image before the network sees it, and which
        are cut off its features: a border looks like nothing else to a network, and would become a cluster.
    context
        Cells of its own map to each side over which each level is averaged; None: as a backbone ships, otherwise 0.
    """

    levels: tuple[int, ...] = (3, 4)
    patch: int = 8
    centre: str = ""
    fit: str = "squash"
    untrained: int | None = None
    margin: int = 0
    context: int | None = None


class JoinedBackbone(ConvBackbone):
    """A convolutional network; on a CPU it takes a few images at a time, whose maps fit the caches: twice as fast.

    Takes `patch`, `margin` and `context` from `settings`; nothing is subtracted.
    """

    def __init__(self, network: nn.Module, name: str, mean: Colour, std: Colour, settings: JoinSettings) -> None:
        centre = torch.zeros(sum(widths_of(network)))
        super().__init__(network, name, mean, std, centre, settings.patch, settings.context or 0)
        self.margin = settings.margin

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p d"]:
        """Return the joined levels at every patch, row by row; see `ConvBackbone.forward`."""
        if not self.margin:
            return ConvBackbone.forward(self, images)
        padded = F.pad(images, [self.margin] * 4, mode="reflect")
        rows, columns = (side // self.patch for side in padded.shape[2:])
        edge = self.margin // self.patch
        grid = ConvBackbone.forward(self, padded).unflatten(1, (rows, columns))
        return grid[:, edge : rows - edge, edge : columns - edge].flatten(1, 2)

    def features(self, images: np.ndarray) -> Float[Tensor, "n p d"]:
        """Return half-precision features of images (N, H, W, 3) uint8, on the CPU."""
        part = CPU_BATCH if self.mean.device.type == "cpu" else len(images)
        parts = [ConvBackbone.features(self, images[start : start + part]) for start in range(0, len(images), part)]
        return torch.cat(parts)


def parse_name(name: str) -> tuple[str, JoinSettings]:
    """Return a network's name and the settings that follow it.

    Raises
    ------
    UserError
        Naming the setting that is unknown or has a value that is not possible.
    """
    model, _, text = name.partition("?")
    given: dict[str, Any] = dict(parse_qsl(text, keep_blank_values=True))
    known = [field.name for field in fields(JoinSettings)]
    if unknown := [key for key in given if key not in known]:
        raise UserError(f"backbone {name!r}: unknown setting {unknown[0]!r}; must be one of {', '.join(known)}")
    try:
        given |= {key: tuple(map(int, given[key].split(","))) for key in ("levels",) if key in given}
        given |= {key: int(given[key]) for key in ("patch", "untrained", "margin", "context") if key in given}
    except ValueError as error:
        raise UserError(f"backbone {name!r}: expected whole numbers, such as levels=3,4 and patch=8") from error
    settings = JoinSettings(**given)
    if settings.patch < 1 or min(*settings.levels, settings.untrained or 0, settings.context or 0) < 0:
        raise UserError(f"backbone {name!r}: patch must be at least 1, levels, untrained and context at least 0")
    if settings.margin < 0 or settings.margin % settings.patch:
        raise UserError(f"backbone {name!r}: margin is {settings.margin}; must be a multiple of the patch's pixels")
    if settings.fit not in FITS:
        raise UserError(f"backbone {name!r}: fit is {settings.fit!r}; must be one of {', '.join(FITS)}")
    return model, settings


def without_centre(name: str) -> str:
    """Return the name of the same backbone before it is centred."""
    model, _, text = name.partition("?")
    kept = [f"{key}={value}" for key, value in parse_qsl(text, keep_blank_values=True) if key not in ("centre", "fit")]
    return "?".join([model, "&".join(kept)]) if kept else model


def centred_on_training(name: str) -> bool:
    """Return whether a backbone's centre is the mean patch of the images that a fit learns from."""
    return dict(parse_qsl(name.partition("?")[2])).get("centre") == TRAINING


def load_joined(name: str, weights: Path | None = None, shipped: Backbone | None = None) -> Backbone:
    """Return a convolutional network as a backbone, or a backbone that is centred.

    Parameters
    ----------
    name
        `efficientnet-lite2` or a timm name, and settings.
    weights
        A local file of a timm network's weights; None: timm's hub.
    shipped
        The backbone of that name that has a folder of its own, and so takes no setting but its centre's and `context`.

    Raises
    ------
    UserError
        When a setting is not possible, weights cannot be had, or the data set of the centre is not there.
    """
    model, settings = parse_name(name)
    plain = shipped or _plain(model, settings, weights)
    if shipped:
        _take_context(shipped, settings, name)
    if not settings.centre:
        return plain
    if settings.centre == TRAINING:
        raise UserError(f"backbone {name!r}: only a fit can be centred on its training images; name a data set")
    photographs = load_split(settings.centre, "train", SIZE, fit=settings.fit, resize="bilinear").images
    return CentredBackbone(plain, mean_patch(plain, photographs, f"Features of {settings.centre}/train"), name)


def _take_context(shipped: Backbone, settings: JoinSettings, name: str) -> None:
    """Let a backbone that has a folder average over another context, where a name asks for it, and nothing else."""
    if not dict(parse_qsl(name.partition("?")[2])).keys() <= {"centre", "fit", "context"}:
        raise UserError(f"backbone {name!r}: it has a folder of its own; it takes `centre`, `fit` and `context` alone")
    if settings.context is None:
        return
    if not isinstance(shipped, ConvBackbone):
        raise UserError(f"backbone {name!r}: a transformer has no `context`; leave it out")
    shipped.context = settings.context


def _plain(model: str, settings: JoinSettings, weights: Path | None) -> Backbone:
    """Return a network without a centre."""
    levels, untrained = settings.levels, settings.untrained is not None
    with seeded(settings.untrained or 0):  # random weights are drawn even where trained ones replace them
        if model == efficientnet_lite.NAME:
            network = efficientnet_lite.build_network(levels, untrained=untrained)
            mean, std = efficientnet_lite.MEAN, efficientnet_lite.STD
        else:
            network = _from_timm(model, levels, weights, untrained)
            cfg: Any = network.pretrained_cfg
            mean, std = cfg["mean"], cfg["std"]
    return JoinedBackbone(network, model, mean, std, settings)


def _from_timm(model: str, levels: tuple[int, ...], weights: Path | None, untrained: bool) -> nn.Module:
    """Return a timm network, with its weights unless untrained, that returns its feature maps at some levels."""
    options: dict[str, Any] = {"pretrained_cfg_overlay": {"file": str(weights)}} if weights else {}
    try:
        network = timm.create_model(model, pretrained=not untrained, features_only=True, out_indices=levels, **options)
    except Exception as error:  # timm and its hub raise many kinds
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"backbone {model!r}: no timm network with levels {levels} and weights ({reason})") from error
    pad_by_reflection(network)
    return network


def mean_patch(plain: Backbone, photographs: np.ndarray | LazyRows, label: str) -> Float[Tensor, " d"]:
    """Return the mean patch of photographs (N, H, W, 3), to centre a backbone on. No label is read."""
    features = cached_features(plain, photographs, label)
    total = torch.zeros(plain.dim, dtype=torch.float64)
    for start in range(0, len(features), 32):
        total += features[start : start + 32].double().sum((0, 1))
    return (total / (len(features) * features.shape[1])).float()
