"""How far the seed moves the numbers that the chapters give of one seed: of concepts, of positives, of groups.

The chapters compute them for seed 0, before the reader's eyes; this study computes them for several seeds, so that
`verify` knows how far they may move. Begin with `measured`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from cause_lite.backbones import load_backbone
from cause_lite.backbones.feature_store import PatchStore, cached_features
from cause_lite.backbones.kmeans import patch_kmeans
from cause_lite.config import FitConfig
from cause_lite.datasets import load_split
from cause_lite.initialise import initial_codebook
from cause_lite.lab.baselines import nearest
from cause_lite.lab.comparison import origin
from cause_lite.lab.diagnostics import concept_counts, concept_purity, positive_agreement
from cause_lite.lab.recipes import HEADS, recipe
from cause_lite.lab.runs import label_maps
from cause_lite.lab.studies import Run, read_study
from cause_lite.loop import Session
from cause_lite.mediator import quantize
from cause_lite.metrics import ClusterMetrics
from cause_lite.probe import patch_labels
from cause_lite.runtime.files import UserError
from cause_lite.steps import fit_clusterbook

STUDY = "concepts"
AS_RELEASED = {"clusterbook.init": "uniform", "clusterbook.learning_rate": 4e-3}
FEW = {"clusterbook.concepts": 128, "clusterbook.learning_rate": 3e-3, "clusterbook.epochs": 5}
GROUPS = (16, 40)  # by k-means


def concept_runs(data: str, seeds: int, heads: tuple[str, ...] = HEADS) -> Iterator[Run]:
    """Yield one run a seed, whatever the heads.

    Raises
    ------
    UserError
        For a data set other than `scenes`, which the chapters use.
    """
    if data != "scenes":
        raise UserError(f"study {STUDY}: no data set {data!r}; must be scenes, which the chapters use")
    for seed in range(seeds):
        config = recipe(data, HEADS[0], seed)
        yield Run(STUDY, "numbers of the chapters", config, partial(_record, config))


def deviation(name: str) -> float:
    """Return the sample standard deviation over seeds of one of the numbers of `measured`."""
    return float(summary().loc[name, "std"])


def summary(data: str = "scenes") -> pd.DataFrame:
    """Return mean, sample standard deviation (`std`) and number of seeds, a row a number of `measured`."""
    found = pd.DataFrame([record["values"] for record in read_study(STUDY, data).values()])
    return found.agg(["mean", "std", "count"]).T


def _record(config: FitConfig) -> dict:
    start = time.perf_counter()
    values = measured(config)
    return {
        "method": STUDY,
        "data": config.data.name,
        "split": "val",
        "seed": config.seed,
        "values": {name: round(value, 4) for name, value in values.items()},
    } | origin(config, time.perf_counter() - start)


def measured(config: FitConfig) -> dict[str, float]:
    """Return the numbers for the seed of a configuration, by name; percent, but for counts of codes in use."""
    backbone, val = load_backbone(config.backbone), load_split(config.data.name, "val")
    backbone.prepare(config.optimisation.precision)
    train = cached_features(backbone, load_split(config.data.name, "train").images, "Training features")
    features = cached_features(backbone, val.images, "Features")[:].double()
    labels = np.asarray(label_maps(val))
    return _of_codebooks(config, train, features, labels) | _of_groups(config, train, features, labels)


def _of_codebooks(config: FitConfig, train: PatchStore, features: Tensor, labels: np.ndarray) -> dict[str, float]:
    few = config.replace(FEW)
    ours, released = _fitted(train, config), _fitted(train, config.replace(AS_RELEASED))
    codebooks = {
        "patches": initial_codebook(train, _session(few)),
        "modularity": _fitted(train, few),
        "kmeans": patch_kmeans(train, few.clusterbook.concepts, config.seed, starts=1),
    }
    index = quantize(features, ours)[1]
    counts = concept_counts(index, labels, len(ours))
    precision, recall = positive_agreement(counts, ours, config.head.positive_threshold)
    return {
        "used": float(len(index.unique())),
        "used_as_released": float(len(quantize(features, released)[1].unique())),
        "positive_precision": precision,
        "positive_recall": recall,
    } | {f"purity_{name}": concept_purity(quantize(features, book)[1], labels) for name, book in codebooks.items()}


def _fitted(train: PatchStore, config: FitConfig) -> Tensor:
    return fit_clusterbook(train, _session(config))[0]


def _session(config: FitConfig) -> Session:
    return Session(config, torch.Generator().manual_seed(config.seed), torch.device("cpu"))


def _of_groups(config: FitConfig, train: PatchStore, features: Tensor, labels: np.ndarray) -> dict[str, float]:
    side = round(features.shape[1] ** 0.5)
    unit, truth, values = F.normalize(features, dim=-1), patch_labels(labels, side), {}
    for count in GROUPS:
        centres = patch_kmeans(train, count, config.seed)
        groups = nearest(unit, centres).view(len(features), -1)
        metrics = ClusterMetrics(int(truth.max()) + 1, count)
        metrics.update(groups, truth)
        held = concept_counts(groups, labels, count)
        values[f"fine_at_{count}"] = metrics.compute()["pacc"]
        values[f"purity_at_{count}"] = 100 * float(held.amax(1).sum() / held.sum())
    return values
