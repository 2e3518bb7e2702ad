"""How wide a context features are to be averaged over: scores of the features alone, on validation images.

`ConvBackbone` has the setting. No clusters of CAUSE are fitted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import pandas as pd

from cause_lite.config import FitConfig
from cause_lite.lab import photographs
from cause_lite.lab.comparison import FEATURE_KMEANS, LOGISTIC, baseline_records
from cause_lite.lab.recipes import HEADS
from cause_lite.lab.runs import load_evaluation, load_training
from cause_lite.lab.studies import STUDY_SPLIT, Run, method_scores, read_study
from cause_lite.runtime.files import UserError

STUDY = "contexts"
CONTEXTS = (0, 1, 3)  # cells to each side
RUNGS = ("photos", photographs.BACKBONE)
METHODS = {"kmeans": FEATURE_KMEANS, "logistic": LOGISTIC}


def context_runs(data: str, seeds: int, heads: tuple[str, ...] = HEADS) -> Iterator[Run]:
    """Yield k-means for each seed, and one logistic regression, with each context.

    Raises UserError for a data set other than msrc and camvid.
    """
    if data not in photographs.CENTRES:
        raise UserError(f"study {STUDY}: no data set {data!r}; must be one of {', '.join(photographs.CENTRES)}")
    for rung, context, (method, title) in itertools.product(RUNGS, CONTEXTS, METHODS.items()):
        for seed in range(seeds if method == "kmeans" else 1):
            backbone = photographs.centred_on(f"{rung}?context={context}", data)
            config = photographs.configured(data, photographs.BASELINE_HEAD, seed).replace({"backbone": backbone})
            work = partial(validation_record, config, title)
            yield Run(f"{rung}/{context}/{method}", f"{context} cells to each side", config, work)


def validation_record(config: FitConfig, method: str) -> dict:
    """Return the record of a baseline on validation images."""
    train, val = load_training(config), load_evaluation(config, STUDY_SPLIT)
    return next(baseline_records(config, train, val, (method,)))


def summary(data: str) -> pd.DataFrame:
    """Return scores in percent by backbone, `rung`, and context, which are the index; see `studies.method_scores`."""
    frame = pd.DataFrame(read_study(STUDY, data).values())
    frame[["rung", "context", "method"]] = frame["name"].str.split("/", expand=True)
    return method_scores(frame.astype({"context": int}), ["rung", "context"])
