"""The published tables as the book shows them: what is published, and what was run here, from recipes and records."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from cause_lite.datasets.official import OFFICIAL
from cause_lite.lab import reproduce
from cause_lite.lab.cost import expected_cost
from cause_lite.lab.recipes import Row, rows
from cause_lite.lab.reproduce import KINDS
from cause_lite.pages import plots
from cause_lite.pages.widgets import embedded, png

FLAGS = {"released": " --released", "clean": "", "as_released": " --as-released"}


def told(records: list[dict], score: str) -> str:
    """`mean ± spread` over seeds; a dash where nothing was run."""
    values = [record[score] for record in records]
    if not values:
        return "-"
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def published_table(table: str) -> pd.DataFrame:
    """A row a recipe: published mIoU and pAcc in percent, and each kind of run's scores, or that there is none."""
    lines = []
    for row in rows(table):
        records = list(reproduce.read_records(row))
        line = {"row": row.name, "published mIoU": row.published["miou"], "pAcc": row.published["pacc"]}
        for kind, title in KINDS.items():
            mine = [record for record in records if record["kind"] == kind]
            line[title] = " / ".join(told(mine, score) for score in ("miou", "pacc")) if mine else "not run"
        lines.append(line)
    return pd.DataFrame(lines).set_index("row")


def styled(frame: pd.DataFrame) -> Styler:
    return frame.style.format(precision=1, na_rep="-")


def runs_table(table: str) -> pd.DataFrame:
    """Every run that was made of a table's rows: seed, date, device and where its record can be read."""
    lines = [
        {
            "row": row.name, "run": KINDS[record["kind"]], "seed": record["seed"], "date": record["date"][:10],
            "device": record["device"], "record": reproduce.record_address(record),
        }
        for row in rows(table)
        for record in reproduce.read_records(row)
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=["row", "run", "seed", "date", "device", "record"])


def gallery(table: str) -> str:
    """HTML: the runs that were made, and of each its picture, confusion and IoU by class; or that there is none."""
    made = [(row, record) for row in rows(table) for record in reproduce.read_records(row)]
    if not made:
        return "<p>No row of this table has been run here yet: there is nothing to show.</p>"
    listed = runs_table(table).to_html(index=False, classes="told", render_links=True)
    return listed + "".join(_shown(row, record) for row, record in made)


def _shown(row: Row, record: dict) -> str:
    title, classes = f"{row.name}, {KINDS[record['kind']]}, seed {record['seed']}", OFFICIAL[row.table].classes
    parts, picture = [f"<h3>{title}</h3>"], reproduce.record_path(record).with_suffix(".png")
    if picture.exists():
        parts.append(embedded(picture.read_bytes(), f"{title}: images, what is predicted in them, and the truth."))
    drawn = png(plots.confusion(record, classes))
    parts.append(embedded(drawn, f"{title}: how many pixels of each class went to each cluster."))
    scores = pd.DataFrame({"class": classes, "IoU, %": record["iou"]})
    return "".join([*parts, scores.to_html(index=False, float_format="{:.1f}".format, na_rep="never occurs")])


def missing_table(table: str) -> pd.DataFrame:
    """What would fill the empty cells: the command, and what it is expected to take on one GPU."""
    lines = []
    for row in rows(table):
        have = {record["kind"] for record in reproduce.read_records(row)}
        for kind in KINDS.keys() - have:
            cost, command = expected_cost(row, kind), f"cause-lite reproduce {row.key}{FLAGS[kind]} --crf"
            lines.append((row.name, command, cost.hours, cost.memory_bytes / 1e9, cost.feature_bytes / 1e9))
    columns = ["row", "command", "hours a seed", "GPU memory, GB", "features, GB"]
    return pd.DataFrame(lines, columns=columns).sort_values("command", ignore_index=True)


def rehearsed_table(table: str) -> pd.DataFrame:
    """Which rows went through the dress rehearsal of this build. Its scores are left out: they mean nothing."""
    lines = []
    for row in rows(table):
        done = {record["kind"]: record["date"][:10] for record in reproduce.read_records(row, rehearsed=True)}
        lines.append({"row": row.name} | {title: done.get(kind, "not in this build") for kind, title in KINDS.items()})
    return pd.DataFrame(lines).set_index("row")


def run_missing(table: str, seeds: int = 3, say: Callable[[str], None] = print) -> None:
    """With CAUSE_PROFILE=gpu, run what the table lacks and can be run here; else say that records are shown."""
    if os.environ.get("CAUSE_PROFILE") != "gpu":
        say("Shown from records; `CAUSE_PROFILE=gpu make book` runs what is missing.")
        return
    for row in rows(table):
        _run_row(row, seeds, say)


def _run_row(row: Row, seeds: int, say: Callable[[str], None]) -> None:
    have = {(record["kind"], record["seed"]) for record in reproduce.read_records(row)}
    for kind in KINDS:
        if lacks := reproduce.lacking(row, kind):
            say(f"{row.key}, {kind}: not run; lacking: {'; '.join(lacks)}")
            continue
        for seed in range(1 if kind == "released" else seeds):
            if (kind, seed) not in have:
                reproduce.write_record(reproduce.reproduce_row(row, seed, kind, "auto", say))
