"""What a few seeds can say: paired t intervals, Holm's correction, and when a difference counts as a finding.

An interval covers one source of chance, the seed of the fit (which draws batches, patches, initial weights and
dropout), on one backbone and one set of test images. `results.resampled_deviation` says what the images add.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.stats

CONFIDENCE = 0.95
UNKNOWN_CPU = "a CPU"
LEVEL = 1 - CONFIDENCE  # the largest adjusted p-value of a finding
SEEDS_FOR_INTERVAL = 3  # below this, no interval is given
SEEDS_FOR_FINDING = 5  # below this, no difference is called a finding
COLUMNS = (
    "method",
    "name",
    "title",
    "base",
    "mean",
    "std",
    "difference",
    "low",
    "high",
    "p_value",
    "adjusted_p",
    "finding",
    "seeds",
)


@dataclass(frozen=True)
class Estimate:
    """The mean of paired differences, its 95 % interval and the p-value of no difference.

    Interval and p-value are NaN where there are too few seeds for one.
    """

    mean: float
    low: float
    high: float
    p_value: float


def paired_t(differences: np.ndarray) -> Estimate:
    """Return the paired t estimate of differences (n,), one a seed.

    The interval is mean ± t s / sqrt(n) with t of n - 1 degrees of freedom (Student, 1908).
    """
    values = np.asarray(differences, dtype=float)
    mean = float(values.mean()) if len(values) else np.nan
    if len(values) < SEEDS_FOR_INTERVAL:
        return Estimate(mean, np.nan, np.nan, np.nan)
    if np.ptp(values) == 0:  # no spread: the interval is the point, and t is not defined
        return Estimate(mean, mean, mean, float(mean == 0))
    test = scipy.stats.ttest_1samp(values, 0)
    interval = test.confidence_interval(CONFIDENCE)
    return Estimate(mean, float(interval.low), float(interval.high), float(test.pvalue))


def unpaired(values: np.ndarray, others: np.ndarray) -> Estimate:
    """Return the difference of two means of seeds that share no randomness: values (n,), others (m,).

    The interval is Welch's; the p-value is that of a permutation test of the difference, exact where all regroupings
    can be tried and otherwise from 99,999 of them, counted with the observed one (Phipson and Smyth, 2010).
    """
    mean = float(np.mean(values) - np.mean(others))
    if min(len(values), len(others)) < SEEDS_FOR_INTERVAL:
        return Estimate(mean, np.nan, np.nan, np.nan)
    interval = scipy.stats.ttest_ind(values, others, equal_var=False).confidence_interval(CONFIDENCE)
    test = scipy.stats.permutation_test(
        (values, others),
        lambda one, two, axis: np.mean(one, axis) - np.mean(two, axis),
        n_resamples=99_999,
        rng=np.random.default_rng(0),
    )
    return Estimate(mean, float(interval.low), float(interval.high), float(test.pvalue))


def contrasts(pairs: Mapping[tuple[str, ...], tuple[np.ndarray, np.ndarray]], names: tuple[str, ...]) -> pd.DataFrame:
    """Return the difference of each of several pairs of means, corrected as one family by Holm's method.

    Parameters
    ----------
    pairs
        Scores over seeds (n,) and (m,) that share no randomness, by what is compared.
    names
        The columns that hold the parts of those keys.

    Returns
    -------
    pandas.DataFrame
        A row a key, with the columns of `family` (`seeds` counts those of the smaller side), and `bound`: both means
        are equal within it, at the level 5 %, by two one-sided tests (Schuirmann, 1987).
    """
    rows = []
    for key, (values, others) in pairs.items():
        estimate, seeds = unpaired(values, others), min(len(values), len(others))
        bound = np.nan
        if seeds >= SEEDS_FOR_INTERVAL:
            bound = np.abs(
                scipy.stats.ttest_ind(values, others, equal_var=False).confidence_interval(2 * CONFIDENCE - 1)
            ).max()
        rows.append((*key, estimate.mean, estimate.low, estimate.high, estimate.p_value, seeds, bound))
    table = pd.DataFrame(rows, columns=[*names, "difference", "low", "high", "p_value", "seeds", "bound"])
    return with_findings(table, table["seeds"] >= SEEDS_FOR_FINDING)


def with_findings(table: pd.DataFrame, counted: pd.Series) -> pd.DataFrame:
    """Return a table with `adjusted_p`, by Holm's method over the rows that are `counted`, and `finding`."""
    adjusted = holm(table["p_value"].where(counted).to_numpy())
    return table.assign(adjusted_p=adjusted, finding=adjusted <= LEVEL)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values (m,) adjusted for their number by Holm's step-down method (Holm, 1979); NaN stays NaN.

    With them in rising order, the adjusted k-th is the largest of (m - j + 1) p_j over j <= k, at most 1.
    """
    adjusted = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: np.isfinite(p_values).sum()]  # NaN sorts last
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * np.asarray(p_values)[order]), 1)
    return adjusted


def family(differences: Mapping[tuple[str, ...], np.ndarray], names: tuple[str, ...]) -> pd.DataFrame:
    """Return the paired t estimate of each of several differences, corrected as one family by Holm's method.

    Parameters
    ----------
    differences
        One a seed (n,), by what is compared.
    names
        The columns that hold the parts of those keys.

    Returns
    -------
    pandas.DataFrame
        A row a key, with `difference`, `low`, `high`, `p_value`, `seeds`, `spread` (the standard deviation of the
        differences), `adjusted_p` and `finding`. Those with too few seeds for a finding are not counted.
    """
    rows = []
    for key, values in differences.items():
        estimate = paired_t(values)
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
        rows.append((*key, estimate.mean, estimate.low, estimate.high, estimate.p_value, len(values), spread))
    columns = [*names, "difference", "low", "high", "p_value", "seeds", "spread"]
    table = pd.DataFrame(rows, columns=columns)
    return with_findings(table, table["seeds"] >= SEEDS_FOR_FINDING)


def compared(records: dict[str, dict], base: str | Callable[[str, set[str]], str], score: str = "miou") -> pd.DataFrame:
    """Return each run's mean score and its paired difference from its base, a row a method and run.

    A pair has one method, seed, device and scored split. Where devices differ in the base, that of the most
    seeds counts; where a seed was run on several devices, the last pair counts. Holm's
    correction spans the differences of the table that have enough seeds for a finding.

    Parameters
    ----------
    records
        Run records with `method`, `name`, `title`, `seed`, `date`, `environment` and scores in percent.
    base
        The name of the run that the others are compared with, or a function that returns it for a run's name and the
        names that were run.
    score
        Which score is compared, such as miou or pacc.
    """
    if not records:
        return pd.DataFrame(columns=list(COLUMNS))
    rows = [_row(part) for _, part in _pairs(records, base, score).groupby(["method", "name"])]
    table = pd.DataFrame(rows, columns=[name for name in COLUMNS if name not in ("adjusted_p", "finding")])
    candidates = (table["seeds"] >= SEEDS_FOR_FINDING) & (table["name"] != table["base"])
    return with_findings(table, candidates)[list(COLUMNS)]


def _row(pairs: pd.DataFrame) -> tuple:
    estimate, first = paired_t(pairs["difference"].to_numpy()), pairs.iloc[0]
    scores = (pairs["score"].mean(), pairs["score"].std())
    interval = (estimate.mean, estimate.low, estimate.high, estimate.p_value)
    return (first["method"], first["name"], first["title"], first["base"], *scores, *interval, len(pairs))


def _pairs(records: dict[str, dict], base: str | Callable[[str, set[str]], str], score: str) -> pd.DataFrame:
    """Return a row a pair: method, name, title, date, seed, score, place, base and difference."""
    frame = pd.DataFrame(records.values())[["method", "name", "title", "seed", "date", score]]
    frame = frame.rename(columns={score: "score"})
    # One word for device and images: what is not equal in both is no pair.
    frame["place"] = [f"{device_of(record)}, {record.get('split')}" for record in records.values()]
    names = frame.groupby(["method", "place"])["name"].agg(set)
    frame["base"] = [
        base(row.name, names[row.method, row.place]) if callable(base) else base
        for row in frame.itertuples(index=False)
    ]
    bases = frame[["method", "name", "seed", "place", "score"]]
    pairs = frame.merge(
        bases.rename(columns={"name": "base", "score": "base_score"}), on=["method", "base", "seed", "place"]
    )
    pairs["difference"] = pairs["score"] - pairs["base_score"]
    pairs["pairs"] = pairs.groupby(["method", "name", "base"])["seed"].transform("nunique")
    pairs = pairs.sort_values(["pairs", "date"], ascending=False)
    pairs = pairs[pairs["base"] == pairs.groupby(["method", "name"])["base"].transform("first")]
    return pairs.drop_duplicates(["method", "name", "seed"])


def device_of(record: dict) -> str:
    """Return the name of the device that a record was made on. Early records name an accelerator but no processor."""
    return record.get("device") or record["environment"].get("accelerator", UNKNOWN_CPU)
