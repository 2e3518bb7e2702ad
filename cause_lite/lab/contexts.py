"""How wide a context features are to be averaged over: scores of the features alone, on validation images.

`ConvBackbone` has the setting. No clusters of CAUSE are fitted.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pandas as pd

from cause_lite.config import FitConfig
from cause_lite.lab import photographs
from cause_lite.lab.comparison import baseline_records
from cause_lite.lab.objectives import METHODS
from cause_lite.lab.photographs import BASELINE_HEAD, CENTRES, configured
from cause_lite.lab.recipes import HEADS
from cause_lite.lab.runs import load_evaluation, load_training
from cause_lite.lab.studies import STUDY_SPLIT, Run, method_scores, read_study
from cause_lite.runtime.files import UserError

STUDY = "contexts"
CONTEXTS = (0, 1, 3)  # cells to each side
RUNGS = ("photos", photographs.BACKBONE)


def context_runs(data: str, seeds: int, heads: tuple[str, ...] = HEADS) -> Iterator[Run]:
    """Yield k-means for each seed and one logistic regression, with each context on each backbone.

    Raises
    ------
    UserError
        For a data set other than msrc and camvid.
    """
    if data not in CENTRES:
        raise UserError(f"study {STUDY}: no data set {data!r}; must be one of {', '.join(CENTRES)}")
    for rung in RUNGS:
        for context in CONTEXTS:
            for method, count in (("kmeans", seeds), ("logistic", 1)):
                for seed in range(count):
                    config = with_context(configured(data, BASELINE_HEAD, seed, rung), context)
                    work = partial(_scored, config, METHODS[method])
                    yield Run(f"{rung}/{context}/{method}", f"{context} cells to each side", config, work)


def with_context(config: FitConfig, context: int) -> FitConfig:
    """Return the settings with features that are averaged over so many cells to each side."""
    model, _, settings = config.backbone.partition("?")
    return config.replace({"backbone": f"{model}?context={context}&{settings}"})


def summary(data: str) -> pd.DataFrame:
    """Return scores in percent by backbone, `rung`, and context, which are the index; see `studies.method_scores`."""
    frame = pd.DataFrame(read_study(STUDY, data).values())
    frame[["rung", "context", "method"]] = frame["name"].str.split("/", expand=True)
    return method_scores(frame.astype({"context": int}), ["rung", "context"])


def _scored(config: FitConfig, method: str) -> dict:
    train, val = load_training(config), load_evaluation(config, STUDY_SPLIT)
    return next(baseline_records(config, train, val, (method,)))
