"""Write the README's picture and results from the run records: `python -m cause_lite.pages.readme`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cause_lite import checkpoints
from cause_lite.datasets.photos import some_photographs
from cause_lite.lab.comparison import (
    CAUSE,
    COLOUR_KMEANS,
    FEATURE_KMEANS,
    FULL_KMEANS,
    HELD_OUT,
    LOGISTIC,
    captioned_tables,
    of_split,
)
from cause_lite.lab.photographs import BACKBONE
from cause_lite.lab.statistics import SEEDS_FOR_FINDING, SEEDS_FOR_INTERVAL
from cause_lite.pages.plots import segmented_photographs
from cause_lite.pages.study_tables import photographs_table
from cause_lite.runtime.files import project_dir, read_json, write_whole

START, END = "<!-- results: written by `python -m cause_lite.pages.readme` -->", "<!-- end of results -->"
SHOWN = ("scenes", "camvid")
METHODS = (
    COLOUR_KMEANS,
    FEATURE_KMEANS,
    FULL_KMEANS,
    *CAUSE.values(),
    *(f"{name}, CRF" for name in CAUSE.values()),
    LOGISTIC,
)
PHOTOGRAPHS_OF = {
    "msrc": "MSRC, 21 classes: 196 test photographs",
    "camvid": "CamVid, 11 classes: 233 test frames",
}
PHOTOGRAPHS, SEED = 5, 0  # how many photographs the picture shows, and the seed that draws them


def results_block() -> str:
    """Return Markdown tables of the main methods on held-out images: mean ± sample standard deviation over seeds."""
    parts = [
        f"**{title}; features of {BACKBONE}, which saw ImageNet's labels**\n\n"
        + markdown(photographs_table(data, fewest=SEEDS_FOR_FINDING))
        for data, title in PHOTOGRAPHS_OF.items()
    ]
    stored = [read_json(project_dir() / "data" / "records" / f"{data}.json")["records"] for data in SHOWN]
    for title, table in (each for records in stored for each in captioned_tables(of_split(records, HELD_OUT))):
        if table["seeds"].max() < SEEDS_FOR_INTERVAL:
            continue  # the book shows these too
        lines = [f"**{title}**", "", "| method | mIoU, % | pixel accuracy, % | seeds |", "|---|---|---|---|"]
        for method, row in table[table.index.isin(METHODS)].iterrows():
            cells = [
                f"{row[(s, 'mean')]:.1f}" + ("" if np.isnan(row[(s, "std")]) else f" ± {row[(s, 'std')]:.1f}")
                for s in ("miou", "pacc")
            ]
            lines.append(f"| {method} | {cells[0]} | {cells[1]} | {int(row[('seeds', '')])} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def markdown(table: pd.DataFrame) -> str:
    """Return a table of texts and whole numbers as Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def with_results(text: str) -> str:
    """Return a README's text with the block between its two markers written anew."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n\n{results_block()}\n\n{END}{after}"


def gallery() -> Figure:
    """Draw photographs that a seed chose, and the clusters that the segmenter of photographs finds in them."""
    return segmented_photographs(some_photographs(PHOTOGRAPHS, SEED), checkpoints.load("photos"))


def write_picture(path: Path) -> None:
    """Write the gallery as a PNG."""
    figure = gallery()
    write_whole(path, lambda part: figure.savefig(part, dpi=110, transparent=True))


def main() -> None:
    """Rewrite README.md's results and data/picture.png."""
    path = project_dir() / "README.md"
    text = with_results(path.read_text(encoding="utf-8"))
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
    write_picture(project_dir() / "data" / "picture.png")


if __name__ == "__main__":
    main()
