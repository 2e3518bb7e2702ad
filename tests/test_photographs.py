"""The study of stronger features: which runs it has, and what its tables say of records."""

from __future__ import annotations

from urllib.parse import parse_qsl

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from cause_lite.backbones import PatchStore
from cause_lite.lab import baselines, contexts, ladder, photographs
from cause_lite.lab.comparison import CAUSE, COLOUR_KMEANS, FEATURE_KMEANS
from cause_lite.lab.statistics import holm, paired_t
from cause_lite.pages import study_tables
from cause_lite.runtime.files import UserError

BASE, CLEAN = f"{photographs.BACKBONE}/feature-kmeans", f"{photographs.BACKBONE}/clean"


def made(name: str, method: str, seed: int, miou: float) -> dict:
    return {"name": name, "method": method, "title": name, "seed": seed, "miou": miou, "pacc": miou + 10} | {
        "date": "2026-01-01",
        "environment": {},
    }


@pytest.fixture
def records(monkeypatch):
    """Three seeds of k-means and of one head, and what the head gained."""
    base, gained = np.array([30.0, 31.0, 35.0]), np.array([4.0, 6.0, 8.0])
    runs = [made(BASE, FEATURE_KMEANS, seed, base[seed]) for seed in (2, 0, 1)]
    runs += [made(CLEAN, CAUSE["mlp"], seed, base[seed] + gained[seed]) for seed in range(3)]
    monkeypatch.setattr(photographs, "read_study", lambda *_: {str(n): run for n, run in enumerate(runs)})
    return gained


def test_gains_are_paired_by_seed(records):
    rows = {row.arm: row for row in photographs.summary("msrc").itertuples()}
    clean, interval = rows[CLEAN], scipy.stats.t.interval(0.95, 2, 6.0, 2 / np.sqrt(3))
    assert (clean.miou, clean.miou_gain, clean.seeds) == (38.0, 6.0, 3)
    assert np.allclose((clean.miou_low, clean.miou_high), interval)
    assert rows[BASE].miou_gain == rows[BASE].miou_low == 0
    lines = photographs.table("msrc").set_index("method")
    assert lines.loc[CAUSE["mlp"], "mIoU, %"] == "38.0 ± 4.6"
    assert lines.loc[CAUSE["mlp"], "gain, mIoU"] == "+6.0 (+1.0 to +11.0)"
    assert lines.loc[FEATURE_KMEANS, "gain, mIoU"] == ""


def test_two_seeds_have_no_interval(records, monkeypatch):
    some = {key: run for key, run in photographs.read_study("", "").items() if run["seed"] < 2}
    monkeypatch.setattr(photographs, "read_study", lambda *_: some)
    assert photographs.table("msrc").set_index("method").loc[CAUSE["mlp"], "gain, mIoU"] == "+5.0"


@pytest.mark.parametrize("data", list(photographs.CENTRES))
def test_each_run_has_its_own_key_and_the_backbone_is_centred_on_its_data(data):
    runs = list(photographs.photograph_runs(data, 2))
    assert len({run.key for run in runs}) == len(runs)
    assert {dict(parse_qsl(run.config.backbone.partition("?")[2]))["centre"] for run in runs} == {data}
    assert {run.name.partition("/")[0] for run in runs} == set(photographs.LADDER)
    leaks = [run for run in runs if run.config.probe.label_flow != "clean"]
    assert leaks and all(run.name.endswith(("as-released", "detached")) for run in leaks)
    keys = {photographs.key_of(run.name, CAUSE[run.config.head.kind]) for run in leaks}
    assert {"mlp_as_released", "tr_as_released"} <= keys


def test_baselines_run_once_whatever_the_heads():
    apart = [run.key for head in ("mlp", "tr") for run in photographs.photograph_runs("msrc", 1, (head,))]
    together = [run.key for run in photographs.photograph_runs("msrc", 1)]
    assert sorted(apart) == sorted(together)


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
    shown = study_tables.ladder_table("msrc", "miou").set_index("")["photos"]
    assert (shown["logistic regression"], shown["leak"]) == ("not run", "+21.0 (+21.0\u00a0to\u00a0+21.0)*")
    lines = study_tables.ladder_text("msrc", "photos").splitlines()
    leak = "step 3 as released less the same step with labels detached"
    starts = ("* `photos`, the clean method less mini-batch k-means: +6.0 (", f"* `photos`, {leak}: +21.0 (")
    assert len(lines) == 3 and all(line.startswith(start) for line, start in zip(lines, starts, strict=False))


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
    text = study_tables.growth_text("photos", "efficientnet-lite2")
    assert text.count("\n* ") == 4 and text.endswith(
        f"Of these 4 differences, {sum(table['finding']) or 'none'} is a finding."
    )


def test_what_was_not_run_is_told_from_what_has_few_seeds(monkeypatch):
    runs = [made("photos/clean", CAUSE["mlp"], seed, 20.0) for seed in range(5)]
    runs += [made("scenes/clean", CAUSE["mlp"], 0, 20.0)]
    monkeypatch.setattr(ladder, "read_study", lambda *_: {str(n): run for n, run in enumerate(runs)})
    assert ladder.lacking("msrc")["clean"] == {"untrained": 0, "scenes": 1, "camvid": 0, photographs.BACKBONE: 0}
    told = study_tables.lacking_text().splitlines()
    assert told[:2] == [
        "* MSRC, 21 classes, CAUSE-TR: nothing was run with this head",
        "* MSRC, 21 classes, CAUSE-MLP:",
    ]
    assert "    * clean: not run on `untrained`, `camvid`, `efficientnet-lite2` (1 seed on `scenes`)" in told
    assert any(line.startswith("    * full k-means: not run on") for line in told)


