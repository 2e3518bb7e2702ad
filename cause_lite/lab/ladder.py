"""What the study of photographs says across backbones: the method's gain and the labels' part on each.

*Gain* is the clean method's score less that of k-means on the same features. *Leak* is the score of the release's third
step less that of the same loop with labels detached from the head. Begin with `ladder`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cause_lite.lab.comparison import CAUSE
from cause_lite.lab.photographs import FEATURE_ARM, LADDER, STUDY
from cause_lite.lab.statistics import LEVEL, SEEDS_FOR_FINDING, holm, paired_t
from cause_lite.lab.studies import read_study

# What is shown of each backbone, by the name of the arm in the study.
LADDER_COLUMNS = {
    FEATURE_ARM: "k-means",
    "clean": "clean",
    "detached": "as released, detached",
    "as-released": "as released",
    "logistic": "logistic regression",
}
SCORES = {"miou": "mIoU", "pacc": "pixel accuracy"}  # by their keys in records
# What is subtracted from what; keys name the columns.
DIFFERENCES = {"gain": ("clean", FEATURE_ARM), "leak": ("as-released", "detached"), "loop": ("detached", "clean")}


def ladder(data: str, head: str = "mlp", score: str = "miou") -> pd.DataFrame:
    """Return a row a backbone that has clean fits, from weak to strong, by what labels give on its features.

    Parameters
    ----------
    data, head
        `msrc` or `camvid`; `mlp` or `tr`.
    score
        `miou` or `pacc`.

    Returns
    -------
    pandas.DataFrame
        By backbone: of each arm (k-means on features, clean, detached, as released, logistic regression) the mean over
        seeds in percent, `ARM_std` and `ARM_seeds`; of each difference in `DIFFERENCES` its mean in points, `_low`,
        `_high` (a paired t interval; NaN below three seeds), `_seeds`, and `_finding`: whether its p-value, adjusted by
        Holm's method for all differences of the table that have five seeds, is at most 0.05.
    """
    scores = _scores(data, head, score)
    rows = {rung: _row(scores, rung) for rung in LADDER if (rung, "clean") in scores}
    table = pd.DataFrame.from_dict(rows, orient="index")
    if table.empty:
        return table
    p_values = table[[f"{name}_p" for name in DIFFERENCES]].to_numpy(dtype=float)
    seeds = table[[f"{name}_seeds" for name in DIFFERENCES]].to_numpy()
    adjusted = holm(np.where(seeds >= SEEDS_FOR_FINDING, p_values, np.nan).ravel()).reshape(p_values.shape)
    for column, name in enumerate(DIFFERENCES):
        table[f"{name}_finding"] = adjusted[:, column] <= LEVEL
    return table


def _scores(data: str, head: str, score: str) -> dict[tuple[str, str], dict[int, float]]:
    """Return the scores by seed of each backbone and arm; an arm without a head counts for both."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for record in read_study(STUDY, data).values():
        rung, _, arm = record["name"].partition("/")
        if record["method"] == CAUSE[head] or record["method"] not in CAUSE.values():
            found.setdefault((rung, arm), {})[record["seed"]] = record[score]
    return found


def _row(scores: dict[tuple[str, str], dict[int, float]], rung: str) -> dict:
    row: dict[str, float] = {}
    for arm in LADDER_COLUMNS:
        values = pd.Series(scores.get((rung, arm), {}), dtype=float)
        row |= {arm: values.mean(), f"{arm}_std": values.std(), f"{arm}_seeds": len(values)}
    for name, (arm, base) in DIFFERENCES.items():
        some, others = scores.get((rung, arm), {}), scores.get((rung, base), {})
        estimate = paired_t(np.array([some[seed] - others[seed] for seed in sorted(some.keys() & others.keys())]))
        row |= {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        row |= {f"{name}_p": estimate.p_value, f"{name}_seeds": len(some.keys() & others.keys())}
    return row
