"""Intervals cover as often as they say, and a finding needs enough seeds and a corrected p-value."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from cause_lite.lab.results import resampled_deviation
from cause_lite.lab.statistics import (
    SEEDS_FOR_FINDING,
    SEEDS_FOR_INTERVAL,
    compared,
    family,
    holm,
    paired_t,
    unpaired,
)
from cause_lite.lab.study import packed

P_VALUES = st.lists(st.floats(0, 1), max_size=8)


@pytest.mark.parametrize("seeds", [3, 4, 5])
def test_the_shown_interval_covers_the_mean_of_normal_differences(seeds):
    rng, mean, draws = np.random.default_rng(0), 0.7, 4000
    found = [paired_t(values) for values in rng.normal(mean, 1.3, (draws, seeds))]
    covered = np.mean([estimate.low <= mean <= estimate.high for estimate in found])
    assert 0.93 <= covered <= 0.97


def test_few_findings_are_wrong_in_a_family_without_effects():
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(1000):
        p_values = scipy.stats.ttest_1samp(rng.normal(size=(12, SEEDS_FOR_FINDING)), 0, axis=1).pvalue
        wrong += bool((holm(p_values) <= 0.05).any())
    assert wrong / 1000 <= 0.07


def test_a_family_is_corrected_together_and_counts_those_with_enough_seeds_alone():
    rng = np.random.default_rng(2)
    drawn = {(str(number),): rng.normal(1, 1, seeds) for number, seeds in enumerate((5, 3, 6, 2))}
    table = family(drawn, ("name",)).set_index("name")
    alone = {key: paired_t(values) for (key,), values in drawn.items()}
    assert table["adjusted_p"].isna().tolist() == [False, True, False, True]
    expected = holm(np.array([alone["0"].p_value, alone["2"].p_value]))
    assert table.loc[["0", "2"], "adjusted_p"].to_numpy() == pytest.approx(expected)
    assert table.loc["2", "spread"] == pytest.approx(drawn["2",].std(ddof=1))
    assert np.isnan(table.loc["3", "low"])


def test_two_seeds_have_no_interval():
    estimate = paired_t(np.array([1.0, 1.2]))
    assert estimate.mean == pytest.approx(1.1)
    assert np.isnan([estimate.low, estimate.high, estimate.p_value]).all()


def test_equal_differences_have_no_spread():
    assert (paired_t(np.zeros(5)).p_value, paired_t(np.ones(5)).p_value) == (1, 0)
    assert paired_t(np.ones(5)).low == paired_t(np.ones(5)).high == 1


@given(P_VALUES)
def test_holm_adjusts_upwards_and_keeps_the_order(p_values):
    adjusted, given_ = holm(np.array(p_values)), np.array(p_values)
    assert ((adjusted >= given_) & (adjusted <= 1)).all()
    order = np.argsort(given_, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()
    if p_values:
        assert adjusted.min() == pytest.approx(min(1, len(p_values) * min(p_values)))


def test_holm_on_a_worked_example():
    """Holm's steps by hand: 4 x 0.005, 3 x 0.01, then the rest may not fall below."""
    assert holm(np.array([0.01, 0.04, np.nan, 0.03, 0.005])) == pytest.approx(
        [0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True
    )


def records_of(
    gains: dict[str, list[float]], accelerator: str | None = None, date: str = "2026-01-01"
) -> dict[str, dict]:
    """Return records of a base with scores 10, 20, ... and of runs that gain on it, a list entry a seed."""
    environment = {"accelerator": accelerator} if accelerator else {}
    return {
        f"{name}/{seed}/{accelerator}": {
            "method": "CAUSE-MLP",
            "name": name,
            "title": name,
            "seed": seed,
            "miou": 10.0 * (seed + 1) + gain,
            "environment": environment,
            "date": date,
        }
        for name, values in gains.items()
        for seed, gain in enumerate(values)
    }


@pytest.mark.parametrize("seeds", [1, 2, 3, 4, 5, 6])
def test_what_is_shown_follows_the_number_of_seeds(seeds):
    gains = {"clean": [0.0] * seeds, "other": [5 + 0.01 * seed for seed in range(seeds)]}
    row = compared(records_of(gains), "clean").set_index("name").loc["other"]
    assert row["difference"] == pytest.approx(np.mean(gains["other"])) and row["seeds"] == seeds
    assert np.isfinite(row["low"]) == (seeds >= SEEDS_FOR_INTERVAL)
    assert row["finding"] == (seeds >= SEEDS_FOR_FINDING)


def test_differences_are_paired_by_seed_and_device():
    """A run on another device has no partner; where both devices have one, the last counts."""
    here, there = {"clean": [0.0] * 3, "other": [1.0] * 3}, {"clean": [0.0] * 4, "other": [2.0] * 4}
    table = compared(records_of(here, date="2026-01-02") | records_of(there, "a GPU"), "clean").set_index("name")
    assert table.loc["other", "difference"] == pytest.approx((3 * 1 + 2) / 4)
    alone = compared(records_of({"clean": [0.0]}) | records_of({"other": [1.0]}, "a GPU"), "clean")
    assert list(alone["name"]) == ["clean"]


def test_scores_of_other_images_are_no_pair():
    tested = {key: record | {"split": "test"} for key, record in records_of({"clean": [0.0] * 5}).items()}
    validated = {key: record | {"split": "val"} for key, record in records_of({"other": [1.0] * 5}).items()}
    assert list(compared(tested | validated, "clean")["name"]) == ["clean"]


def test_a_base_is_chosen_by_what_was_run():
    records = records_of({"clean": [0.0] * 3, "detached": [1.0] * 3, "released": [3.0] * 3})
    table = compared(records, lambda name, run: "detached" if name == "released" and "detached" in run else "clean")
    differences = table.set_index("name")["difference"]
    assert differences.to_dict() == pytest.approx({"clean": 0, "detached": 1, "released": 2})


def test_a_base_of_more_seeds_counts_until_another_has_as_many():
    """The first machine had no detached run; the second is not done."""

    def base_of(name: str, run: set[str]) -> str:
        return "detached" if name == "released" and "detached" in run else "clean"

    first = records_of({"clean": [0.0] * 3, "released": [3.0] * 3})
    for seeds, base, difference in ((2, "clean", 3), (3, "detached", 2)):
        gains = {"clean": [0.0] * seeds, "detached": [1.0] * seeds, "released": [3.0] * seeds}
        row = compared(first | records_of(gains, "a GPU", "2026-01-02"), base_of).set_index("name").loc["released"]
        assert (row["base"], row["seeds"]) == (base, 3) and row["difference"] == pytest.approx(difference)


def test_the_base_and_runs_of_few_seeds_do_not_count_in_the_correction():
    rng = np.random.default_rng(0)
    gains = {"clean": [0.0] * 5, "a": list(rng.normal(1, 1, 5)), "b": list(rng.normal(1, 1, 5)), "few": [1.0, 1.1, 0.9]}
    table = compared(records_of(gains), "clean").set_index("name")
    assert np.isnan(table.loc[["clean", "few"], "adjusted_p"]).all()
    wanted = holm(table.loc[["a", "b"], "p_value"].to_numpy())
    assert table.loc[["a", "b"], "adjusted_p"].to_numpy() == pytest.approx(wanted)


def test_no_records_give_an_empty_table():
    assert len(compared({}, "clean")) == 0


def test_more_images_leave_less_to_chance():
    rng = np.random.default_rng(0)
    varied = rng.integers(0, 50, (30, 4, 4))

    def deviation(confusions: np.ndarray) -> float:
        record = {"confusions": packed(confusions), "seed": 0, "supervised": False}
        return resampled_deviation(record)

    assert deviation(np.repeat(varied[:1], 30, axis=0)) == pytest.approx(0, abs=1e-9)
    assert deviation(varied[:10]) > deviation(varied) > 0.1


def test_frames_of_a_video_are_drawn_in_blocks():
    """Ten scenes of three equal frames: single frames would pretend three times as many."""
    scenes = np.random.default_rng(0).integers(0, 50, (10, 4, 4)).repeat(3, axis=0)
    record = {"confusions": packed(scenes), "seed": 0, "supervised": False}
    assert resampled_deviation(record, block=3) > 1.3 * resampled_deviation(record)


def test_unpaired_means_are_told_apart_as_often_as_the_level_says():
    rng, wrong, covered = np.random.default_rng(2), 0, 0
    for _ in range(60):
        found = unpaired(rng.normal(1, 1, 5), rng.normal(0, 2, 5))
        covered += found.low <= 1 <= found.high
        wrong += unpaired(rng.normal(0, 1, 4), rng.normal(0, 1, 5)).p_value <= 0.05
    assert covered >= 52 and wrong <= 7


def test_three_seeds_against_three_are_never_a_finding():
    """Of 20 regroupings, two are as far apart as can be: the p-value is a tenth."""
    assert unpaired(np.array([9.0, 10, 11]), np.array([1.0, 2, 3])).p_value == pytest.approx(0.1)
