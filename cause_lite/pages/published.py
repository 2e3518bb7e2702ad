"""The published tables as the book shows them: what is published, and what was run here.

Begin with `published_table`. Everything is read from recipes and records, except where `run_missing` runs a row.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pandas as pd

from cause_lite.datasets.registry import PUBLISHED
from cause_lite.lab import reproduce
from cause_lite.lab.cost import expected_cost
from cause_lite.lab.recipes import TABLES, Row, rows
from cause_lite.lab.reproduce import KINDS
from cause_lite.pages import plots
from cause_lite.pages.tables import mean_sd
from cause_lite.pages.widgets import embedded, png

FLAGS = {"released": " --released", "clean": "", "as_released": " --as-released"}


def published_table(table: str) -> pd.DataFrame:
    """Return the published mIoU and pAcc of each row in percent, and the scores of each kind of run, if any."""
    lines = []
    for row in rows(table):
        frame = pd.DataFrame(reproduce.read_records(row), columns=["kind", "miou", "pacc"])
        line = {"row": row.name, "published mIoU": row.published["miou"], "pAcc": row.published["pacc"]}
        for kind, title in KINDS.items():
            runs = frame.loc[frame["kind"] == kind, ["miou", "pacc"]]
            scores = " / ".join(mean_sd(runs[score].mean(), runs[score].std()) for score in runs)
            line[title] = scores if len(runs) else "not run"
        lines.append(line)
    return pd.DataFrame(lines).set_index("row")


def all_rows() -> pd.DataFrame:
    """Return every row of every table: what is published and run, and what a clean run is expected to take.

    Scores are texts `mIoU / pAcc` in percent; hours and gigabytes of GPU memory are those of one clean run.
    """
    lines = []
    for table, title in TABLES.items():
        for row, scores in zip(rows(table), published_table(table).itertuples(index=False), strict=True):
            miou, pacc, *runs = scores
            cost = expected_cost(row)
            published = f"{miou:.1f} / " + ("-" if pd.isna(pacc) else f"{pacc:.1f}")
            lines.append([title, row.name, published, *runs, cost.hours, cost.memory_bytes / 1e9])
    return pd.DataFrame(lines, columns=["data set", "row", "published", *KINDS.values(), "hours", "memory, GB"])


def _runs(table: str) -> Iterator[tuple[Row, dict]]:
    return ((row, record) for row in rows(table) for record in reproduce.read_records(row))


def runs_table(table: str) -> pd.DataFrame:
    """Return the runs of a table's rows: seed, date, device and where the record can be read."""
    lines = [
        (row.name, KINDS[r["kind"]], r["seed"], r["date"][:10], r["device"], reproduce.record_address(r))
        for row, r in _runs(table)
    ]
    return pd.DataFrame(lines, columns=["row", "run", "seed", "date", "device", "record"])


def gallery(table: str) -> str:
    """Return HTML: the runs of a table, and of each its picture, confusion and IoU by class; or that there is none."""
    runs = list(_runs(table))
    if not runs:
        return "<p>No row of this table has been run here yet: there is nothing to show.</p>"
    listed = runs_table(table).to_html(index=False, classes="told", render_links=True)
    return listed + "".join(_run_html(row, record) for row, record in runs)


def _run_html(row: Row, record: dict) -> str:
    """Return the heading, pictures and IoU by class of one run."""
    title, classes = f"{row.name}, {KINDS[record['kind']]}, seed {record['seed']}", PUBLISHED[row.table].classes
    parts, picture = [f"<h3>{title}</h3>"], reproduce.record_path(record).with_suffix(".png")
    if picture.exists():
        parts.append(embedded(picture.read_bytes(), f"{title}: images, what is predicted in them, and the truth."))
    drawn = png(plots.confusion(record, classes))
    parts.append(embedded(drawn, f"{title}: how many pixels of each class went to each cluster."))
    scores = pd.DataFrame({"class": classes, "IoU, %": record["iou"]})
    return "".join([*parts, scores.to_html(index=False, float_format="{:.1f}".format, na_rep="never occurs")])


def missing_table(table: str) -> pd.DataFrame:
    """Return what would fill the empty cells: the command, and what it is expected to take on one GPU."""
    lines = []
    for row in rows(table):
        existing = {record["kind"] for record in reproduce.read_records(row)}
        for kind in KINDS.keys() - existing:
            cost, command = expected_cost(row, kind), f"cause-lite reproduce {row.key}{FLAGS[kind]} --crf"
            lines.append((row.name, command, cost.hours, cost.memory_bytes / 1e9, cost.disk_bytes / 1e9))
    columns = ["row", "command", "hours a seed", "GPU memory, GB", "disk, GB"]
    return pd.DataFrame(lines, columns=columns).sort_values("command", ignore_index=True)


def rehearsed_table(table: str) -> pd.DataFrame:
    """Return which rows this build rehearsed, and when; the scores of a rehearsal mean nothing and are left out."""
    lines = []
    for row in rows(table):
        dates = {record["kind"]: record["date"][:10] for record in reproduce.read_records(row, rehearsed=True)}
        lines.append({"row": row.name} | {title: dates.get(kind, "not in this build") for kind, title in KINDS.items()})
    return pd.DataFrame(lines).set_index("row")


def run_missing(table: str, seeds: int = 3, say: Callable[[str], None] = print) -> None:
    """Run what is missing from a table and can be run here if CAUSE_PROFILE=gpu; else say that records are shown.

    A fit is run with so many `seeds`, a released checkpoint scored once; `say` is told which rows cannot run, and why.
    """
    if os.environ.get("CAUSE_PROFILE") != "gpu":
        say("Shown from records; `CAUSE_PROFILE=gpu make book` runs what is missing.")
        return
    existing = {(row.key, record["kind"], record["seed"]) for row, record in _runs(table)}
    for row in rows(table):
        for kind in KINDS:
            if missing := reproduce.missing_requirements(row, kind):
                say(f"{row.key}, {kind}: not run; missing: {'; '.join(missing)}")
                continue
            for seed in range(1 if kind == "released" else seeds):
                if (row.key, kind, seed) not in existing:
                    reproduce.write_record(reproduce.reproduce_row(row, seed, kind, "auto", say))
