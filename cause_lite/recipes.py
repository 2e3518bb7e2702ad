"""The settings of each experiment: a data set and a head -> everything needed to run it."""

from __future__ import annotations

from dataclasses import replace

from cause_lite.files import UserError
from cause_lite.train import FitConfig

HEADS = ("tr", "mlp")
EVALUATION_SPLIT = {"scenes": "val", "scenes-coarse": "val", "camvid": "test"}

BY_DATA = {
    "scenes": FitConfig(
        data="scenes", backbone="scenes", size=128, num_concepts=512, clusterbook_init="patches", clusterbook_rate=1e-3,
        clusterbook_epochs=2, cell=2, projection_dim=128, bank_capacity=10, positive_threshold=0.8, negative_threshold=0.4,
        head_epochs=10, learning_rate=1e-3, probe_epochs=2,
    ),
    "camvid": FitConfig(
        data="camvid", backbone="camvid", size=320, num_concepts=512, clusterbook_init="patches", clusterbook_rate=1e-3,
        clusterbook_epochs=5, cell=4, projection_dim=128, bank_capacity=10, positive_threshold=0.8, negative_threshold=0.4,
        head_epochs=20, learning_rate=1e-3, probe_epochs=5,
    ),
}  # fmt: skip
BY_DATA["scenes-coarse"] = replace(BY_DATA["scenes"], data="scenes-coarse")


def recipe(data: str, head: str, seed: int = 0, backbone: str | None = None) -> FitConfig:
    """The settings for a data set and a head (`tr`, `mlp`). Raises UserError for an unknown name."""
    if data not in BY_DATA:
        raise UserError(f"no recipe for the data set {data!r}; choose from {', '.join(BY_DATA)}")
    if head not in HEADS:
        raise UserError(f"no head named {head!r}; choose from {', '.join(HEADS)}")
    config = replace(BY_DATA[data], head=head, seed=seed)
    return replace(config, backbone=backbone) if backbone else config
