"""Experiments over many runs, one thing changed in each: ablations, and what the labels touch in step 3.

A study's records are written after each run; the same command goes on with the runs that are missing.
"""

from __future__ import annotations

import copy
import dataclasses
import html
import re
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats
import torch
import yaml

from cause_lite.backbones.feature_store import cached_features
from cause_lite.config import FitConfig
from cause_lite.datasets import Split
from cause_lite.lab.as_released import WARNING
from cause_lite.lab.comparison import CAUSE, as_record
from cause_lite.lab.label_flow import third_step
from cause_lite.lab.recipes import FOLDER, HEADS, ablations, recipe
from cause_lite.lab.runs import fitted_segmenter, load_training, score_segmenter
from cause_lite.loop import Session
from cause_lite.runtime.device import deterministic
from cause_lite.runtime.files import locked, project_dir, read_json, write_json
from cause_lite.runtime.randomness import seed_all
from cause_lite.segmenter import Segmenter

BASE = "recipe"
NO_BREAK = "\N{NO-BREAK SPACE}"
SHARES = (0.01, 0.1)
EPOCHS = (0, 1, 2, 10)  # of step 3, beside the recipe's own


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a study: what changes (`name`, said by `title`), on what, and how to do it."""

    name: str
    title: str
    config: FitConfig
    work: Callable[[], dict]

    @property
    def key(self) -> str:
        return f"{self.config.head.kind}/{self.name}/{self.config.seed}"


def records_path(study: str, data: str) -> Path:
    return project_dir() / "data" / "records" / f"{study}-{data}.json"


def read_study(study: str, data: str) -> dict[str, dict]:
    """The study's records by run, as far as they were made."""
    path = records_path(study, data)
    return read_json(path)["records"] if path.exists() else {}


def run_study(study: str, data: str, runs: Iterator[Run]) -> Iterator[tuple[str, dict]]:
    """Do the runs that have no record yet; yields each as it is done, after its record is on disk."""
    for run in runs:
        with locked(records_path(study, data).parent, wait=True):
            if run.key in read_study(study, data):
                continue
        record = run.work() | {"name": run.name, "title": run.title}
        with locked(records_path(study, data).parent, wait=True):
            write_json(records_path(study, data), {"records": read_study(study, data) | {run.key: record}})
        yield run.key, record


def ablation_runs(data: str, seeds: int, heads: tuple[str, ...] = HEADS) -> Iterator[Run]:
    """The recipe, and every ablation of it: all three steps anew in each."""
    for seed in range(seeds):
        for head in heads:
            changed = {BASE: ("The recipe", recipe(data, head))} | ablations(data, head)
            for name, (title, config) in changed.items():
                config = config.replace({"seed": seed})
                yield Run(name, title, config, lambda config=config: _whole_fit(config))


def _whole_fit(config: FitConfig) -> dict:
    start = time.perf_counter()
    return _scored(fitted_segmenter(config), config, start)


def _scored(segmenter: Segmenter, config: FitConfig, start: float) -> dict:
    """The record of a segmenter: its clusters' scores and the linear probe's mIoU; `start` is when the work began."""
    scores = score_segmenter(segmenter, config)
    record = as_record(CAUSE[config.head.kind], config, scores["cluster"], time.perf_counter() - start)
    return record | {"linear": scores["linear"].unmatched()["miou"]}


def label_runs(data: str, seeds: int, heads: tuple[str, ...] = HEADS) -> Iterator[Run]:
    """Step 3 on one and the same head: clean, and as released with true, permuted and few labels, by epochs."""
    for seed in range(seeds):
        for head in heads:
            clean = recipe(data, head, seed)
            leaks = clean.replace({"probe.label_flow": "as_released"})
            some = [("clean", "Clean: labels reach the linear probe alone", clean, None)]
            some += [("as-released", "As released, all labels", leaks, None)]
            some += [("permuted-images", "As released, labels of other images", leaks, permuted_images)]
            some += [("permuted-pixels", "As released, labels of other images and pixels", leaks, permuted_pixels)]
            for share in SHARES:
                some += [(f"share-{share:g}", f"As released, labels of {share:.0%} of the images", leaks, keep(share))]
            for epochs in EPOCHS:
                for kind, config in (("clean", clean), ("as-released", leaks)):
                    changed = config.replace({"probe.epochs": epochs})
                    some += [(f"{kind}-{epochs}-epochs", f"{kind}, {epochs} epochs of step 3", changed, None)]
            for name, title, config, relabel in some:
                yield Run(name, title, config, lambda config=config, relabel=relabel: _third_step(config, relabel))


def _third_step(config: FitConfig, relabel: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None) -> dict:
    """Step 3 anew on the head that steps 1 and 2 of the clean recipe made, which no label has touched."""
    base = fitted_segmenter(recipe(config.data.name, config.head.kind, config.seed))
    train, start = load_training(config), time.perf_counter()
    if relabel:
        train = train.with_labels(relabel(np.asarray(train.labels), np.random.default_rng(config.seed)))
    return _scored(with_third_step(base, train, config), config, start) | {"label_flow": config.probe.label_flow}


