"""The picture that the book begins with: what three methods find in the same scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from cause_lite.datasets import load_split
from cause_lite.lab.colours import colourise
from cause_lite.lab.pictures import image_grid
from cause_lite.lab.results import matching_of
from cause_lite.lab.study import learned, predicted, read_records, read_study, runs_of

SHOWN = {"k-means": ("tables", "kmeans"), "CAUSE": ("tables", "cause-mlp"), "labels leaked": ("leak", "ours-5-own")}


def side_by_side(numbers: Sequence[int]) -> Figure:
    """Draw test scenes by their numbers, and on each the clusters of three methods, of seed 0, and the true classes.

    Clusters are matched to classes over all test images, by the record of the run, so that one colour is one class in
    every row.
    """
    test = load_split("scenes", "test")
    images, truth = (np.asarray(part)[list(numbers)] for part in (test.images, test.labels))
    rows = [list(images)]
    for study, arm in SHOWN.values():
        run = next(run for run in runs_of(read_study(study), "scenes", 1) if run.arm_name == arm)
        predict, backbone, _ = learned(run)
        some = replace(test, images=images, labels=truth)
        clusters = next(predicted(predict, backbone, some))[1].argmax(1).numpy()
        classes = matching_of(read_records(study, "scenes")[run.key])[clusters]
        rows.append(_tinted(classes, images, len(test.classes)))
    return image_grid([*rows, _tinted(truth, images, len(test.classes))], ["scene", *SHOWN, "true classes"])


def _tinted(classes: np.ndarray, images: np.ndarray, count: int) -> list[np.ndarray]:
    return [colourise(one, image, count) for one, image in zip(classes, images, strict=True)]