def test_the_lead_over_colour_is_paired_by_seed_and_corrected_as_one_family(monkeypatch):
    noise = np.random.default_rng(4).normal(2, 1, (2, 5))
    runs = [made(f"{photographs.BACKBONE}/colour-kmeans", COLOUR_KMEANS, seed, 10.0 + seed) for seed in range(5)]
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
    assert study_tables.leads_text("colour-kmeans").count("* `photos`: ") == 2


def test_the_table_of_classes_has_means_over_seeds(monkeypatch):
    runs = [
        made("photos/clean", CAUSE["mlp"], seed, 0.0) | {"iou": [10.0 * seed + number for number in range(11)]}
        for seed in range(2)
    ] + [made("photos/clean", CAUSE["tr"], 0, 0.0) | {"iou": [99.0] * 11}]
    monkeypatch.setattr(ladder, "read_study", lambda *_: {str(n): run for n, run in enumerate(runs)})
    table = study_tables.classes_table("camvid", {"ours": ("photos/clean", CAUSE["mlp"])}).set_index("class")
    assert table.loc["sky", "ours"] == "5.0" and table.loc["bicyclist", "ours"] == "15.0"


def test_trials_that_read_the_same_share_the_first_place():
    titles = pd.Series({"one": "first", "two": "second", "three": "third"})
    told = study_tables._highest(pd.Series({"three": 40.0, "two": 42.56, "one": 42.64}), titles)
    assert told == "are *second* and *first*"


def test_runs_are_paired_by_the_seeds_that_both_have():
    ours = [made("photos/clean", CAUSE["mlp"], seed, 20.0 + seed) for seed in range(5)]
    others = [made("clean", CAUSE["mlp"], seed, 18.0 + 0.5 * seed) for seed in (4, 1, 2, 7)]
    found, seeds = ladder.ahead(ours, others)
    assert seeds == 3
    assert found == paired_t(np.array([2.5, 3.0, 4.0]))


def test_another_data_set_is_refused_by_name():
    with pytest.raises(UserError, match="no data set 'scenes'; must be one of msrc, camvid"):
        next(photographs.photograph_runs("scenes", 1))


@pytest.mark.parametrize("dim", [baselines.WIDE - 1, baselines.WIDE])
def test_wide_features_are_scored_before_they_are_enlarged(dim, tmp_path, monkeypatch):
    """The same scores either way, at the cost of the classes' maps in place of the features'."""
    monkeypatch.setenv("CAUSE_CACHE", str(tmp_path))
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 16, dim, generator=rng)
    store = PatchStore(tmp_path / "x", (2, 16, dim), torch.float32, lambda which: vectors[which], "test")
    test, centres = baselines.TestFeatures(store, store), torch.randn(5, dim, generator=rng)
    upsampled, plain = [], baselines.enlarged

    def watched(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        upsampled.append(maps)
        return plain(maps, size)

    monkeypatch.setattr(baselines, "enlarged", watched)
    scores = test.scores(slice(0, 2), (13, 13), lambda v: baselines.closeness(v, centres))
    assert upsampled[0].shape[3] == (5 if dim >= baselines.WIDE else dim)
    assert torch.allclose(scores, baselines.closeness(test.maps(slice(0, 2), (13, 13)), centres), atol=1e-4)


def test_the_study_of_contexts_changes_the_context_alone():
    with pytest.raises(UserError, match="study contexts: no data set 'scenes'"):
        list(contexts.context_runs("scenes", 1))
    runs = list(contexts.context_runs("camvid", 2))
    assert len(runs) == len({run.key for run in runs}) == (2 + 1) * len(contexts.CONTEXTS) * len(contexts.RUNGS)
    for run in runs:
        rung, context, _ = run.name.split("/")
        plain = photographs.configured("camvid", "mlp", run.config.seed, rung)
        model, _, settings = run.config.backbone.partition("?")
        assert dict(parse_qsl(settings))["context"] == context
        assert run.config.replace({"backbone": plain.backbone}) == plain and model == rung


def test_the_table_of_contexts_has_means_over_seeds(monkeypatch):
    scores = {"kmeans": [10.0, 12.0], "logistic": [30.0]}
    runs = [
        made(f"photos/{context}/{method}", contexts.METHODS[method], seed, value + context)
        for context in (0, 3)
        for method, values in scores.items()
        for seed, value in enumerate(values)
    ] + [made(f"{photographs.BACKBONE}/0/kmeans", FEATURE_KMEANS, 0, 90.0)]
    monkeypatch.setattr(contexts, "read_study", lambda *_: {str(n): run for n, run in enumerate(runs)})
    table = study_tables.contexts_table("photos").set_index("cells to each side")
    assert table.loc[3, "msrc, k-means"].replace("\N{NO-BREAK SPACE}", " ") == "14.0 ± 1.4 / 24.0 ± 1.4"
    assert table.loc[0, "camvid, labels"] == "30.0 / 40.0"


def test_the_text_of_contexts_is_of_differences_from_none(monkeypatch):
    runs = [
        made(f"photos/{context}/{method}", contexts.METHODS[method], 0, value)
        for method, values in {"kmeans": (10.0, 12.5), "logistic": (30.0, 29.0)}.items()
        for context, value in zip((0, 3), values, strict=True)
    ]
    monkeypatch.setattr(contexts, "read_study", lambda *_: {str(n): run for n, run in enumerate(runs)})
    text = study_tables.contexts_text("photos", 3)
    assert text.count("+2.5 by k-means, -1.0 by the logistic regression.") == len(photographs.CENTRES)
