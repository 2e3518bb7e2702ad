"""The front-door criterion on a model small enough to simulate: T -> M -> Y with T <- U -> Y, U unobserved.

Discrete: P(y | do(t)) = sum_m P(m | t) sum_t' P(t') P(y | t', m)   (Pearl, Causality, 2nd ed., eq. 3.29).
Linear: the effect of T on Y is (effect of T on M) x (effect of M on Y given T).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import sympy
from sympy.stats import Expectation


@dataclass(frozen=True)
class LinearModel:
    """A linear Gaussian model. `u_to_m` and `t_to_y` break the front-door assumptions when not 0."""

    t_to_m: float = 0.8
    m_to_y: float = 1.5
    u_to_t: float = 1.0
    u_to_y: float = 1.0
    u_to_m: float = 0.0
    t_to_y: float = 0.0

    @property
    def effect(self) -> float:
        """d E[Y | do(T = t)] / dt, along every directed path from T to Y."""
        return self.t_to_m * self.m_to_y + self.t_to_y

    def sample(self, count: int, rng: np.random.Generator, do_t: np.ndarray | None = None) -> pd.DataFrame:
        """`count` rows of T, M, Y and the U that an analyst never sees; `do_t` sets T by intervention."""
        u, noise_t, noise_m, noise_y = rng.normal(size=(4, count))
        t = self.u_to_t * u + noise_t if do_t is None else do_t
        m = self.t_to_m * t + self.u_to_m * u + noise_m
        y = self.m_to_y * m + self.t_to_y * t + self.u_to_y * u + noise_y
        return pd.DataFrame({"T": t, "M": m, "Y": y, "U": u})


def slopes(data: pd.DataFrame, outcome: str, causes: list[str]) -> np.ndarray:
    """Least-squares coefficients of `outcome` on `causes` with an intercept, one each."""
    design = np.column_stack([np.ones(len(data)), data[causes]])
    return np.linalg.lstsq(design, data[outcome].to_numpy(), rcond=None)[0][1:]


def naive_effect(data: pd.DataFrame) -> float:
    """The slope of Y on T: what association alone says."""
    return float(slopes(data, "Y", ["T"])[0])


def frontdoor_effect(data: pd.DataFrame) -> float:
    """The slope of M on T times the slope of Y on M given T. U is not looked at."""
    return float(slopes(data, "M", ["T"])[0] * slopes(data, "Y", ["M", "T"])[0])


def frontdoor_estimand(form: str = "general") -> sympy.Expr:
    """The front door's estimand of a mean effect as a formula: E[dY/dM dM/dT]; "linear": a b, the product of slopes."""
    if form == "linear":
        return sympy.Symbol("a") * sympy.Symbol("b")
    t, m, y = sympy.symbols("T M Y")
    return Expectation(sympy.Derivative(y, m) * sympy.Derivative(m, t))


def frontdoor_discrete(data: pd.DataFrame) -> pd.DataFrame:
    """The plug-in estimate of P(y | do(t)) from columns T, M, Y of category codes: rows t, columns y.

    Raises ValueError where some (t', m) never occurs though m follows t: positivity fails there.
    """
    mediator = pd.crosstab(data["T"], data["M"], normalize="index")
    treatment = data["T"].value_counts(normalize=True)
    outcome = pd.crosstab([data["T"], data["M"]], data["Y"], normalize="index")
    rows = {}
    for t in mediator.index:
        total = 0
        for m in mediator.columns[mediator.loc[t] > 0]:
            for other in treatment.index:
                if (other, m) not in outcome.index:
                    raise ValueError(f"no sample with T = {other} and M = {m}: P(Y | T, M) is not defined there")
                total = total + mediator.loc[t, m] * treatment[other] * outcome.loc[(other, m)]
        rows[t] = total
    return pd.DataFrame(rows).T.rename_axis(index="t", columns="y")


def bootstrap_interval(
    data: pd.DataFrame, estimate: Callable[[pd.DataFrame], float], rng: np.random.Generator,
    repeats: int = 200, level: float = 0.95,
) -> tuple[float, float]:  # fmt: skip
    """A percentile interval: the estimate on `repeats` resamples of the rows."""
    count = len(data)
    found = [estimate(data.iloc[rng.integers(0, count, count)]) for _ in range(repeats)]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
