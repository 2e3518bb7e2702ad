"""The settings of each experiment: a data set and a head -> everything needed to run it."""

from __future__ import annotations

from dataclasses import replace

from cause_lite.config import FitConfig
from cause_lite.files import UserError

HEADS = ("tr", "mlp")
EVALUATION_SPLIT = {"scenes": "val", "scenes-coarse": "val", "camvid": "test"}

# What the small backbones need instead of the release's settings, and why:
OURS = {
    "clusterbook_init": "patches",  # noise of size 1/K collapses onto a few codes
    "clusterbook_rate": 1e-3,
    "num_concepts": 512,  # 2,048 leave most codes without a patch in data sets this small
    "projection_dim": 128,
    "bank_capacity": 10,
    "positive_threshold": 0.8,  # centred features: 0.3 would make every fifth patch a positive
    "negative_threshold": 0.4,
    "learning_rate": 1e-3,
    "probe_init": "kmeans",
    "probe_epochs": 5,
    "probe_rate": 1e-3,
    "linear_rate": 1e-2,
    "probe_halving": 0,
}
CAMVID = {"positive_threshold": 0.6, "negative_threshold": 0.3}  # better than 0.8 and 0.4 on its validation frames
BY_DATA = {
    "scenes": FitConfig(data="scenes", backbone="scenes", size=128, cell=2, **OURS),
    "camvid": FitConfig(data="camvid", backbone="camvid", size=320, cell=4, **OURS | CAMVID),
}
HEAD_EPOCHS = {("scenes", "tr"): 3, ("scenes", "mlp"): 8, ("camvid", "tr"): 8, ("camvid", "mlp"): 12}
BY_DATA["scenes-coarse"] = replace(BY_DATA["scenes"], data="scenes-coarse")


def recipe(data: str, head: str, seed: int = 0, backbone: str | None = None) -> FitConfig:
    """The settings for a data set and a head (`tr`, `mlp`). Raises UserError for an unknown name."""
    if data not in BY_DATA:
        raise UserError(f"no recipe for the data set {data!r}; choose from {', '.join(BY_DATA)}")
    if head not in HEADS:
        raise UserError(f"no head named {head!r}; choose from {', '.join(HEADS)}")
    epochs = HEAD_EPOCHS[data.removesuffix("-coarse"), head]
    config = replace(BY_DATA[data], head=head, seed=seed, head_epochs=epochs)
    return replace(config, backbone=backbone) if backbone else config
