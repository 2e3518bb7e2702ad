"""Scores of a study's records: every measure of a confusion, means over seeds, and what chance they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from cause_lite.lab.agreement import agreement
from cause_lite.lab.statistics import LEVEL, SEEDS_FOR_FINDING, contrasts, holm
from cause_lite.lab.study import read_records, read_study, unpacked
from cause_lite.metrics import ClusterMetrics

SCORES = {
    "miou": "mIoU, %",
    "information": "information, nats",
    "effective": "effective clusters",
    "many_to_one": "many-to-one, %",
    "nmi": "NMI",
    "pacc": "pixel accuracy, %",
}
PRIMARY = ("scenes", "msrc", "camvid")  # the data sets of the one primary contrast, which is a family of three
READINGS = ("cause-mlp", "cause-mlp-kmeans", "cause-mlp-cosine")  # label-free readings of the clean method
BASELINES = ("kmeans", "kmeans-pca", "kmeans-whitened", "kmeans-context", "mixture", "agglomerative")
BLOCK = {"camvid": 30}  # images that are drawn together, where they are frames of a video


def scores_of(confusion: np.ndarray, supervised: bool = False) -> dict[str, Any]:
    """Return every score of a confusion of clusters and classes (K, C), in pixels.

    mIoU, the IoU of each class and pixel accuracy after the one-to-one matching, in percent; and those of
    `agreement`, which need none. Predictions that are classes already (`supervised`) are not matched.
    """
    metrics = _counted(confusion)
    matched = metrics.unmatched() if supervised else metrics.compute()
    matching = {"iou": 100 * matched["iou"], "miou": matched["miou"], "pacc": matched["pacc"]}
    return matching | agreement(confusion)


def frame(name: str, data: str) -> pd.DataFrame:
    """Return the scores of a study's records on a data set, a row a record, in the order of the study's arms.

    Columns: `arm`, `method` (the arm's title), `seed`, `supervised`, `seconds`, `confusion`, `iou`, those of `SCORES`.
    """
    records, arms = read_records(name, data).values(), list(read_study(name).arms)
    return pd.DataFrame([row(one) for one in sorted(records, key=lambda one: (arms.index(one["arm"]), one["seed"]))])


def row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's arm, title, seed, scores, and the confusion (K, C) of all its images."""
    kept, confusion = {name: record[name] for name in ("arm", "seed", "supervised", "seconds")}, unpacked(record).sum(0)
    counted = {"method": record["title"], "confusion": confusion}
    return kept | counted | scores_of(confusion, record["supervised"])


def resampled_deviation(record: Mapping[str, Any], resamples: int = 200, block: int = 1) -> float:
    """Return the standard deviation of mIoU over test sets drawn anew from a record's images, in points.

    A bootstrap: images are drawn with replacement, in runs of `block` neighbours where they are frames of a video, and
    clusters are matched anew each time.
    """
    confusions, rng, found = unpacked(record), np.random.default_rng(record["seed"]), []
    blocks = [confusions[start : start + block].sum(0) for start in range(0, len(confusions), block)]
    for _ in range(resamples):
        drawn = rng.integers(len(blocks), size=len(blocks))
        found.append(scores_of(np.sum([blocks[i] for i in drawn], axis=0), record["supervised"])["miou"])
    return float(np.std(found, ddof=1))


def selected(data: str, arms: tuple[str, ...]) -> str:
    """Return the arm with the highest mean mIoU on the validation images, by the records of the study `selection`."""
    means = frame("selection", data).groupby("arm")["miou"].mean()
    return str(means.loc[list(arms)].idxmax())


def primary_contrasts(score: str = "miou") -> pd.DataFrame:
    """Return the best reading of the clean method less the best label-free baseline, for each data set's test images.

    Both are chosen on validation images by one rule, `selected`. Columns are those of `statistics.contrasts`; `data`,
    `ours` and `base` name the pair. Data sets with too few seeds for a finding count in the correction, with p = 1.
    """
    pairs: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}
    for data in PRIMARY:
        scores, ours, base = frame("tables", data), selected(data, READINGS), selected(data, BASELINES)
        pairs[data, ours, base] = over_seeds(scores, ours, score), over_seeds(scores, base, score)
    table = contrasts(pairs, ("data", "ours", "base"))
    p_values = table["p_value"].where(table["seeds"] >= SEEDS_FOR_FINDING).fillna(1.0)  # the family has three members
    adjusted = holm(p_values.to_numpy())
    return table.assign(adjusted_p=adjusted, finding=adjusted <= LEVEL)


def over_seeds(scores: pd.DataFrame, arm: str, score: str = "miou") -> np.ndarray:
    """Return a score of an arm over its seeds (n,)."""
    return scores.loc[scores["arm"] == arm, score].to_numpy()


def interval_over_images(data: str, ours: str, base: str, resamples: int = 1000) -> tuple[float, float]:
    """Return the 95 % interval of the difference in mIoU of two arms over seeds and test images, in points.

    A crossed bootstrap: seeds of each arm, and images (blocks of frames of a video) that both arms share, are drawn
    with replacement; clusters are matched anew each time.
    """
    records, rng, found = read_records("tables", data), np.random.default_rng(0), []
    arms = [[unpacked(one) for one in records.values() if one["arm"] == arm] for arm in (ours, base)]
    starts = np.arange(0, len(arms[0][0]), BLOCK.get(data, 1))
    summed = [[np.add.reduceat(one, starts) for one in arm] for arm in arms]
    for _ in range(resamples):
        weights = np.bincount(rng.integers(len(starts), size=len(starts)), minlength=len(starts))
        means = []
        for arm in summed:
            drawn = rng.integers(len(arm), size=len(arm))
            means.append(np.mean([miou_of(np.tensordot(weights, arm[seed], 1)) for seed in np.unique(drawn)]))
        found.append(means[0] - means[1])
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


def miou_of(confusion: np.ndarray) -> float:
    """Return mIoU after the one-to-one matching of a confusion (K, C), in percent."""
    return _counted(confusion).compute()["miou"]


def matching_of(record: Mapping[str, Any]) -> np.ndarray:
    """Return the class of each cluster of a record, matched over all its images; -1 for a cluster left over."""
    return _counted(unpacked(record).sum(0)).matching()


def _counted(confusion: np.ndarray) -> ClusterMetrics:
    metrics = ClusterMetrics(confusion.shape[1], confusion.shape[0])
    metrics.confusion = torch.from_numpy(confusion)
    return metrics


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Return mean and sample standard deviation of each score over seeds, and their number, a row an arm."""
    grouped = scores.groupby("method", sort=False)
    table = grouped[list(SCORES)].agg(["mean", "std"])
    table["seeds"] = grouped["seed"].nunique()
    return table
