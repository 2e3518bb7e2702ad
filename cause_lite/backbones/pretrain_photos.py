"""Self-supervised pre-training of a small convolutional network on unlabelled photographs, on any device.

Two overlapping, jittered crops of a photograph are contrasted twice: as wholes (NT-Xent, arXiv 2002.05709), and region
by region (arXiv 2103.10957), where regions are clusters of colour and place in the photograph and every level of the
network that ships is averaged over them. Regions of the same photograph are no negatives. No label is read.

The rate is constant, so a run can be made longer at any time: each end is a branch on which the rate falls to 0.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.backbones.backbone import IMAGE_MEAN, IMAGE_STD
from cause_lite.backbones.convolutional import ConvBackbone, build_levels, widths_of
from cause_lite.backbones.pretraining import Pretraining, Recipe, spot_contrast
from cause_lite.backbones.views import PhotoViews, normalised, pooled, regions_of
from cause_lite.datasets import photos
from cause_lite.datasets.photos import Photos
from cause_lite.runtime.device import choose_device
from cause_lite.runtime.precision import autocast
from cause_lite.runtime.progress import track

OBJECTIVE = "contrast of wholes and of regions"
FREE = ("steps", "joined", "context", "views")  # settings that may change when a run is resumed
SIZE = 320  # pixels of the images that the backbone is to serve, and at which it is centred


@dataclass(frozen=True, kw_only=True)
class PhotosConfig(Recipe):
    """Settings of the network's pre-training; `steps` are at a constant rate, and `cooldown` on the branch. Pixels."""

    steps: int = 5000
    cooldown: int = 400
    channels: tuple[int, ...] = (48, 96, 192, 384)  # of a ResNet-18's levels
    levels: tuple[int, ...] = (2, 3, 4)  # whose means over regions are contrasted
    joined: tuple[int, ...] = (2, 3, 4)  # that the backbone joins
    context: int = 3  # cells of each level to each side over which it averages that level
    # By the step from which it holds: the side of a view, and how many photographs a step sees.
    views: tuple[tuple[int, int, int], ...] = ((0, 64, 128), (2900, 48, 228))
    scale: tuple[float, float] = (0.15, 1.0)  # share of a photograph's largest square that a crop covers
    hidden: int = 512
    projection: int = 128
    temperature: float = 0.2
    regions: int = 6  # in a photograph
    region_temperature: float = 0.15
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    clip: float = 5.0

    @property
    def end(self) -> int:
        """The last step of the branch."""
        return self.steps + self.cooldown

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: it rises, stays, and falls to 0 on the branch."""
        left = (self.end - step) / max(1, self.cooldown)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, left)

    def views_at(self, step: int) -> tuple[int, int]:
        """Return the side of a step's views and how many photographs it sees; a branch keeps its run's."""
        _, side, count = self.stages(step + 1)[-1]
        return side, count

    def stages(self, steps: int) -> list[tuple[int, int, int]]:
        """Return the stages of `views` that the first so many steps go through."""
        return [(start, side, count) for start, side, count in self.views if start < min(steps, self.steps)]

    def decided(self, step: int) -> dict:
        """Return the settings that decided the steps before this one; `cooldown` counts on a branch alone."""
        free = FREE if step > self.steps else (*FREE, "cooldown")
        told = {name: value for name, value in super().decided(step).items() if name not in free}
        return told | {"objective": OBJECTIVE, "views": self.stages(step)}

    def start(self, device: str) -> PhotoPretraining:
        """Return a run at its first step, on the packed photographs."""
        return PhotoPretraining(photos.load(), self, choose_device(device))


class PhotoPretraining(Pretraining):
    """Contrasts whole views, and the regions that two views of a photograph share."""

    name: ClassVar[str] = "network"
    held: ClassVar[tuple[str, ...]] = ("network", "average", "whole", "parts")
    repeats: ClassVar[bool] = False
    config: PhotosConfig
    network: nn.Module
    average: nn.Module
    whole: nn.Module
    parts: nn.Module

    def __init__(self, pool: Photos, config: PhotosConfig, device: torch.device) -> None:
        super().__init__(config, len(pool.images), device)
        self.pool, self.generator = pool, torch.Generator(device)
        self.precision = "bf16" if device.type == "cuda" or (device.type == "cpu" and fast_bf16()) else "fp32"
        self.views = PhotoViews(pool, config.seed, config.scale, self.generator)
        network = self.resnet(config.levels)
        widths = widths_of(network)
        heads = (SimCLRProjectionHead(w, config.hidden, config.projection) for w in (widths[-1], sum(widths)))
        self.hold(network, *(head.to(device) for head in heads))
        self.nt_xent = NTXentLoss(config.temperature)

    def resnet(self, levels: tuple[int, ...]) -> nn.Module:
        """Return the untrained network, which returns its maps at these levels, in the layout for convolutions."""
        network = build_levels("resnet18", list(levels), True, channels=self.config.channels, zero_init_last=False)
        return network.to(self.device).to(memory_format=torch.channels_last)

    def losses(self) -> tuple[Tensor, Tensor]:
        """Return the losses over wholes and over regions of this step's batch."""
        config = self.config
        pictures, pair, cuts = self.views.draw(self.step, *config.views_at(self.step))
        regions = regions_of(pictures, config.regions, self.generator)
        views = normalised(torch.cat(pair)).contiguous(memory_format=torch.channels_last)
        with autocast(self.precision, self.device):
            maps = self.network(views)
            wholes = maps[-1].mean((2, 3))
        rows, photograph = pooled([level.float() for level in maps], regions, cuts)
        with autocast(self.precision, self.device):
            first, second = self.whole(wholes).float().chunk(2)
            here, there = self.parts(rows).float().chunk(2)
        return self.nt_xent(first, second), spot_contrast(here, there, photograph, config.region_temperature)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average towards the weights and the normalisation's statistics, faster in the first steps."""
        decay = min(self.config.average, (self.step + 1) / (self.step + 10))
        current = self.network.state_dict()
        for name, averaged in self.average.state_dict().items():
            if averaged.is_floating_point():
                averaged.lerp_(current[name], 1 - decay)
            else:
                averaged.copy_(current[name])

    def exported(self) -> tuple[dict[str, Tensor], dict]:
        """Return the average in half precision with its mean feature, and what it is and learned from."""
        config, network = self.config, self.resnet(self.config.joined)
        network.load_state_dict(self.average.state_dict())
        weights = network.state_dict() | {"centre": mean_feature(network, self.pool, config.context)}
        half = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
        options = {"channels": config.channels}
        about = {
            "name": "photos",
            "patch": 8,
            "context": config.context,
            "architecture": {"model": "resnet18", "levels": config.joined, "reflect": True, "options": options},
            "objective": OBJECTIVE,
            "precision": self.precision,
            "photographs": self.pool.about,
            "pools": self.pools,
            "sources": {each.name: {"repository": each.repository, "terms": each.terms} for each in photos.SOURCES},
        }
        return {key: value.cpu().contiguous() for key, value in half.items()}, about


def fast_bf16() -> bool:
    """Return whether this processor multiplies in bf16, which then is faster than fp32; others emulate it."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def mean_feature(network: nn.Module, pool: Photos, context: int, count: int = 500) -> Tensor:
    """Return the mean feature (D,) of photographs spread over the pool, at the size that the backbone is to serve."""
    device, width = next(network.parameters()).device, sum(widths_of(network))
    network = copy.deepcopy(network)
    backbone = ConvBackbone(network, "", IMAGE_MEAN, IMAGE_STD, torch.zeros(width), context=context).to(device)
    numbers = torch.linspace(0, len(pool.images) - 1, min(count, len(pool.images))).long().split(10)
    means = []
    for part in track(numbers, "Centring"):
        pictures = torch.from_numpy(pool.images[part.numpy()]).to(device).permute(0, 3, 1, 2).float() / 255
        means.append(backbone(F.interpolate(pictures, size=SIZE, mode="bilinear")).mean((0, 1)))
    return torch.stack(means).mean(0)
