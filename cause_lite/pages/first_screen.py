"""The picture that the book begins with: what three methods find in the same scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

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
    rows, names = [], ["scene"]
    for name, (study, arm) in SHOWN.items():
        run = next(run for run in runs_of(read_study(study), "scenes", 1) if run.arm_name == arm)
        predict, backbone, test = learned(run)
        some = replace(test, images=test.images[list(numbers)], labels=test.labels[list(numbers)])
        clusters = next(predicted(predict, backbone, some))[1].argmax(1).numpy()
        classes = matching_of(read_records(study, "scenes")[run.key])[clusters]
        rows.append([_tinted(*pair, len(test.classes)) for pair in zip(classes, some.images, strict=True)])
        names.append(name)
    truth = [_tinted(*pair, len(test.classes)) for pair in zip(some.labels, some.images, strict=True)]
    return image_grid([list(some.images), *rows, truth], [*names, "true classes"])


def _tinted(classes: np.ndarray, image: np.ndarray, count: int) -> np.ndarray:
    return colourise(np.asarray(classes), image, count)
