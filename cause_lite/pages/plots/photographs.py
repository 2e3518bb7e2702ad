"""Photographs above the clusters that a segmenter finds in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from cause_lite.datasets.folders import read_photograph
from cause_lite.lab.colours import colourise
from cause_lite.lab.pictures import image_grid
from cause_lite.segmenter import Segmenter

COLUMNS = 5
CELL = (240, 180)  # width and height of each picture, in pixels


def segmented_photographs(files: Sequence[Path], segmenter: Segmenter) -> Figure:
    """Draw photographs and, below each, its clusters in colours on the photograph; `COLUMNS` side by side.

    A cluster has one colour in all of them. Pictures are segmented as they are, then squeezed into cells of one size.
    """
    clusters = len(segmenter.cluster_probe.centres)
    rows: list[list[np.ndarray]] = []
    for start in range(0, len(files), COLUMNS):
        images = [np.asarray(read_photograph(path)) for path in files[start : start + COLUMNS]]
        found = [colourise(segmenter.segment(image), image, clusters) for image in images]
        rows += [[_in_cell(picture) for picture in row] for row in (images, found)]
    return image_grid(rows, ["photograph", "clusters"] * (len(rows) // 2))


def _in_cell(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize(CELL, Image.Resampling.LANCZOS))
