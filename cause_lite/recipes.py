"""The settings of each experiment: a data set and a head -> everything needed to run it."""

from __future__ import annotations

from dataclasses import replace

from cause_lite.files import UserError
from cause_lite.train import FitConfig

HEADS = ("tr", "mlp")
EVALUATION_SPLIT = {"scenes": "val", "scenes-coarse": "val", "camvid": "test"}


def recipe(data: str, head: str, seed: int = 0, backbone: str | None = None) -> FitConfig:
    """The settings for a data set and a head (`tr`, `mlp`). Raises UserError for an unknown name."""
    if data not in BY_DATA:
        raise UserError(f"no recipe for the data set {data!r}; choose from {', '.join(BY_DATA)}")
    if head not in HEADS:
        raise UserError(f"no head named {head!r}; choose from {', '.join(HEADS)}")
    config = replace(BY_DATA[data], head=head, seed=seed)
    return replace(config, backbone=backbone) if backbone else config
