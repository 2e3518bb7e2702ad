"""The front-door estimators recover what intervention would show, and dowhy agrees."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cause_lite import causal


def test_the_adjusted_estimate_is_right_where_the_naive_one_is_wrong():
    model = causal.LinearModel()
    data = model.sample(20_000, np.random.default_rng(0))
    assert causal.frontdoor_effect(data) == pytest.approx(model.effect, abs=0.05)
    assert abs(causal.naive_effect(data) - model.effect) > 0.3


def test_intervention_in_the_simulator_shows_the_effect():
    model, rng = causal.LinearModel(), np.random.default_rng(1)
    means = [model.sample(40_000, rng, do_t=np.full(40_000, t))["Y"].mean() for t in (0.0, 1.0)]
    assert means[1] - means[0] == pytest.approx(model.effect, abs=0.05)


@pytest.mark.parametrize("broken", [{"u_to_m": 1.0}, {"t_to_y": 1.0}])
def test_a_broken_assumption_brings_the_bias_back(broken):
    model = causal.LinearModel(**broken)
    data = model.sample(20_000, np.random.default_rng(2))
    assert abs(causal.frontdoor_effect(data) - model.effect) > 0.2


def binary_sample(count: int, rng: np.random.Generator, do_t: int | None = None) -> pd.DataFrame:
    u = rng.random(count) < 0.5
    t = rng.random(count) < np.where(u, 0.8, 0.2) if do_t is None else np.full(count, bool(do_t))
    m = rng.random(count) < np.where(t, 0.75, 0.25)
    y = rng.random(count) < 0.1 + 0.4 * m + 0.4 * u
    return pd.DataFrame({"T": t, "M": m, "Y": y}).astype(int)


def test_the_discrete_formula_matches_intervention():
    rng = np.random.default_rng(3)
    found = causal.frontdoor_discrete(binary_sample(100_000, rng))
    for t in (0, 1):
        assert found.loc[t, 1] == pytest.approx(binary_sample(100_000, rng, do_t=t)["Y"].mean(), abs=0.01)
        assert found.loc[t].sum() == pytest.approx(1)


def test_missing_support_is_an_error():
    data = pd.DataFrame({"T": [0, 0, 1], "M": [0, 1, 1], "Y": [0, 1, 1]})
    with pytest.raises(ValueError, match="T = 1 and M = 0"):
        causal.frontdoor_discrete(data)


def test_the_interval_covers_the_effect():
    model = causal.LinearModel()
    data = model.sample(2000, np.random.default_rng(4))
    low, high = causal.bootstrap_interval(data, causal.frontdoor_effect, np.random.default_rng(5))
    assert low < model.effect < high
