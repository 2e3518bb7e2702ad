"""What pages claim, computed a second time from the records alone: no code of the package takes part in the sums."""

from __future__ import annotations

import base64
import itertools
import json
import lzma

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from cause_lite.lab import results
from cause_lite.pages import verdicts
from cause_lite.runtime.files import project_dir

DATA = ("scenes", "msrc", "camvid")
CLASSES = {"scenes": 16, "msrc": 21, "camvid": 11}


def confusions(study: str, data: str) -> dict[str, list[np.ndarray]]:
    """The confusion of each run, clusters by classes, by arm."""
    path = project_dir() / "data" / "records" / f"{study}-{data}.json"
    found: dict[str, list[np.ndarray]] = {}
    for record in json.loads(path.read_text())["records"].values():
        content = lzma.decompress(base64.b85decode(record["confusions"]["xz"]))
        counts = np.frombuffer(content, "<u4").reshape(record["confusions"]["shape"]).astype(float).sum(0)
        found.setdefault(record["arm"], []).append(counts)
    return found


def matched(counts: np.ndarray) -> tuple[float, float]:
    """mIoU and pixel accuracy in percent after the best one-to-one matching."""
    clusters, classes = scipy.optimize.linear_sum_assignment(-counts)
    there = counts.sum(0) > 0
    iou = np.zeros(counts.shape[1])
    for cluster, one in zip(clusters, classes, strict=True):
        hits = counts[cluster, one]
        iou[one] = hits / max(counts[cluster].sum() + counts[:, one].sum() - hits, 1)
    return 100 * iou[there].mean(), 100 * counts[clusters, classes].sum() / counts.sum()


def effective(counts: np.ndarray) -> float:
    shares = counts.sum(1) / counts.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def information(counts: np.ndarray) -> float:
    joint = counts / counts.sum()
    free = np.outer(joint.sum(1), joint.sum(0))
    some = joint > 0
    return float((joint[some] * np.log(joint[some] / free[some])).sum())


def scored(study: str, data: str) -> dict[str, np.ndarray]:
    return {arm: np.array([matched(counts)[0] for counts in runs]) for arm, runs in confusions(study, data).items()}


@pytest.mark.parametrize(
    "study, data", [*itertools.product(("tables", "selection", "merged"), DATA), ("leak", "scenes")]
)
def test_every_score_of_a_record(study, data):
    frame, ours = results.frame(study, data).query("not supervised"), confusions(study, data)
    for arm, part in frame.groupby("arm"):
        for shown, counts in zip(part.to_dict("records"), ours[arm], strict=True):
            miou, pacc = matched(shown["confusion"].astype(float))
            assert any(np.array_equal(counts, shown["confusion"]) for counts in ours[arm])
            assert (shown["miou"], shown["pacc"]) == pytest.approx((miou, pacc))
            assert shown["effective"] == pytest.approx(effective(shown["confusion"]))
            assert shown["information"] == pytest.approx(information(shown["confusion"]), abs=1e-9)


def test_the_primary_contrasts():
    shown, p_values = results.primary_contrasts().set_index("data"), {}
    for data in DATA:
        chosen, scores = scored("selection", data), scored("tables", data)
        ours = max(("cause-mlp", "cause-mlp-kmeans", "cause-mlp-cosine"), key=lambda arm: chosen[arm].mean())
        families = ("kmeans", "kmeans-pca", "kmeans-whitened", "kmeans-context", "mixture", "agglomerative")
        base = max(families, key=lambda arm: chosen[arm].mean())
        a, b = scores[ours], scores[base]
        wide = np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
        row = shown.loc[data]
        assert (row["ours"], row["base"]) == (ours, base)
        assert row["difference"] == pytest.approx(a.mean() - b.mean())
        freedom = wide**4 / sum((x.var(ddof=1) / len(x)) ** 2 / (len(x) - 1) for x in (a, b))
        assert row["high"] - row["difference"] == pytest.approx(wide * scipy.stats.t.ppf(0.975, freedom))
        rng, both, larger = np.random.default_rng(7), np.concatenate([a, b]), 0
        for _ in range(4000):
            rng.shuffle(both)
            larger += abs(both[: len(a)].mean() - both[len(a) :].mean()) >= abs(a.mean() - b.mean()) - 1e-12
        p_values[data] = (1 + larger) / 4001
        assert row["p_value"] == pytest.approx(p_values[data], abs=0.03)
    enough = {data: p if shown.loc[data, "seeds"] >= 5 else 1.0 for data, p in p_values.items()}
    order = sorted(DATA, key=enough.get)
    least = min(1.0, 3 * enough[order[0]])
    assert shown.loc[order[0], "adjusted_p"] == pytest.approx(least, abs=0.09)
    assert shown["finding"].tolist() == (shown["adjusted_p"] <= 0.05).tolist()


def test_what_leaked_labels_change():
    scores = scored("leak", "scenes")
    for row in verdicts.leak_differences("scenes").to_dict("records"):
        names = [f"{row['rates']}-{row['epochs']}-{labels.replace(' ', '-')}" for labels in (row["labels"], "detached")]
        assert row["difference"] == pytest.approx(scores[names[0]].mean() - scores[names[1]].mean())


@pytest.mark.parametrize("data", DATA)
def test_what_rewards_merging_is_caught(data):
    """One cluster for everything stands in each table; k-means with every smaller number of clusters has records."""
    assert "constant" in set(results.frame("tables", data)["arm"])
    merged = results.frame("merged", data)
    assert set(merged["arm"]) == {f"kmeans-{clusters}" for clusters in range(2, CLASSES[data])}
    assert (results.frame("tables", data).set_index("arm").loc[["constant"], "information"] == 0).all()
