"""Experiments over many runs, one thing changed in each: ablations, and what the labels touch.

A study's records are written after each run; the same command goes on with the runs that are missing.
"""

from __future__ import annotations

import copy
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from cause_lite.checkpoints.config_records import read_config
from cause_lite.config import FitConfig
from cause_lite.datasets import Split
from cause_lite.lab.as_released import WARNING
from cause_lite.lab.comparison import CAUSE, as_record, training_features
from cause_lite.lab.label_flow import third_step
from cause_lite.lab.recipes import HEADS, ablations, recipe
from cause_lite.lab.recipes.reading import flattened
from cause_lite.lab.runs import fit_origin, fitted_segmenter, folder_clusters, load_training, score_segmenter
from cause_lite.lab.statistics import UNKNOWN_CPU, compared, device_of
from cause_lite.loop import Session
from cause_lite.runtime.device import deterministic, seed_all, state_kept, this_device
from cause_lite.runtime.files import UserError, locked, project_dir, read_json, write_json
from cause_lite.segmenter import Segmenter

RECIPE, CLEAN, DETACHED = "recipe", "clean", "detached"
SHARES = (0.01, 0.1)  # of the images that keep their labels
STUDY_SPLIT = "val"  # what studies score: the test images are for the final recipe
EPOCHS = (0, 1, 2, 10)  # of step 3, beside the recipe's own
TIGHT_CLIP = 0.1  # the release's for the MLP head on COCO-Stuff-27; it bites at every step
Relabel = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes
    ----------
    name, title
        What changes, as a key and in words.
    config
        The settings of the run.
    work
        Does the run and returns its record.
    by_device
        Whether another kind of processor is another run, since it gives other bits.
    """

    name: str
    title: str
    config: FitConfig
    work: Callable[[], dict]
    by_device: bool = False

    @property
    def key(self) -> str:
        """Return head, name and seed, and the device where it counts."""
        device = this_device() if self.by_device else UNKNOWN_CPU
        return run_key(self.config.head.kind, self.name, self.config.seed, device)


def run_key(head: str, name: str, seed: int, device: str) -> str:
    """Return the key of a run's record; a device that is unknown, as in early records, is left out."""
    kind = "" if device == UNKNOWN_CPU else "/" + "-".join(re.findall("[a-z0-9]+", device.lower()))
    return f"{head}/{name}/{seed}{kind}"


def records_path(study: str, data: str) -> Path:
    """Return the file that holds the records of a study on a data set."""
    return project_dir() / "data" / "records" / f"{study}-{data}.json"


def read_study(study: str, data: str) -> dict[str, dict]:
    """Return the study's records by run, as far as they were made."""
    path = records_path(study, data)
    return read_json(path)["records"] if path.exists() else {}


def method_scores(frame: pd.DataFrame, index: str | list[str]) -> pd.DataFrame:
    """Return means over seeds, a row a value of the columns `index`, and `_std`, the sample standard deviations.

    `frame` has a run a row, with `method`, `miou` and `pacc`; the columns are named as in `kmeans_miou_std`.
    """
    scores = frame.pivot_table(
        index=index, columns="method", values=["miou", "pacc"], aggfunc=["mean", "std"], dropna=False
    )
    scores.columns = [f"{method}_{score}{'_std' if kind == 'std' else ''}" for kind, score, method in scores.columns]
    return scores


def run_study(study: str, data: str, runs: Iterator[Run]) -> Iterator[tuple[str, dict]]:
    """Do the runs that have no record yet; yield each as it is done, after its record is on disk.

    Raises UserError when the record of a run has other settings than the run has now.
    """
    for run in runs:
        with locked(records_path(study, data).parent, wait=True):
            found = read_study(study, data).get(run.key)
        if found is not None:
            if changed := changed_settings(found, run.config):
                raise UserError(
                    f"{records_path(study, data)}: {run.key} was made with other settings ({'; '.join(changed)}); "
                    "take that record out to make it anew"
                )
            continue
        record = run.work() | {"name": run.name, "title": run.title}
        with locked(records_path(study, data).parent, wait=True):
            write_json(records_path(study, data), {"records": read_study(study, data) | {run.key: record}})
        yield run.key, record


