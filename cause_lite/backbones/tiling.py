"""Tiles: how an image of any shape is shown to a network that was trained on squares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

MOST_TILES = 64  # along a side; an image that would need more is shown smaller
BATCH = 8  # tiles that are looked at together
STRIP = 2**16  # pixels whose similarities are computed at once


@dataclass(frozen=True)
class Tiling:
    """The squares by which an image is seen: it is scaled, its aspect kept, and padded where it is smaller than one.

    Parameters
    ----------
    size, patch
        Pixels a side of a tile and of a patch.
    inner
        Height and width of the scaled image, multiples of the patch.
    rows, columns
        Where tiles begin, down and across, in pixels of the scaled image; multiples of the patch.
    """

    size: int
    patch: int
    inner: tuple[int, int]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def places(self) -> list[tuple[int, int]]:
        """The top left corner of each tile."""
        return list(product(self.rows, self.columns))

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across of the padded image."""
        down, across = (max(side, self.size) // self.patch for side in self.inner)
        return down, across

    def scaled(self, image: np.ndarray) -> np.ndarray:
        """Return an image (H, W, 3) uint8 at the tiles' scale; what is missing to one tile is mirrored."""
        height, width = self.inner
        square = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        missing = [(0, max(0, self.size - side)) for side in self.inner]
        return np.pad(square, (*missing, (0, 0)), mode="symmetric") if any(pad for _, pad in missing) else square

    def without_padding(self, maps: Tensor) -> Tensor:
        """Return the part of maps (1, R, h, w) that shows the image."""
        down, across = (side // self.patch for side in self.inner)
        return maps[:, :, :down, :across]

    def weights(self) -> np.ndarray:
        """Return how much each patch (S, S) of a tile counts where tiles overlap: less towards its edges."""
        side = self.size // self.patch
        ramp = np.minimum(np.arange(side) + 0.5, np.arange(side)[::-1] + 0.5).astype(np.float32)
        return ramp[:, None] * ramp


def plan_tiles(shape: tuple[int, ...], size: int, patch: int, scale: float = 1.0) -> Tiling:
    """Return the tiles of an image whose shorter side is shown as `scale` x `size` pixels.

    Neighbours begin half a tile apart, so that each place lies well inside one of them.

    Parameters
    ----------
    shape
        Height and width of the image.
    size, patch
        Pixels a side of a tile, and of a patch, which divides it.
    scale
        1: as in training, where the shorter side filled the square; 2: twice as large, so that details count more.
    """
    factor = min(scale * size / min(shape), MOST_TILES * size / max(shape))
    height, width = (max(patch, round(side * factor / patch) * patch) for side in shape)
    rows, columns = (_starts(side, size, patch) for side in (height, width))
    return Tiling(size, patch, (height, width), rows, columns)


def _starts(length: int, size: int, patch: int) -> tuple[int, ...]:
    """Return where tiles begin along a side: every half tile, and at the end."""
    step = max(patch, size // 2 // patch * patch)
    return (*range(0, max(0, length - size), step), max(0, length - size))


def tiled_maps(
    view: Callable[[Tensor], Tensor],
    image: np.ndarray,
    tiling: Tiling,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "1 r h w"]:
    """Return one map of an image (H, W, 3) uint8 from the maps of its tiles, blended where they overlap.

    Parameters
    ----------
    view
        Tiles (B, 3, S, S) in 0..1 -> their maps (B, R, s, s).
    image, tiling
        The image and its tiles.
    device, dtype
        Where `view` computes, and in which type.
    """
    pixels, side = torch.from_numpy(tiling.scaled(image)).permute(2, 0, 1), tiling.size // tiling.patch
    weights = torch.from_numpy(tiling.weights()).to(device)
    total = weight = torch.empty(0)
    for start in range(0, len(tiling.places), BATCH):
        places = tiling.places[start : start + BATCH]
        tiles = torch.stack([pixels[:, y : y + tiling.size, x : x + tiling.size] for y, x in places])
        maps = view(tiles.to(device, dtype) / 255)
        if len(tiling.places) == 1:
            return tiling.without_padding(maps)
        if not start:
            total, weight = maps.new_zeros(maps.shape[1], *tiling.grid), maps.new_zeros(tiling.grid)
        for (y, x), tile in zip(places, maps, strict=True):
            rows, columns = (slice(place // tiling.patch, place // tiling.patch + side) for place in (y, x))
            total[:, rows, columns] += weights * tile
            weight[rows, columns] += weights
    return tiling.without_padding((total / weight)[None])


def by_strips(
    maps: Float[Tensor, "1 r h w"],
    size: tuple[int, ...],
    similarities: Callable[[Tensor, tuple[int, int]], Tensor],
    reduce: Callable[[Tensor], Tensor],
) -> Tensor:
    """Upsample maps to `size` some rows at a time, and return what `reduce` makes of each pixel's similarities, (H, W).

    Parameters
    ----------
    maps, size
        The head's output, and the height and width to upsample it to.
    similarities
        Maps and a size -> the similarity of each pixel to each cluster, (1, n, H, W).
    reduce
        Similarities (1, n, rows, W) -> (rows, W).
    """
    height, width = size
    if height > width:
        return by_strips(maps.transpose(2, 3), (width, height), similarities, reduce).T
    tall = F.interpolate(maps, size=(height, maps.shape[3]), mode="bilinear", align_corners=False)
    clusters = similarities(maps[:, :, :1, :1], (1, 1)).shape[1]
    rows = max(1, STRIP * 128 // max(128, clusters) // width)
    strips = tall.split(rows, dim=2)  # bilinear is separable: all rows first, then each strip
    whole, start = torch.empty(0), 0
    for strip in strips:
        part = reduce(similarities(strip, (strip.shape[2], width)))
        # One result from the start: strips that stay between passing ones would break memory into pieces.
        whole = whole if start else part.new_empty(size)
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


def largest(similarities: Float[Tensor, "1 n h w"]) -> Tensor:
    """Return the most similar cluster of each pixel (h, w)."""
    return similarities.argmax(1)[0].to(torch.int32)


def margin(similarities: Float[Tensor, "1 n h w"]) -> Float[Tensor, "h w"]:
    """Return by how much the most similar cluster of each pixel is more similar than the next, 0..2."""
    if similarities.shape[1] == 1:
        return torch.full_like(similarities[0, 0], 2.0)
    first, second = similarities.topk(2, dim=1).values[0]
    return first - second
