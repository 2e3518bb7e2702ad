"""The two heads as diagrams: what each reads, with the shape of what every arrow carries."""

from __future__ import annotations

from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from cause_lite.lab.colours import INK
from cause_lite.pages.plots.axes import BLUE, ORANGE

Place = tuple[float, float]
BOX = (0.86, 0.34)  # half the width and half the height of a box


class Arrow(NamedTuple):
    """An arrow between two boxes, with the shape that it carries and a bend, 0 for a straight one."""

    start: str
    end: str
    shape: str


MLP_BOXES: dict[str, Place] = {
    "features": (0, 0),
    "linear": (3.75, 0.8),
    "linear, ReLU,\nlinear": (3.75, -0.8),
    "sum": (7.5, 0),
    "segment\nfeatures": (11.25, 0),
}
MLP_ARROWS = (
    Arrow("features", "linear", "B × P × D"),
    Arrow("features", "linear, ReLU,\nlinear", "B × P × D"),
    Arrow("linear", "sum", "B × P × R"),
    Arrow("linear, ReLU,\nlinear", "sum", "B × P × R"),
    Arrow("sum", "segment\nfeatures", "B × P × R"),
)
TR_BOXES: dict[str, Place] = {
    "features": (0, 0),
    "nearest\nconcept": (0, 2.2),
    "self-\nattention": (3.75, 2.2),
    "cross-\nattention": (7.5, 2.2),
    "feed-\nforward": (11.25, 2.2),
    "sum": (11.25, 0),
    "the MLP\nabove": (15, 0),
    "position\n(P × D)": (3.75, 4.2),
}
TR_ARROWS = (
    Arrow("features", "nearest\nconcept", "B × P × D"),
    Arrow("nearest\nconcept", "self-\nattention", "B × P × D"),
    Arrow("position\n(P × D)", "self-\nattention", "queries, keys"),
    Arrow("position\n(P × D)", "cross-\nattention", "queries"),
    Arrow("self-\nattention", "cross-\nattention", "queries"),
    Arrow("features", "cross-\nattention", "keys, values: B × P × D"),
    Arrow("cross-\nattention", "feed-\nforward", "B × P × D"),
    Arrow("feed-\nforward", "sum", "B × P × D"),
    Arrow("features", "sum", "B × P × D"),
    Arrow("sum", "the MLP\nabove", "B × P × D"),
)


def _draw(axis: Axes, boxes: dict[str, Place], arrows: tuple[Arrow, ...], title: str) -> None:
    for name, (x, y) in boxes.items():
        colour = ORANGE if name.startswith(("nearest", "position")) else BLUE
        corner = (x - BOX[0], y - BOX[1])
        axis.add_patch(
            FancyBboxPatch(
                corner, 2 * BOX[0], 2 * BOX[1], boxstyle="round,pad=0.08", facecolor="none", edgecolor=colour
            )
        )
        axis.text(x, y, name, ha="center", va="center", color=INK, fontsize=9)
    for arrow in arrows:
        (x0, y0), (x1, y1) = boxes[arrow.start], boxes[arrow.end]
        dx, dy = x1 - x0, y1 - y0
        # Leave and enter through the side of a box that faces the other one.
        away = min(_reach(dx, BOX[0] + 0.14), _reach(dy, BOX[1] + 0.14))
        tail, tip = (x0 + away * dx, y0 + away * dy), (x1 - away * dx, y1 - away * dy)
        axis.add_patch(FancyArrowPatch(tail, tip, arrowstyle="-|>", mutation_scale=11, color=INK, shrinkA=0, shrinkB=0))
        x, y = (tail[0] + tip[0]) / 2, (tail[1] + tip[1]) / 2
        # Beside an upright arrow, above a level one, and on the outer side of a slanted one.
        side = "left" if dx == 0 or dy < 0 else "center" if dy == 0 else "right"
        shift = (0.12, 0) if dx == 0 else (0, 0.1)
        vertical = "center" if dx == 0 else "bottom"
        axis.text(x + shift[0], y + shift[1], arrow.shape, ha=side, va=vertical, color=INK, fontsize=7.5)
    axis.set_title(title, color=INK, fontsize=10, loc="left")
    xs, ys = zip(*boxes.values(), strict=True)
    axis.set(xlim=(min(xs) - 1.2, max(xs) + 1.2), ylim=(min(ys) - 0.7, max(ys) + 0.7))
    axis.set_aspect("equal")
    axis.set_axis_off()


def _reach(distance: float, half: float) -> float:
    """Return the share of a distance at which a box of this half size ends."""
    return half / abs(distance) if distance else float("inf")


def head_diagrams() -> Figure:
    """Draw the MLP head and the TR head; what comes from the concepts or is learned for a position is orange."""
    figure, axes = plt.subplots(2, 1, figsize=(11.25, 6.4), height_ratios=(2.6, 5.6))
    _draw(axes[0], MLP_BOXES, MLP_ARROWS, "MLP: each patch alone")
    _draw(axes[1], TR_BOXES, TR_ARROWS, "TR: concepts ask, features answer")
    figure.patch.set_alpha(0)
    figure.tight_layout()
    return figure
