"""What was hoped for of the backbone of photographs, and what was measured, as the page on features tells it."""

from __future__ import annotations

from cause_lite.lab import ladder, photographs
from cause_lite.lab.comparison import CAUSE, COLOUR_KMEANS, FEATURE_KMEANS

METHOD = CAUSE["mlp"]
# Points of mIoU that were hoped for, by what is compared; without a number, a difference that explains another.
AIMS = {
    "MSRC, clean over k-means on colour and height": 10,
    "MSRC, k-means on the features of `photos` over k-means on colour and height": None,
    "CamVid, clean over clean on the backbone of CamVid": 3,
    "CamVid, the same with the settings of the ladder on both": None,
}


def aims_text() -> str:
    """Return each difference in mIoU with its 95 % interval at the same seeds, and whether it was hoped for."""
    lines = []
    for (name, aim), (runs, others) in zip(AIMS.items(), _compared(), strict=True):
        found, seeds = ladder.ahead(runs, others)
        told = f"* {name}: {found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f}), {seeds} seeds"
        if aim is not None:
            told += f"; {aim} hoped for, {'reached' if found.mean >= aim else 'missed'} on average"
        lines.append(told)
    return "\n".join(lines)


def _compared() -> list[tuple[list[dict], list[dict]]]:
    """Return the runs of each of `AIMS` and those that they are compared with."""

    def of_study(data: str, name: str, method: str = METHOD) -> list[dict]:
        return ladder.runs_of(photographs.STUDY, data, name, method)

    colour = of_study("msrc", photographs.named(photographs.COLOUR_ARM, photographs.BACKBONE), COLOUR_KMEANS)
    on_camvid = of_study("camvid", "photos/clean")
    return [
        (of_study("msrc", "photos/clean"), colour),
        (of_study("msrc", "photos/feature-kmeans", FEATURE_KMEANS), colour),
        (on_camvid, ladder.runs_of("labels", "camvid-early", "clean", METHOD)),
        (on_camvid, of_study("camvid", "camvid/clean")),
    ]
