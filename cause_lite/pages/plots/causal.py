"""The causal graph, the graphs of the do-calculus, and the effects that are estimated."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from cause_lite.lab.colours import INK
from cause_lite.pages.plots.axes import BLUE, ORANGE, legend, style
from cause_lite.theory.estimators import bootstrap_interval, frontdoor_effect, naive_effect
from cause_lite.theory.model import LinearModel

Place = tuple[float, float]
Edge = tuple[str, str]


def draw_graph(
    axis: Axes,
    places: dict[str, Place],
    edges: Sequence[Edge],
    hidden: Collection[str] = (),
    removed: Collection[Edge] = (),
) -> None:
    """Draw a directed graph on an axis.

    Parameters
    ----------
    axis
        Where to draw.
    places
        Where each node lies, within -0.5..2.5 across and -0.7..1.4 up.
    edges
        (cause, effect) of each arrow.
    hidden
        Nodes that are not observed; they and their arrows are dashed.
    removed
        Arrows that an intervention takes away; they are faint and dotted.
    """
    for start, end in edges:
        arrow = FancyArrowPatch(places[start], places[end], arrowstyle="-|>", mutation_scale=16, shrinkA=20, shrinkB=20)
        arrow.set(color=INK, linestyle="dashed" if start in hidden else "solid")
        if (start, end) in removed:
            arrow.set(linestyle="dotted", alpha=0.3)
        axis.add_patch(arrow)
    for name, (x, y) in places.items():
        colour, line = (ORANGE, "dashed") if name in hidden else (BLUE, "solid")
        axis.scatter(x, y, s=1300, facecolors="none", edgecolors=colour, linestyles=line, linewidths=2)
        axis.text(x, y, f"${name}$", ha="center", va="center", color=INK, fontsize=14)
    axis.set(xlim=(-0.5, 2.5), ylim=(-0.7, 1.4))
    axis.set_axis_off()


def causal_graph(
    places: dict[str, Place],
    edges: Sequence[Edge],
    hidden: Collection[str] = (),
    notes: dict[str, str] | None = None,
) -> Figure:
    """Draw a directed graph with a note below each node that has one; see `draw_graph`."""
    figure, axis = plt.subplots(figsize=(6, 2.8))
    draw_graph(axis, places, edges, hidden)
    for name, (x, y) in places.items():
        axis.text(x, y - 0.3, (notes or {}).get(name, ""), ha="center", va="top", color=INK, fontsize=9)
    figure.patch.set_alpha(0)
    return figure


def mutilated_graphs(
    places: dict[str, Place],
    edges: Sequence[Edge],
    steps: dict[str, Collection[Edge]],
    hidden: Collection[str] = (),
) -> Figure:
    """Draw the graph of each step of the do-calculus.

    Parameters
    ----------
    places, edges, hidden
        As in `draw_graph`.
    steps
        The title of each step and the arrows that it removes, in their order, two in a row.
    """
    rows = -(-len(steps) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(9, 2.7 * rows), squeeze=False)
    for axis in axes.flat[len(steps) :]:
        axis.set_axis_off()
    for axis, (title, removed) in zip(axes.flat, steps.items(), strict=False):
        draw_graph(axis, places, edges, hidden, removed)
        axis.set_title(title, color=INK, fontsize=10)
    figure.patch.set_alpha(0)
    figure.tight_layout()
    return figure


def effects(model: LinearModel, data: pd.DataFrame, rng: np.random.Generator) -> Figure:
    """Draw the front-door and the naive estimate with their 95 % bootstrap intervals, and the true effect as a line.

    Parameters
    ----------
    model
        The structural model, which knows the true effect.
    data
        Samples of the model, the columns that both estimators read.
    rng
        Draws the bootstrap's samples.
    """
    figure, axis = plt.subplots(figsize=(6, 1.9))
    looks = ((frontdoor_effect, BLUE, "o"), (naive_effect, ORANGE, "s"))
    for place, (estimate, colour, marker) in enumerate(looks):
        low, high = bootstrap_interval(data, estimate, rng)
        axis.plot([low, high], [place, place], color=colour, linewidth=3)
        axis.plot(estimate(data), place, marker, color=colour, markersize=8)
    axis.axvline(model.effect, color=INK, linestyle="--", label="true effect")
    axis.set(xlim=(0.8, 3.6), ylim=(-0.6, 1.6), yticks=[0, 1], yticklabels=["front door", "naive"])
    axis.set_xlabel("effect of T on Y")
    axis.invert_yaxis()
    legend(style(axis), loc="lower right")
    return figure
