"""Pictures of label maps with the classes' names in them, and figures of many images side by side."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt

from cause_lite.lab.colours import INK, colourise

__all__ = ["colourise", "image_grid", "labelled"]

SIDE = 384  # pixels of a label map with names in it, about
SMALLEST_SHARE = 0.02  # of a map, that a class fills to be named in it


def labelled(labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return a label map as colours with the name of each class in it, so that colour alone carries no meaning.

    A class is named where it is widest, if it fills at least `SMALLEST_SHARE` of the map.

    Parameters
    ----------
    labels
        Class numbers (H, W), negative where ignored.
    names
        The name of each class, by number.

    Returns
    -------
    ndarray
        Colours (h, w, 3) uint8, enlarged by a whole factor to about `SIDE` pixels.
    """
    scale = max(1, SIDE // labels.shape[1])
    picture = Image.fromarray(colourise(labels, classes=len(names)).repeat(scale, 0).repeat(scale, 1))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=SIDE // 12)
    for number in np.unique(labels[labels >= 0]):
        mask = labels == number
        if mask.mean() < SMALLEST_SHARE:
            continue
        depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        y, x = (scale * (int(place) + 0.5) for place in np.unravel_index(depth.argmax(), mask.shape))
        half = pen.textlength(names[number], font) / 2 + 2
        x = min(max(x, half), picture.width - half)  # whole names, also at the border
        pen.text((x, y), names[number], "white", font, "mm", stroke_width=2, stroke_fill="black")
    return np.array(picture)


def image_grid(rows: Sequence[Sequence[np.ndarray]], row_names: Sequence[str], width: float = 9.0) -> Figure:
    """Draw rows of pictures of one size, each row with its name at the left.

    Parameters
    ----------
    rows
        Images (H, W, 3), uint8 or floats in 0..1; a row may be shorter than the longest.
    row_names
        One name a row.
    width
        Of the figure, in inches.
    """
    columns = max(len(row) for row in rows)
    high, wide = rows[0][0].shape[:2]
    height = width / columns * high / wide * len(rows)
    figure, axes = plt.subplots(len(rows), columns, figsize=(width, height), squeeze=False)
    for name, row, line in zip(row_names, rows, axes, strict=True):
        for axis in line:
            axis.set_axis_off()
        for picture, axis in zip(row, line, strict=False):
            axis.imshow(picture, interpolation="nearest")
        beside = {"transform": line[0].transAxes, "rotation": 90, "va": "center", "ha": "right"}
        line[0].text(-0.04, 0.5, name, color=INK, fontsize=11, **beside)
    figure.subplots_adjust(0.03, 0, 1, 1, 0.02, 0.02)
    figure.patch.set_alpha(0)
    return figure
