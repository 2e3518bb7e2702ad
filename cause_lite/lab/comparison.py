"""The tables of a data set: every method over seeds in one harness, as run records."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from cause_lite.backbones import Backbone, load_backbone
from cause_lite.backbones.feature_store import PatchStore, cached_features, module_outputs
from cause_lite.backbones.kmeans import patch_kmeans
from cause_lite.config import FitConfig
from cause_lite.datasets import Split
from cause_lite.datasets.images import flipped
from cause_lite.evaluate import evaluate
from cause_lite.lab import baselines
from cause_lite.lab.agreement import agreement
from cause_lite.lab.recipes import HEADS, evaluation_split, recipe
from cause_lite.lab.runs import (
    fit_origin,
    fitted_segmenter,
    label_maps,
    load_evaluation,
    load_training,
    score_segmenter,
)
from cause_lite.lab.statistics import family, image_deviation
from cause_lite.loop import Session
from cause_lite.metrics import ClusterMetrics
from cause_lite.runtime import provenance
from cause_lite.runtime.device import choose_device, seeded
from cause_lite.runtime.files import UserError, cache_dir, project_dir, read_json, write_json
from cause_lite.segmenter import Segmenter
from cause_lite.steps import fit_cluster_probe

COLOUR_KMEANS = "k-means on colour and height"
FEATURE_KMEANS = "k-means on features"
FULL_KMEANS = "full k-means on features"
LOGISTIC = "logistic regression on features"
SUPERVISED = "linear probe on features"
BASELINES = (COLOUR_KMEANS, FEATURE_KMEANS, FULL_KMEANS, LOGISTIC)
CAUSE = {"tr": "CAUSE-TR", "mlp": "CAUSE-MLP"}
SCORES = {"miou": "mIoU", "pacc": "pixel accuracy"}  # by their keys in records
SEEDS = 5  # of the tables; the fewest that a finding needs
REPEATED_SEED = 0  # its rows are made anew with the book, in the time of a build
HELD_OUT = "test"  # images that no setting of the recipe was chosen on
CAPTIONS = {
    ("scenes", "test"): "`scenes`, 16 classes: 200 test images, on which no setting was chosen",
    ("scenes", "val"): "`scenes`, 16 classes: 200 validation images, on which settings were chosen",
    ("camvid", "test"): "CamVid, 11 classes: 233 test frames",
}


def as_record(
    method: str,
    config: FitConfig,
    metrics: ClusterMetrics,
    seconds: float,
    supervised: bool = False,
    split: str | None = None,
) -> dict:
    """Return a run's record: scores in percent, how they were computed, where and when.

    Parameters
    ----------
    method
        The row of the table that the run belongs to.
    config, metrics, seconds
        The settings, what was counted, and how long the run took.
    supervised
        Whether labels trained the predictions, which then are classes and are not matched.
    split
        The images that were scored; those of the recipe when left out.
    """
    scores = metrics.unmatched() if supervised else metrics.compute()
    return {
        "method": method,
        "data": config.data.name,
        "split": split or evaluation_split(config.data.name),
        "seed": config.seed,
        "miou": round(scores["miou"], 4),
        "pacc": round(scores["pacc"], 4),
        "iou": [None if np.isnan(v) else round(100 * float(v), 3) for v in scores["iou"]],
        "confusion": metrics.confusion.tolist(),
    } | origin(config, seconds)


def origin(config: FitConfig, seconds: float) -> dict:
    """Return what every record says of how it came about: settings, commit, environment, date and seconds."""
    return {
        "seconds": round(seconds, 1),
        "config": config.model_dump(),
        "config_hash": provenance.config_hash(config),
        "commit": provenance.commit(),
        "environment": provenance.environment(),
        "date": provenance.now(),
    }


def table_splits(data: str) -> tuple[str, ...]:
    """Return the splits that a data set's table has scores of, the held-out images first."""
    return tuple(dict.fromkeys((HELD_OUT, evaluation_split(data))))


def baseline_records(
    config: FitConfig, train: Split, test: Split, wanted: tuple[str, ...] = BASELINES
) -> Iterator[dict]:
    """Yield the record of each wanted baseline, and of what labels give on the same features, for one seed."""
    backbone, classes = load_backbone(config.backbone).to(choose_device("auto")), len(test.classes)
    features = cached_features(backbone, train.images, "Training features")
    seen, truth, seed = _views(backbone, test), label_maps(test), config.seed
    methods = {
        COLOUR_KMEANS: lambda: baselines.score_colour_kmeans(train, test, seed),
        FEATURE_KMEANS: lambda: baselines.score_feature_kmeans(features, seen, truth, classes, seed),
        FULL_KMEANS: lambda: baselines.score_full_kmeans(features, seen, truth, classes, seed),
        SUPERVISED: lambda: baselines.score_supervised(features, label_maps(train), seen, truth, classes, config),
        LOGISTIC: lambda: baselines.score_logistic(features, label_maps(train), seen.patches, truth, classes, seed),
    }
    for method in wanted:
        start = time.perf_counter()
        metrics = methods[method]()
        supervised = method in (SUPERVISED, LOGISTIC)
        yield as_record(method, config, metrics, time.perf_counter() - start, supervised, test.split)


