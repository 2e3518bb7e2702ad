"""What the seed of a backbone's pre-training adds to a score: short pre-trainings, several fits on each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd

from cause_lite.backbones.loading import load_backbone, pretrained_dir
from cause_lite.backbones.pretrain import pretrain_and_export, pretraining_recipe
from cause_lite.config import FitConfig
from cause_lite.lab.comparison import FEATURE_KMEANS, HELD_OUT, baseline_records, cause_records
from cause_lite.lab.photographs import BASELINE_HEAD
from cause_lite.lab.recipes import HEADS, recipe
from cause_lite.lab.runs import load_evaluation, load_training
from cause_lite.lab.studies import Run
from cause_lite.runtime.files import UserError, read_json
from cause_lite.runtime.provenance import config_hash

STUDY = "backbones"
BACKBONES = 3  # seeds 0, 1, 2 of the pre-training
STEPS = 600  # of each; the backbone that ships took more


def backbone_runs(data: str, seeds: int, heads: tuple[str, ...] = HEADS) -> Iterator[Run]:
    """Yield k-means and the clean heads on each backbone, one run a seed of the fit.

    Raises
    ------
    UserError
        For a data set other than `scenes`.
    """
    if data != "scenes":
        raise UserError(f"study {STUDY}: no data set {data!r}; must be scenes, whose backbones are quick to make")
    for number in range(BACKBONES):
        title = f"pre-trained with seed {number}"
        for seed, head in itertools.product(range(seeds), heads):
            config = recipe(data, head, seed, changes={"backbone": name_of(number)})
            yield Run(f"backbone-{number}", title, config, partial(_clean, config, number))
            if head == BASELINE_HEAD:
                yield Run(f"kmeans-{number}", title, config, partial(_kmeans, config, number))


def name_of(number: int) -> str:
    """Return the name of the short backbone of a seed, under which `load_backbone` finds it."""
    return f"scenes-{STEPS}-steps-seed-{number}"


def made(number: int) -> str:
    """Pre-train the backbone of a seed unless it lies there; return its fingerprint.

    Raises UserError when what lies there has other settings.
    """
    folder, config = pretrained_dir(name_of(number)), pretraining_recipe("scenes", number, STEPS)
    if not (folder / "vit.json").exists():
        pretrain_and_export(config, folder)
    if read_json(folder / "vit.json").get("config_hash") != config_hash(config):
        raise UserError(f"{folder}: was made with other settings; remove it to pre-train this backbone anew")
    return load_backbone(name_of(number)).fingerprint()


def _clean(config: FitConfig, number: int) -> dict:
    fingerprint = made(number)
    return next(cause_records(config, load_training(config), HELD_OUT, crf=False)) | {"backbone": fingerprint}


def _kmeans(config: FitConfig, number: int) -> dict:
    fingerprint = made(number)
    train, test = load_training(config), load_evaluation(config, HELD_OUT)
    return next(baseline_records(config, train, test, (FEATURE_KMEANS,))) | {"backbone": fingerprint}


def deviations(records: dict[str, dict], score: str = "miou") -> pd.DataFrame:
    """Return how far a score moves by the seed of the fit and by that of the backbone, a row a method.

    A one-way analysis of variance with random effects (Searle, Casella and McCulloch, 1992): with n fits on each of b
    backbones, `fit` is the root of the mean square within backbones, and `backbone` the root of (mean square between
    backbones - mean square within) / n, or 0 where that is negative. Standard deviations, in points.

    Parameters
    ----------
    records
        Of the study, by key; each backbone with the same number of fits.
    score
        Which score: miou or pacc.
    """
    frame = pd.DataFrame(records.values())
    rows = []
    for method, part in frame.groupby("method"):
        groups = [group[score].to_numpy() for _, group in part.groupby("name")]
        within = np.mean([group.var(ddof=1) for group in groups])
        count = len(groups[0])
        between = count * np.var([group.mean() for group in groups], ddof=1)
        rows.append(
            {
                "method": method,
                "mean": part[score].mean(),
                "fit": np.sqrt(within),
                "backbone": np.sqrt(max(0.0, (between - within) / count)),
                "backbones": len(groups),
                "fits": count,
            }
        )
    return pd.DataFrame(rows)
