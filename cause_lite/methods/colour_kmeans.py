"""k-means on the colour and the height of single pixels: what a picture's surface gives without any network."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cause_lite.backbones.kmeans import SAMPLE, kmeans
from cause_lite.methods.method import NoOptions, Predictor, Training, Views, drawn, register

WEIGHT = 0.5  # of the height, which runs from 0 to 1 as colours do
EVERY = 4  # rows and columns of a training image that are looked at


def colour_and_height(images: np.ndarray) -> Float[Tensor, "n h w 4"]:
    """Return red, green and blue in 0..1, and the weighted height, of images (N, H, W, 3) uint8."""
    count, height, width, _ = images.shape
    rows = torch.linspace(0, WEIGHT, height, dtype=torch.float64).view(1, height, 1, 1)
    return torch.cat([torch.from_numpy(images).double() / 255, rows.expand(count, height, width, 1)], dim=3)


@register("colour_kmeans", needs=("pictures",))
def learn(training: Training, options: NoOptions) -> Predictor:
    """Group at most 30,000 pixels; a pixel goes to the nearest centre."""
    assert training.pictures is not None
    count, generator = len(training.pictures), drawn(training.seed)
    parts = [training.pictures[start : start + 20] for start in range(0, count, 20)]
    pixels = torch.cat([colour_and_height(part)[:, ::EVERY, ::EVERY].flatten(0, 2) for part in parts])
    some = pixels[torch.randperm(len(pixels), generator=generator)[:SAMPLE]]
    centres = kmeans(some, training.classes, training.seed)

    def predict(views: Views, size: tuple[int, int]) -> Tensor:
        pixels = colour_and_height(views.pictures)
        assert pixels.shape[1:3] == size
        return (2 * pixels @ centres.T - centres.square().sum(1)).permute(0, 3, 1, 2)

    return predict
