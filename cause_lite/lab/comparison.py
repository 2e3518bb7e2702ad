"""The table of a data set: every method over seeds in one harness, as run records."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from cause_lite.backbones import load_backbone
from cause_lite.backbones.feature_store import cached_features, module_outputs
from cause_lite.backbones.kmeans import patch_kmeans
from cause_lite.config import FitConfig
from cause_lite.datasets import Split
from cause_lite.datasets.images import flipped
from cause_lite.lab import baselines
from cause_lite.lab.recipes import HEADS, evaluation_split, recipe
from cause_lite.lab.runs import fitted_segmenter, load_evaluation, load_training, score_segmenter
from cause_lite.loop import Session
from cause_lite.metrics import ClusterMetrics
from cause_lite.runtime import provenance
from cause_lite.runtime.device import choose_device
from cause_lite.runtime.files import UserError, cache_dir, project_dir, read_json, write_json
from cause_lite.runtime.randomness import seeded
from cause_lite.segmenter import Segmenter
from cause_lite.steps import fit_cluster_probe

COLOUR_KMEANS = "k-means on colour and height"
FEATURE_KMEANS = "k-means on features"
SUPERVISED = "linear probe on features"
CAUSE = {"tr": "CAUSE-TR", "mlp": "CAUSE-MLP"}


def as_record(
    method: str, config: FitConfig, metrics: ClusterMetrics, seconds: float, supervised: bool = False
) -> dict:
    """A run's record: scores, how they were computed, where and when. What labels trained is not matched."""
    scores = metrics.unmatched() if supervised else metrics.compute()
    return {
        "method": method, "data": config.data.name, "split": evaluation_split(config.data.name), "seed": config.seed,
        "miou": round(scores["miou"], 4), "pacc": round(scores["pacc"], 4),
        "iou": [None if np.isnan(v) else round(100 * float(v), 3) for v in scores["iou"]],
        "confusion": metrics.confusion.tolist(), "seconds": round(seconds, 1), "config": config.model_dump(),
        "config_hash": provenance.config_hash(config), "commit": provenance.commit(),
        "environment": provenance.environment(), "date": provenance.now(),
    }  # fmt: skip


def baseline_records(
    config: FitConfig, train: Split, test: Split, wanted: tuple[str, ...] = (COLOUR_KMEANS, FEATURE_KMEANS, SUPERVISED)
) -> Iterator[dict]:
    """k-means on colour and height, k-means on features, and the supervised linear probe, for one seed."""
    backbone, classes = load_backbone(config.backbone).to(choose_device("auto")), len(test.classes)
    features = cached_features(backbone, train.images, "Training features")
    seen = baselines.TestFeatures(
        cached_features(backbone, test.images, "Test features"),
        cached_features(backbone, flipped(test.images), "Features of the mirror images"),
    )
    methods = {
        COLOUR_KMEANS: lambda: baselines.score_colour_kmeans(train, test, config.seed),
        FEATURE_KMEANS: lambda: baselines.score_feature_kmeans(features, seen, test.labels, classes, config.seed),
        SUPERVISED: lambda: baselines.score_supervised(features, train.labels, seen, test.labels, classes, config),
    }
    for method in wanted:
        start = time.perf_counter()
        metrics = methods[method]()
        yield as_record(method, config, metrics, time.perf_counter() - start, method == SUPERVISED)


def cause_records(config: FitConfig, train: Split, crf: bool) -> Iterator[dict]:
    """One head and seed: its cluster probe, k-means on the same head output, its linear probe, and the CRF."""
    start = time.perf_counter()
    segmenter = fitted_segmenter(config)
    scores, name = score_segmenter(segmenter, config, crf), CAUSE[config.head.kind]
    seconds = time.perf_counter() - start
    yield as_record(name, config, scores["cluster"], seconds)
    yield as_record(f"{name}, linear probe", config, scores["linear"], seconds, supervised=True)
    if crf:
        yield as_record(f"{name}, CRF", config, scores["crf"], seconds)
    yield from _other_probes(segmenter, config, train, name)