def changed_settings(record: dict, config: FitConfig) -> list[str]:
    """Return in words which settings of a record differ from those that its run has now."""
    then, now = (flattened(settings.model_dump()) for settings in (read_config(record["config"]), config))
    # How many clusters a folder has; early records name a number for labelled data too, where it says nothing.
    ignored = set() if folder_clusters(config) else {"data.clusters"}
    return [
        f"{name} was {then.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(then.keys() | now.keys())
        if name not in ignored and then.get(name) != now.get(name)
    ]


def ablation_runs(data: str, seeds: int, heads: tuple[str, ...] = HEADS) -> Iterator[Run]:
    """Yield the recipe and every ablation of it, all three steps anew in each."""
    for seed in range(seeds):
        for head in heads:
            changed = {RECIPE: ("The recipe", recipe(data, head))} | ablations(data, head)
            for name, (title, config) in changed.items():
                config = config.replace({"seed": seed})
                yield Run(name, title, config, partial(whole_fit, config), by_device=True)


def whole_fit(config: FitConfig) -> dict:
    """Return the record of a fit of all three steps, scored on validation images; a fit in the cache is taken."""
    start = time.perf_counter()
    return _scored(fitted_segmenter(config), config, start) | fit_origin(config)


def _scored(segmenter: Segmenter, config: FitConfig, start: float) -> dict:
    """Return the record of a segmenter: its clusters' scores and the linear probe's mIoU, in percent.

    `start` is the value of time.perf_counter when the work began.
    """
    scores = score_segmenter(segmenter, config, split=STUDY_SPLIT)
    seconds = time.perf_counter() - start
    record = as_record(CAUSE[config.head.kind], config, scores["cluster"], seconds, split=STUDY_SPLIT)
    return record | {"linear": scores["linear"].unmatched()["miou"], "device": this_device()}


def label_runs(data: str, seeds: int, heads: tuple[str, ...] = HEADS) -> Iterator[Run]:
    """Yield step 3 on one and the same head in each label flow, and both steps with the labels in step 2's clip."""
    for seed in range(seeds):
        for head in heads:
            for name, title, config, relabel in _label_arms(recipe(data, head, seed)):
                yield Run(name, title, config, partial(_third_step, config, relabel), by_device=True)


def _label_arms(clean: FitConfig) -> Iterator[tuple[str, str, FitConfig, Relabel | None]]:
    """Yield name, title, settings and change of the labels of each arm for one head and seed."""
    released = clean.replace({"probe.label_flow": "as_released"})
    in_clip = {"head.clip_with_labels": True}
    yield CLEAN, "Clean: labels reach the linear probe alone", clean, None
    yield DETACHED, "As released, detached", clean.replace({"probe.label_flow": "detached"}), None
    yield "as-released", "As released, all labels", released, None
    yield "clip-with-labels", "Clean, with labels in step 2's clip", clean.replace(in_clip), None
    yield "both-as-released", "As released, with labels in step 2's clip", released.replace(in_clip), None
    tight = clean.replace({"head.clip": TIGHT_CLIP})
    yield "tight-clip", f"Clean, step 2's clip at {TIGHT_CLIP}", tight, None
    yield "tight-clip-with-labels", f"Clean, with labels in step 2's clip at {TIGHT_CLIP}", tight.replace(in_clip), None
    yield "permuted-images", "As released, labels of other images", released, permuted_images
    yield "permuted-pixels", "As released, labels of other images and pixels", released, permuted_pixels
    for share in SHARES:
        yield f"share-{share:g}", f"As released, labels of {share:.0%} of the images", released, keep(share)
    for epochs in EPOCHS:
        for flow, config in (("clean", clean), ("as-released", released)):
            changed = config.replace({"probe.epochs": epochs})
            yield f"{flow}-{epochs}-epochs", f"{flow}, {epochs} epochs of step 3", changed, None