def training_features(segmenter: Segmenter, train: Split) -> PatchStore:
    """Return the features (N, P, D) of a segmenter's backbone for the training images."""
    return cached_features(_backbone_of(segmenter), train.images, "Training features")


def _backbone_of(segmenter: Segmenter) -> Backbone:
    if segmenter.backbone is None:
        raise UserError("the segmenter has no backbone; set `segmenter.backbone` to a loaded one")
    return segmenter.backbone


def _views(backbone: Backbone, test: Split) -> baselines.TestFeatures:
    return baselines.TestFeatures(
        cached_features(backbone, test.images, f"Features of {test.name}/{test.split}"),
        cached_features(backbone, flipped(test.images), "Features of the mirror images"),
    )


def cause_records(config: FitConfig, train: Split, split: str, crf: bool) -> Iterator[dict]:
    """Yield the records of one head and seed on one split.

    They are its clusters, and on held-out images its linear probe, a CRF if asked for, and what else it can be read by.
    """
    start, name = time.perf_counter(), CAUSE[config.head.kind]
    segmenter, test = fitted_segmenter(config), load_evaluation(config, split)
    scores = score_segmenter(segmenter, config, crf, split)
    seconds = time.perf_counter() - start
    spread = {"image_std": round(image_deviation(image_confusions(segmenter, test)), 4)}
    yield as_record(name, config, scores["cluster"], seconds, split=split) | spread | fit_origin(config)
    if split != HELD_OUT:
        return
    yield as_record(f"{name}, linear probe", config, scores["linear"], seconds, True, split)
    if crf:
        yield as_record(f"{name}, CRF", config, scores["crf"], seconds, split=split)
    yield from _other_probes(segmenter, config, train, test)


def image_confusions(segmenter: Segmenter, test: Split) -> np.ndarray:
    """Return clusters by classes of each image of a split, (N, K, C), in pixels."""
    views, labels, classes = _views(_backbone_of(segmenter), test), label_maps(test), len(test.classes)
    parts = [slice(number, number + 1) for number in range(len(test))]
    return np.stack(
        [
            evaluate(segmenter, views.plain[part], views.mirrored[part], labels[part], classes)["cluster"]
            .confusion.cpu()
            .numpy()
            for part in parts
        ]
    )


def _other_probes(segmenter: Segmenter, config: FitConfig, train: Split, test: Split) -> Iterator[dict]:
    """Yield what else can be read off the same head: a probe trained by cosine, k-means, a logistic regression."""
    name, split, classes = CAUSE[config.head.kind], test.split, len(train.classes)
    views, truth = _views(_backbone_of(segmenter), test), label_maps(test)
    features = training_features(segmenter, train)
    by_cosine = config.replace({"probe.objective": "cosine"})
    device = segmenter.codebook.device
    with tempfile.TemporaryDirectory() as folder:
        outputs = module_outputs(segmenter.head, features, Path(folder))
        start = time.perf_counter()
        with seeded(config.seed) as generator:
            session = Session(by_cosine, generator, device)
            segmenter.cluster_probe = fit_cluster_probe(outputs, classes, session)[0]
        metrics = score_segmenter(segmenter, config, split=split)["cluster"]
        method = f"{name}, probe by cosine"
        yield as_record(method, by_cosine, metrics, time.perf_counter() - start, split=split)
        start = time.perf_counter()
        segmenter.cluster_probe.centres.data = patch_kmeans(outputs, classes, config.seed).to(device)
        metrics = score_segmenter(segmenter, config, split=split)["cluster"]
        method = f"{name}, k-means on the head"
        yield as_record(method, config, metrics, time.perf_counter() - start, split=split)
        start = time.perf_counter()

        def patches(part: slice) -> Tensor:
            seen = (store[part].to(device) for store in (views.plain, views.mirrored))
            return segmenter.segment_features(*seen).permute(0, 2, 3, 1).cpu()

        metrics = baselines.score_logistic(outputs, label_maps(train), patches, truth, classes, config.seed)
        method = f"{name}, logistic regression"
        yield as_record(method, config, metrics, time.perf_counter() - start, True, split)


@dataclass(frozen=True)
class Part:
    """What one process computes of a data set's tables for one seed: a head on a split, or its baselines."""

    config: FitConfig
    split: str
    head: str | None
    crf: bool = False


def table_parts(data: str, seed: int, crf: bool = False, changes: Mapping[str, object] | None = None) -> list[Part]:
    """Return the parts of a data set's tables for one seed, with `changes` to the recipe's settings.

    Held-out images are scored in full; on other images only k-means and the heads' clusters are.
    """
    parts = []
    for split in table_splits(data):
        parts.append(Part(recipe(data, HEADS[0], seed, changes=changes), split, None))
        for head in HEADS:
            parts.append(Part(recipe(data, head, seed, changes=changes), split, head, crf and split == HELD_OUT))
    return parts


