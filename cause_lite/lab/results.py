"""Scores of a study's records: every measure of a confusion, means over seeds, and what chance they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from cause_lite.lab.agreement import agreement
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


def scores_of(confusion: np.ndarray, supervised: bool = False) -> dict[str, Any]:
    """Return every score of a confusion of clusters and classes (K, C), in pixels.

    mIoU, the IoU of each class and pixel accuracy after the one-to-one matching, in percent; and those of
    `agreement`, which need none. Predictions that are classes already (`supervised`) are not matched.
    """
    metrics = ClusterMetrics(confusion.shape[1], confusion.shape[0])
    metrics.confusion = torch.from_numpy(confusion)
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


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Return mean and sample standard deviation of each score over seeds, and their number, a row an arm."""
    grouped = scores.groupby("method", sort=False)
    table = grouped[list(SCORES)].agg(["mean", "std"])
    table["seeds"] = grouped["seed"].nunique()
    return table
