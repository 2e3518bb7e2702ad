"""Views of pictures for pre-training: crops, mirrored and recoloured, and what two of them show of one region."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cause_lite.backbones.backbone import IMAGE_MEAN, IMAGE_STD
from cause_lite.datasets.photos import Photos

CAST, GAIN, CONTRAST = (0.85, 1.15), (0.6, 1.4), (0.6, 1.4)  # factors of colours
PROPORTIONS = (3 / 4, 4 / 3)  # width / height of a crop of a photograph
BLURRED, SIGMA = 1 / 3, (0.5, 1.5)  # share of views; pixels of a view of 64
CELL = 8  # pixels of a packed photograph that one cell of the regions covers
PLACE = 1.2  # weight of a cell's place beside its colour
ROUNDS = 4  # of the k-means that makes regions
LEAST = 0.04  # share of a view that a region must cover


def uniform(generator: torch.Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Draw numbers between `low` and `high` on the generator's device."""
    return low + (high - low) * torch.rand(*shape, generator=generator, device=generator.device)


def normalised(images: Tensor) -> Tensor:
    """Return images in 0..1 with ImageNet's mean and deviation taken out."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return (images - mean) / std


@dataclass(frozen=True)
class Cut:
    """One view of each of B pictures: centre and half size (B, 4) in -1..1 of the picture, and which are mirrored."""

    box: Tensor
    mirrored: Tensor

    def sample(self, pictures: Tensor, side: int, padding: str = "border") -> Tensor:
        """Return what pictures (B, C, H, W) show inside the boxes, at side x side."""
        theta = pictures.new_zeros(len(self.box), 2, 3)
        theta[:, 0, 0], theta[:, 1, 1] = torch.where(self.mirrored, -1.0, 1.0) * self.box[:, 2], self.box[:, 3]
        theta[:, :, 2] = self.box[:, :2]
        grid = F.affine_grid(theta, [len(theta), pictures.shape[1], side, side], align_corners=False)
        return F.grid_sample(pictures, grid, align_corners=False, padding_mode=padding)


@dataclass(frozen=True)
class Jitter:
    """How far colours change: hue in radians, the range of saturation, and the share of views without colour."""

    hue: float
    saturation: tuple[float, float]
    grey: float

    def __call__(self, view: Tensor, generator: torch.Generator) -> Tensor:
        """Change hue, saturation and cast of views (B, 3, S, S) by one 3x3 matrix each, contrast and brightness."""
        count = len(view)
        angle = uniform(generator, count, 1, 1, low=-self.hue, high=self.hue)
        saturation = uniform(generator, count, 1, 1, low=self.saturation[0], high=self.saturation[1])
        saturation = saturation * (uniform(generator, count, 1, 1) >= self.grey)
        matrix = colour_matrix(angle, saturation, uniform(generator, count, 3, low=CAST[0], high=CAST[1]))
        gain = uniform(generator, count, 1, 1, 1, low=GAIN[0], high=GAIN[1])
        contrast = uniform(generator, count, 1, 1, 1, low=CONTRAST[0], high=CONTRAST[1])
        level = view.mean((1, 2, 3), keepdim=True)
        return torch.einsum("bij,bjhw->bihw", matrix, level + contrast * (view - level)) * gain


def colour_matrix(angle: Tensor, saturation: Tensor, cast: Tensor) -> Tensor:
    """Return matrices (B, 3, 3) that turn hues by angles (B, 1, 1), then change saturation and cast (B, 3)."""
    eye, grey = torch.eye(3, device=angle.device), torch.full((3, 3), 1 / 3, device=angle.device)
    axis = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=angle.device) / 3**0.5
    hue = angle.cos() * eye + angle.sin() * axis + (1 - angle.cos()) * grey
    return torch.diag_embed(cast) @ (grey + saturation * (eye - grey)) @ hue


def blurred(view: Tensor, generator: torch.Generator) -> Tensor:
    """Blur views by a Gaussian of one random width for all, rows first and columns next."""
    sigma = uniform(generator, 1, low=SIGMA[0], high=SIGMA[1]) * view.shape[-1] / 64
    weights = torch.exp(-(torch.arange(-3.0, 4.0, device=view.device) ** 2) / (2 * sigma**2))
    weights = weights / weights.sum()
    planes = F.pad(view.flatten(0, 1)[:, None], (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(planes, weights.view(1, 1, 7, 1)), weights.view(1, 1, 1, 7)).view_as(view)


class PhotoViews:
    """Batches of photographs and overlapping pairs of their views, in true proportions; a step gives the same again."""

    jitter = Jitter(0.5, (0.4, 1.6), 0.15)

    def __init__(self, photos: Photos, seed: int, scale: tuple[float, float], generator: torch.Generator) -> None:
        self.device = generator.device
        images = torch.from_numpy(photos.images)
        self.images = images.to(self.device) if self.device.type != "cpu" else images
        self.aspects = torch.from_numpy(photos.aspects)
        self.seed, self.scale, self.generator = seed, scale, generator

    def numbers(self, step: int, count: int) -> Tensor:
        """Return the photographs that step `step` sees (count,): each once an epoch, in a new order each time."""
        steps = len(self.aspects) // count
        order = np.random.default_rng([self.seed, step // steps]).permutation(len(self.aspects))
        return torch.from_numpy(order[step % steps * count :][:count])

    def draw(self, step: int, side: int, count: int) -> tuple[Tensor, list[Tensor], list[Cut]]:
        """Return photographs (B, 3, S, S) in 0..1, two views of each (B, 3, side, side), and how those were cut."""
        self.generator.manual_seed(self.seed * 2**32 + step)
        which = self.numbers(step, count)
        aspects = self.aspects[which].to(self.device)
        pictures = self.images[which.to(self.images.device)].permute(0, 3, 1, 2).float() / 255
        first = self._box(aspects)
        second = self._beside(first, self._box(aspects))
        cuts = [Cut(box, uniform(self.generator, count) < 0.5) for box in (first, second)]
        views = [self._recoloured(cut.sample(pictures, side)) for cut in cuts]
        return pictures, views, cuts

    def _box(self, aspect: Tensor) -> Tensor:
        """Draw boxes that cover a share of the largest square in the photograph (B,) of that aspect."""
        count, (small, large), (narrow, wide) = len(aspect), self.scale, PROPORTIONS
        area = uniform(self.generator, count, low=math.log(small), high=math.log(large)).exp()
        shape = uniform(self.generator, count, low=math.log(narrow), high=math.log(wide)).exp()
        width, height = (area * shape).sqrt() / aspect.clamp(min=1), (area / shape).sqrt() * aspect.clamp(max=1)
        size = torch.stack([width, height], 1).clamp(max=1)
        return torch.cat([uniform(self.generator, count, 2, low=-1, high=1) * (1 - size), size], 1)

    def _beside(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the second boxes, moved so that each shares a part with the first."""
        reach = torch.minimum(first[:, 2:], second[:, 2:])
        centre = first[:, :2] + uniform(self.generator, len(first), 2, low=-1, high=1) * reach
        room = 1 - second[:, 2:]
        return torch.cat([torch.maximum(torch.minimum(centre, room), -room), second[:, 2:]], 1)

    def _recoloured(self, view: Tensor) -> Tensor:
        """Change the colours of views, and blur a share of them."""
        view, count = self.jitter(view, self.generator), round(len(view) * BLURRED)
        return torch.cat([blurred(view[:count], self.generator), view[count:]])


