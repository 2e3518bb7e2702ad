"""Regions of colour and place in a photograph, found again in its views: what two views' features must agree on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cause_lite.backbones.photo_views import Cut

CELL = 8  # pixels of a record that one cell of the regions covers
PLACE = 1.2  # weight of a cell's place beside its colour
ROUNDS = 4
LEAST = 0.04  # share of a view that a region must cover


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
