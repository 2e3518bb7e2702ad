"""Scores of the methods: their table, a dot a seed, IoU by class, confusions and how clusters are matched."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pandas.io.formats.style import Styler
from scipy.optimize import linear_sum_assignment

from cause_lite.pages.plots.axes import BLUE, ORANGE, style


def results_table(table: pd.DataFrame) -> Styler:
    """Return a summary of run records as `mean ± standard deviation` in percent, with the number of seeds.

    Parameters
    ----------
    table
        A row a method; columns (`miou` or `pacc`, `mean` or `std`) and `seeds`, as `comparison.summary` returns.
    """
    text = pd.DataFrame(index=table.index.rename(None))
    for score, name in (("miou", "mIoU, %"), ("pacc", "pAcc, %")):
        pairs = zip(table[(score, "mean")], table[(score, "std")], strict=True)
        text[name] = [f"{mean:.1f}" if np.isnan(std) else f"{mean:.1f} ± {std:.1f}" for mean, std in pairs]
    text["seeds"] = table["seeds"]
    return text.style


def seed_dots(records: list[dict]) -> Figure:
    """Draw a dot for each seed and method, mIoU in percent across; `records` hold `method` and `miou`."""
    frame = pd.DataFrame(records)
    figure, axis = plt.subplots(figsize=(8, 0.42 * frame["method"].nunique() + 0.8))
    sns.stripplot(frame, x="miou", y="method", ax=axis, jitter=False, alpha=0.75, color=BLUE, size=7)
    axis.set(xlabel="mIoU, %", ylabel="", xlim=(0, None))
    axis.grid(axis="x", alpha=0.25)
    style(axis)
    return figure


def class_heatmap(records: list[dict], classes: Sequence[str]) -> Figure:
    """Draw the IoU of each class and method, a mean over seeds, in percent.

    Parameters
    ----------
    records
        Runs with their `method` and `iou`, one value in percent for each class.
    classes
        The names of the classes, by number.
    """
    frame = pd.DataFrame(records)
    values = np.array(frame["iou"].tolist(), dtype=float)
    means = pd.DataFrame(values, columns=list(classes)).groupby(frame["method"], sort=False).mean()
    figure, axis = plt.subplots(figsize=(9, 0.42 * len(means) + 1.2))
    look = {"fmt": ".0f", "cmap": "viridis", "cbar": False, "annot_kws": {"size": 8}}
    sns.heatmap(means, annot=True, vmin=0, vmax=80, ax=axis, **look)
    axis.set(xlabel="", ylabel="")
    axis.tick_params(axis="x", rotation=45)
    style(axis)
    return figure


def confusion(record: dict, classes: Sequence[str]) -> Figure:
    """Draw how the pixels of each true class were named after matching, in percent of the class.

    Parameters
    ----------
    record
        A run with its `confusion`, pixel counts of clusters x classes.
    classes
        The names of the classes, by number.
    """
    counts = np.array(record["confusion"], dtype=float)
    clusters, matches = linear_sum_assignment(counts, maximize=True)
    by_class = np.zeros((len(classes), len(classes)))
    by_class[matches] = counts[clusters]
    shares = 100 * (by_class / by_class.sum(0).clip(min=1)).T
    figure, axis = plt.subplots(figsize=(7.5, 6.5))
    look = {"fmt": ".0f", "cmap": "viridis", "cbar": False, "annot_kws": {"size": 7}}
    sns.heatmap(shares, annot=True, vmin=0, vmax=100, ax=axis, xticklabels=classes, yticklabels=classes, **look)
    axis.set(xlabel="named", ylabel="true")
    axis.tick_params(axis="x", rotation=60)
    style(axis)
    return figure


def matching_step(counts: np.ndarray, classes: np.ndarray, named: np.ndarray) -> Figure:
    """Draw a state of the matching: the confusion, the named clusters' cells framed, and the share right so far.

    Parameters
    ----------
    counts
        Pixels of clusters x classes.
    classes
        The class that the matching gives to each cluster.
    named
        The numbers of the clusters that have their name already.
    """
    figure, axis = plt.subplots(figsize=(4, 3.4))
    axis.imshow(counts, cmap="Blues")
    for cluster in named:
        axis.add_patch(Rectangle((classes[cluster] - 0.5, cluster - 0.5), 1, 1, fill=False, edgecolor=ORANGE, lw=3))
    right = counts[named, classes[named]].sum() / counts.sum()
    axis.set(xlabel="class", ylabel="cluster", title=f"{len(named)} named, {right:.0%} right")
    style(axis)
    return figure