@torch.no_grad()
def regions_of(pictures: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Photographs (B, 3, S, S) -> `count` regions of each, (B, count, S / 8, S / 8) of 0 and 1, by k-means."""
    cells = F.avg_pool2d(pictures, CELL)
    batch, _, height, width = cells.shape
    cells = (cells - cells.mean((2, 3), keepdim=True)) / (cells.std((1, 2, 3), keepdim=True) + 0.02)
    rows, columns = (torch.linspace(-PLACE, PLACE, n, device=cells.device) for n in (height, width))
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(batch, -1, -1, -1)
    points = torch.cat([cells, place], 1).flatten(2)
    first = torch.rand(batch, height * width, generator=generator, device=cells.device).argsort(1)[:, :count]
    centres = points.gather(2, first[:, None].expand(-1, points.shape[1], -1))
    for _ in range(ROUNDS):
        nearest = (points[..., None] - centres[:, :, None]).square().sum(1).argmin(2)
        member = F.one_hot(nearest, count).to(points)
        size = member.sum(1)[:, None]
        centres = torch.where(size > 0, points @ member / size.clamp(min=1), centres)
    return member.transpose(1, 2).unflatten(2, (height, width))


def pooled(levels: list[Tensor], regions: Tensor, cuts: list[Cut]) -> tuple[Tensor, Tensor]:
    """Feature maps (2B, C, h, h) of two stacked views, level by level -> what both views show of each region.

    Rows (2M, sum of C) hold each level's mean over the region, of root-mean-square 1, the first view's rows first;
    with them comes of which photograph each is (M,).
    """
    finest = 4 * max(level.shape[-1] for level in levels)
    masks = [cut.sample(regions, finest) for cut in cuts]
    shown = torch.stack([mask.mean((2, 3)) > LEAST for mask in masks]).all(0)
    both, found = torch.cat(masks), torch.cat([shown, shown])
    rows = []
    for level in levels:
        mask = F.avg_pool2d(both, finest // level.shape[-1])
        mean = torch.einsum("bkhw,bchw->bkc", mask, level)[found]
        rows.append(F.normalize(mean, dim=1) * mean.shape[1] ** 0.5)
    return torch.cat(rows, 1), shown.nonzero()[:, 0]
