"""Self-supervised pre-training of the small ViT: contrast of patches that two views share.

Two jittered crops of one image overlap; crops of several sizes take turns, step by step. Where the two overlap, a
patch's feature in one view must single out the same spot in the other view among spots of other images (dense
InfoNCE, as in DenseCL, arXiv 2011.09157, and VADeR, arXiv 2011.05499). Spots of the same image are no negatives: they
often show the same thing. No label is read. Each view gets a random window of a larger grid of sine-cosine positions,
so that position says nothing about content and every place of the evaluation grid is trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from lightly.models.modules import SimCLRProjectionHead
from lightly.models.utils import update_momentum
from lightly.utils.scheduler import cosine_schedule
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.ops import roi_align

from cause_lite.backbones.backbone import IMAGE_MEAN, IMAGE_STD
from cause_lite.backbones.pretraining import Pretraining, Recipe, spot_contrast
from cause_lite.backbones.views import Cut, Jitter, normalised, uniform
from cause_lite.backbones.vit import VitBackbone, build_vit
from cause_lite.datasets import load_split
from cause_lite.runtime.device import choose_device
from cause_lite.runtime.progress import track

JITTER = Jitter(0.9, (0.2, 1.5), 0.2)
NOISE = 0.02


@dataclass(frozen=True, kw_only=True)
class PatchesConfig(Recipe):
    """Settings of the ViT's pre-training. Lengths in pixels."""

    data: str
    split: str
    grid: int  # positions a side: each view takes a random window of them
    crops: tuple[tuple[int, int], ...]  # (side in pixels, images a step), by turns
    window: int  # side of what the exported backbone sees at once
    steps: int = 3000
    cooldown: int = 1
    patch: int = 8
    width: int = 128
    depth: int = 4
    heads: int = 4
    temperature: float = 0.1
    projection: int = 64
    spacing: int = 16  # pixels of a crop for each point that the overlap of two views is read at
    mask_ratio: float = 0.3
    learning_rate: float = 1e-3  # falls along a cosine that would end at `horizon`, and linearly in the cooldown
    horizon: int = 3600
    weight_decay: float = 0.04
    clip: float = 3.0
    scale: tuple[float, float] = (0.7, 1.4)  # of a crop's side
    shift: float = 0.5  # largest offset between the two views' centres, in crop sides

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        ramp = min(1.0, (step + 1) / self.warmup, (self.steps - step) / self.cooldown)
        return ramp * cosine_schedule(step, self.horizon, self.learning_rate, 1e-5)

    def start(self, device: str) -> PatchPretraining:
        """Return a run at its first step; `auto` is a processor, where bits repeat."""
        at = choose_device("cpu" if device == "auto" else device)
        return PatchPretraining(np.asarray(load_split(self.data, self.split).images[:]), self, at)


class PatchEncoder(nn.Module):
    """The ViT with a mask token and a position window, as pre-training sees it."""

    def __init__(self, config: PatchesConfig) -> None:
        super().__init__()
        self.vit = build_vit(config.grid, config.patch, config.width, config.depth, config.heads)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.grid = config.grid

    def forward(self, view: Tensor, corner: Tensor, masked: Tensor) -> Tensor:
        """Return patch features (B, D, S/p, S/p) of views (B, 3, S, S), window corners (B, 2) and masks (B, P)."""
        tokens = self.vit.patch_embed(view)
        rows, columns = tokens.shape[1:3]
        tokens = torch.where(masked[..., None], self.mask_token, tokens.flatten(1, 2))
        row, column = (
            corner[:, n, None] + torch.arange(length, device=corner.device) for n, length in enumerate((rows, columns))
        )
        index = (row[:, :, None] * self.grid + column[:, None, :]).flatten(1) + 1
        position: Any = self.vit.pos_embed
        class_token: Any = self.vit.cls_token
        lead = (class_token + position[:, :1]).expand(len(tokens), -1, -1)
        tokens = self.vit.norm(self.vit.blocks(torch.cat([lead, tokens + position[0, index]], 1)))
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))


