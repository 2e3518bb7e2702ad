"""Records made before the study engine, in single precision and from mini-batch k-means: read, and no longer made.

Each names the commit whose code made it. They go as studies of the engine take their place; until then pages read them
by `read_study` and `recorded`, and the functions here sum them up.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cause_lite.lab.statistics import compared
from cause_lite.runtime.files import project_dir, read_json

COLOUR_KMEANS = "k-means on colour and height"
FEATURE_KMEANS = "k-means on features"
FULL_KMEANS = "full k-means on features"
LOGISTIC = "logistic regression on features"
SUPERVISED = "linear probe on features"
CAUSE = {"tr": "CAUSE-TR", "mlp": "CAUSE-MLP"}
SCORES = {"miou": "mIoU", "pacc": "pixel accuracy"}  # by their keys in records
RECIPE = "recipe"  # the arm of ablations that the others are compared with
PHOTOGRAPHS = "photographs"  # the study of backbones on MSRC and CamVid
BACKBONE = "efficientnet-lite2"
LADDER = ("untrained", "scenes", "camvid", "photos", BACKBONE)  # from weak to strong
FEATURE_ARM = "feature-kmeans"  # what gains are measured from
COLOUR_ARM = "colour-kmeans"  # which looks at no backbone; run under the name of the strongest
ARM_METHODS = {COLOUR_ARM: COLOUR_KMEANS, FEATURE_ARM: FEATURE_KMEANS, "ceiling": SUPERVISED}
FULL_ARM = "full-kmeans"
SLOW_METHODS = {FULL_ARM: FULL_KMEANS, "logistic": LOGISTIC}
OBJECTIVES = ("contrast", "wholes", "regions", "distilled", "mixed", "crops-48", "crops-96", "longer")  # trials


def read_study(study: str, data: str) -> dict[str, dict]:
    """Return the records of a study by run; none where it was never run."""
    path = project_dir() / "data" / "records" / f"{study}-{data}.json"
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


def effects(study: str, data: str, score: str = "miou") -> pd.DataFrame:
    """Return what each arm of a study changes against the recipe, as `statistics.compared` does, from its records."""
    return compared(read_study(study, data), RECIPE, score)


def named(arm: str, rung: str) -> str:
    """Return the name of an arm on a backbone, as records carry it."""
    return f"{rung}/{arm}"


def backbone_deviations(records: dict[str, dict], score: str = "miou") -> pd.DataFrame:
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


def machine_moves(data: str = "scenes") -> pd.DataFrame:
    """Return how far a score moves across instructions and threads, a row a method.

    Columns `miou_std` and `pacc_std` are sample standard deviations over the runs of one seed, their mean over seeds.
    `miou_range` and `pacc_range` are the largest score of one seed less its smallest, in points, at the seed where
    that is most. `runs` counts the kinds of run and `seeds` the seeds.
    """
    frame = pd.DataFrame(read_study("machines", data).values())
    rows = {}
    for method, part in frame.groupby("method"):
        by_seed = part.groupby("seed")[["miou", "pacc"]]
        deviations, ranges = by_seed.std().mean(), (by_seed.max() - by_seed.min()).max()
        row = {f"{score}_std": deviations[score] for score in deviations.index}
        row |= {f"{score}_range": ranges[score] for score in ranges.index}
        rows[method] = row | {"runs": part["name"].nunique(), "seeds": part["seed"].nunique()}
    return pd.DataFrame(rows).T


def context_scores(data: str) -> pd.DataFrame:
    """Return scores in percent by backbone, `rung`, and context, which are the index; see `studies.method_scores`."""
    frame = pd.DataFrame(read_study("contexts", data).values())
    frame[["rung", "context", "method"]] = frame["name"].str.split("/", expand=True)
    return method_scores(frame.astype({"context": int}), ["rung", "context"])


def objectives_scores(data: str) -> pd.DataFrame:
    """Return the trials of the study of objectives, a row each: `title`, `minutes` of pre-training, and scores."""
    frame = pd.DataFrame(read_study("objectives", data).values())
    frame[["trial", "method"]] = frame["name"].str.split("/", n=1, expand=True)
    trials = frame.groupby("trial")
    minutes = trials["pretraining"].first().map(lambda trained: trained["seconds"] / 60)
    titles = trials["title"].first().str.replace("crops", "views")  # the word of the page; records have the older one
    return method_scores(frame, "trial").assign(title=titles, minutes=minutes).loc[list(OBJECTIVES)]
