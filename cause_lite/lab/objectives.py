"""What a backbone of photographs should learn from: short pre-trainings with other objectives and crops.

Each trial but the last sees as many pixels as the others, in as many steps, from the same seed. It is scored on
validation photographs by k-means and by a logistic regression on its features, each cell by itself (see `contexts`);
no clusters of CAUSE are fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pandas as pd

from cause_lite.backbones.loading import pretrained_dir
from cause_lite.backbones.photo_objectives import Distilled, DistilledWholes, Regions, Wholes
from cause_lite.backbones.pretrain import card_of
from cause_lite.backbones.pretrain_photos import PhotoPretraining, PhotosConfig, pretrain_and_export_photos
from cause_lite.config import FitConfig
from cause_lite.lab.comparison import FEATURE_KMEANS, LOGISTIC, baseline_records
from cause_lite.lab.photographs import BASELINE_HEAD, CENTRES, configured
from cause_lite.lab.recipes import HEADS
from cause_lite.lab.runs import load_evaluation, load_training
from cause_lite.lab.studies import STUDY_SPLIT, Run, method_scores, read_study
from cause_lite.runtime.files import UserError

STUDY = "objectives"
SIDE, COUNT = 64, 128  # of a view in pixels; photographs of a step
LENGTH = PhotosConfig(  # of each trial but `longer`: minutes on one core
    steps=240, cooldown=60, joined=(3, 4), context=0, views=((0, SIDE, COUNT),)
)
FIRST = "contrast"  # the objective of the backbone that ships
LONGER = "longer"  # the first trial, with as many steps at a constant rate as what ships took with such views
METHODS = {"kmeans": FEATURE_KMEANS, "logistic": LOGISTIC}


@dataclass(frozen=True)
class Trial:
    """One way to learn: the objective, and what it changes in the recipe, such as `views`."""

    title: str
    kind: type[PhotoPretraining] = PhotoPretraining
    changes: dict[str, Any] = field(default_factory=dict)


def with_crops(side: int) -> dict[str, tuple]:
    """Return the changes for views of another side, in a batch of about as many pixels."""
    return {"views": ((0, side, round(COUNT * (SIDE / side) ** 2)),)}


TRIALS = {
    FIRST: Trial(PhotoPretraining.objective),
    **{f"{kind.__name__.lower()}": Trial(kind.objective, kind) for kind in (Wholes, Regions, Distilled)},
    "mixed": Trial(DistilledWholes.objective, DistilledWholes),
    **{f"crops-{side}": Trial(f"the first, views of {side} pixels", changes=with_crops(side)) for side in (48, 96)},
    LONGER: Trial("the first, longer", changes={"steps": 2900, "cooldown": 400}),
}


def objective_runs(data: str, seeds: int, heads: tuple[str, ...] = HEADS) -> Iterator[Run]:
    """Yield k-means for each seed, and one logistic regression, on each trial's backbone; see `feature_runs`."""
    backbones = {trial: (one.title, {"name": name_of(trial)}) for trial, one in TRIALS.items()}
    return feature_runs(STUDY, data, seeds, backbones, _scored)


def feature_runs(
    study: str,
    data: str,
    seeds: int,
    backbones: dict[str, tuple[str, dict]],
    work: Callable[[FitConfig, str, str], dict],
) -> Iterator[Run]:
    """Yield k-means for each seed, and one logistic regression, on the features of each backbone.

    Parameters
    ----------
    study, data, seeds
        The name of the study; `msrc` or `camvid`; how many seeds k-means has.
    backbones
        A title, and the backbone's settings before it is centred, by what runs are called.
    work
        Takes the settings, the key in `backbones` and a method of `METHODS`; returns the record.

    Raises
    ------
    UserError
        For a data set other than msrc and camvid.
    """
    if data not in CENTRES:
        raise UserError(f"study {study}: no data set {data!r}; must be one of {', '.join(CENTRES)}")
    for key, (title, backbone) in backbones.items():
        for method, count in (("kmeans", seeds), ("logistic", 1)):
            for seed in range(count):
                config = configured(data, BASELINE_HEAD, seed).replace({"backbone": backbone | CENTRES[data]})
                yield Run(f"{key}/{method}", title, config, partial(work, config, key, METHODS[method]))


def validation_record(config: FitConfig, method: str) -> dict:
    """Return the record of a baseline on validation images."""
    train, val = load_training(config), load_evaluation(config, STUDY_SPLIT)
    return next(baseline_records(config, train, val, (method,)))


def name_of(trial: str) -> str:
    """Return the name under which `load_backbone` finds a trial's backbone."""
    return f"photos-trial-{trial}"


def made(trial: str) -> dict:
    """Return the card of a trial's backbone, pre-trained first unless it lies in the cache; cut off, it goes on.

    Raises UserError when what lies there has other settings.
    """
    folder, one = pretrained_dir(name_of(trial)), TRIALS[trial]
    config = replace(LENGTH, **one.changes)
    if not (folder / "network.json").exists():
        pretrain_and_export_photos(config, folder, "cpu", one.kind)
    return card_of(folder / "network.json", config, objective=one.kind.objective)


def summary(data: str) -> pd.DataFrame:
    """Return the trials of a data set, a row each: `title`, `minutes` of pre-training, and scores in percent.

    The scores are `kmeans_miou` and `kmeans_pacc` (means over seeds, with `_std`, the sample standard deviation),
    `logistic_miou` and `logistic_pacc`.
    """
    frame = pd.DataFrame(read_study(STUDY, data).values())
    frame[["trial", "method"]] = frame["name"].str.split("/", n=1, expand=True)
    scores = method_scores(frame, "trial")
    order = [trial for trial in TRIALS if trial in scores.index]
    minutes = frame.groupby("trial")["pretraining"].first().map(lambda trained: trained["seconds"] / 60)
    return scores.assign(title=[TRIALS[trial].title for trial in scores.index], minutes=minutes).loc[order]


def _scored(config: FitConfig, trial: str, method: str) -> dict:
    card = made(trial)
    trained = {key: card[key] for key in ("config", "seconds", "sha256")}
    return validation_record(config, method) | {"pretraining": trained | {"photographs": card["photographs"]["count"]}}
