"""How wide a context features are to be averaged over: scores on validation images, before a backbone is settled.

`ConvBackbone` has the setting. k-means and a logistic regression on the features, and clusters of CAUSE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pandas as pd

from cause_lite.config import FitConfig
from cause_lite.lab import photographs
from cause_lite.lab.comparison import CAUSE, FEATURE_KMEANS, LOGISTIC, baseline_records
from cause_lite.lab.photographs import BASELINE_HEAD, configured
from cause_lite.lab.recipes import HEADS
from cause_lite.lab.runs import load_evaluation, load_training
from cause_lite.lab.studies import STUDY_SPLIT, Run, method_scores, read_study

STUDY = "contexts"
CONTEXTS = range(5)  # cells to each side
CLEAN_ON = "photos"  # the backbone on which clusters of CAUSE are fitted too, and whose context the study chose
RUNGS = (CLEAN_ON, photographs.BACKBONE)
METHODS = {"kmeans": FEATURE_KMEANS, "logistic": LOGISTIC, "clean": CAUSE[BASELINE_HEAD]}


def context_runs(data: str, seeds: int, heads: tuple[str, ...] = HEADS) -> Iterator[Run]:
    """Yield k-means and clean clusters for each seed, and one logistic regression, with each context.

    Raises
    ------
    UserError
        For a data set other than msrc and camvid.
    """
    for rung in RUNGS:
        for context in CONTEXTS:
            for method, count in (("kmeans", seeds), ("logistic", 1), ("clean", seeds if rung == CLEAN_ON else 0)):
                for seed in range(count):
                    config = with_context(configured(data, BASELINE_HEAD, seed, rung), context)
                    name, title = f"{rung}/{context}/{method}", f"{context} cells to each side"
                    yield Run(name, title, config, _work(config, method))


def with_context(config: FitConfig, context: int) -> FitConfig:
    """Return the settings with features that are averaged over so many cells to each side."""
    model, _, settings = config.backbone.partition("?")
    return config.replace({"backbone": f"{model}?context={context}&{settings}"})


def summary(data: str, rung: str = CLEAN_ON) -> pd.DataFrame:
    """Return scores in percent by context: `miou` and `pacc` of each of `METHODS`, means over seeds, with `_std`.

    The columns are named as in `kmeans_miou` and `kmeans_miou_std`, the sample standard deviation.
    """
    frame = pd.DataFrame(read_study(STUDY, data).values())
    frame[["rung", "context", "method"]] = frame["name"].str.split("/", expand=True)
    part = frame[frame["rung"] == rung].astype({"context": int})
    return method_scores(part, "context")


def _work(config: FitConfig, method: str) -> Callable[[], dict]:
    if method == "clean":
        return partial(photographs.clean_record, config, STUDY_SPLIT)
    return partial(_baseline, config, METHODS[method])


def _baseline(config: FitConfig, method: str) -> dict:
    train, val = load_training(config), load_evaluation(config, STUDY_SPLIT)
    return next(baseline_records(config, train, val, (method,)))
