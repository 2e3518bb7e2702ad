"""Views of photographs for pre-training: crops in true proportions, colours and blur, in batches on one device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cause_lite.datasets.photos import Photos

PROPORTIONS = (3 / 4, 4 / 3)  # width / height of a crop
HUE, SATURATION, GREY = 0.5, (0.4, 1.6), 0.15  # radians; factors; share of views without colour
CAST, GAIN, CONTRAST = (0.85, 1.15), (0.6, 1.4), (0.6, 1.4)
BLURRED, SIGMA = 1 / 3, (0.5, 1.5)  # share of views; pixels of a view of 64


def colour_matrix(angle: Tensor, saturation: Tensor, cast: Tensor) -> Tensor:
    """Return the matrices (B, 3, 3) that turn hues, then change saturation and cast.

    `angle` in radians and `saturation`, a factor, are (B, 1, 1); `cast` (B, 3) has a factor for each of red, green and
    blue.
    """
    eye, grey = torch.eye(3, device=angle.device), torch.full((3, 3), 1 / 3, device=angle.device)
    axis = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=angle.device) / 3**0.5
    hue = angle.cos() * eye + angle.sin() * axis + (1 - angle.cos()) * grey
    return torch.diag_embed(cast) @ (grey + saturation * (eye - grey)) @ hue


@dataclass(frozen=True)
class Cut:
    """One view of each of B photographs: centre and half size (B, 4) in -1..1 of the record, and which are mirrored."""

    box: Tensor
    mirrored: Tensor

    def sample(self, pictures: Tensor, side: int) -> Tensor:
        """Return what pictures (B, C, H, W) show inside the boxes, at side x side."""
        theta = pictures.new_zeros(len(self.box), 2, 3)
        theta[:, 0, 0], theta[:, 1, 1] = torch.where(self.mirrored, -1.0, 1.0) * self.box[:, 2], self.box[:, 3]
        theta[:, :, 2] = self.box[:, :2]
        grid = F.affine_grid(theta, [len(theta), pictures.shape[1], side, side], align_corners=False)
        return F.grid_sample(pictures, grid, align_corners=False, padding_mode="border")


class Views:
    """Draw batches of photographs and overlapping pairs of views; the same step gives the same views."""

    def __init__(self, photos: Photos, seed: int, scale: tuple[float, float], device: torch.device) -> None:
        images = torch.from_numpy(photos.images)
        self.images = images.to(device) if device.type != "cpu" else images
        self.aspects = torch.from_numpy(photos.aspects)
        self.seed, self.scale, self.device = seed, scale, device
        self.generator = torch.Generator(device)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw numbers between `low` and `high`."""
        return low + (high - low) * torch.rand(*shape, generator=self.generator, device=self.device)

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
        cuts = [Cut(box, self.uniform(count) < 0.5) for box in (first, self._beside(first, self._box(aspects)))]
        return pictures, [self._colours(cut.sample(pictures, side)) for cut in cuts], cuts

    def _box(self, aspect: Tensor) -> Tensor:
        """Draw random boxes; their area is a share of the largest square in the photograph (B,) of that aspect."""
        count = len(aspect)
        area = self.uniform(count, low=math.log(self.scale[0]), high=math.log(self.scale[1])).exp()
        shape = self.uniform(count, low=math.log(PROPORTIONS[0]), high=math.log(PROPORTIONS[1])).exp()
        size = torch.stack(
            [(area * shape).sqrt() / aspect.clamp(min=1), (area / shape).sqrt() * aspect.clamp(max=1)], 1
        )
        size = size.clamp(max=1)
        return torch.cat([self.uniform(count, 2, low=-1, high=1) * (1 - size), size], 1)

    def _beside(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the second boxes, moved so that each shares a part with the first."""
        reach = torch.minimum(first[:, 2:], second[:, 2:])
        centre = first[:, :2] + self.uniform(len(first), 2, low=-1, high=1) * reach
        room = 1 - second[:, 2:]
        return torch.cat([torch.maximum(torch.minimum(centre, room), -room), second[:, 2:]], 1)

    def _colours(self, view: Tensor) -> Tensor:
        """Change hue, saturation and cast by one 3x3 matrix a view, contrast, brightness; blur a share of views."""
        count = len(view)
        angle = self.uniform(count, 1, 1, low=-HUE, high=HUE)
        saturation = self.uniform(count, 1, 1, low=SATURATION[0], high=SATURATION[1])
        saturation = saturation * (self.uniform(count, 1, 1) >= GREY)
        matrix = colour_matrix(angle, saturation, self.uniform(count, 3, low=CAST[0], high=CAST[1]))
        gain = self.uniform(count, 1, 1, 1, low=GAIN[0], high=GAIN[1])
        contrast = self.uniform(count, 1, 1, 1, low=CONTRAST[0], high=CONTRAST[1])
        level = view.mean((1, 2, 3), keepdim=True)
        view = torch.einsum("bij,bjhw->bihw", matrix, level + contrast * (view - level)) * gain
        blurred = round(count * BLURRED)
        return torch.cat([self._blur(view[:blurred]), view[blurred:]])

    def _blur(self, view: Tensor) -> Tensor:
        """Blur by a Gaussian of one random width for all, rows first and columns next."""
        sigma = self.uniform(1, low=SIGMA[0], high=SIGMA[1]) * view.shape[-1] / 64
        weights = torch.exp(-(torch.arange(-3.0, 4.0, device=self.device) ** 2) / (2 * sigma**2))
        weights = weights / weights.sum()
        planes = F.pad(view.flatten(0, 1)[:, None], (3, 3, 3, 3), mode="replicate")
        return F.conv2d(F.conv2d(planes, weights.view(1, 1, 7, 1)), weights.view(1, 1, 1, 7)).view_as(view)