def _other_probes(segmenter: Segmenter, config: FitConfig, train: Split, name: str) -> Iterator[dict]:
    """Two other cluster probes on the same head: trained by cosine, and plain k-means."""
    features, classes = cached_features(segmenter.backbone, train.images, "Training features"), len(train.classes)
    by_cosine = config.replace({"probe.objective": "cosine"})
    device = segmenter.codebook.device
    with tempfile.TemporaryDirectory() as folder:
        outputs = module_outputs(segmenter.head, features, Path(folder))
        start = time.perf_counter()
        with seeded(config.seed) as generator:
            session = Session(by_cosine, generator, device)
            segmenter.cluster_probe = fit_cluster_probe(outputs, classes, session)[0]
        scores = score_segmenter(segmenter, config)
        yield as_record(f"{name}, probe by cosine", by_cosine, scores["cluster"], time.perf_counter() - start)
        start = time.perf_counter()
        segmenter.cluster_probe.centres.data = patch_kmeans(outputs, classes, config.seed).to(device)
        scores = score_segmenter(segmenter, config)
        yield as_record(f"{name}, k-means on the head", config, scores["cluster"], time.perf_counter() - start)


def table_records(
    data: str, seed: int, crf: bool = False, changes: Mapping[str, object] | None = None
) -> Iterator[dict]:
    """Yield the record of every row of a data set's table, for one seed, with `changes` to the recipe's settings."""
    config = recipe(data, HEADS[0], seed, changes=changes)
    train, test = load_training(config), load_evaluation(config)
    yield from baseline_records(config, train, test)
    for head in HEADS:
        yield from cause_records(recipe(data, head, seed, changes=changes), train, crf)


def held_out_records(data: str, seed: int, split: str) -> Iterator[dict]:
    """k-means on features and both heads on a split that no setting was chosen on, for one seed."""
    config = recipe(data, HEADS[0], seed)
    train, test = load_training(config), load_evaluation(config, split)
    for record in baseline_records(config, train, test, (FEATURE_KMEANS,)):
        yield record | {"split": split}
    for head in HEADS:
        config, start = recipe(data, head, seed), time.perf_counter()
        scores = score_segmenter(fitted_segmenter(config), config, split=split)
        yield as_record(CAUSE[config.head.kind], config, scores["cluster"], time.perf_counter() - start) | {
            "split": split
        }


def recorded(data: str, seeds: int = 3) -> list[dict]:
    """The committed records of a data set's table; made anew with CAUSE_PROFILE=gpu where its images are at hand."""
    if os.environ.get("CAUSE_PROFILE") == "gpu":
        try:
            return [record for seed in range(seeds) for record in table_records(data, seed, crf=seed == 0)]
        except UserError as error:  # such as images or a backbone that are not here
            print(f"Shown from records, since {error}")
    return read_json(project_dir() / "data" / "records" / f"{data}.json")["records"]


def scenes_records(seed: int) -> dict[str, list[dict]]:
    """What the book's page on scenes shows of a seed: its `table` (the first with a CRF), and `held_out` images.

    Computed once for a commit: what the build made beforehand is what the page draws on. With changes that are not
    committed, it is computed each time.
    """
    path, commit = cache_dir() / "tables" / f"scenes-{seed}.json", provenance.commit()
    if path.exists() and (made := read_json(path)).get("commit") == commit and not commit.endswith(("+", "unknown")):
        return made["records"]
    found = {
        "table": list(table_records("scenes", seed, crf=seed == 0)),
        "held_out": list(held_out_records("scenes", seed, "test")),
    }
    write_json(path, {"commit": commit, "records": found})
    return found


def summary(records: list[dict]) -> pd.DataFrame:
    """Mean and spread (sample standard deviation) over seeds, a row a method, in the order met."""
    frame = pd.DataFrame(records)
    grouped = frame.groupby("method", sort=False)
    table = grouped[["miou", "pacc"]].agg(["mean", "std"])
    table["seeds"] = grouped["seed"].nunique()
    return table


def mean_score(records: list[dict], method: str, score: str = "miou") -> float:
    """A method's mean over seeds, in percent."""
    return float(np.mean([r[score] for r in records if r["method"] == method]))
