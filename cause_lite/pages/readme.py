"""Write the README's picture and results from the run records: `python -m cause_lite.pages.readme`."""

from __future__ import annotations

from matplotlib.figure import Figure

from cause_lite import checkpoints
from cause_lite.datasets.photos import some_photographs
from cause_lite.lab import results
from cause_lite.lab.earlier import BACKBONE, BASELINES, CAPTIONS, CAUSE, HELD_OUT, of_split, recorded
from cause_lite.lab.statistics import SEEDS_FOR_FINDING, SEEDS_FOR_INTERVAL
from cause_lite.pages.plots import segmented_photographs
from cause_lite.pages.tables import markdown, measures, photographs_table, score_table
from cause_lite.runtime.files import project_dir, write_whole

START, END = "<!-- results: written by `python -m cause_lite.pages.readme` -->", "<!-- end of results -->"
EARLIER = "records of an earlier version, in single precision"
METHODS = {*BASELINES, *CAUSE.values(), *(f"{name}, CRF" for name in CAUSE.values())}
PHOTOGRAPHS_OF = {
    "msrc": "MSRC, 21 classes: 196 test photographs",
    "camvid": "CamVid, 11 classes: 233 test frames",
}
PHOTOGRAPHS, SEED = 5, 0  # how many photographs the picture shows, and the seed that draws them


def results_block() -> str:
    """Return Markdown tables of the main methods on held-out images: mean ± sample standard deviation over seeds."""
    tables = {CAPTIONS["scenes", HELD_OUT]: measures(results.frame("tables", "scenes"))}
    tables |= {
        f"{title}, {EARLIER}; features of {BACKBONE}, which saw ImageNet's labels": photographs_table(
            data, fewest=SEEDS_FOR_FINDING
        )
        for data, title in PHOTOGRAPHS_OF.items()
    }
    main = [record for record in of_split(recorded("camvid"), HELD_OUT) if record["method"] in METHODS]
    tables[f"{CAPTIONS['camvid', HELD_OUT]}, {EARLIER}"] = score_table(main, fewest=SEEDS_FOR_INTERVAL)
    return "\n\n".join(f"**{title}**\n\n{markdown(table)}" for title, table in tables.items())


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
