"""Write the README's picture and results from the run records: `python -m cause_lite.pages.readme`."""

from __future__ import annotations

from matplotlib.figure import Figure

from cause_lite import checkpoints
from cause_lite.datasets.photos import some_photographs
from cause_lite.lab import results
from cause_lite.pages.plots import segmented_photographs
from cause_lite.pages.tables import markdown, measures
from cause_lite.pages.verdicts import verdict
from cause_lite.runtime.files import project_dir, write_whole

START, END = "<!-- results: written by `python -m cause_lite.pages.readme` -->", "<!-- end of results -->"
CAPTIONS = {
    "scenes": "`scenes`, 16 classes: 200 test images, on features that have seen no label",
    "msrc": "MSRC, 21 classes: 196 test photographs, on features of `efficientnet-lite2`, which saw ImageNet's labels",
    "camvid": "CamVid, 11 classes: 233 test frames, on features of `efficientnet-lite2`",
}
PHOTOGRAPHS, SEED = 5, 0  # how many photographs the picture shows, and the seed that draws them


def results_block() -> str:
    """Return, for each data set, the verdict and a Markdown table of all methods on held-out images."""
    parts = []
    for data, caption in CAPTIONS.items():
        table = markdown(measures(results.frame("tables", data)))
        parts.append(f"**{caption}**\n\n{verdict(data)}\n\n{table}")
    return "\n\n".join(parts)


def with_results(text: str) -> str:
    """Return a README's text with the block between its two markers written anew."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n\n{results_block()}\n\n{END}{after}"


def gallery() -> Figure:
    """Draw photographs that a seed chose, and the clusters that the segmenter of photographs finds in them."""
    return segmented_photographs(some_photographs(PHOTOGRAPHS, SEED), checkpoints.load("photos"))


def main() -> None:
    """Rewrite README.md's results and data/picture.png."""
    path = project_dir() / "README.md"
    text = with_results(path.read_text(encoding="utf-8"))
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
    figure = gallery()
    write_whole(project_dir() / "data" / "picture.png", lambda part: figure.savefig(part, dpi=110, transparent=True))


if __name__ == "__main__":
    main()
