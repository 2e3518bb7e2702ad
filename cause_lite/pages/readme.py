"""Write the README's picture and results from the run records: `python -m cause_lite.pages.readme`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cause_lite import checkpoints
from cause_lite.datasets import load_split
from cause_lite.lab import pictures
from cause_lite.lab.comparison import captioned_tables
from cause_lite.lab.runs import label_maps, name_clusters, read_config, score_segmenter
from cause_lite.runtime.files import project_dir, read_json, write_whole

START, END = "<!-- results: written by `python -m cause_lite.pages.readme` -->", "<!-- end of results -->"
GALLERY_SCENES = [3, 11, 24, 40, 57, 90]
SHOWN = ("scenes", "camvid")


def results_block() -> str:
    """Return a Markdown table for each data set with records: mean ± sample standard deviation over seeds."""
    parts = []
    stored = [read_json(project_dir() / "data" / "records" / f"{data}.json")["records"] for data in SHOWN]
    for title, table in (each for records in stored for each in captioned_tables(records)):
        lines = [f"**{title}**", "", "| method | mIoU, % | pixel accuracy, % | seeds |", "|---|---|---|---|"]
        for method, row in table.iterrows():
            cells = [
                f"{row[(s, 'mean')]:.1f}" + ("" if np.isnan(row[(s, "std")]) else f" ± {row[(s, 'std')]:.1f}")
                for s in ("miou", "pacc")
            ]
            lines.append(f"| {method} | {cells[0]} | {cells[1]} | {int(row[('seeds', '')])} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def with_results(text: str) -> str:
    """Return a README's text with the block between its two markers written anew."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n\n{results_block()}\n\n{END}{after}"


def gallery() -> Figure:
    """Draw validation scenes, what the bundled segmenter finds in them (colours by the matching), and the truth."""
    scenes, segmenter = load_split("scenes", "val"), checkpoints.load("scenes")
    images, labels = scenes.images[GALLERY_SCENES], label_maps(scenes)[GALLERY_SCENES]
    metrics = score_segmenter(segmenter, read_config(project_dir() / "data" / "segmenters" / "scenes"))["cluster"]
    predictions = [name_clusters(segmenter.segment(image), metrics) for image in images]
    rows = [[pictures.labelled(label_map, scenes.classes) for label_map in row] for row in (predictions, labels)]
    return pictures.image_grid([list(images), *rows], ["image", "found", "true"])


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
