"""The study of stronger features: which runs it has, and what its tables say of records."""

from __future__ import annotations

import numpy as np
import pytest

from cause_lite.lab import earlier, ladder
from cause_lite.lab.earlier import CAUSE, COLOUR_KMEANS, FEATURE_KMEANS
from cause_lite.lab.statistics import holm, paired_t
from cause_lite.pages import tables

BASE, CLEAN = f"{earlier.BACKBONE}/feature-kmeans", f"{earlier.BACKBONE}/clean"


METHODS = {"kmeans": FEATURE_KMEANS, "logistic": earlier.LOGISTIC}


def made(name: str, method: str, seed: int, miou: float) -> dict:
    return {"name": name, "method": method, "title": name, "seed": seed, "miou": miou, "pacc": miou + 10} | {
        "date": "2026-01-01",
        "environment": {},
    }


def test_the_ladder_pairs_gain_and_leak_by_seed(monkeypatch):
    """What was added to each arm comes out again; a backbone without a clean fit has no row."""
    noise = np.array([0.0, 2.0, -1.0, 0.5, -0.5])
    added = {"feature-kmeans": 0.0, "clean": 6.0, "detached": 5.0, "as-released": 26.0}
    runs = [
        made(
            f"photos/{arm}", FEATURE_KMEANS if arm == "feature-kmeans" else CAUSE["mlp"], seed, 30 + noise[seed] + more
        )
        for arm, more in added.items()
        for seed in range(5)
    ] + [made("scenes/feature-kmeans", FEATURE_KMEANS, 0, 10.0)]
    runs[5]["miou"] += 0.01  # else the differences of the clean arm had no spread at all
    monkeypatch.setattr(ladder, "read_study", lambda *_: {str(n): run for n, run in enumerate(runs)})
    table = ladder.ladder("msrc")
    rows = ladder.differences(table.loc["photos"])
    assert list(table.index.unique("backbone")) == ["photos"]
    assert [rows[name]["difference"] for name in ("gain", "leak", "loop")] == pytest.approx([6.002, 21, -1.002])
    assert [rows["gain"]["finding"], rows["leak"]["finding"], rows["gain"]["seeds"]] == [True, True, 5]
    assert "logistic" not in table.loc["photos"].index
    shown = tables.ladder_rows().query("data == 'msrc' and score == 'mIoU'").set_index("what")
    assert list(shown.index) == ["gain", "leak", "loop"]
    assert tables.difference(shown.loc["leak"]) == "+21.0 (+21.0\u00a0to\u00a0+21.0)*"


def test_the_growth_of_the_gain_is_paired_by_seed_and_corrected_as_one_family(monkeypatch):
    noise = np.random.default_rng(3).normal(0, 1, (2, 5))
    gains = {"photos": 2 + noise[0], "efficientnet-lite2": 5 + noise[1]}
    runs = [
        made(f"{rung}/{arm}", method, seed, 30 + more)
        for rung, values in gains.items()
        for seed, gain in enumerate(values)
        for arm, method, more in (("feature-kmeans", FEATURE_KMEANS, 0.0), ("clean", CAUSE["mlp"], gain))
    ] + [made("photos/clean", CAUSE["tr"], 0, 90.0)]
    monkeypatch.setattr(ladder, "read_study", lambda *_: {str(n): run for n, run in enumerate(runs)})
    table = ladder.growth(("photos", "efficientnet-lite2"))
    expected = paired_t(gains["efficientnet-lite2"] - gains["photos"])
    assert len(table) == 4 and set(table["seeds"]) == {5}
    assert table["difference"].to_numpy() == pytest.approx(np.full(4, expected.mean))
    assert table["adjusted_p"].to_numpy() == pytest.approx(np.full(4, min(1, 4 * expected.p_value)))


def test_what_was_not_run_is_told_from_what_has_few_seeds(monkeypatch):
    runs = [made("photos/clean", CAUSE["mlp"], seed, 20.0) for seed in range(5)]
    runs += [made("scenes/clean", CAUSE["mlp"], 0, 20.0)]
    monkeypatch.setattr(ladder, "read_study", lambda *_: {str(n): run for n, run in enumerate(runs)})
    assert ladder.lacking("msrc")["clean"] == {"untrained": 0, "scenes": 1, "camvid": 0, earlier.BACKBONE: 0}


def test_the_lead_over_colour_is_paired_by_seed_and_corrected_as_one_family(monkeypatch):
    noise = np.random.default_rng(4).normal(2, 1, (2, 5))
    runs = [made(f"{earlier.BACKBONE}/colour-kmeans", COLOUR_KMEANS, seed, 10.0 + seed) for seed in range(5)]
    runs += [
        made(f"{rung}/clean", CAUSE["mlp"], seed, 10 + seed + lead)
        for rung, leads in zip(("scenes", "photos"), noise, strict=True)
        for seed, lead in enumerate(leads)
    ]
    monkeypatch.setattr(ladder, "read_study", lambda *_: {str(n): run for n, run in enumerate(runs)})
    table = ladder.leads("colour-kmeans").set_index(["data", "backbone", "score"])
    alone = [paired_t(leads) for leads in noise]
    assert table.loc[("camvid", "photos", "mIoU"), "difference"] == pytest.approx(alone[1].mean)
    expected = holm(np.repeat([one.p_value for one in alone], 4))
    assert sorted(table["adjusted_p"]) == pytest.approx(sorted(expected))


def test_runs_are_paired_by_the_seeds_that_both_have():
    ours = [made("photos/clean", CAUSE["mlp"], seed, 20.0 + seed) for seed in range(5)]
    others = [made("clean", CAUSE["mlp"], seed, 18.0 + 0.5 * seed) for seed in (4, 1, 2, 7)]
    found, seeds = ladder.ahead(ours, others)
    assert seeds == 3
    assert found == paired_t(np.array([2.5, 3.0, 4.0]))


def test_scores_by_context_are_means_over_seeds(monkeypatch):
    scores = {"kmeans": [10.0, 12.0], "logistic": [30.0]}
    runs = [
        made(f"photos/{context}/{method}", METHODS[method], seed, value + context)
        for context in (0, 3)
        for method, values in scores.items()
        for seed, value in enumerate(values)
    ]
    monkeypatch.setattr(earlier, "read_study", lambda *_: {str(n): run for n, run in enumerate(runs)})
    row = earlier.context_scores("msrc").loc[("photos", 3)]
    assert tables.mean_sd(row["kmeans_miou"], row["kmeans_miou_std"]) == "14.0\u00a0±\u00a01.4"
    assert tables.mean_sd(row["logistic_miou"], row["logistic_miou_std"]) == "33.0"