class PatchPretraining(Pretraining):
    """Contrasts the spots that two views of an image share; views are drawn on the processor."""

    name: ClassVar[str] = "vit"
    held: ClassVar[tuple[str, ...]] = ("encoder", "average", "projection")
    repeats: ClassVar[bool] = True
    config: PatchesConfig
    encoder: PatchEncoder
    average: PatchEncoder
    projection: nn.Module

    def __init__(self, images: np.ndarray, config: PatchesConfig, device: torch.device) -> None:
        super().__init__(config, len(images), device)
        self.images, self.generator = images, torch.Generator().manual_seed(config.seed)
        encoder = PatchEncoder(config).to(device)
        self.hold(encoder, SimCLRProjectionHead(config.width, 2 * config.width, config.projection).to(device))

    def losses(self) -> tuple[Tensor]:
        """Return the contrast of spots of this step's images."""
        config = self.config
        crop, count = config.crops[self.step % len(config.crops)]
        cells, points = crop // config.patch, crop // config.spacing
        spots = []
        for view, place in self.draw(crop, count):
            corner = torch.randint(config.grid - cells + 1, (count, 2), generator=self.generator)
            masked = torch.rand(count, cells**2, generator=self.generator) < config.mask_ratio
            features = self.encoder(*(each.to(self.device) for each in (view, corner, masked)))
            spots.append(self.projection(read_shared(features, place.to(self.device), points)))
        image = torch.arange(count, device=self.device).repeat_interleave(points**2)
        return (spot_contrast(spots[0], spots[1], image, config.temperature),)

    def follow(self) -> None:
        """Move the average towards the weights."""
        update_momentum(self.encoder, self.average, self.config.average)

    def draw(self, crop: int, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return two views of some images, each (B, 3, crop, crop), with the place (B, 4) of their overlap in each.

        Places are left, top, right and bottom in the view's patches, left and right exchanged where it is mirrored.
        """
        config = self.config
        window = self._windows(crop, count)
        size, (low, high) = window.shape[2], map(math.log, config.scale)
        sides = (crop * uniform(self.generator, 2, count, low=low, high=high).exp()).clamp(max=float(size))
        halves = sides[..., None] / 2
        first = uniform(self.generator, count, 2) * (size - sides[0][:, None]) + halves[0]
        shift = uniform(self.generator, count, 2, low=-1, high=1) * config.shift * sides.min(0).values[:, None]
        second = torch.minimum(torch.maximum(first + shift, halves[1]), size - halves[1])
        boxes = [torch.cat([c - half, c + half], 1) for c, half in zip((first, second), halves, strict=True)]
        starts, ends = (torch.stack(corners) for corners in zip(*(box.split(2, 1) for box in boxes), strict=True))
        overlap = torch.cat([starts.amax(0), ends.amin(0)], 1)
        seen = []
        for box in boxes:
            near, far = box.split(2, 1)
            mirrored = torch.rand(count, generator=self.generator) < 0.5
            cut = Cut(torch.cat([(near + far) / size - 1, (far - near) / size], 1), mirrored)
            view = JITTER(cut.sample(window, crop, "reflection"), self.generator)
            view = view + NOISE * torch.randn(view.shape, generator=self.generator)
            cells = crop // config.patch
            place = (overlap - near.repeat(1, 2)) / (far - near).repeat(1, 2) * cells
            place[:, [0, 2]] = torch.where(mirrored[:, None], cells - place[:, [0, 2]], place[:, [0, 2]])
            seen.append((normalised(view), place))
        return seen

    def _windows(self, crop: int, count: int) -> Tensor:
        """Cut a square window of each of some images, no larger than two crops a side: (B, 3, S, S) in 0..1."""
        which = torch.randint(len(self.images), (count,), generator=self.generator)
        side = min(2 * crop, *self.images.shape[1:3])
        top, left = (
            torch.randint(length - side + 1, (count,), generator=self.generator) for length in self.images.shape[1:3]
        )
        places = zip(which.tolist(), top.tolist(), left.tolist(), strict=True)
        cut = np.stack([self.images[n, t : t + side, x : x + side] for n, t, x in places])
        return (torch.from_numpy(cut).float() / 255).permute(0, 3, 1, 2)

    def exported(self) -> tuple[dict[str, Tensor], dict]:
        """Return the average's ViT for one window, centred, and what it is."""
        config = self.config
        vit = centred(cropped_vit(self.average.vit.cpu(), config), self.images, config)
        architecture = {name: getattr(config, name) for name in ("patch", "width", "depth", "heads")}
        architecture["grid"] = config.window // config.patch
        about = {"name": config.data, "architecture": architecture, "window": config.window}
        return vit.state_dict(), about


def read_shared(features: Tensor, place: Tensor, points: int) -> Tensor:
    """Read features (B, D, h, w) at points x points spots of each overlap: (B * points^2, D), mirrored back."""
    mirrored = place[:, 0] > place[:, 2]
    ordered = torch.stack([place[:, [0, 2]].amin(1), place[:, 1], place[:, [0, 2]].amax(1), place[:, 3]], 1)
    numbered = torch.cat([torch.arange(len(place))[:, None].to(ordered), ordered], 1)
    cells = roi_align(features, numbered, points, sampling_ratio=1, aligned=True)
    cells = torch.where(mirrored[:, None, None, None], cells.flip(3), cells)
    return cells.flatten(2).transpose(1, 2).flatten(0, 1)


@torch.no_grad()
def cropped_vit(vit: VisionTransformer, config: PatchesConfig) -> VisionTransformer:
    """Return the same ViT for inputs of one window, at the positions in the middle of the training grid."""
    cells = config.window // config.patch
    small = build_vit(cells, config.patch, config.width, config.depth, config.heads)
    start = (config.grid - cells) // 2
    position: Any = vit.pos_embed
    grid = position[:, 1:].unflatten(1, (config.grid, config.grid))
    middle = grid[:, start : start + cells, start : start + cells].flatten(1, 2)
    small.load_state_dict(vit.state_dict() | {"pos_embed": torch.cat([position[:, :1], middle], 1)})
    return small


@torch.no_grad()
def centred(vit: VisionTransformer, images: np.ndarray, config: PatchesConfig) -> VisionTransformer:
    """Fold minus the mean patch feature over `images` into the last norm's bias, so that cosines spread around 0."""
    backbone = VitBackbone(vit, config.data, IMAGE_MEAN, IMAGE_STD, config.window)
    parts = np.array_split(images[:1000], max(1, min(1000, len(images)) // 20))
    means = torch.stack([backbone.features(part).float().mean((0, 1)) for part in track(parts, "Centring")])
    bias: Any = vit.norm.bias
    bias -= means.mean(0)
    return vit
