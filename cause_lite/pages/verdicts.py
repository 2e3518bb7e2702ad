"""Verdicts of the results pages: a sentence, a short table of questions, and the differences behind them.

All come from the records of the studies `tables` and `selection`. Begin with `verdict`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cause_lite.lab.results import (
    BASELINES,
    PRIMARY,
    READINGS,
    frame,
    interval_over_images,
    over_seeds,
    primary_contrasts,
    selected,
)
from cause_lite.lab.statistics import SEEDS_FOR_FINDING, SEEDS_FOR_INTERVAL, contrasts
from cause_lite.lab.study import read_records
from cause_lite.pages.tables import mean_sd, signed

QUESTIONS = {  # what an arm is compared with, for each exploratory question of a results page
    "Is CAUSE ahead of full k-means on the same features?": ("cause-mlp", "kmeans"),
    "Does k-means find more in its head than in the features?": ("cause-mlp-kmeans", "kmeans"),
    "Is its own third step ahead of k-means on its head?": ("cause-mlp", "cause-mlp-kmeans"),
    "Can a classifier with labels read more from its head than from the features?": ("mlp-logistic", "logistic"),
    "Does the CRF help?": ("cause-mlp-crf", "cause-mlp"),
}
RATES = {"ours": "our rates", "release": "the release's rates, from noise"}
FIRST = "Is the clean method ahead of the best label-free baseline?"


def verdict(data: str) -> str:
    """Return the primary contrast of a data set in a few sentences of Markdown."""
    row = primary_contrasts().set_index("data").loc[data]
    scores = frame("tables", data)
    means = [mean_sd(*_mean_and_deviation(scores, arm)) for arm in (row["ours"], row["base"])]
    titles = scores.drop_duplicates("arm").set_index("arm")["method"]
    over_images = _interval(*interval_over_images(data, row["ours"], row["base"]))
    return (
        f"**{_answer(row).capitalize()}.** On the test images, {titles[row['ours']]} scores {means[0]} mIoU and "
        f"{titles[row['base']]} {means[1]}. The difference is {signed(row['difference'])} points "
        f"({_interval(row['low'], row['high'])} over {row['seeds']} seeds, {over_images} over seeds and images"
        f"{_p_value(row)}). "
        f"At the 5 % level both are equal within {row['bound']:.1f} points."
    )


def questions(data: str) -> pd.DataFrame:
    """Return what a data set answers: `question`, `answer`, `how sure` and `what else moves`, a row a question.

    The first row is the primary contrast; the others are exploratory, corrected for their number.
    """
    scores = frame("tables", data)
    first = primary_contrasts().query("data == @data").assign(question=FIRST)
    pairs = {key: pair for key, pair in QUESTIONS.items() if set(pair) <= set(scores["arm"])}
    others = contrasts(
        {(key, *pair): tuple(over_seeds(scores, arm) for arm in pair) for key, pair in pairs.items()},  # type: ignore[misc]
        ("question", "ours", "base"),
    )
    means = scores.groupby("arm")[["information", "effective"]].mean()
    lines = []
    for row in pd.concat([first, others]).to_dict("records"):
        moved = means.loc[row["ours"]] - means.loc[row["base"]]
        interval = f" ({_interval(row['low'], row['high'])})" if row["seeds"] >= SEEDS_FOR_INTERVAL else ""
        sure = f"{signed(row['difference'])} mIoU{interval}{_p_value(row)}"
        else_moved = f"information {moved['information']:+.2f} nats, effective clusters {signed(moved['effective'])}"
        seeds = f"{row['seeds']} seed{'s' if row['seeds'] > 1 else ''}"
        answers = {"question": row["question"], "answer": _answer(row), "how sure": f"{sure}; {seeds}"}
        lines.append(answers | {"what else moves": else_moved})
    return pd.DataFrame(lines)


def leads(data: str, base: str = "kmeans") -> pd.DataFrame:
    """Return the difference in mIoU of every label-free arm from a base, as `statistics.contrasts`, by `method`."""
    return _leads(frame("tables", data).query("not supervised"), base)


def _leads(scores: pd.DataFrame, base: str) -> pd.DataFrame:
    arms = [arm for arm in scores["arm"].unique() if arm not in (base, "constant")]
    titles = scores.drop_duplicates("arm").set_index("arm")["method"]
    of_base = over_seeds(scores, base)
    return contrasts({(titles[arm],): (over_seeds(scores, arm), of_base) for arm in arms}, ("method",))


def choice(data: str) -> str:
    """Return in words which reading and which baseline the validation images chose."""
    titles = frame("selection", data).drop_duplicates("arm").set_index("arm")["method"]
    ours, base = (titles[selected(data, arms)] for arms in (READINGS, BASELINES))
    return (
        f"The validation images chose *{ours}* of {len(READINGS)} readings and *{base}* of {len(BASELINES)} baselines."
    )


def leak_scores(data: str) -> pd.DataFrame:
    """Return the runs of the study `leak`, as `results.frame`, with `rates` (ours, release), `epochs` and `labels`."""
    scores = frame("leak", data)
    parts = scores["arm"].str.split("-", n=2, expand=True)
    scores["rates"], scores["epochs"] = parts[0], pd.to_numeric(parts[1], errors="coerce")
    return scores.assign(labels=parts[2].str.replace("-", " ")).dropna(subset=["epochs"]).astype({"epochs": int})


def leak_differences(data: str, score: str = "miou") -> pd.DataFrame:
    """Return what each kind of labels changes against the same loop with labels detached, as `statistics.contrasts`.

    Columns `rates`, `epochs` and `labels` name the arm; `method` puts them into words.
    """
    pairs: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}
    for (rates, epochs), part in leak_scores(data).groupby(["rates", "epochs"], sort=False):
        by_labels = {labels: runs[score].to_numpy() for labels, runs in part.groupby("labels", sort=False)}
        base = by_labels.pop("detached")
        pairs |= {(rates, epochs, labels): (values, base) for labels, values in by_labels.items()}
    rows = contrasts(pairs, ("rates", "epochs", "labels"))
    names = zip(rows["labels"], rows["epochs"], rows["rates"], strict=True)
    return rows.assign(method=[f"{labels}, {epochs} epochs, {RATES[rates]}" for labels, epochs, rates in names])


def _interval(low: float, high: float) -> str:
    return f"{signed(low)} to {signed(high)}"


def _p_value(row: Any) -> str:
    """Return the corrected p-value in words, or that there are too few seeds for one."""
    if row["seeds"] < SEEDS_FOR_FINDING:
        return f"; fewer than {SEEDS_FOR_FINDING} seeds, which can be no finding"
    return f"; p = {row['adjusted_p']:.2g} after Holm's correction"


def _answer(row: pd.Series | dict) -> str:
    if not row["finding"]:
        return "not shown"
    return "yes" if row["difference"] > 0 else "no, behind"


def _mean_and_deviation(scores: pd.DataFrame, arm: str) -> tuple[float, float]:
    values = over_seeds(scores, arm)
    return float(values.mean()), float(values.std(ddof=1))


def rival_data() -> list[str]:
    """Return the data sets that have records of rivals."""
    return [data for data in PRIMARY if read_records("rivals", data)]


def with_rivals(data: str) -> pd.DataFrame:
    """Return the runs of full k-means, of the clean method and of its rivals on a data set, as `results.frame`."""
    return pd.concat([frame("tables", data).query("arm in ('kmeans', 'cause-mlp')"), frame("rivals", data)])


def rival_leads(data: str) -> pd.DataFrame:
    """Return the difference in mIoU of each method from full k-means, as `statistics.contrasts`, by `method`."""
    return _leads(with_rivals(data), "kmeans")
