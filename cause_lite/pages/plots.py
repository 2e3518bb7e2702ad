"""Figures of the book: palettes, overlays, grids of images, curves, the causal graph."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from scipy.optimize import linear_sum_assignment

from cause_lite.checkpoints.config_records import read_config
from cause_lite.lab.pictures import INK
from cause_lite.theory.do_calculus import Step
from cause_lite.theory.estimators import bootstrap_interval, frontdoor_effect, naive_effect
from cause_lite.theory.model import LinearModel


def style(axis: plt.Axes) -> plt.Axes:
    """Thin grey axes and a clear background, for light and dark pages."""
    axis.figure.patch.set_alpha(0)
    axis.set_facecolor("none")
    axis.spines[["top", "right"]].set_visible(False)
    for spine in axis.spines.values():
        spine.set_color(INK)
    axis.tick_params(colors=INK)
    for text in (axis.xaxis.label, axis.yaxis.label, axis.title):
        text.set_color(INK)
    return axis


def legend(axis: plt.Axes, **options) -> None:
    """The axis's legend without a frame, in the ink of both themes."""
    axis.legend(frameon=False, labelcolor=INK, **options)


def curves(series: dict[str, Sequence[float]], xlabel: str, ylabel: str, smooth: int = 1) -> Figure:
    """Lines by name; with `smooth` > 1, running means over that many points."""
    figure, axis = plt.subplots(figsize=(7, 3))
    for name, values in series.items():
        values = np.convolve(values, np.ones(smooth) / smooth, mode="valid")
        axis.plot(np.arange(len(values)) + 1, values, label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    style(axis)
    if len(series) > 1:
        legend(axis)
    return figure


def draw_graph(
    axis: plt.Axes,
    places: dict[str, tuple[float, float]],
    edges: Sequence[tuple[str, str]],
    hidden: Sequence[str] = (),
    removed: Sequence[tuple[str, str]] = (),
) -> None:
    """Draw a directed graph: hidden nodes and their arrows dashed, removed arrows faint and dotted."""
    for start, end in edges:
        gone = (start, end) in removed
        arrow = FancyArrowPatch(
            places[start],
            places[end],
            arrowstyle="-|>",
            mutation_scale=16,
            shrinkA=20,
            shrinkB=20,
            color=INK,
            linestyle="dotted" if gone else "dashed" if start in hidden else "solid",
            alpha=0.3 if gone else 1,
        )
        axis.add_patch(arrow)
    for name, (x, y) in places.items():
        line, colour = ("dashed", "#d2691e") if name in hidden else ("solid", "#3b7dd8")
        axis.scatter(x, y, s=1300, facecolors="none", edgecolors=colour, linestyles=line, linewidths=2)
        axis.text(x, y, f"${name}$", ha="center", va="center", color=INK, fontsize=14)
    axis.set(xlim=(-0.5, 2.5), ylim=(-0.7, 1.4))
    axis.set_axis_off()


def causal_graph(
    places: dict[str, tuple[float, float]],
    edges: Sequence[tuple[str, str]],
    hidden: Sequence[str] = (),
    notes: dict[str, str] | None = None,
) -> Figure:
    """Return a figure of a directed graph with a note below each node; hidden nodes are drawn dashed."""
    figure, axis = plt.subplots(figsize=(6, 2.8))
    draw_graph(axis, places, edges, hidden)
    for name, (x, y) in places.items():
        axis.text(x, y - 0.3, (notes or {}).get(name, ""), ha="center", va="top", color=INK, fontsize=9)
    figure.patch.set_alpha(0)
    return figure


def mutilated_graphs(
    places: dict[str, tuple[float, float]],
    edges: Sequence[tuple[str, str]],
    steps: Sequence[Step],
    hidden: Sequence[str] = (),
) -> Figure:
    """Return a figure with a graph for each step of the do-calculus: what is removed, what must be separated."""
    rows = -(-len(steps) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(9, 2.7 * rows), squeeze=False)
    for axis in axes.flat[len(steps) :]:
        axis.set_axis_off()
    for number, (axis, step) in enumerate(zip(axes.flat, steps, strict=False), 1):
        draw_graph(axis, places, edges, hidden, step.removed(edges))
        given = f" \\mid {', '.join(sorted(step.given))}" if step.given else ""
        condition = rf"${step.separated[0]} \perp {step.separated[1]}{given}$"
        title = f"{number}. ${step.equality}$\nrule {step.rule}, because {condition} here"
        axis.set_title(title, color=INK, fontsize=10)
    figure.patch.set_alpha(0)
    figure.tight_layout()
    return figure


def pca_colours(features: torch.Tensor) -> np.ndarray:
    """Features (N, P, D) -> the first three principal components as colours (N, side, side, 3) in 0..1."""
    flat = features.float().flatten(0, 1)
    flat = flat - flat.mean(0)
    _, _, directions = torch.linalg.svd(flat[:: max(1, len(flat) // 5000)], full_matrices=False)
    parts = flat @ directions[:3].T
    low, high = parts.quantile(0.02, dim=0), parts.quantile(0.98, dim=0)
    side = round(features.shape[1] ** 0.5)
    return ((parts - low) / (high - low)).clamp(0, 1).view(len(features), side, side, 3).numpy()


def results_table(table: pd.DataFrame) -> pd.io.formats.style.Styler:
    """A summary of run records as `mean ± spread`."""
    text = pd.DataFrame(index=table.index.rename(None))
    for score, name in (("miou", "mIoU, %"), ("pacc", "pAcc, %")):
        pairs = zip(table[(score, "mean")], table[(score, "std")], strict=True)
        text[name] = [f"{mean:.1f}" if np.isnan(std) else f"{mean:.1f} ± {std:.1f}" for mean, std in pairs]
    text["seeds"] = table["seeds"]
    return text.style


def seed_dots(records: list[dict]) -> Figure:
    """One dot a seed and method, mIoU across."""
    frame = pd.DataFrame(records)
    figure, axis = plt.subplots(figsize=(8, 0.42 * frame["method"].nunique() + 0.8))
    sns.stripplot(frame, x="miou", y="method", ax=axis, jitter=False, alpha=0.75, color="#3b7dd8", size=7)
    axis.set(xlabel="mIoU, %", ylabel="", xlim=(0, None))
    axis.grid(axis="x", alpha=0.25)
    style(axis)
    return figure


def class_heatmap(records: list[dict], classes: Sequence[str]) -> Figure:
    """IoU of each class and method, mean over seeds, in percent."""
    frame = pd.DataFrame(records)
    values = np.array(frame["iou"].tolist(), dtype=float)
    means = pd.DataFrame(values, columns=classes).groupby(frame["method"], sort=False).mean()
    figure, axis = plt.subplots(figsize=(9, 0.42 * len(means) + 1.2))
    sns.heatmap(
        means, annot=True, fmt=".0f", cmap="viridis", vmin=0, vmax=80, cbar=False, ax=axis, annot_kws={"size": 8}
    )
    axis.set(xlabel="", ylabel="")
    axis.tick_params(axis="x", rotation=45)
    style(axis)
    return figure


def confusion(record: dict, classes: Sequence[str]) -> Figure:
    """A record's confusion of classes and what the matching named them, in percent of each true class."""
    counts = np.array(record["confusion"], dtype=float)  # clusters x classes
    rows, columns = linear_sum_assignment(counts, maximize=True)
    named = np.zeros((len(classes), len(classes)))
    named[columns] = counts[rows]
    shares = 100 * (named / named.sum(0).clip(min=1)).T
    figure, axis = plt.subplots(figsize=(7.5, 6.5))
    sns.heatmap(
        shares, annot=True, fmt=".0f", cmap="viridis", vmin=0, vmax=100, cbar=False, ax=axis, annot_kws={"size": 7},
        xticklabels=classes, yticklabels=classes,
    )  # fmt: skip
    axis.set(xlabel="named", ylabel="true")
    axis.tick_params(axis="x", rotation=60)
    style(axis)
    return figure


def effects(model: LinearModel, data: pd.DataFrame, rng: np.random.Generator) -> Figure:
    """The true effect as a line; the front-door and the naive estimate with their 95% bootstrap intervals."""
    figure, axis = plt.subplots(figsize=(6, 1.9))
    for place, estimate in enumerate((frontdoor_effect, naive_effect)):
        low, high = bootstrap_interval(data, estimate, rng)
        axis.plot([low, high], [place, place], color="#3b7dd8" if place == 0 else "#d2691e", linewidth=3)
        axis.plot(estimate(data), place, "os"[place], color="#3b7dd8" if place == 0 else "#d2691e", markersize=8)
    axis.axvline(model.effect, color=INK, linestyle="--", label="true effect")
    axis.set(xlim=(0.8, 3.6), ylim=(-0.6, 1.6), yticks=[0, 1], yticklabels=["front door", "naive"])
    axis.set_xlabel("effect of T on Y")
    axis.invert_yaxis()
    legend(style(axis), loc="lower right")
    return figure


def matching_step(counts: np.ndarray, classes: np.ndarray, named: np.ndarray) -> Figure:
    """A confusion of clusters and classes with the cells framed that are named already, and the share right so far."""
    figure, axis = plt.subplots(figsize=(4, 3.4))
    axis.imshow(counts, cmap="Blues")
    for cluster in named:
        axis.add_patch(Rectangle((classes[cluster] - 0.5, cluster - 0.5), 1, 1, fill=False, edgecolor="#d2691e", lw=3))
    right = counts[named, classes[named]].sum() / counts.sum()
    axis.set(xlabel="class", ylabel="cluster", title=f"{len(named)} named, {right:.0%} right")
    style(axis)
    return figure


def _compared(lines: dict[str, dict]) -> list[dict]:
    """The cases of the bench that have a baseline, each with its line's name."""
    rows = [row | {"name": f"{name}: {row['case']}"} for name, line in lines.items() for row in line["rows"]]
    return [row for row in rows if "baseline_seconds" in row]


def bench_table(lines: dict[str, dict], unit: str = "s") -> pd.io.formats.style.Styler:
    """Ours and the baseline of each case that has one: times in `unit` (s or ms), their ratio, both peaks in MB."""
    frame = pd.DataFrame(_compared(lines))
    frame[["seconds", "baseline_seconds"]] *= {"s": 1, "ms": 1000}[unit]
    columns = {
        "name": "line: case", "seconds": f"ours, {unit}", "baseline_seconds": f"baseline, {unit}", "ratio": "ratio",
        "megabytes": "ours, MB", "baseline_megabytes": "baseline, MB",
    }  # fmt: skip
    table = frame[list(columns)].rename(columns=columns).style.hide(axis="index")
    table.format(precision=2 if unit == "s" else 1, na_rep="")
    table.format("{:,.0f}", na_rep="", subset=["ours, MB", "baseline, MB"])
    wrapped = {"white-space": "normal", "text-align": "left", "min-width": "12rem"}
    return table.set_properties(subset=["line: case"], **wrapped)


def ratio_bars(lines: dict[str, dict]) -> Figure:
    """How many times longer each baseline takes, with the range over rounds; a logarithmic axis."""
    rows = _compared(lines)
    names = [row["name"] for row in rows]
    figure, axis = plt.subplots(figsize=(8, 0.36 * len(rows) + 0.8))
    axis.barh(names, [row["ratio"] for row in rows], color="#3b7dd8", alpha=0.8)
    for place, row in enumerate(rows):
        axis.plot([row.get("ratio_low", row["ratio"]), row.get("ratio_high", row["ratio"])], [place] * 2, color=INK)
    axis.axvline(1, color=INK, linewidth=0.8)
    axis.set(xscale="log", xlabel="baseline / ours")
    axis.invert_yaxis()
    style(axis)
    return figure


def differences(studies: dict[str, pd.DataFrame], score: str = "mIoU") -> Figure:
    """A panel a data set: each run's mean difference from its base with its interval, in points; a mark a head."""
    names = list(dict.fromkeys(title for study in studies.values() for title in study["title"]))
    figure, axes = plt.subplots(1, len(studies), figsize=(9, 0.3 * len(names) + 1), sharey=True, squeeze=False)
    marks = dict(zip(sorted({m for s in studies.values() for m in s["method"]}), ("o", "s", "^", "D"), strict=False))
    for axis, (data, study) in zip(axes[0], studies.items(), strict=True):
        for row in study.itertuples():
            place, colour = names.index(row.title), "#3b7dd8" if row.low <= 0 <= row.high else "#d2691e"
            axis.plot([row.low, row.high], [place] * 2, color=colour, linewidth=1.5)
            axis.plot(row.difference, place, marker=marks[row.method], color=colour)
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.set(title=data, xlabel=f"difference in {score}", yticks=range(len(names)), yticklabels=names)
        style(axis)
    axes[0][0].invert_yaxis()
    for method, mark in marks.items() if len(marks) > 1 else ():
        axes[0][-1].plot([], [], mark, color=INK, label=method)
    if len(marks) > 1:
        legend(axes[0][-1], loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    return figure


def by_epochs(studies: dict[str, dict[str, dict]]) -> Figure:
    """Scores against the epochs of step 3, clean and as released; the mean over seeds, all seeds as faint lines.

    Epochs that fewer seeds were run for than others are left out.
    """
    figure, axes = plt.subplots(2, len(studies), figsize=(4.5 * len(studies), 5), sharex=True, squeeze=False)
    colours = {"clean": "#3b7dd8", "as_released": "#d2691e"}
    for column, (data, records) in enumerate(studies.items()):
        swept = [r for r in records.values() if r["name"] in ("clean", "as-released") or r["name"].endswith("-epochs")]
        frame = pd.DataFrame(
            [
                (r["method"], r["label_flow"], r["seed"], read_config(r["config"]).probe.epochs, r["miou"], r["pacc"])
                for r in swept
            ],
            columns=["method", "flow", "seed", "epochs", "mIoU, %", "pixel accuracy, %"],
        )
        seeds = frame.groupby(["method", "flow", "epochs"])["seed"].transform("size")
        frame = frame[seeds == seeds.groupby(frame["method"]).transform("max")]  # means over other seeds would jump
        counts = frame.groupby("method")["epochs"].nunique()
        for axis, score in zip(axes[:, column], ("mIoU, %", "pixel accuracy, %"), strict=True):
            for (method, flow), part in frame[frame["method"].isin(counts[counts > 1].index)].groupby(
                ["method", "flow"]
            ):
                mean, line = part.groupby("epochs")[score].mean(), "-" if method.endswith("MLP") else "--"
                axis.plot(mean.index, mean, line, marker="o", color=colours[flow], label=f"{method}, {flow}")
                for _, one in part.sort_values("epochs").groupby("seed"):
                    axis.plot(one["epochs"], one[score], line, color=colours[flow], alpha=0.2, linewidth=0.8)
            axis.set(ylabel=score if column == 0 else "", title=data if axis is axes[0, column] else "")
            style(axis)
        axes[1, column].set_xlabel("epochs of step 3")
        if axes[0, column].lines:
            legend(axes[0, column], fontsize=8)
    figure.tight_layout()
    return figure


def growth(rows: list[dict]) -> Figure:
    """Seconds and megabytes against the number of concepts, a line for each number of patches."""
    frame = pd.DataFrame(rows)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3))
    for axis, value, label in zip(axes, ("seconds", "megabytes"), ("seconds", "MB"), strict=True):
        for (patches, part), marker in zip(frame.groupby("patches"), "os^", strict=True):
            axis.plot(part["concepts"], part[value], marker=marker, label=f"{patches} patches")
        axis.set(xscale="log", yscale="log", xlabel="concepts", ylabel=label)
        axis.set_xticks(sorted(frame["concepts"].unique()), sorted(frame["concepts"].unique()))
        axis.minorticks_off()
        style(axis)
    legend(axes[1], loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    return figure


def stage_bars(rows: list[dict]) -> Figure:
    """The seconds of each stage of a fit, and of its floor, in pairs of bars."""
    figure, axis = plt.subplots(figsize=(8, 0.7 * len(rows) + 1))
    stages = {"features": "#3b7dd8", "clusterbook": "#d2691e", "head": "#5a9e6f", "probes": "#8a63a8"}
    floor = {"one_pass": "#9dbeec", "products": "#acceb7"}
    for colours, offset, source in ((stages, -0.2, [r["stages"] for r in rows]), (floor, 0.2, rows)):
        left = np.zeros(len(rows))
        for name, colour in colours.items():
            widths = np.array([row[name] for row in source])
            label = name if colours is stages else f"floor: {name.replace('_', ' ')}"
            axis.barh(np.arange(len(rows)) + offset, widths, 0.36, left=left, color=colour, label=label)
            left += widths
    axis.set_yticks(range(len(rows)), [row["case"] for row in rows])
    axis.set(xlabel="seconds")
    axis.invert_yaxis()
    style(axis)
    legend(axis, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
