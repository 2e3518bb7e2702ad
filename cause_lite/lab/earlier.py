"""Records made before the study engine, in single precision and from mini-batch k-means: read, and no longer made.

Each names the commit whose code made it. They go as studies of the engine take their place; until then pages read them
by `read_study` and `recorded`, and the functions here sum them up.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from cause_lite.lab.agreement import agreement
from cause_lite.lab.statistics import compared, device_of, family, paired_t
from cause_lite.runtime.files import project_dir, read_json

COLOUR_KMEANS = "k-means on colour and height"
FEATURE_KMEANS = "k-means on features"
FULL_KMEANS = "full k-means on features"
LOGISTIC = "logistic regression on features"
SUPERVISED = "linear probe on features"
BASELINES = (COLOUR_KMEANS, FEATURE_KMEANS, FULL_KMEANS, LOGISTIC)
CAUSE = {"tr": "CAUSE-TR", "mlp": "CAUSE-MLP"}
SCORES = {"miou": "mIoU", "pacc": "pixel accuracy"}  # by their keys in records
HELD_OUT = "test"  # images that no setting of the recipe was chosen on
CAPTIONS = {
    ("scenes", "test"): "`scenes`, 16 classes: 200 test images, on which no setting was chosen",
    ("scenes", "val"): "`scenes`, 16 classes: 200 validation images, on which settings were chosen",
    ("camvid", "test"): "CamVid, 11 classes: 233 test frames",
}
RECIPE, CLEAN, DETACHED = "recipe", "clean", "detached"  # arms of ablations, and of the study of labels
PHOTOGRAPHS = "photographs"  # the study of backbones on MSRC and CamVid
BACKBONE = "efficientnet-lite2"
LADDER = ("untrained", "scenes", "camvid", "photos", BACKBONE)  # from weak to strong
FEATURE_ARM = "feature-kmeans"  # what gains are measured from
COLOUR_ARM = "colour-kmeans"  # which looks at no backbone; run under the name of the strongest
ARM_METHODS = {COLOUR_ARM: COLOUR_KMEANS, FEATURE_ARM: FEATURE_KMEANS, "ceiling": SUPERVISED}
FULL_ARM = "full-kmeans"
SLOW_METHODS = {FULL_ARM: FULL_KMEANS, "logistic": LOGISTIC}
THRESHOLDS = ("cosine", 0.4, 0.2)
CHOICE = "choice"
TITLES = {
    "clean": "no label touches the clusters",
    "crf": "no label touches the clusters, refined by the CRF",
    "head-kmeans": "k-means on the head's output",
    "as-released": "step 3 of the authors' code: labels train the head",
    "detached": "step 3 of the authors' code, labels kept from the head",
}
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


def label_base(name: str, recorded: set[str]) -> str:
    """Return the arm of the label study that an arm is compared with, given the arms that were run.

    The detached arm differs from those as released in the label flow alone. Where it was not run, the clean arm, which
    differs in the loop too, has to do.
    """
    if name == "tight-clip-with-labels":
        return "tight-clip"
    if name in (CLEAN, DETACHED, "clip-with-labels", "tight-clip"):
        return CLEAN
    return DETACHED if DETACHED in recorded else CLEAN


def effects(study: str, data: str, score: str = "miou") -> pd.DataFrame:
    """Return what each arm of a study changes, as `statistics.compared` does, from its records.

    The sweep over epochs is left out: it is another question, and would count in the correction.
    """
    records = {key: record for key, record in read_study(study, data).items() if not record["name"].endswith("-epochs")}
    return compared(records, label_base if study == "labels" else RECIPE, score)


def epoch_records(data: str) -> dict[str, dict]:
    """Return the label study's records of the sweep over epochs, and of the arms beside it on the same device."""
    records = read_study("labels", data)
    swept = {(r["method"], device_of(r)) for r in records.values() if r["name"].endswith("-epochs")}
    beside = (CLEAN, "as-released")
    return {
        key: record
        for key, record in records.items()
        if (record["method"], device_of(record)) in swept
        and (record["name"].endswith("-epochs") or record["name"] in beside)
    }


def between_devices(records: dict[str, dict]) -> np.ndarray:
    """Return how far mIoU moved, in points, between kinds of CPU that the same run was made on, one number a run.

    Records that name no CPU are left out.
    """
    frame = pd.DataFrame([record for record in records.values() if "AVX" in device_of(record)])
    scores = frame.groupby(["method", "name", "seed"])["miou"]
    return (scores.max() - scores.min())[scores.count() > 1].to_numpy()


