"""Figures that several pages show. A figure of one page alone is drawn in that page, in the same `style`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from scipy.optimize import linear_sum_assignment

from cause_lite.datasets.folders import read_photograph
from cause_lite.lab.colours import INK, colourise
from cause_lite.lab.pictures import image_grid
from cause_lite.segmenter import Segmenter

BLUE, ORANGE, GREEN, PURPLE = "#3b7dd8", "#d2691e", "#5a9e6f", "#8a63a8"
FIT_VECTORS = 5000  # that principal components are computed from, about
COLUMNS, CELL = 5, (240, 180)  # photographs side by side, and the width and height of each in pixels
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1, 1)}  # where a legend stands outside of its axis


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
    """Draw named lines against their step, counted from 1, each as a running mean of `smooth` points."""
    figure, axis = plt.subplots(figsize=(7, 3))
    for name, values in series.items():
        means = np.convolve(values, np.ones(smooth) / smooth, mode="valid")
        axis.plot(np.arange(len(means)) + 1, means, label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    style(axis)
    if len(series) > 1:
        legend(axis)
    return figure


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
    """Draw the IoU of each class and method in percent, a mean over seeds; records hold `iou`, a value a class."""
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

    `record` holds a `confusion`, pixel counts of clusters x classes.
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


def differences(studies: dict[str, pd.DataFrame], score: str = "mIoU") -> Figure:
    """Draw each run's mean difference from its base with its interval, a panel a data set and a mark a method.

    Findings are orange, other differences blue; below three seeds a difference has no interval. A frame of `studies`
    has `title`, `method`, `difference`, `low`, `high` and `finding`, as `earlier.effects` returns.
    """
    names = list(dict.fromkeys(title for study in studies.values() for title in study["title"]))
    methods = sorted({method for study in studies.values() for method in study["method"]})
    marks, looks = dict(zip(methods, "os^D", strict=False)), {True: (ORANGE, "a finding"), False: (BLUE, "no finding")}
    figure, axes = plt.subplots(1, len(studies), figsize=(9, 0.3 * len(names) + 1.2), sharey=True, squeeze=False)
    for axis, (data, study) in zip(axes[0], studies.items(), strict=True):
        for row in study.itertuples():
            place, colour = names.index(row.title), looks[bool(row.finding)][0]
            axis.plot([row.low, row.high], [place] * 2, color=colour, linewidth=1.5)
            axis.plot(row.difference, place, marker=marks[row.method], color=colour)
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.set(title=data, yticks=range(len(names)), yticklabels=names)
        style(axis)
    axes[0][0].invert_yaxis()
    for method, mark in marks.items() if len(marks) > 1 else ():
        axes[0][-1].plot([], [], mark, color=INK, label=method)
    for colour, meaning in looks.values():
        axes[0][-1].plot([], [], color=colour, label=meaning)
    legend(axes[0][-1], **BESIDE)
    figure.supxlabel(f"difference in {score}, points", color=INK, fontsize="medium")  # one for all panels
    figure.tight_layout()
    return figure


def leads(rows: pd.DataFrame, xlabel: str) -> Figure:
    """Draw the difference of each `method` with its interval, filled where it is a finding; see `verdicts.leads`."""
    rows = rows.sort_values("difference").reset_index(drop=True)
    figure, axis = plt.subplots(figsize=(8, 0.32 * len(rows) + 0.8))
    for place, row in rows.iterrows():
        colour = ORANGE if row["finding"] else BLUE
        axis.plot([row["low"], row["high"]], [place] * 2, color=colour, linewidth=1.5)
        axis.plot(row["difference"], place, "o", color=colour, fillstyle="full" if row["finding"] else "none")
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.set(xlabel=xlabel, yticks=range(len(rows)), yticklabels=rows["method"])
    style(axis)
    return figure


def merging(merged: pd.DataFrame, others: dict[str, pd.Series]) -> Figure:
    """Draw pixel accuracy, mIoU and information of k-means by its number of clusters, and of others as level lines.

    `merged` has a row a run with `clusters` and the scores; `others` has mean scores by name.
    """
    panels = {"pacc": "pixel accuracy, %", "miou": "mIoU, %", "information": "information, nats"}
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 3))
    for axis, (score, name) in zip(axes, panels.items(), strict=True):
        by_number = merged.groupby("clusters")[score]
        axis.errorbar(by_number.mean().index, by_number.mean(), by_number.std(), fmt="o-", color=BLUE, label="k-means")
        for (other, means), colour in zip(others.items(), (ORANGE, GREEN, PURPLE), strict=False):
            axis.axhline(means[score], color=colour, linestyle="--", label=other)
        axis.set(xlabel="clusters", ylabel=name, ylim=(0, None))
        style(axis)
    legend(axes[-1], **BESIDE)
    figure.tight_layout()
    return figure


def pca_colours(features: torch.Tensor) -> np.ndarray:
    """Return the first three principal components of patch features (N, P, D) as colours (N, sqrt(P), sqrt(P), 3).

    Each component is stretched so that its 2nd and 98th percentile become 0 and 1.
    """
    flat = features.float().flatten(0, 1)
    flat = flat - flat.mean(0)
    _, _, directions = torch.linalg.svd(flat[:: max(1, len(flat) // FIT_VECTORS)], full_matrices=False)
    parts = flat @ directions[:3].T
    low, high = parts.quantile(0.02, dim=0), parts.quantile(0.98, dim=0)
    side = round(features.shape[1] ** 0.5)
    return ((parts - low) / (high - low)).clamp(0, 1).view(len(features), side, side, 3).numpy()


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
