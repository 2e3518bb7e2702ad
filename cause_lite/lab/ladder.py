"""What the study of photographs says across backbones: the method's gain and the labels' part on each.

*Gain* is the clean method's score less that of k-means on the same features. *Leak* is the score of the release's third
step less that of the same loop with labels detached from the head. Begin with `ladder`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd

from cause_lite.lab.earlier import (
    ARM_METHODS,
    BACKBONE,
    CAUSE,
    COLOUR_ARM,
    FEATURE_ARM,
    FULL_ARM,
    LADDER,
    PHOTOGRAPHS,
    SCORES,
    SLOW_METHODS,
    named,
    read_study,
)
from cause_lite.lab.statistics import SEEDS_FOR_FINDING, Estimate, compared, family, paired_t

# What is shown of each backbone, by the name of the arm in the study.
ARMS = {
    FEATURE_ARM: "k-means",
    "clean": "clean",
    "detached": "as released, detached",
    "as-released": "as released",
    "logistic": "logistic regression",
}
# Arms that are not shown on the ladder, but told where they are lacking.
OTHER_ARMS = {
    FULL_ARM: "full k-means",
    "crf": "clean, with the CRF",
    "head-kmeans": "k-means on the head's output",
    "ceiling": "linear probe on the features",
}
BASES = {"clean": FEATURE_ARM, "as-released": "detached", "detached": "clean"}  # what an arm is compared with
DIFFERENCES = {"gain": "clean", "leak": "as-released", "loop": "detached"}  # what an arm's difference is called


def ladder(data: str, head: str = "mlp", score: str = "miou") -> pd.DataFrame:
    """Return the arms of each backbone that has clean fits, from weak to strong, and what each changes.

    Parameters
    ----------
    data, head
        `msrc` or `camvid`; `mlp` or `tr`.
    score
        `miou` or `pacc`.

    Returns
    -------
    pandas.DataFrame
        A row a backbone and arm, which are the index, with the columns of `statistics.compared`. An arm whose base was
        not run has itself as `base`.
    """
    places = {named(arm, rung): (rung, arm) for rung in LADDER for arm in ARMS}
    records = {key: record for key, record in _of_head(data, head).items() if record["name"] in places}
    table = compared(records, _base, score).set_index("name", drop=False)
    fitted = {rung for rung in LADDER if named("clean", rung) in table.index}
    table = table.loc[[name for name, (rung, _) in places.items() if name in table.index and rung in fitted]]
    table.index = pd.MultiIndex.from_tuples([places[name] for name in table.index], names=["backbone", "arm"])
    return table


def differences(part: pd.DataFrame) -> dict[str, pd.Series]:
    """Return the rows of one backbone, by arm, that have a base, by the name of their difference."""
    rows = {name: part.loc[arm] for name, arm in DIFFERENCES.items() if arm in part.index}
    return {name: row for name, row in rows.items() if row["base"] != row["name"]}


def growth(rungs: tuple[str, str], head: str = "mlp") -> pd.DataFrame:
    """Return how much larger the clean gain is on the second backbone than on the first, as `statistics.family` does.

    Columns `data` and `score` name each difference, which is paired by seed. A data set that lacks one of the two has
    none.
    """
    gains = _leads(FEATURE_ARM, head)
    found: dict[tuple[str, ...], np.ndarray] = {}
    for data, score in itertools.product(("msrc", "camvid"), SCORES.values()):
        lower, higher = (gains[data, rung, score] for rung in rungs)
        if not (grown := (higher - lower).dropna()).empty:
            found[data, score] = grown.to_numpy()
    return family(found, ("data", "score"))


def leads(baseline: str, head: str = "mlp") -> pd.DataFrame:
    """Return how far clean fits are ahead of a baseline, paired by seed, as `statistics.family` does.

    Columns `data`, `backbone` and `score` name each difference.

    Parameters
    ----------
    baseline
        The name of its arm, such as `full-kmeans`; that of colour and height looks at no backbone and has one for all.
    head
        `mlp` or `tr`.
    """
    found = {key: lead.to_numpy() for key, lead in _leads(baseline, head).items() if len(lead)}
    return family(found, ("data", "backbone", "score"))


def _leads(baseline: str, head: str) -> dict[tuple[str, ...], pd.Series]:
    """Return how far clean fits are ahead of a baseline, by seed, for each data set, backbone and score."""
    method = (ARM_METHODS | SLOW_METHODS)[baseline]
    found: dict[tuple[str, ...], pd.Series] = {}
    for data, rung in itertools.product(("msrc", "camvid"), LADDER):
        base = runs_of(PHOTOGRAPHS, data, named(baseline, BACKBONE if baseline == COLOUR_ARM else rung), method)
        clean = runs_of(PHOTOGRAPHS, data, named("clean", rung), CAUSE[head])
        for score, name in SCORES.items():
            found[data, rung, name] = (by_seed(clean, score) - by_seed(base, score)).dropna()
    return found


def runs_of(study: str, data: str, name: str, method: str) -> list[dict]:
    """Return the records of one method under one name in a study."""
    return [r for r in read_study(study, data).values() if (r["name"], r["method"]) == (name, method)]


def by_seed(records: Iterable[dict], score: str = "miou") -> pd.Series:
    """Return a score by seed, the mean where several devices ran one; two such series subtract seed by seed."""
    scores = [(record["seed"], record[score]) for record in records]
    return pd.DataFrame(scores, columns=["seed", score]).groupby("seed")[score].mean()


def ahead(records: Iterable[dict], others: Iterable[dict]) -> tuple[Estimate, int]:
    """Return how far runs are ahead of others in mIoU, paired by seed, and over how many seeds."""
    differences = (by_seed(records) - by_seed(others)).dropna().to_numpy()
    return paired_t(differences), len(differences)


def lacking(data: str, head: str = "mlp") -> dict[str, dict[str, int]]:
    """Return on which backbones an arm has fewer seeds than a finding needs, and how many, by the arm."""
    seeds = Counter(record["name"] for record in _of_head(data, head).values())
    few = {
        arm: {rung: seeds[named(arm, rung)] for rung in LADDER if seeds[named(arm, rung)] < SEEDS_FOR_FINDING}
        for arm in ARMS | OTHER_ARMS
    }
    return {arm: rungs for arm, rungs in few.items() if rungs}


def _of_head(data: str, head: str) -> dict[str, dict]:
    """Return the records of a head; those of methods without one are compared with either, and count as its own."""
    return {
        key: record | {"method": CAUSE[head]}
        for key, record in read_study(PHOTOGRAPHS, data).items()
        if record["method"] == CAUSE[head] or record["method"] not in CAUSE.values()
    }


def _base(name: str, recorded: set[str]) -> str:
    rung, _, arm = name.partition("/")
    base = named(BASES.get(arm, arm), rung)
    return base if base in recorded else name