def recorded(data: str) -> list[dict]:
    """Return the committed records of a data set's tables."""
    return read_json(project_dir() / "data" / "records" / f"{data}.json")["records"]


def of_split(records: list[dict], split: str) -> list[dict]:
    """Return the records of one split."""
    return [record for record in records if record["split"] == split]


def summary(records: list[dict]) -> pd.DataFrame:
    """Return mean and spread (sample standard deviation) over seeds, a row a method, in the order met."""
    frame = pd.DataFrame(records)
    grouped = frame.groupby("method", sort=False)
    table = grouped[["miou", "pacc"]].agg(["mean", "std"])
    table["seeds"] = grouped["seed"].nunique()
    return table


def agreement_summary(records: list[dict]) -> pd.DataFrame:
    """Return mean many-to-one accuracy (percent), NMI and adjusted Rand index (0..1) over seeds, a row a method."""
    found = pd.DataFrame([agreement(np.array(record["confusion"])) for record in records])[
        ["many_to_one", "nmi", "ari"]
    ]
    return found.groupby([record["method"] for record in records], sort=False).mean()


def gains(
    records: list[dict], bases: tuple[str, ...], methods: tuple[str, ...] = (*CAUSE.values(),), score: str = "miou"
) -> pd.DataFrame:
    """Return the paired differences of methods from bases in points, a row a pair, as `statistics.family` does.

    Columns `method` and `base` name the pair.
    """
    by_method = pd.DataFrame(records).pivot_table(index="seed", columns="method", values=score)
    pairs = itertools.product(methods, bases)
    differences: dict[tuple[str, ...], np.ndarray] = {
        (method, base): (by_method[method] - by_method[base]).dropna().to_numpy() for method, base in pairs
    }
    return family(differences, ("method", "base"))


def mean_score(records: list[dict], method: str, score: str = "miou") -> float:
    """Return a method's mean over seeds, in percent."""
    return float(np.mean([record[score] for record in records if record["method"] == method]))


def choice_name(rung: str, thresholds: tuple[str, float, float] = THRESHOLDS) -> str:
    """Return the name of the fits that try thresholds on a backbone, as records carry it."""
    kind, high, low = thresholds
    return named(f"{CHOICE}-{kind}-{high:g}-{low:g}", rung)


def runs_on(data: str, rung: str = BACKBONE) -> list[dict]:
    """Return the records on a backbone in the order of the tables, each with its arm in words as `title`."""
    arms = {named(name, rung): place for place, name in enumerate([*ARM_METHODS, *SLOW_METHODS, *TITLES])}
    runs = [
        record | {"title": TITLES.get(record["name"].partition("/")[2], "")}
        for record in read_study(PHOTOGRAPHS, data).values()
        if record["name"] in arms
    ]
    return sorted(runs, key=lambda run: (run["method"], arms[run["name"]]))


def photograph_scores(data: str, rung: str = BACKBONE) -> pd.DataFrame:
    """Return the scores of each method and arm over seeds, and its gain over k-means on the same features.

    Columns are `miou` and `pacc` (means in percent) with `_std` (sample standard deviation), `_gain` (the mean
    difference at the same seed, in points) and `_low`, `_high` (its 95 % interval by a paired t test; NaN below three
    seeds).
    """
    records = runs_on(data, rung)
    base = {record["seed"]: record for record in records if record["name"] == named(FEATURE_ARM, rung)}
    groups: dict[tuple[str, str], list[dict]] = {}
    for record in records:
        groups.setdefault((record["name"], record["method"]), []).append(record)
    rows = []
    for (arm, method), runs in groups.items():
        row = {"arm": arm, "method": method, "title": runs[0]["title"], "seeds": len(runs)}
        for score in ("miou", "pacc"):
            values = pd.Series([run[score] for run in runs])
            gains = np.array([run[score] - base[run["seed"]][score] for run in runs if run["seed"] in base])
            gain = paired_t(gains)
            row |= {score: values.mean(), f"{score}_std": values.std(), f"{score}_gain": gain.mean}
            row |= {f"{score}_low": gain.low, f"{score}_high": gain.high}
        rows.append(row)
    return pd.DataFrame(rows)


def key_of(arm: str, method: str) -> str:
    """Return a short name of a method and arm, such as `mlp_clean` or `feature_kmeans`."""
    heads = {title: head for head, title in CAUSE.items()}
    arm = arm.partition("/")[2].replace("-", "_")
    return f"{heads[method]}_{arm}" if method in heads else arm


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
