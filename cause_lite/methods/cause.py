"""CAUSE: a fitted segmenter, read by its own cluster probe, by full k-means on its head, or by step 3 done again."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from cause_lite.backbones.feature_store import PatchStore, module_outputs
from cause_lite.backbones.kmeans import patch_kmeans
from cause_lite.loop import Session
from cause_lite.methods.method import Predictor, Training, Views, register
from cause_lite.probe import ClusterProbe
from cause_lite.runtime.device import seeded
from cause_lite.runtime.settings import Count, Settings
from cause_lite.segmenter import Segmenter
from cause_lite.steps import fit_cluster_probe


class CauseOptions(Settings):
    """Which fit is read, and by what.

    Attributes
    ----------
    reading
        The fit's own cluster probe, full k-means on its head's outputs, or step 3 done again on that head.
    step3
        Settings of step 3 that differ from the fit's, such as {"probe.objective": "cosine"}, where it is done again.
    of_seed
        The seed of the fit, where the run's seed is to draw the reading alone; None: the run's.
    """

    reading: Literal["probe", "kmeans", "step3"] = "probe"
    step3: dict[str, Any] = Field(default_factory=dict)
    of_seed: Count | None = None


@register("cause", CauseOptions)
def learn(training: Training, options: CauseOptions) -> Predictor:
    """Return the predictor of a fitted segmenter; labels reach no part of it."""
    fit = training.config if options.of_seed is None else training.config.replace({"seed": options.of_seed})
    segmenter = training.fitted(fit)
    if options.reading == "probe":
        return predictor_of(segmenter)
    with tempfile.TemporaryDirectory() as folder:
        outputs = module_outputs(segmenter.head, training.features, Path(folder), segmenter.codebook.dtype)
        probe = _kmeans_probe if options.reading == "kmeans" else _probe_of_step_3
        return predictor_of(with_clusters(segmenter, probe(outputs, segmenter, training, options)))


def predictor_of(segmenter: Segmenter) -> Predictor:
    """Return the predictor of a segmenter: cosines of both views' mean output, scaled up, to its clusters."""
    device = segmenter.codebook.device

    def predict(views: Views, size: tuple[int, int]) -> Tensor:
        maps = segmenter.segment_features(views.plain.to(device), views.mirrored.to(device))
        return segmenter.similarities(maps, size)

    return predict


def with_clusters(segmenter: Segmenter, probe: ClusterProbe) -> Segmenter:
    """Return a segmenter of the same head with another cluster probe; the given one stays as it is."""
    other = Segmenter(segmenter.head, segmenter.codebook, probe, segmenter.linear_probe, segmenter.backbone)
    return other.eval()


def _kmeans_probe(outputs: PatchStore, segmenter: Segmenter, training: Training, options: CauseOptions) -> ClusterProbe:
    probe = copy.deepcopy(segmenter.cluster_probe)
    probe.centres.data.copy_(patch_kmeans(outputs, training.classes, training.seed))
    return probe


def _probe_of_step_3(
    outputs: PatchStore, segmenter: Segmenter, training: Training, options: CauseOptions
) -> ClusterProbe:
    config = training.config.replace(options.step3)
    with seeded(training.seed) as generator:
        session = Session(config, generator, segmenter.codebook.device)
        return fit_cluster_probe(outputs, training.classes, session)[0]
