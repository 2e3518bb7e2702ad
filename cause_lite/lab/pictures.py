"""Pictures of label maps: colours, overlays, names, and grids of images."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt

INK = "#8a8a8a"  # legible on white and on the dark theme's background


def palette(count: int) -> np.ndarray:
    """`count` colours (count, 3) uint8, spread in hue and in lightness so that neighbours differ."""
    hues = sns.color_palette("husl", count)
    order = np.argsort(np.arange(count) * 0.618034 % 1)
    light = np.array([1.0, 0.62, 0.82])[np.arange(count) % 3]
    return (np.array(hues)[order] * light[:, None] * 255).astype(np.uint8)


def colourise(
    labels: np.ndarray, image: np.ndarray | None = None, share: float = 0.55, classes: int | None = None
) -> np.ndarray:
    """Label map (H, W) -> colours (H, W, 3) uint8, blended onto `image` where one is given; ignored pixels dark."""
    table = palette(classes or int(labels.max(initial=0)) + 1)
    colours = table[np.clip(labels, 0, len(table) - 1)]
    colours[labels < 0] = 30
    if image is None:
        return colours
    return np.asarray(Image.blend(Image.fromarray(image), Image.fromarray(colours), share))


def labelled(labels: np.ndarray, names: Sequence[str], least: float = 0.02, side: int = 384) -> np.ndarray:
    """A label map (H, W) as colours with each class's name in it, at about `side` pixels: (h, w, 3) uint8.

    So that colour alone carries no meaning. A class is named where it is widest, if it fills `least` of the map.
    """
    scale = max(1, side // labels.shape[1])
    picture = Image.fromarray(colourise(labels, classes=len(names)).repeat(scale, 0).repeat(scale, 1))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=side // 12)
    for number in np.unique(labels[labels >= 0]):
        mask = labels == number
        if mask.mean() < least:
            continue
        inside = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        y, x = (scale * (place + 0.5) for place in np.unravel_index(inside.argmax(), mask.shape))
        half = pen.textlength(names[number], font) / 2 + 2
        x = min(max(x, half), picture.width - half)  # whole names, also at the border
        pen.text((x, y), names[number], "white", font, "mm", stroke_width=2, stroke_fill="black")
    return np.array(picture)


def image_grid(rows: Sequence[Sequence[np.ndarray]], row_names: Sequence[str], width: float = 9.0) -> Figure:
    """Rows of pictures of one size, each row with its name at the left."""
    columns = max(len(row) for row in rows)
    height = width / columns * len(rows)
    figure, axes = plt.subplots(len(rows), columns, figsize=(width, height), squeeze=False)
    for name, row, line in zip(row_names, rows, axes, strict=True):
        for axis in line:
            axis.set_axis_off()
        for picture, axis in zip(row, line, strict=False):
            axis.imshow(picture, interpolation="nearest")
        line[0].text(
            -0.04, 0.5, name, transform=line[0].transAxes, rotation=90, va="center", ha="right", color=INK, fontsize=11
        )
    figure.subplots_adjust(0.03, 0, 1, 1, 0.02, 0.02)
    figure.patch.set_alpha(0)
    return figure