def with_third_step(base: Segmenter, train: Split, config: FitConfig) -> Segmenter:
    """`base` with step 3 of another configuration; `base` itself is left as it is."""
    features = cached_features(base.backbone, train.images, "Training features")
    head = copy.deepcopy(base.head)
    with torch.random.fork_rng(devices=[]), deterministic(base.codebook.device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=WARNING)  # the study is about it
        session = Session(config, seed_all(config.seed), base.codebook.device)
        clusters, linear, _ = third_step(config)(head, features, train, session)
    return Segmenter(head, base.codebook, clusters, linear, base.backbone, base.size, base.classes).eval()


def permuted_images(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image gets another's label map."""
    return labels[rng.permutation(len(labels))]


def permuted_pixels(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Label maps of other images, their pixels shuffled: what is left is how often each class occurs."""
    flat = permuted_images(labels, rng).reshape(len(labels), -1)
    return rng.permuted(flat, axis=1).reshape(labels.shape)


def keep(share: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """Only this share of the images (at least one) stays labelled."""

    def relabel(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        kept = rng.permutation(len(labels))[: max(1, round(share * len(labels)))]
        some = np.full_like(labels, -1)
        some[kept] = labels[kept]
        return some

    return relabel


def paired(records: dict[str, dict], base: str, score: str = "miou", seed: int = 0) -> pd.DataFrame:
    """Each run's score minus `base`'s at the same head and seed: mean, and a 95% bootstrap interval over seeds."""
    columns = ["method", "name", "title", "mean", "std", "difference", "low", "high", "seeds"]
    if not records:
        return pd.DataFrame(columns=columns)
    frame = pd.DataFrame(records.values())
    table = frame.pivot_table(index=["method", "name"], columns="seed", values=score)
    rows = []
    for (method, name), values in table.iterrows():
        difference = (values - table.loc[method, base]).dropna().to_numpy()
        low, high = difference.min(initial=np.inf), difference.max(initial=-np.inf)
        if len(difference) > 1 and low < high:
            found = scipy.stats.bootstrap(
                (difference,), np.mean, method="percentile", rng=np.random.default_rng(seed), n_resamples=9999
            )
            low, high = found.confidence_interval
        title = frame.loc[frame["name"] == name, "title"].iloc[0]
        rows.append((method, name, title, values.mean(), values.std(), difference.mean(), low, high, len(difference)))
    return pd.DataFrame(rows, columns=columns)


def decisions() -> list[dict]:
    """Where paper and release differ, what follows, and the ablations that measure it (recipes/decisions.yaml)."""
    return yaml.safe_load((FOLDER / "decisions.yaml").read_text(encoding="utf-8"))


def effect(study: pd.DataFrame, name: str) -> str:
    """`mean difference (95% interval)` in points of mIoU of one ablation, each head that was run; a dash: none was."""
    found = study[study["name"] == name]
    return "; ".join(with_interval(row) for row in found.itertuples()) or "-"


def with_interval(row: object) -> str:
    """A difference and its interval; with one seed there is none."""
    spread = f"({row.low:+.1f} to {row.high:+.1f})" if row.seeds > 1 else "(one seed)"
    return f"{row.difference:+.1f} " + spread.replace(" ", NO_BREAK)


def decisions_table(data: tuple[str, ...] = ("scenes", "camvid")) -> pd.DataFrame:
    """What differs, what each side does, and the measured effect in points of mIoU; cells are HTML."""
    ablated = {name: read_study("ablations", name) for name in data}
    studied = {name: paired(records, BASE) for name, records in ablated.items() if records}
    lines = []
    for entry in decisions():
        cell = {key: _as_html(str(entry[key])) for key in ("release", "ours", "paper")}
        parts = [
            f"{ablation}, {name}: {effect(study, ablation)}"
            for ablation in entry.get("ablations", ())
            for name, study in studied.items()
        ]
        found = "see <a href='audit.html'>An audit</a>" if "study" in entry else "<br>".join(parts) or "not measured"
        sides = f"<b>Paper:</b> {cell['paper']}<br><b>Release:</b> {cell['release']}"
        lines.append({"what": entry["what"], "paper and release": sides, "we": cell["ours"], "effect on mIoU": found})
    return pd.DataFrame(lines)


def _as_html(text: str) -> str:
    return re.sub("`(.+?)`", r"<code>\1</code>", html.escape(text))


def devices(records: dict[str, dict]) -> str:
    """Where the runs of each head ran."""
    ran = {(r["method"], r["environment"].get("accelerator", "a CPU")) for r in records.values()}
    return ", ".join(f"{method} on {device}" for method, device in sorted(ran))


def told(records: dict[str, dict], base: str) -> pd.DataFrame:
    """For each run its scores (mean ± spread), and the paired differences from `base` with intervals."""
    tables = {score: paired(records, base, score) for score in ("miou", "pacc")}
    frame = tables["miou"][["method", "title", "seeds"]].rename(columns={"method": "head", "title": "run"})
    for score, name in (("miou", "mIoU"), ("pacc", "pAcc")):
        runs = list(tables[score].itertuples())
        frame[f"{name}, %"] = [
            f"{r.mean:.1f}" + ("" if np.isnan(r.std) else f"{NO_BREAK}±{NO_BREAK}{r.std:.1f}") for r in runs
        ]
        frame[f"Δ {name}"] = ["" if r.name == base else with_interval(r) for r in runs]
    return frame[["head", "run", "mIoU, %", "Δ mIoU", "pAcc, %", "Δ pAcc", "seeds"]]
