"""Tables and lists of scores and their differences, made in one way on every page.

Begin with `score_table` (from records) and `difference_list` (from paired differences).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML

from cause_lite.lab import earlier, ladder
from cause_lite.lab.results import SCORES as MEASURES
from cause_lite.lab.statistics import SEEDS_FOR_FINDING, SEEDS_FOR_INTERVAL, device_of
from cause_lite.lab.study import read_records

NO_BREAK = "\N{NO-BREAK SPACE}"
MOST_DECIMALS = 4  # of a difference that is nearly zero
SCORES = {"miou": "mIoU", "pacc": "pAcc"}
SPLITS = {"val": "validation images", "test": "test images"}
DATA_WORDS = {"msrc": "MSRC, 21 classes", "camvid": "CamVid, 11 classes"}
LADDER_WORDS = {
    "gain": "the clean method less mini-batch k-means",
    "leak": "step 3 as released less the same step with labels detached",
    "loop": "step 3 as released with labels detached less the clean method",
}
NOTE = (
    "Differences are paired by seed and, in the studies, by device; early records that name no processor count as one "
    "device. In brackets a paired t interval of 95 %, from three seeds on; fewer than five seeds are named. `*` marks "
    "a finding: five seeds, and a p-value of at most 0.05 after Holm's correction for all differences of one table or "
    "of one data set and head, in one score. A ± is the sample standard deviation over the seeds of the fit. Only that "
    "seed is covered: not another backbone, other test images or another processor."
)


def mean_sd(mean: float, deviation: float, decimals: int = 1) -> str:
    """Return `mean ± deviation`; a deviation that is NaN, as of one seed, is left out."""
    spread = "" if np.isnan(deviation) else f"{NO_BREAK}±{NO_BREAK}{deviation:.{decimals}f}"
    return f"{mean:.{decimals}f}{spread}"


def signed(value: float) -> str:
    """Return a difference with its sign and one decimal, or as many as keep the sign of one that is nearly zero."""
    for decimals in range(1, MOST_DECIMALS + 1):
        if float(text := f"{value:+.{decimals}f}"):
            return text
    return "0.0"


def difference(row: Any) -> str:
    """Return a difference with its interval, such as `+1.2 (+0.3 to +2.1)`; few seeds are named with it or instead.

    `row` has `difference`, `low`, `high`, `seeds` and `finding`, as the rows of `statistics.compared` and `family`.
    """
    if row.seeds < SEEDS_FOR_INTERVAL:
        interval = f"({row.seeds} seed{'s' if row.seeds > 1 else ''})"
    else:
        few = "" if row.seeds >= SEEDS_FOR_FINDING else f", {row.seeds} seeds"
        interval = f"({signed(row.low)} to {signed(row.high)}{few})"
    return f"{signed(row.difference)} {interval.replace(' ', NO_BREAK)}" + ("*" if row.finding else "")


def measures(scores: pd.DataFrame) -> pd.DataFrame:
    """Return every measure of a study's arms, mean ± deviation over seeds; `scores` is what `results.frame` returns."""
    lines = []
    for method, part in scores.groupby("method", sort=False):
        line = {"method": method, "seeds": part["seed"].nunique()}
        for key, name in MEASURES.items():
            line[name] = mean_sd(part[key].mean(), part[key].std(), 2 if key in ("information", "nmi") else 1)
        lines.append(line)
    return pd.DataFrame(lines)


def origins(study: str, data: str) -> pd.DataFrame:
    """Return which commits made a study's records, on which processors, with how many runs and seconds, a row each."""
    records = pd.DataFrame(read_records(study, data).values())[["commit", "device", "date", "seconds"]]
    records = records.assign(commit=records["commit"].str[:8], date=records["date"].str[:10])
    grouped = records.groupby(["commit", "device", "date"])["seconds"].agg(["size", "sum"]).reset_index()
    return grouped.rename(columns={"size": "runs", "sum": "seconds"}).round()


def effect_table(study: str, data: str) -> pd.DataFrame:
    """Return each run's scores and its differences from its base, a row a head and run; `*` marks a finding."""
    by_score = {name: earlier.effects(study, data, score) for score, name in SCORES.items()}
    table = by_score["mIoU"]
    titles = dict(zip(table["name"], table["title"], strict=True))
    shown = pd.DataFrame({"head": table["method"], "run": table["title"]})
    shown["compared with"] = ["" if row.base == row.name else titles[row.base] for row in rows_of(table)]
    for name, scored in by_score.items():
        shown[f"{name}, %"] = [mean_sd(row.mean, row.std) for row in rows_of(scored)]
        shown[f"Δ {name}"] = ["" if row.name == row.base else difference(row) for row in rows_of(scored)]
    return shown.assign(seeds=table["seeds"])


def rows_of(table: pd.DataFrame) -> list:
    """Return the rows of a table as named tuples."""
    return list(table.itertuples(index=False))


def ladder_rows(head: str = "mlp") -> pd.DataFrame:
    """Return gain, leak and loop (`what`) of every `data` set and `backbone`, a row a `score`; see `ladder.ladder`."""
    lines = []
    for data, (score, name) in itertools.product(DATA_WORDS, earlier.SCORES.items()):
        for rung, part in ladder.ladder(data, head, score).groupby(level="backbone", sort=False):
            for what, row in ladder.differences(part.droplevel("backbone")).items():
                lines.append(row.to_dict() | {"data": data, "backbone": rung, "what": what, "score": name})
    return pd.DataFrame(lines)


def difference_list(rows: pd.DataFrame, label: str) -> str:
    """Return a Markdown list of differences; those of one label stand in one line, each with its score.

    Parameters
    ----------
    rows
        What `difference` needs, with `score` and what `label` names; `data` and `what` are put into words.
    label
        A template of what is compared, such as ``{data}, `{backbone}` ``.
    """
    lines: dict[str, list[str]] = {}
    for row in rows.replace({"data": DATA_WORDS, "what": LADDER_WORDS}).to_dict("records"):
        told = f"{difference(pd.Series(row))} {row['score']}"
        lines.setdefault(label.format_map(row), []).append(told)
    return "\n".join(f"* {name}: {' and '.join(told)}" for name, told in lines.items())


def scored_on(study: str, data: str) -> str:
    """Return which images a study scored and where the runs of each head ran, in words."""
    records = earlier.read_study(study, data).values()
    splits = " and ".join(sorted({SPLITS[record["split"]] for record in records}))
    places = sorted({(record["method"], device_of(record)) for record in records})
    return f"scored on {splits}; {', '.join(f'{method} on {device}' for method, device in places)}"


def shown(tables: Mapping[str, pd.DataFrame], classes: str = "told scores", escape: bool = True) -> HTML:
    """Return tables as HTML, each below its caption; `told` wraps words, `scores` sets numbers to the right."""
    return HTML(
        "".join(
            (f"<p><b>{caption}</b></p>" if caption else "") + table.to_html(index=False, classes=classes, escape=escape)
            for caption, table in tables.items()
        )
    )


def markdown(table: pd.DataFrame) -> str:
    """Return a table of texts and whole numbers as Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