def part_records(part: Part) -> list[dict]:
    """Return the records of a part of the tables."""
    train = load_training(part.config)
    if part.head:
        return list(cause_records(part.config, train, part.split, part.crf))
    wanted = BASELINES if part.split == HELD_OUT else (COLOUR_KMEANS, FEATURE_KMEANS)
    return list(baseline_records(part.config, train, load_evaluation(part.config, part.split), wanted))


def run_parts(parts: list[Part]) -> Iterator[list[dict]]:
    """Yield the records of each part, one after the other in this process."""
    return map(part_records, parts)


def table_records(
    data: str, seed: int, crf: bool = False, changes: Mapping[str, object] | None = None
) -> Iterator[dict]:
    """Return the record of every row of a data set's tables, for one seed; the rest as in `table_parts`."""
    return itertools.chain.from_iterable(run_parts(table_parts(data, seed, crf, changes)))


def recorded(data: str, seeds: int = SEEDS) -> list[dict]:
    """Return the committed records of a data set's tables.

    With CAUSE_PROFILE=gpu they are made anew where the images are on this machine.
    """
    if os.environ.get("CAUSE_PROFILE") == "gpu":
        try:
            return [record for seed in range(seeds) for record in table_records(data, seed, crf=True)]
        except UserError as error:  # such as images or a backbone that are not here
            print(f"Shown from records, since {error}")
    return read_json(project_dir() / "data" / "records" / f"{data}.json")["records"]


def seed_records(
    data: str,
    seed: int,
    crf: bool = True,
    run: Callable[[list[Part]], Iterable[list[dict]]] = run_parts,
) -> list[dict]:
    """Return the records of every row of a data set's tables for one seed, held-out images first.

    They are computed once for a commit and kept in the cache folder. With changes that are not committed, they are
    computed each time. `run` returns the records of each part, in order; it may use many processes.
    """
    name = f"{data}-{seed}{'' if crf else '-without-crf'}.json"
    path, commit = cache_dir() / "tables" / name, provenance.commit()
    if path.exists() and (stored := read_json(path)).get("commit") == commit and not commit.endswith(("+", "unknown")):
        return stored["records"]
    records = list(itertools.chain.from_iterable(run(table_parts(data, seed, crf))))
    write_json(path, {"commit": commit, "records": records})
    return records


def repeated(records: list[dict], again: list[dict]) -> pd.DataFrame:
    """Return the scores of one seed in two runs, as committed and as made again, a row a method of the second."""
    frames = [pd.DataFrame(some).drop_duplicates("method").set_index("method") for some in (records, again)]
    rows = {}
    for method in frames[1].index.intersection(frames[0].index):
        pairs = [(frame.loc[method, "miou"], frame.loc[method, "pacc"]) for frame in frames]
        rows[method] = [score for pair in zip(*pairs, strict=True) for score in pair]
    columns = pd.MultiIndex.from_product([["mIoU, %", "pixel accuracy, %"], ["record", "this build"]])
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def of_split(records: list[dict], split: str) -> list[dict]:
    """Return the records of one split."""
    return [record for record in records if record["split"] == split]


def summary(records: list[dict]) -> pd.DataFrame:
    """Return mean and spread (sample standard deviation) over seeds, a row a method, in the order met."""
    frame = pd.DataFrame(records)
    grouped = frame.groupby("method", sort=False)
    table = grouped[["miou", "pacc"]].agg(["mean", "std"])
    table["seeds"] = grouped["seed"].nunique()
    return table


def captioned_tables(records: list[dict]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield caption and summary of each split, held-out images first; rows of fewer seeds stand in their own table."""
    splits = sorted({record["split"] for record in records}, key=lambda split: split != HELD_OUT)
    for split in splits:
        some = of_split(records, split)
        table, caption = summary(some), CAPTIONS[some[0]["data"], split]
        for seeds in sorted(table["seeds"].unique(), reverse=True):
            yield f"{caption} ({seeds} seed{'s' if seeds > 1 else ''})", table[table["seeds"] == seeds]


def agreement_summary(records: list[dict]) -> pd.DataFrame:
    """Return mean many-to-one accuracy (percent), NMI and adjusted Rand index (0..1) over seeds, a row a method."""
    found = pd.DataFrame([agreement(np.array(record["confusion"])) for record in records])
    return found.groupby([record["method"] for record in records], sort=False).mean()


def gains(
    records: list[dict], bases: tuple[str, ...], methods: tuple[str, ...] = (*CAUSE.values(),), score: str = "miou"
) -> pd.DataFrame:
    """Return the paired differences of methods from bases in points, a row a pair, as `statistics.family` does.

    Columns `method` and `base` name the pair.
    """
    by_method = pd.DataFrame(records).pivot_table(index="seed", columns="method", values=score)
    pairs = itertools.product(methods, bases)
    differences: dict[tuple[str, ...], np.ndarray] = {
        (method, base): (by_method[method] - by_method[base]).dropna().to_numpy() for method, base in pairs
    }
    return family(differences, ("method", "base"))


def mean_score(records: list[dict], method: str, score: str = "miou") -> float:
    """Return a method's mean over seeds, in percent."""
    return float(np.mean([record[score] for record in records if record["method"] == method]))
