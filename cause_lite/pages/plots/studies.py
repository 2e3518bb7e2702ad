"""What a changed setting does: differences from a base with their intervals, and scores by epochs."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cause_lite.checkpoints.config_records import read_config
from cause_lite.lab.colours import INK
from cause_lite.lab.ladder import ARMS
from cause_lite.pages.plots.axes import BLUE, GREEN, ORANGE, PURPLE, legend, style

SCORES = ("mIoU, %", "pixel accuracy, %")
FLOW_COLOURS = {"clean": BLUE, "as_released": ORANGE}


def differences(studies: dict[str, pd.DataFrame], score: str = "mIoU") -> Figure:
    """Draw each run's mean difference from its base with its interval, a panel a data set and a mark a method.

    A finding is orange, any other difference blue; below three seeds a difference has no interval.

    Parameters
    ----------
    studies
        By data set: a frame with `title`, `method`, `difference`, `low`, `high` and `finding`, as `studies.effects`
        returns.
    score
        What differs, for the axis; in points.
    """
    names = list(dict.fromkeys(title for study in studies.values() for title in study["title"]))
    figure, axes = plt.subplots(1, len(studies), figsize=(9, 0.3 * len(names) + 1), sharey=True, squeeze=False)
    marks = dict(zip(sorted({m for s in studies.values() for m in s["method"]}), ("o", "s", "^", "D"), strict=False))
    for axis, (data, study) in zip(axes[0], studies.items(), strict=True):
        for row in study.itertuples():
            place, colour = names.index(row.title), ORANGE if row.finding else BLUE
            axis.plot([row.low, row.high], [place] * 2, color=colour, linewidth=1.5)
            axis.plot(row.difference, place, marker=marks[row.method], color=colour)
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.set(title=data, xlabel=f"difference in {score}", yticks=range(len(names)), yticklabels=names)
        style(axis)
    axes[0][0].invert_yaxis()
    if len(marks) > 1:
        for method, mark in marks.items():
            axes[0][-1].plot([], [], mark, color=INK, label=method)
        legend(axes[0][-1], loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    return figure


def by_epochs(studies: dict[str, dict[str, dict]]) -> Figure:
    """Draw scores against the epochs of step 3, clean and as released: means over seeds, each seed as a faint line.

    Epochs that fewer seeds were run for than others are left out.

    Parameters
    ----------
    studies
        By data set: the records of the study `labels`, as `studies.read_study` returns.
    """
    figure, axes = plt.subplots(2, len(studies), figsize=(4.5 * len(studies), 5), sharex=True, squeeze=False)
    for column, (data, records) in enumerate(studies.items()):
        sweep = _epoch_sweep(records)
        for axis, score in zip(axes[:, column], SCORES, strict=True):
            _draw_sweep(axis, sweep, score)
            axis.set(ylabel=score if column == 0 else "", title=data if axis is axes[0, column] else "")
            style(axis)
        axes[1, column].set_xlabel("epochs of step 3")
        if axes[0, column].lines:
            legend(axes[0, column], fontsize=8)
    figure.tight_layout()
    return figure


ARM_COLOURS = {"feature-kmeans": PURPLE, "clean": BLUE, "detached": GREEN, "as-released": ORANGE}


def by_backbone(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw the mean score of each arm on each backbone, with its sample standard deviation, a panel a score.

    Parameters
    ----------
    tables
        By the name of the score: what `ladder.ladder` returns.
    """
    figure, axes = plt.subplots(1, len(tables), figsize=(9, 3.6), squeeze=False)
    for axis, (score, table) in zip(axes[0], tables.items(), strict=True):
        rungs = table.index.unique("backbone")
        for place, (arm, colour) in enumerate(ARM_COLOURS.items()):
            rows = table.xs(arm, level="arm").reindex(rungs)
            across = [number + 0.07 * (place - 1.5) for number in range(len(rungs))]
            spread = rows["std"].fillna(0)
            axis.errorbar(across, rows["mean"], spread, fmt="o", color=colour, markersize=4, label=ARMS[arm])
        axis.set(ylabel=f"{score}, %", xticks=range(len(rungs)))
        axis.set_xticklabels(rungs, rotation=20, ha="right")
        style(axis)
    legend(axes[0][0], fontsize=8)
    figure.tight_layout()
    return figure


def _epoch_sweep(records: dict[str, dict]) -> pd.DataFrame:
    """Return a row for each run that only differs in epochs, of methods that were run with several numbers of them."""
    rows = [
        (r["method"], r["label_flow"], r["seed"], read_config(r["config"]).probe.epochs, r["miou"], r["pacc"])
        for r in records.values()
        if r["name"] in ("clean", "as-released") or r["name"].endswith("-epochs")
    ]
    frame = pd.DataFrame(rows, columns=["method", "flow", "seed", "epochs", *SCORES])
    seeds = frame.groupby(["method", "flow", "epochs"])["seed"].transform("size")
    frame = frame[seeds == seeds.groupby(frame["method"]).transform("max")]  # means over other seeds would jump
    return frame[frame.groupby("method")["epochs"].transform("nunique") > 1]


def _draw_sweep(axis: Axes, sweep: pd.DataFrame, score: str) -> None:
    for (method, flow), part in sweep.groupby(["method", "flow"]):
        mean, line = part.groupby("epochs")[score].mean(), "-" if method.endswith("MLP") else "--"
        axis.plot(mean.index, mean, line, marker="o", color=FLOW_COLOURS[flow], label=f"{method}, {flow}")
        for _, run in part.sort_values("epochs").groupby("seed"):
            axis.plot(run["epochs"], run[score], line, color=FLOW_COLOURS[flow], alpha=0.2, linewidth=0.8)
