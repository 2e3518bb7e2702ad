"""Speed and memory: the bench's table, ratios, growth, and the stages of a fit."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from cause_lite.lab.colours import INK
from cause_lite.pages.plots.axes import BLUE, GREEN, ORANGE, PURPLE, legend, style

UNITS = {"s": 1, "ms": 1000}
STAGES = {"features": BLUE, "clusterbook": ORANGE, "head": GREEN, "probes": PURPLE}
FLOOR = {"one_pass": "#9dbeec", "products": "#acceb7"}


def _compared(lines: dict[str, dict]) -> list[dict]:
    """Select the cases that have a baseline, and name each by its line and case."""
    rows = [row | {"name": f"{name}: {row['case']}"} for name, line in lines.items() for row in line["rows"]]
    return [row for row in rows if "baseline_seconds" in row]


def bench_table(lines: dict[str, dict], unit: str = "s") -> Styler:
    """Return a table of times, their ratio and both peaks of memory in MB, for each case with a baseline.

    Parameters
    ----------
    lines
        The bench's lines by name, each with its `rows`.
    unit
        Of the times: `s` or `ms`.
    """
    frame = pd.DataFrame(_compared(lines))
    frame[["seconds", "baseline_seconds"]] *= UNITS[unit]
    columns = {"name": "line: case", "seconds": f"ours, {unit}", "baseline_seconds": f"baseline, {unit}"}
    columns |= {"ratio": "ratio", "megabytes": "ours, MB", "baseline_megabytes": "baseline, MB"}
    table = frame[list(columns)].rename(columns=columns).style.hide(axis="index")
    table.format(precision=2 if unit == "s" else 1, na_rep="")
    table.format("{:,.0f}", na_rep="", subset=["ours, MB", "baseline, MB"])
    wrapped = {"white-space": "normal", "text-align": "left", "min-width": "12rem"}
    return table.set_properties(subset=["line: case"], **wrapped)


def ratio_bars(lines: dict[str, dict]) -> Figure:
    """Draw how many times longer each baseline takes, with the range over rounds, on a logarithmic axis."""
    rows = _compared(lines)
    names = [row["name"] for row in rows]
    figure, axis = plt.subplots(figsize=(8, 0.36 * len(rows) + 0.8))
    axis.barh(names, [row["ratio"] for row in rows], color=BLUE, alpha=0.8)
    for place, row in enumerate(rows):
        axis.plot([row.get("ratio_low", row["ratio"]), row.get("ratio_high", row["ratio"])], [place] * 2, color=INK)
    axis.axvline(1, color=INK, linewidth=0.8)
    axis.set(xscale="log", xlabel="baseline / ours")
    axis.invert_yaxis()
    style(axis)
    return figure


def growth(rows: list[dict]) -> Figure:
    """Draw seconds and megabytes against the number of concepts, a line for each number of patches."""
    frame = pd.DataFrame(rows)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3))
    concepts = sorted(frame["concepts"].unique())
    for axis, value, label in zip(axes, ("seconds", "megabytes"), ("seconds", "MB"), strict=True):
        for (patches, part), marker in zip(frame.groupby("patches"), "os^", strict=True):
            axis.plot(part["concepts"], part[value], marker=marker, label=f"{patches} patches")
        axis.set(xscale="log", yscale="log", xlabel="concepts", ylabel=label)
        axis.set_xticks(concepts, concepts)
        axis.minorticks_off()
        style(axis)
    legend(axes[1], loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    return figure


def stage_bars(rows: list[dict]) -> Figure:
    """Draw the seconds of each stage of a fit above those of its floor, a pair of bars for each case.

    Parameters
    ----------
    rows
        The bench's line `whole fit`: each row has `stages`, and the two parts of its floor.
    """
    figure, axis = plt.subplots(figsize=(8, 0.7 * len(rows) + 1))
    bars = ((STAGES, "", -0.2, [row["stages"] for row in rows]), (FLOOR, "floor: ", 0.2, rows))
    for colours, prefix, offset, parts in bars:
        left = np.zeros(len(rows))
        for name, colour in colours.items():
            widths = np.array([part[name] for part in parts])
            label = prefix + name.replace("_", " ")
            axis.barh(np.arange(len(rows)) + offset, widths, 0.36, left=left, color=colour, label=label)
            left += widths
    axis.set_yticks(range(len(rows)), [row["case"] for row in rows])
    axis.set(xlabel="seconds")
    axis.invert_yaxis()
    style(axis)
    legend(axis, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
