"""The front-door estimators recover what intervention would show, and dowhy agrees; so do the page's own models."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import dowhy
import networkx as nx
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy.stats import Expectation

from cause_lite.theory import LinearModel, estimators

FRONT_DOOR = (("T", "M"), ("M", "Y"), ("U", "T"), ("U", "Y"))
PAGES = [Path(__file__).parents[1] / "book" / f"{name}.md" for name in ("frontdoor", "walk_through")]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> dict[str, object]:
    """What the hidden cells of the pages on the front door define."""
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    cells = re.findall(r"^```\{code-cell\}[^\n]*\n:tags: \[hide-cell\]\n(.*?)^```", text, re.S | re.M)
    path = tmp_path_factory.mktemp("page") / "cells.py"
    path.write_text("\n".join(cells), encoding="utf-8")
    return runpy.run_path(str(path))


def test_the_adjusted_estimate_is_right_where_the_naive_one_is_wrong():
    model = LinearModel()
    data = model.sample(20_000, np.random.default_rng(0))
    assert estimators.frontdoor_effect(data) == pytest.approx(model.effect, abs=0.05)
    assert abs(estimators.naive_effect(data) - model.effect) > 0.3


def test_intervention_in_the_simulator_shows_the_effect():
    model, rng = LinearModel(), np.random.default_rng(1)
    means = [model.sample(40_000, rng, do_t=np.full(40_000, t))["Y"].mean() for t in (0.0, 1.0)]
    assert means[1] - means[0] == pytest.approx(model.effect, abs=0.05)


@pytest.mark.parametrize("broken", [{"u_to_m": 1.0}, {"t_to_y": 1.0}])
def test_a_broken_assumption_brings_the_bias_back(broken):
    model = LinearModel(**broken)
    data = model.sample(20_000, np.random.default_rng(2))
    assert abs(estimators.frontdoor_effect(data) - model.effect) > 0.2


def binary_sample(count: int, rng: np.random.Generator, do_t: int | None = None) -> pd.DataFrame:
    u = rng.random(count) < 0.5
    t = rng.random(count) < np.where(u, 0.8, 0.2) if do_t is None else np.full(count, bool(do_t))
    m = rng.random(count) < np.where(t, 0.75, 0.25)
    y = rng.random(count) < 0.1 + 0.4 * m + 0.4 * u
    return pd.DataFrame({"T": t, "M": m, "Y": y}).astype(int)


def test_the_discrete_formula_matches_intervention():
    rng = np.random.default_rng(3)
    found = estimators.frontdoor_discrete(binary_sample(100_000, rng))
    for t in (0, 1):
        assert found.loc[t, 1] == pytest.approx(binary_sample(100_000, rng, do_t=t)["Y"].mean(), abs=0.01)
        assert found.loc[t].sum() == pytest.approx(1)


def test_missing_support_is_an_error():
    data = pd.DataFrame({"T": [0, 0, 1], "M": [0, 1, 1], "Y": [0, 1, 1]})
    with pytest.raises(ValueError, match="T = 1 and M = 0"):
        estimators.frontdoor_discrete(data)


def test_the_interval_covers_the_effect():
    model = LinearModel()
    data = model.sample(2000, np.random.default_rng(4))
    low, high = estimators.bootstrap_interval(data, estimators.frontdoor_effect, np.random.default_rng(5))
    assert low < model.effect < high


def random_model(rng: np.random.Generator) -> LinearModel:
    """A front-door model with coefficients of either sign, and a confounder strong enough to matter."""
    size = lambda low, high: rng.uniform(low, high) * rng.choice([-1, 1])  # noqa: E731
    return LinearModel(t_to_m=size(0.3, 1.5), m_to_y=size(0.3, 1.5), u_to_t=size(0.7, 1.5), u_to_y=size(0.7, 1.5))


def test_intervals_cover_the_effect_as_often_as_they_say():
    """Twenty random models: the front door's 95% interval holds the truth about 19 times, the naive one hardly ever."""
    covered = {estimators.frontdoor_effect: 0, estimators.naive_effect: 0}
    for seed in range(20):
        rng = np.random.default_rng(100 + seed)
        model = random_model(rng)
        data = model.sample(1000, rng)
        for estimate in covered:
            low, high = estimators.bootstrap_interval(data, estimate, rng)
            covered[estimate] += low < model.effect < high
    # Fewer than 15 of 20 would happen to a true 95% interval in less than one case of a thousand.
    assert scipy.stats.binom.cdf(14, 20, 0.95) < 1e-3
    assert covered[estimators.frontdoor_effect] >= 15
    assert covered[estimators.naive_effect] <= 2


def test_dowhy_identifies_the_same_estimand():
    """From the graph alone: E[dY/dM dM/dT], with M in between and T closing the back door of M; a b where linear."""
    data = LinearModel().sample(200, np.random.default_rng(0)).drop(columns="U")
    found = dowhy.CausalModel(data, treatment="T", outcome="Y", graph=nx.DiGraph(FRONT_DOOR)).identify_effect()
    theirs = found.estimands["frontdoor"]["estimand"]
    plain = {symbol: sympy.Symbol(symbol.name.strip("[]")) for symbol in theirs.free_symbols}
    t, m, y = sympy.symbols("T M Y")
    ours = Expectation(sympy.Derivative(y, m) * sympy.Derivative(m, t))
    assert sympy.simplify(theirs.xreplace(plain) - ours) == 0
    assert found.get_frontdoor_variables() == ["M"]
    assert LinearModel().effect == pytest.approx(0.8 * 1.5)


