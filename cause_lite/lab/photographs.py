"""What stronger features change: baselines, CAUSE and the release's third step on one backbone, as run records.

`efficientnet-lite2` is not self-supervised: it has seen ImageNet's class labels, though no segmentation label.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import get_args

import pandas as pd

from cause_lite.backbones.feature_store import cached_features, module_outputs
from cause_lite.backbones.kmeans import patch_kmeans
from cause_lite.config import FitConfig, ProbeConfig
from cause_lite.lab.comparison import (
    CAUSE,
    COLOUR_KMEANS,
    FEATURE_KMEANS,
    SUPERVISED,
    as_record,
    baseline_records,
)
from cause_lite.lab.recipes import HEADS, recipe
from cause_lite.lab.runs import fitted_segmenter, load_evaluation, load_training, score_segmenter
from cause_lite.lab.studies import Run, read_study, with_third_step
from cause_lite.runtime.files import UserError

STUDY = "photographs"
BACKBONE = "efficientnet-lite2"
# The settings of each data set on that backbone, beside those of its recipe; chosen on validation images alone.
SETTINGS: dict[str, dict[str, object]] = {
    "msrc": {},
    "camvid": {
        "backbone": f"{BACKBONE}?centre=camvid&fit=centre",
        "head.positive_threshold": 0.4,
        "head.negative_threshold": 0.2,
        "head.epochs": 6,
    },
}
BASELINES = {"colour-kmeans": COLOUR_KMEANS, "feature-kmeans": FEATURE_KMEANS, "ceiling": SUPERVISED}
FLOWS = {
    "as-released": ("as_released", "step 3 as released: labels train the head"),
    "detached": ("detached", "step 3 as released, but labels do not reach the head"),
}


def configured(data: str, head: str, seed: int) -> FitConfig:
    """Return the settings of a clean fit on the backbone.

    Raises
    ------
    UserError
        For a data set that the study does not have.
    """
    if data not in SETTINGS:
        raise UserError(f"study {STUDY}: no data set {data!r}; must be one of {', '.join(SETTINGS)}")
    return recipe(data, head, seed, changes=SETTINGS[data])


def photograph_runs(data: str, seeds: int, heads: tuple[str, ...] = HEADS) -> Iterator[Run]:
    """Yield the runs of a data set: baselines and each head clean, seed by seed, then the head's other third steps."""
    possible = get_args(ProbeConfig.model_fields["label_flow"].annotation)
    for head in heads:
        clean: dict[str, tuple[str, Callable[[FitConfig], dict]]] = {
            "clean": ("clean: labels reach the linear probe alone", _clean),
            "head-kmeans": ("k-means on the head's output", _head_kmeans),
        }
        for seed in range(seeds):
            config = configured(data, head, seed)
            for name, method in BASELINES.items() if head == heads[0] else ():
                yield Run(_named(name), method, config, partial(_baseline, config, method))
            for name, (title, work) in clean.items():
                yield Run(_named(name), title, config, partial(work, config))
        for name, (flow, title) in FLOWS.items():
            for seed in range(seeds) if flow in possible else ():
                config = configured(data, head, seed).replace({"probe.label_flow": flow})
                yield Run(_named(name), title, config, partial(_other_third_step, config))


def summary(data: str) -> pd.DataFrame:
    """Return mean and spread of each arm's scores, and its mean difference from k-means on the same features.

    A row is a method and an arm, in the order of the study. Differences are between runs of one seed, and their spread
    is the sample standard deviation; all are in points.
    """
    records = read_study(STUDY, data)
    arms = [*BASELINES, "clean", "head-kmeans", *FLOWS]
    rows = []
    for name in map(_named, arms):
        for method in dict.fromkeys(r["method"] for r in records.values() if r["name"] == name):
            mine = {r["seed"]: r for r in records.values() if (r["name"], r["method"]) == (name, method)}
            row = {"method": method, "arm": name, "title": next(iter(mine.values()))["title"], "seeds": len(mine)}
            for score in ("miou", "pacc"):
                gains = differences(records, name, _named("feature-kmeans"), score, method)
                values = pd.Series([r[score] for r in mine.values()])
                row |= {score: values.mean(), f"{score}_std": values.std()}
                row |= {f"{score}_gain": gains.mean(), f"{score}_gain_std": gains.std()}
            rows.append(row)
    return pd.DataFrame(rows)


def differences(records: dict[str, dict], arm: str, base: str, score: str, method: str) -> pd.Series:
    """Return, by seed, an arm's score minus the base's; a base that has the same method comes before others."""
    mine = {r["seed"]: r[score] for r in records.values() if (r["name"], r["method"]) == (arm, method)}
    bases = {r["seed"]: r[score] for r in records.values() if r["name"] == base}
    bases |= {r["seed"]: r[score] for r in records.values() if (r["name"], r["method"]) == (base, method)}
    return pd.Series({seed: mine[seed] - bases[seed] for seed in sorted(mine.keys() & bases.keys())}, dtype=float)


def _named(arm: str) -> str:
    return f"{BACKBONE}/{arm}"


def _baseline(config: FitConfig, method: str) -> dict:
    return next(iter(baseline_records(config, load_training(config), load_evaluation(config), (method,))))


def _clean(config: FitConfig) -> dict:
    """Return the record of a clean fit, with the scores of its linear probe beside."""
    start = time.perf_counter()
    scores = score_segmenter(fitted_segmenter(config), config)
    record = as_record(CAUSE[config.head.kind], config, scores["cluster"], time.perf_counter() - start)
    linear = scores["linear"].unmatched()
    return record | {"linear_miou": round(linear["miou"], 4), "linear_pacc": round(linear["pacc"], 4)}


def _head_kmeans(config: FitConfig) -> dict:
    """Return the record of k-means on the output of the clean head, in place of the cluster probe."""
    segmenter, train, start = fitted_segmenter(config), load_training(config), time.perf_counter()
    features = cached_features(segmenter.backbone, train.images, "Training features")
    with tempfile.TemporaryDirectory() as folder:
        outputs = module_outputs(segmenter.head, features, Path(folder))
        centres = patch_kmeans(outputs, len(train.classes), config.seed)
    segmenter.cluster_probe.centres.data = centres.to(segmenter.codebook.device)
    scores = score_segmenter(segmenter, config)
    return as_record(CAUSE[config.head.kind], config, scores["cluster"], time.perf_counter() - start)


def _other_third_step(config: FitConfig) -> dict:
    """Return the record of another third step on the head of the clean fit, which no label has touched."""
    base = fitted_segmenter(config.replace({"probe.label_flow": "clean"}))
    start = time.perf_counter()
    scores = score_segmenter(with_third_step(base, load_training(config), config), config)
    record = as_record(CAUSE[config.head.kind], config, scores["cluster"], time.perf_counter() - start)
    return record | {"label_flow": config.probe.label_flow}
