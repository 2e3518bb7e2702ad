"""Estimate what a published row takes: its operations are counted, at the rate that the bench measured on a GPU.

Begin with `expected_cost`.
"""

from __future__ import annotations

import dataclasses
import math

from cause_lite.datasets.images import crops_of
from cause_lite.datasets.official import OFFICIAL
from cause_lite.lab import bench
from cause_lite.lab.recipes import Row, row
from cause_lite.runtime.files import read_json

WIDTHS, BASE_WIDTH = {"dino-s8": 384, "dino-s16": 384, "msn-s16": 384}, 768  # of a ViT-S, else of a ViT-B
DEPTH = 12  # blocks, in both


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a run is expected to take.

    Parameters
    ----------
    crops
        Images of an epoch, after cropping.
    patches
        Of one crop.
    feature_bytes
        Size of the features on disk, in half precision.
    hours
        Time on one GPU; NaN where the number of images is not known before their list is here.
    memory_bytes
        Memory of a batch's activations and of the concept bank, in single precision.
    """

    crops: int
    patches: int
    feature_bytes: float
    hours: float
    memory_bytes: float


def expected_cost(of: Row, kind: str = "clean") -> Cost:
    """Return what a run of a row should take on one GPU, at the slowest rate of the bench's rows there.

    Parameters
    ----------
    of
        The row.
    kind
        The kind of run. A `released` checkpoint is only scored: validation images and their mirror images, and no
        features are kept.
    """
    config, width, released = of.config, WIDTHS.get(of.backbone, BASE_WIDTH), kind == "released"
    patches = _patches(of, config.scored_size if released else config.data.size)
    listed = OFFICIAL[config.data.name].splits["val" if released else "train"][1]
    images = listed or 0
    activations = config.optimisation.batch_size * patches * (8 * width + 4 * patches)
    if released:
        hours = (listed or math.nan) * 2 * _backbone_operations(width, patches) / sustained()[0] / 3600
        return Cost(images, patches, 0.0, hours, 4.0 * activations)
    crops = images * len(crops_of(config.data.crops))
    feature_bytes = crops * patches * width * 2.0
    epochs = config.clusterbook.epochs + config.head.epochs + config.probe.epochs
    hours = crops * operations(of, passes=1 if feature_bytes <= 50e9 else epochs) / sustained()[0] / 3600
    vectors = config.clusterbook.concepts * (config.head.bank_capacity or 0)
    bank = vectors * (config.head.projection_dim or config.head.reduced_dim)
    return Cost(crops, patches, feature_bytes, hours, 4.0 * (bank + activations))


def _patches(of: Row, size: int) -> int:
    return (size // int(of.backbone.rsplit("-", 1)[1][1:])) ** 2


def _backbone_operations(width: int, patches: int) -> float:
    return DEPTH * (24 * patches * width**2 + 4 * patches**2 * width)


def operations(of: Row, passes: int) -> float:
    """Count the floating-point operations of one crop's matrix products: `passes` of the backbone, and step 2."""
    config, width, patches = of.config, WIDTHS.get(of.backbone, BASE_WIDTH), _patches(of, of.config.data.size)
    attention = 8 * patches**2 * width + 24 * patches * width**2 if config.head.kind == "tr" else 0
    head = config.head.epochs * 4 * (attention + 4 * patches * width**2)
    keys = config.clusterbook.concepts * (config.head.bank_capacity or 0)
    contrast = config.head.epochs * 8 * (patches / config.optimisation.cell**2) * keys * config.head.reduced_dim
    return passes * _backbone_operations(width, patches) + head + contrast


def sustained() -> tuple[float, str]:
    """Return the operations a second of the slowest row that the bench ran on an accelerator, and its name."""
    line = read_json(bench.records_path("cuda"))["lines"]["published rows"]
    rates = [
        case["images"] * operations(row(f"cocostuff27/{case['case']}"), passes=1) / case["seconds"]
        for case in line["rows"]
    ]
    return min(rates), line["environment"]["accelerator"]
