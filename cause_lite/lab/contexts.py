"""How wide a context features are to be averaged over: scores of the features alone, on validation images.

`ConvBackbone` has the setting. No clusters of CAUSE are fitted.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from cause_lite.lab import photographs
from cause_lite.lab.objectives import feature_runs, validation_record
from cause_lite.lab.recipes import HEADS
from cause_lite.lab.studies import Run, method_scores, read_study

STUDY = "contexts"
CONTEXTS = (0, 1, 3)  # cells to each side
RUNGS = ("photos", photographs.BACKBONE)


def context_runs(data: str, seeds: int, heads: tuple[str, ...] = HEADS) -> Iterator[Run]:
    """Yield k-means for each seed, and one logistic regression, with each context; see `objectives.feature_runs`."""
    backbones = {
        f"{rung}/{context}": (f"{context} cells to each side", {"name": rung, "context": context})
        for rung in RUNGS
        for context in CONTEXTS
    }
    return feature_runs(STUDY, data, seeds, backbones, lambda config, _, method: validation_record(config, method))


def summary(data: str) -> pd.DataFrame:
    """Return scores in percent by backbone, `rung`, and context, which are the index; see `studies.method_scores`."""
    frame = pd.DataFrame(read_study(STUDY, data).values())
    frame[["rung", "context", "method"]] = frame["name"].str.split("/", expand=True)
    return method_scores(frame.astype({"context": int}), ["rung", "context"])
