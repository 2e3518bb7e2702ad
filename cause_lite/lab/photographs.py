"""What stronger features change: baselines, CAUSE and the release's third step on a ladder of backbones.

`efficientnet-lite2` is not self-supervised: it has seen ImageNet's class labels, though no segmentation label.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from cause_lite.backbones.feature_store import module_outputs
from cause_lite.backbones.kmeans import patch_kmeans
from cause_lite.config import BackboneConfig, FitConfig
from cause_lite.lab.comparison import (
    CAUSE,
    COLOUR_KMEANS,
    FEATURE_KMEANS,
    FULL_KMEANS,
    LOGISTIC,
    SUPERVISED,
    as_record,
    baseline_records,
    training_features,
)
from cause_lite.lab.recipes import HEADS, recipe
from cause_lite.lab.runs import fit_origin, fitted_segmenter, load_evaluation, load_training, score_segmenter
from cause_lite.lab.statistics import paired_t
from cause_lite.lab.studies import Run, read_study, with_third_step
from cause_lite.runtime.files import UserError
from cause_lite.segmenter import Segmenter

STUDY = "photographs"
BACKBONE = "efficientnet-lite2"
# Backbones from weak to strong, each by its settings.
LADDER: dict[str, dict] = {
    "untrained": {"name": BACKBONE, "untrained": 0},
    "scenes": {"name": "scenes"},
    "camvid": {"name": "camvid"},
    "photos": {"name": "photos"},
    BACKBONE: {"name": BACKBONE},
}
# Each backbone is centred on the mean patch of a data set's training photographs, squared as they are in the fit.
CENTRES: dict[str, dict] = {"msrc": {"centre": "msrc"}, "camvid": {"centre": "camvid", "fit": "centre"}}
EPOCHS = 6  # of step 2
# Thresholds of step 2: their kind, the upper and the lower one. A first trial, scored on test images too, took these.
THRESHOLDS = ("cosine", 0.4, 0.2)
# Those that are compared on validation photographs (see `choice_runs`).
TRIED = {"cosine": ((0.3, 0.1), (0.4, 0.2), (0.6, 0.3)), "quantile": ((0.95, 0.8), (0.98, 0.9))}
FEATURE_ARM = "feature-kmeans"  # what gains are measured from
COLOUR_ARM = "colour-kmeans"  # which looks at no backbone; run under the name of the strongest
BASELINES = {COLOUR_ARM: COLOUR_KMEANS, FEATURE_ARM: FEATURE_KMEANS, "ceiling": SUPERVISED}
BASELINE_HEAD = "mlp"  # whose settings the records of baselines carry; they have no head
FULL_ARM = "full-kmeans"
SLOW_BASELINES = {FULL_ARM: FULL_KMEANS, "logistic": LOGISTIC}
CHOICE_SPLIT = "val"  # what thresholds are compared on
CHOICE = "choice"
# What each arm is, in words, and the label flow of those with another third step.
TITLES = {
    "clean": "no label touches the clusters",
    "crf": "no label touches the clusters, refined by the CRF",
    "head-kmeans": "k-means on the head's output",
    "as-released": "step 3 of the authors' code: labels train the head",
    "detached": "step 3 of the authors' code, labels kept from the head",
}
FLOWS = {"as-released": "as_released", "detached": "detached"}


def configured(
    data: str, head: str, seed: int, rung: str = BACKBONE, thresholds: tuple[str, float, float] = THRESHOLDS
) -> FitConfig:
    """Return the settings of a clean fit on a backbone of the ladder.

    Parameters
    ----------
    data, head, seed
        `msrc` or `camvid`; `tr` or `mlp`; the seed.
    rung
        The backbone, a key of `LADDER`.
    thresholds
        Their kind, the upper and the lower one.

    Raises
    ------
    UserError
        For a data set that the study does not have.
    """
    if data not in CENTRES:
        raise UserError(f"study {STUDY}: no data set {data!r}; must be one of {', '.join(CENTRES)}")
    kind, high, low = thresholds
    changes = {
        "backbone": BackboneConfig(**LADDER[rung], **CENTRES[data]),
        "head.threshold_kind": kind,
        "head.positive_threshold": high,
        "head.negative_threshold": low,
        "head.epochs": EPOCHS,
    }
    return recipe(data, head, seed, changes=changes)


def photograph_runs(data: str, seeds: int, heads: tuple[str, ...] = HEADS) -> Iterator[Run]:
    """Yield the runs of a data set, the strongest backbone first.

    Of each backbone: thresholds on validation photographs, baselines and clean heads by seed, other third steps, slow
    baselines.
    """
    for rung in reversed(LADDER):
        if BASELINE_HEAD in heads:
            yield from choice_runs(data, rung, seeds)
        for head in heads:
            yield from _head_runs(data, seeds, head, rung)
        for seed in range(seeds) if BASELINE_HEAD in heads else ():
            config = configured(data, BASELINE_HEAD, seed, rung)
            for name, method in SLOW_BASELINES.items():
                yield Run(named(name, rung), method, config, partial(_baseline, config, method))


def _head_runs(data: str, seeds: int, head: str, rung: str) -> Iterator[Run]:
    on_clean_head: dict[str, Callable[[FitConfig], dict]] = {"clean": _clean, "crf": _crf, "head-kmeans": _head_kmeans}
    for seed in range(seeds):
        config = configured(data, head, seed, rung)
        for name, method in BASELINES.items() if head == BASELINE_HEAD else ():
            yield Run(named(name, rung), method, config, partial(_baseline, config, method))
        for name, work in on_clean_head.items():
            yield Run(named(name, rung), TITLES[name], config, partial(work, config))
    for name, flow in FLOWS.items():
        for seed in range(seeds):
            config = configured(data, head, seed, rung).replace({"probe.label_flow": flow})
            yield Run(named(name, rung), TITLES[name], config, partial(_other_third_step, config))


def choice_runs(data: str, rung: str, seeds: int) -> Iterator[Run]:
    """Yield clean fits with each pair of thresholds, scored on validation photographs."""
    for seed in range(seeds):
        for kind, pairs in TRIED.items():
            for high, low in pairs:
                config = configured(data, BASELINE_HEAD, seed, rung, (kind, high, low))
                name, title = choice_name(rung, (kind, high, low)), f"{kind} {high:g} / {low:g}"
                yield Run(name, title, config, partial(_clean, config, CHOICE_SPLIT))


def choice_name(rung: str, thresholds: tuple[str, float, float] = THRESHOLDS) -> str:
    """Return the name of the fits that try thresholds on a backbone, as records carry it."""
    kind, high, low = thresholds
    return named(f"{CHOICE}-{kind}-{high:g}-{low:g}", rung)


def runs_on(data: str, rung: str = BACKBONE) -> list[dict]:
    """Return the records on a backbone in the order of the tables, each with its arm in words as `title`."""
    arms = {named(name, rung): place for place, name in enumerate([*BASELINES, *SLOW_BASELINES, *TITLES])}
    runs = [
        record | {"title": TITLES.get(record["name"].partition("/")[2], "")}
        for record in read_study(STUDY, data).values()
        if record["name"] in arms
    ]
    return sorted(runs, key=lambda run: (run["method"], arms[run["name"]]))


def summary(data: str, rung: str = BACKBONE) -> pd.DataFrame:
    """Return the scores of each method and arm over seeds, and its gain over k-means on the same features.

    Columns are `miou` and `pacc` (means in percent) with `_std` (sample standard deviation), `_gain` (the mean
    difference at the same seed, in points) and `_low`, `_high` (its 95 % interval by a paired t test; NaN below three
    seeds).
    """
    records = runs_on(data, rung)
    base = {record["seed"]: record for record in records if record["name"] == named(FEATURE_ARM, rung)}
    groups: dict[tuple[str, str], list[dict]] = {}
    for record in records:
        groups.setdefault((record["name"], record["method"]), []).append(record)
    rows = []
    for (arm, method), runs in groups.items():
        row = {"arm": arm, "method": method, "title": runs[0]["title"], "seeds": len(runs)}
        for score in ("miou", "pacc"):
            values = pd.Series([run[score] for run in runs])
            gains = np.array([run[score] - base[run["seed"]][score] for run in runs if run["seed"] in base])
            gain = paired_t(gains)
            row |= {score: values.mean(), f"{score}_std": values.std(), f"{score}_gain": gain.mean}
            row |= {f"{score}_low": gain.low, f"{score}_high": gain.high}
        rows.append(row)
    return pd.DataFrame(rows)


def key_of(arm: str, method: str) -> str:
    """Return a short name of a method and arm, such as `mlp_clean` or `feature_kmeans`."""
    heads = {title: head for head, title in CAUSE.items()}
    arm = arm.partition("/")[2].replace("-", "_")
    return f"{heads[method]}_{arm}" if method in heads else arm


def named(arm: str, rung: str) -> str:
    """Return the name of an arm on a backbone, as records carry it."""
    return f"{rung}/{arm}"


def _baseline(config: FitConfig, method: str) -> dict:
    return next(iter(baseline_records(config, load_training(config), load_evaluation(config), (method,))))


def _clean(config: FitConfig, split: str | None = None) -> dict:
    start = time.perf_counter()
    return _scored(fitted_segmenter(config), config, start, split) | fit_origin(config)


def _scored(segmenter: Segmenter, config: FitConfig, start: float, split: str | None = None) -> dict:
    """Return the record of a segmenter's clusters, with the scores of its linear probe beside.

    `start` is the value of time.perf_counter when the work began.
    """
    scores = score_segmenter(segmenter, config, split=split)
    record = as_record(CAUSE[config.head.kind], config, scores["cluster"], time.perf_counter() - start, split=split)
    linear = scores["linear"].unmatched()
    return record | {"linear_miou": round(linear["miou"], 4), "linear_pacc": round(linear["pacc"], 4)}


def _crf(config: FitConfig) -> dict:
    """Return the record of the clean clusters after the dense CRF."""
    segmenter, start = fitted_segmenter(config), time.perf_counter()
    refined = score_segmenter(segmenter, config, crf=True)["crf"]
    return as_record(CAUSE[config.head.kind], config, refined, time.perf_counter() - start) | fit_origin(config)


def _head_kmeans(config: FitConfig) -> dict:
    """Return the record of k-means on the output of the clean head, in place of the cluster probe."""
    segmenter, train, start = fitted_segmenter(config), load_training(config), time.perf_counter()
    features = training_features(segmenter, train)
    with tempfile.TemporaryDirectory() as folder:
        outputs = module_outputs(segmenter.head, features, Path(folder))
        centres = patch_kmeans(outputs, train.num_clusters, config.seed).to(outputs.dtype)
    segmenter.cluster_probe.centres.data = centres.to(segmenter.codebook.device)
    scores = score_segmenter(segmenter, config)["cluster"]
    return as_record(CAUSE[config.head.kind], config, scores, time.perf_counter() - start) | fit_origin(config)


def _other_third_step(config: FitConfig) -> dict:
    """Return the record of another third step on the head of the clean fit, which no label has touched."""
    clean = config.replace({"probe.label_flow": "clean"})
    base, start = fitted_segmenter(clean), time.perf_counter()
    other = with_third_step(base, load_training(config), config)
    return _scored(other, config, start) | {"label_flow": config.probe.label_flow} | fit_origin(clean)