@pytest.mark.parametrize("cut", [("T", "M"), ("M", "Y")])
def test_no_estimand_where_the_mediator_carries_nothing(cut):
    data = LinearModel().sample(200, np.random.default_rng(0)).drop(columns="U")
    edges = [e for e in [("T", "M"), ("M", "Y"), ("U", "T"), ("U", "Y"), ("T", "Y")] if e != cut]
    model = dowhy.CausalModel(data, treatment="T", outcome="Y", graph=nx.DiGraph(edges))
    assert not model.identify_effect(proceed_when_unidentifiable=True).get_frontdoor_variables()


def concept_model(page, seed: int, types: int = 4, concepts: int = 2):
    """A random model in which each concept has at least one type of patch, and a type has one concept."""
    rng = np.random.default_rng(seed)
    return page["ConceptModel"](
        granularity=rng.dirichlet([5, 5]),
        treatment=rng.dirichlet([5] * types, size=2),
        mediator=np.eye(concepts)[np.arange(types) % concepts],
        outcome=rng.uniform(0.1, 0.9, (concepts, 2)),
    )


def as_rows(model, count: int) -> pd.DataFrame:
    """Rows whose shares are the model's law, as nearly as `count` rows allow: a sample without chance."""
    counts = np.round(model.law() * count).astype(int)
    t, m, y = np.indices(counts.shape)
    return pd.DataFrame({name: np.repeat(v.ravel(), counts.ravel()) for name, v in zip("TMY", (t, m, y), strict=True)})


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), share=st.floats(0.2, 1))
def test_a_concept_that_chance_moves_identifies_both_effects(page, seed, share):
    model = concept_model(page, seed).softened(share)
    data = as_rows(model, 20_000)
    assert estimators.adjusted_outcome(data)[1].to_numpy() == pytest.approx(model.do_concept(), abs=0.01)
    assert estimators.frontdoor_discrete(data)[1].to_numpy() == pytest.approx(model.do_treatment(), abs=0.01)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_a_concept_that_is_a_function_of_the_patch_is_refused(page, seed):
    data = as_rows(concept_model(page, seed), 20_000)
    for estimate in (estimators.frontdoor_discrete, estimators.adjusted_outcome):
        with pytest.raises(ValueError, match=r"P\(Y \| T, M\) is not defined there"):
            estimate(data)


def test_two_models_with_the_same_law_and_other_effects_differ_once_the_concept_is_random(page):
    even, same = np.array([0.5, 0.5]), np.eye(2)
    by_concept = page["ConceptModel"](even, np.full((2, 2), 0.5), same, np.array([[0.2, 0.2], [0.8, 0.8]]))
    by_granularity = page["ConceptModel"](even, same, same, np.array([[0.2, 0.8], [0.2, 0.8]]))
    assert np.array_equal(by_concept.law(), by_granularity.law())
    assert np.diff(by_concept.do_treatment())[0] == pytest.approx(0.6)
    assert np.diff(by_granularity.do_treatment())[0] == 0
    assert not np.allclose(by_concept.softened(0.2).law(), by_granularity.softened(0.2).law())


@given(seed=st.integers(0, 10_000))
def test_the_average_over_a_concepts_own_patches_is_association(page, seed):
    """It is sum_t' P(t' | m) P(y | t', m) = P(y | m), which U moves whenever it moves both T and Y."""
    model = concept_model(page, seed)
    law = model.law()
    found = page["concept_average"](as_rows(model, 50_000))[1].to_numpy()
    assert found == pytest.approx(law[:, :, 1].sum(0) / law.sum((0, 2)), abs=0.01)
    u_given_m = model.granularity * (model.treatment @ model.mediator).T
    u_given_m /= u_given_m.sum(1, keepdims=True)
    assert found == pytest.approx((model.outcome * u_given_m).sum(1), abs=0.01)


def test_a_sample_follows_the_law(page):
    model = concept_model(page, 0).softened(0.5)
    data = model.sample(200_000, np.random.default_rng(0))
    assert pd.crosstab([data["T"], data["M"]], data["Y"], normalize="all").to_numpy().ravel() == pytest.approx(
        model.law().ravel(), abs=0.01
    )


def test_each_step_to_the_formula_holds_in_its_mutilated_graph(page):
    assert all(step.holds(FRONT_DOOR) for step in page["STEPS"])


@pytest.mark.parametrize("arrow, failing", [(("U", "M"), [1, 3, 4]), (("T", "Y"), [5])])
def test_a_forbidden_arrow_makes_a_step_fail(page, arrow, failing):
    assert [number for number, step in enumerate(page["STEPS"], 1) if not step.holds((*FRONT_DOOR, arrow))] == failing
