"""What a published row should take: its operations counted, at the rate that the bench measured on a GPU."""

from __future__ import annotations

import dataclasses

from cause_lite import bench
from cause_lite.files import read_json
from cause_lite.images import crops_of
from cause_lite.official import OFFICIAL
from cause_lite.recipes import Row, row

WIDTHS = {"dino-s8": 384, "dino-s16": 384, "msn-s16": 384}  # else that of a ViT-B
DEPTH = 12


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a row is expected to take: crops and patches of an epoch, bytes of features, hours, bytes of memory."""

    crops: int
    patches: int
    feature_bytes: float
    hours: float
    memory_bytes: float


def expected_cost(of: Row) -> Cost:
    """What a row should take on one GPU: its operations at the slowest rate that the bench's rows reached there."""
    config, (width, patches) = of.config, _width_and_patches(of)
    images = OFFICIAL[config.data].splits["train"][1] or 0
    crops = images * len(crops_of(config.crops))
    feature_bytes = crops * patches * width * 2.0
    epochs = config.clusterbook_epochs + config.head_epochs + config.probe_epochs
    hours = crops * operations(of, passes=1 if feature_bytes <= 50e9 else epochs) / sustained()[0] / 3600
    keys = config.num_concepts * config.bank_capacity
    memory = 4.0 * (keys * config.projection_dim + config.batch_size * patches * (8 * width + 4 * patches))
    return Cost(crops, patches, feature_bytes, hours, memory)


def _width_and_patches(of: Row) -> tuple[int, int]:
    patch = int(of.backbone.rsplit("-", 1)[1][1:])
    return WIDTHS.get(of.backbone, 768), (of.config.size // patch) ** 2


def operations(of: Row, passes: int) -> float:
    """Floating-point operations of the matrix products that one crop takes: `passes` of the backbone, and step 2."""
    config, (width, patches) = of.config, _width_and_patches(of)
    one_pass = DEPTH * (24 * patches * width**2 + 4 * patches**2 * width)
    attention = 8 * patches**2 * width + 24 * patches * width**2 if config.head == "tr" else 0
    head = config.head_epochs * 4 * (attention + 4 * patches * width**2)
    keys = config.num_concepts * config.bank_capacity
    contrast = config.head_epochs * 8 * (patches / config.cell**2) * keys * config.reduced_dim
    return passes * one_pass + head + contrast


def sustained() -> tuple[float, str]:
    """Operations a second of the slowest row that the bench ran on an accelerator, all stages in; and its name."""
    line = read_json(bench.records_path("cuda"))["lines"]["published rows"]
    rates = [
        made["images"] * operations(row(f"cocostuff27/{made['case']}"), passes=1) / made["seconds"]
        for made in line["rows"]
    ]
    return min(rates), line["environment"]["accelerator"]
