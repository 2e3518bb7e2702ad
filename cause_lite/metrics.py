"""Scores: confusion, Hungarian matching of clusters to classes, mIoU and pixel accuracy."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchmetrics import Metric


class ClusterMetrics(Metric):
    """Accumulates a confusion of clusters and classes; `compute` matches them once, over everything.

    Predictions and targets are integer tensors of one shape. Targets outside 0..num_classes-1 are
    ignored. Predictions outside 0..num_clusters-1 raise ValueError. Safe across processes (torchmetrics, to which
    `options` go).
    """

    full_state_update = False

    def __init__(self, num_classes: int, num_clusters: int | None = None, **options: object) -> None:
        super().__init__(**options)
        self.num_classes, self.num_clusters = num_classes, num_clusters or num_classes
        empty = torch.zeros(self.num_clusters, num_classes, dtype=torch.long)
        self.add_state("confusion", default=empty, dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        if preds.shape != target.shape:
            raise ValueError(f"predictions have shape {tuple(preds.shape)}, targets {tuple(target.shape)}")
        seen = (target >= 0) & (target < self.num_classes)
        preds, target = preds[seen].long(), target[seen].long()
        if preds.numel() and not 0 <= int(preds.min()) <= int(preds.max()) < self.num_clusters:
            raise ValueError(f"predictions lie outside 0..{self.num_clusters - 1}")
        pairs = torch.bincount(preds * self.num_classes + target, minlength=self.confusion.numel())
        self.confusion += pairs.view_as(self.confusion)

    def matching(self) -> np.ndarray:
        """The class of each cluster under the best one-to-one matching; -1 where clusters outnumber classes."""
        rows, columns = linear_sum_assignment(self.confusion.cpu().numpy(), maximize=True)
        classes = np.full(self.num_clusters, -1)
        classes[rows] = columns
        return classes

    def compute(self) -> dict[str, float | np.ndarray]:
        """`miou`, `pacc`, `mean_recall`, `mean_precision` in percent; `iou` per class, 0..1 (NaN: it never occurs)."""
        return self._scores(self.matching())

    def unmatched(self) -> dict[str, float | np.ndarray]:
        """The same for predictions that are classes already, such as a supervised probe's."""
        return self._scores(np.arange(self.num_clusters))

    def _scores(self, classes: np.ndarray) -> dict[str, float | np.ndarray]:
        confusion = self.confusion.cpu().numpy().astype(np.float64)
        matched = np.zeros((self.num_classes, self.num_classes))
        matched[classes[classes >= 0]] = confusion[classes >= 0]
        hits, predicted, actual = matched.diagonal(), matched.sum(1), confusion.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            iou, recall, precision = hits / (predicted + actual - hits), hits / actual, hits / predicted
            pacc = 100 * float(hits.sum() / confusion.sum())
        return {
            "miou": _mean_percent(iou), "pacc": pacc, "mean_recall": _mean_percent(recall),
            "mean_precision": _mean_percent(precision), "iou": iou,
        }  # fmt: skip


def _mean_percent(values: np.ndarray) -> float:
    """100 x the mean of what is defined; NaN when nothing is."""
    return 100 * float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
