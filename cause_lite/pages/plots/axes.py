"""What every figure shares: colours, thin axes for light and dark pages, a legend, lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cause_lite.lab.colours import INK

BLUE, ORANGE, GREEN, PURPLE = "#3b7dd8", "#d2691e", "#5a9e6f", "#8a63a8"


def style(axis: Axes) -> Axes:
    """Give an axis thin grey lines and a clear background, for light and dark pages, and return it."""
    axis.figure.patch.set_alpha(0)
    axis.set_facecolor("none")
    axis.spines[["top", "right"]].set_visible(False)
    for spine in axis.spines.values():
        spine.set_color(INK)
    axis.tick_params(colors=INK)
    for text in (axis.xaxis.label, axis.yaxis.label, axis.title):
        text.set_color(INK)
    return axis


def legend(axis: Axes, **options: Any) -> None:
    """Draw the axis's legend without a frame, in the ink of both themes; `options` go to matplotlib's `legend`."""
    axis.legend(frameon=False, labelcolor=INK, **options)


def curves(series: dict[str, Sequence[float]], xlabel: str, ylabel: str, smooth: int = 1) -> Figure:
    """Draw lines against their step, counted from 1.

    Parameters
    ----------
    series
        The values of each line, by its name; several lines get a legend.
    xlabel, ylabel
        What the axes show, with the unit.
    smooth
        The number of points of a running mean; 1 leaves the values as they are.
    """
    figure, axis = plt.subplots(figsize=(7, 3))
    for name, values in series.items():
        means = np.convolve(values, np.ones(smooth) / smooth, mode="valid")
        axis.plot(np.arange(len(means)) + 1, means, label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    style(axis)
    if len(series) > 1:
        legend(axis)
    return figure