def label_base(name: str, recorded: set[str]) -> str:
    """Return the arm of the label study that an arm is compared with, given the arms that were run.

    The detached arm differs from those as released in the label flow alone. Where it was not run, the clean arm, which
    differs in the loop too, has to do.
    """
    if name == "tight-clip-with-labels":
        return "tight-clip"
    if name in (CLEAN, DETACHED, "clip-with-labels", "tight-clip"):
        return CLEAN
    return DETACHED if DETACHED in recorded else CLEAN


def effects(study: str, data: str, score: str = "miou") -> pd.DataFrame:
    """Return what each arm of a study changes, as `statistics.compared` does, from its records.

    The sweep over epochs is left out: it is another question, and would count in the correction.
    """
    records = {key: record for key, record in read_study(study, data).items() if not record["name"].endswith("-epochs")}
    return compared(records, label_base if study == "labels" else RECIPE, score)


def epoch_records(data: str) -> dict[str, dict]:
    """Return the label study's records of the sweep over epochs, and of the arms beside it on the same device."""
    records = read_study("labels", data)
    swept = {(r["method"], device_of(r)) for r in records.values() if r["name"].endswith("-epochs")}
    beside = (CLEAN, "as-released")
    return {
        key: record
        for key, record in records.items()
        if (record["method"], device_of(record)) in swept
        and (record["name"].endswith("-epochs") or record["name"] in beside)
    }


def between_devices(records: dict[str, dict]) -> np.ndarray:
    """Return how far mIoU moved, in points, between kinds of CPU that the same run was made on, one number a run.

    Records that name no CPU are left out.
    """
    frame = pd.DataFrame([record for record in records.values() if "AVX" in device_of(record)])
    scores = frame.groupby(["method", "name", "seed"])["miou"]
    return (scores.max() - scores.min())[scores.count() > 1].to_numpy()


def _third_step(config: FitConfig, relabel: Relabel | None) -> dict:
    """Do step 3 anew on the head that steps 1 and 2 made by the settings of step 2, and return its record."""
    clean = recipe(config.data.name, config.head.kind, config.seed)
    of_head = clean.replace({f"head.{name}": getattr(config.head, name) for name in _HEAD_CHANGES})
    base = fitted_segmenter(of_head)
    train, start = load_training(config), time.perf_counter()
    if relabel:
        train = train.with_labels(relabel(np.asarray(train.labels), np.random.default_rng(config.seed)))
    record = _scored(with_third_step(base, train, config), config, start)
    return record | {"label_flow": config.probe.label_flow} | fit_origin(of_head)


_HEAD_CHANGES = ("clip", "clip_with_labels")  # what the arms of the label study change in step 2


def with_third_step(base: Segmenter, train: Split, config: FitConfig) -> Segmenter:
    """Return `base` with step 3 of another configuration; `base` itself is left as it is."""
    features = training_features(base, train)
    head = copy.deepcopy(base.head)
    with state_kept(), deterministic(base.codebook.device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=WARNING)  # the study is about it
        session = Session(config, seed_all(config.seed), base.codebook.device)
        clusters, linear, _ = third_step(config)(head, features, train, session)
    return Segmenter(head, base.codebook, clusters, linear, base.backbone, base.size, base.classes).eval()


def permuted_images(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return label maps (N, H, W) in a random order; on average one image of all keeps its own."""
    return labels[rng.permutation(len(labels))]


def permuted_pixels(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return label maps (N, H, W) of other images with their pixels shuffled: only the class frequencies are left."""
    flat = permuted_images(labels, rng).reshape(len(labels), -1)
    return rng.permuted(flat, axis=1).reshape(labels.shape)


def keep(share: float) -> Relabel:
    """Return a function that keeps the labels of a share (0..1) of the images, at least one; the rest become -1."""

    def relabel(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        kept = rng.permutation(len(labels))[: max(1, round(share * len(labels)))]
        some = np.full_like(labels, -1)
        some[kept] = labels[kept]
        return some

    return relabel
