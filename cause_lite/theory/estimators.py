"""Estimate the effect of T on Y through a mediator M, from data in which the confounder U is not seen.

Discrete: P(y | do(t)) = sum_m P(m | t) sum_t' P(t') P(y | t', m)   (Pearl, Causality, 2nd ed., eq. 3.29).
Linear: the effect of T on Y is (effect of T on M) x (effect of M on Y given T).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd


def slopes(data: pd.DataFrame, outcome: str, causes: list[str]) -> np.ndarray:
    """Return the least-squares coefficients (len(causes),) of `outcome` on `causes` with an intercept."""
    design = np.column_stack([np.ones(len(data)), data[causes]])
    return np.linalg.lstsq(design, data[outcome].to_numpy(), rcond=None)[0][1:]


def naive_effect(data: pd.DataFrame) -> float:
    """Return the slope of Y on T: what association alone says."""
    return float(slopes(data, "Y", ["T"])[0])


def frontdoor_effect(data: pd.DataFrame) -> float:
    """Return the slope of M on T times the slope of Y on M given T. U is not looked at."""
    return float(slopes(data, "M", ["T"])[0] * slopes(data, "Y", ["M", "T"])[0])


def frontdoor_discrete(data: pd.DataFrame) -> pd.DataFrame:
    """Return the plug-in estimate of P(y | do(t)): rows t, columns y.

    Parameters
    ----------
    data
        Columns T, M and Y of category codes.

    Raises
    ------
    ValueError
        Where some (t', m) never occurs: positivity fails there.
    """
    mediator = pd.crosstab(data["T"], data["M"], normalize="index")  # P(m | t)
    return (mediator @ adjusted_outcome(data)).rename_axis(index="t", columns="y")


def adjusted_outcome(data: pd.DataFrame) -> pd.DataFrame:
    """Return the front door's inner sum, sum_t' P(t') P(y | t', m): rows m, columns y.

    It estimates P(y | do(m)). Parameters and errors are those of `frontdoor_discrete`.
    """
    treatment = data["T"].value_counts(normalize=True)  # P(t')
    outcome = pd.crosstab([data["T"], data["M"]], data["Y"], normalize="index")  # P(y | t', m)
    for m in sorted(data["M"].unique()):
        for t in sorted(treatment.index):
            if (t, m) not in outcome.index:
                raise ValueError(f"no sample with T = {t} and M = {m}: P(Y | T, M) is not defined there")
    return outcome.mul(treatment, axis=0, level="T").groupby(level="M").sum().rename_axis(index="m", columns="y")


def bootstrap_interval(
    data: pd.DataFrame,
    estimate: Callable[[pd.DataFrame], float],
    rng: np.random.Generator,
    repeats: int = 200,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return the ends of a percentile interval: quantiles of the estimate over resamples of the rows.

    Parameters
    ----------
    data
        The rows.
    estimate
        The statistic.
    rng
        Where the resamples are drawn from.
    repeats
        Number of resamples.
    level
        The share of resamples between the two ends.
    """
    count = len(data)
    estimates = [estimate(data.iloc[rng.integers(0, count, count)]) for _ in range(repeats)]
    low, high = np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
