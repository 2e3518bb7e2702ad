"""Score clusters against classes: confusion, Hungarian matching, mIoU and pixel accuracy."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


class Scores(TypedDict):
    """Means over classes and the share of right pixels in percent; `iou` (classes,) in 0..1, NaN in no label map."""

    miou: float
    pacc: float
    mean_recall: float
    mean_precision: float
    iou: np.ndarray


class ClusterMetrics:
    """Count how often each cluster meets each class; match clusters to classes once, over all counts.

    Targets outside 0..num_classes-1 are ignored. There are as many clusters as classes when `num_clusters` is left
    out. `confusion` (num_clusters, num_classes), int64, holds the pixels by cluster and class.
    """

    def __init__(self, num_classes: int, num_clusters: int | None = None) -> None:
        self.num_classes, self.num_clusters = num_classes, num_clusters or num_classes
        self.confusion = torch.zeros(self.num_clusters, num_classes, dtype=torch.long)

    def to(self, device: torch.device | str) -> ClusterMetrics:
        """Move the counts to the device of the predictions."""
        self.confusion = self.confusion.to(device)
        return self

    def update(self, preds: Tensor, target: Tensor) -> ClusterMetrics:
        """Count the pixels of integer predictions and targets of one shape.

        Raises
        ------
        ValueError
            When shapes differ, or a prediction that counts is not a cluster.
        """
        if preds.shape != target.shape:
            raise ValueError(f"predictions have shape {tuple(preds.shape)}, targets {tuple(target.shape)}")
        known = (target >= 0) & (target < self.num_classes)
        preds, target = preds[known].long(), target[known].long()
        if preds.numel() and not 0 <= int(preds.min()) <= int(preds.max()) < self.num_clusters:
            raise ValueError(f"predictions lie outside 0..{self.num_clusters - 1}")
        pairs = torch.bincount(preds * self.num_classes + target, minlength=self.confusion.numel())
        self.confusion += pairs.view_as(self.confusion)
        return self

    def matching(self) -> np.ndarray:
        """Return the class of each cluster under the best one-to-one matching; -1 for a cluster left over."""
        rows, columns = linear_sum_assignment(self.confusion.cpu().numpy(), maximize=True)
        classes = np.full(self.num_clusters, -1)
        classes[rows] = columns
        return classes

    def compute(self) -> Scores:
        """Return the scores of clusters, each matched to a class."""
        return self._scores(self.matching())

    def unmatched(self) -> Scores:
        """Return the scores of predictions that are classes already, such as a supervised probe's."""
        return self._scores(np.arange(self.num_clusters))

    def _scores(self, classes: np.ndarray) -> Scores:
        confusion = self.confusion.cpu().numpy().astype(np.float64)
        matched = np.zeros((self.num_classes, self.num_classes))
        matched[classes[classes >= 0]] = confusion[classes >= 0]
        hits, predicted, actual = matched.diagonal(), matched.sum(1), confusion.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            pacc, hits = 100 * float(hits.sum() / confusion.sum()), np.where(actual > 0, hits, np.nan)
            iou, recall, precision = hits / (predicted + actual - hits), hits / actual, hits / predicted
        miou, mean_recall, mean_precision = map(_mean_percent, (iou, recall, precision))
        return Scores(miou=miou, pacc=pacc, mean_recall=mean_recall, mean_precision=mean_precision, iou=iou)


def _mean_percent(values: np.ndarray) -> float:
    """Return 100 times the mean of the values that are not NaN; NaN when all are."""
    return 100 * float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
