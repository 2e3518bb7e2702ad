"""Project what a published row takes on one GPU, from the rates per stage that were measured there.

Begin with `expected_cost`; `basis` says in words what it rests on. Rates are those of `data/records/gpu.json`, which
`cause-lite gpu-run` writes, or else of the bench's published rows. A row that was not measured gets the rates of the
measured one with the same head and the nearest size, changed in proportion to the work. It is assumed that

* every crop passes the backbone once for what is stored, and at each reading for what is not;
* the default budget stores the head's outputs first, then features (a run stores fewer where computing is faster);
* images are read, cropped and decoded beside the backbone, no slower than it unless their rate was measured.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

from cause_lite.datasets.images import crops_of
from cause_lite.datasets.registry import PUBLISHED
from cause_lite.lab import bench
from cause_lite.lab.recipes import Row, row
from cause_lite.runtime.files import UserError, project_dir, read_json

WIDTHS = {"s": 384, "b": 768}  # of a ViT-S and a ViT-B
DEPTH = 12  # blocks, in both
TIMM_TWINS = {  # networks of the same sizes in timm, of backbones that only their authors release
    "ibot_vit_base_16": "vit_base_patch16_224.dino",
    "msn_vit_small_16": "vit_small_patch16_224.dino",
}
BUDGET = 50e9  # bytes of features that are stored by default; the head's outputs take what is left of twice that
HALF = 2  # bytes of a number


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a run is expected to take."""

    crops: int  # images of an epoch, after cropping
    patches: int  # of one crop
    feature_bytes: float  # of all features in half precision, stored or not
    disk_bytes: float  # of features and of the head's outputs within the default budget
    hours: float  # on one GPU; NaN where a step was not timed, or no list of images is here to be counted
    memory_bytes: float  # of a batch's activations and of the concept bank, in single precision


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds a crop of a measured row: of one pass of the backbone, and of one epoch of each step."""

    row: Row
    features: float
    clusterbook: float
    head: float
    outputs: float
    probes: float


def expected_cost(of: Row, kind: str = "clean") -> Cost:
    """Return what a run of a row, of the kind `clean`, `as_released` or `released`, should take on one GPU."""
    if kind == "released":
        return _scoring(of)
    # The third step of a fit as released was not timed, and its four processes each see a quarter of the images.
    return _size(of) if kind == "as_released" else dataclasses.replace(_size(of), hours=sum(stage_hours(of).values()))


def _scoring(of: Row) -> Cost:
    """Return the cost of scoring a checkpoint: each image and its mirror image pass the backbone, nothing is kept."""
    patches, like = _patches(of, of.config.scored_size), nearest(of)
    listed = PUBLISHED[of.config.data.name].splits["val"][1]
    growth = backbone_operations(_width(of), patches) / pass_operations(like.row)
    hours = (listed or math.nan) * 2 * like.features * growth / 3600
    return Cost(listed or 0, patches, 0.0, 0.0, hours, 4.0 * _activations(of, patches))


def _size(of: Row) -> Cost:
    """Return the sizes of a fit, without its hours."""
    config, patches = of.config, _patches(of, of.config.data.size)
    crops = _crops(of)
    feature_bytes = crops * patches * _width(of) * float(HALF)
    disk = _stored(of).size
    vectors = config.clusterbook.concepts * (config.head.bank_capacity or 0)
    bank = vectors * (config.head.projection_dim or config.head.reduced_dim)
    return Cost(crops, patches, feature_bytes, disk, math.nan, 4.0 * (bank + _activations(of, patches)))


def _activations(of: Row, patches: int) -> int:
    return of.config.optimisation.batch_size * patches * (8 * _width(of) + 4 * patches)


def seconds_a_crop(of: Row, like: Measured, stored: Stored) -> dict[str, float]:
    """Return the seconds of each stage that a crop takes, by what is stored, from a measured row's."""
    config = of.config
    area = _patches(of, config.data.size) / _patches(like.row, like.row.config.data.size)
    heads = head_operations(of) / head_operations(like.row)
    # Outputs that are stored are computed once, the others in each epoch of both probes.
    outputs = stored.outputs + (1 - stored.outputs) * 2 * config.probe.epochs
    readings = config.clusterbook.epochs + config.head.epochs + outputs
    passes = stored.features + (1 - stored.features) * readings
    return {
        "features": passes * like.features * pass_operations(of) / pass_operations(like.row),
        "clusterbook": config.clusterbook.epochs * like.clusterbook * area * _width(of) / _width(like.row),
        "head": config.head.epochs * like.head * heads,
        "probes": outputs * like.outputs * heads + config.probe.epochs * like.probes * area,
    }


def stage_hours(of: Row) -> dict[str, float]:
    """Return the projected hours of each stage of a clean run."""
    crops = _size(of).crops
    return {name: crops * each / 3600 for name, each in seconds_a_crop(of, nearest(of), _stored(of)).items()}


@dataclasses.dataclass(frozen=True)
class Stored:
    """The shares of features and of the head's outputs that the default budget stores, and the bytes of both."""

    features: float
    outputs: float
    size: float


def _stored(of: Row) -> Stored:
    """Return what is stored. Outputs come first: a missing one costs a pass in every epoch of both probes."""
    patches = _crops(of) * _patches(of, of.config.data.size)
    features, outputs = (max(1.0, float(HALF) * patches * n) for n in (_width(of), of.config.head.reduced_dim))
    kept = min(BUDGET, features, max(0.0, 2 * BUDGET - outputs))
    kept_outputs = min(outputs, 2 * BUDGET - kept)
    return Stored(kept / features, kept_outputs / outputs, kept + kept_outputs)


def _crops(of: Row) -> int:
    return (PUBLISHED[of.config.data.name].splits["train"][1] or 0) * len(crops_of(of.config.data.crops))


def sizes_of(backbone: str) -> tuple[int, int]:
    """Return the width and the pixels a patch's side of a ViT whose name ends as `dino-s8` and `dinov3-vits16` do."""
    found = re.search(r"([sb])(\d+)$", backbone)
    if found is None:
        raise UserError(f"backbone {backbone}: size unknown; let its name end with s or b and a patch size, as in s16")
    return WIDTHS[found[1]], int(found[2])


def _width(of: Row) -> int:
    return sizes_of(of.backbone)[0]


def _patches(of: Row, size: int) -> int:
    return (size // sizes_of(of.backbone)[1]) ** 2


def pass_operations(of: Row) -> float:
    """Count the floating-point operations of a row's backbone on one crop."""
    return backbone_operations(_width(of), _patches(of, of.config.data.size))


def backbone_operations(width: int, patches: int, depth: int = DEPTH) -> float:
    """Count the floating-point operations of a ViT's blocks on one image."""
    return depth * (24 * patches * width**2 + 4 * patches**2 * width)


def head_operations(of: Row) -> float:
    """Count the floating-point operations of one crop's matrix products in an epoch of step 2."""
    config, width, patches = of.config, _width(of), _patches(of, of.config.data.size)
    attention = 8 * patches**2 * width + 24 * patches * width**2 if config.head.kind == "tr" else 0
    keys = config.clusterbook.concepts * (config.head.bank_capacity or 0)
    contrast = 8 * (patches / config.optimisation.cell**2) * keys * config.head.reduced_dim
    return 4 * (attention + 4 * patches * width**2) + contrast


def record_path() -> Path:
    """Return the file of `cause-lite gpu-run`."""
    return project_dir() / "data" / "records" / "gpu.json"


def nearest(of: Row) -> Measured:
    """Return the measured row with the same head, and of these the one whose pass is nearest in size."""
    rows = [m for m in measured() if m.row.config.head.kind == of.config.head.kind] or measured()
    return min(rows, key=lambda m: abs(math.log(pass_operations(m.row) / pass_operations(of))))


def measured() -> list[Measured]:
    """Return the rows that were measured, from the record of `gpu-run` where there is one, else from the bench's."""
    return _from_run(read_json(record_path())) if record_path().exists() else _from_bench()


def _from_run(record: dict) -> list[Measured]:
    found, reading = [], record["sections"].get("reading", {}).get("crops_a_second", math.inf)
    for section in record["sections"].values():
        if "case" in section and "stages" in section:
            rates = {name: stage["crops_a_second"] for name, stage in section["stages"].items()}
            passed = 1 / min(rates["features"], reading)
            probes = 1 / rates["cluster probe"] + 1 / rates["linear probe"]
            clusterbook, head, outputs = (1 / rates[name] for name in ("clusterbook", "head", "outputs"))
            of = row(f"cocostuff27/{section['case']}")
            found.append(Measured(of, passed, clusterbook, head, outputs, probes))
    return found


def _from_bench() -> list[Measured]:
    """Read the bench's whole fits, in which the time to compute the head's outputs counts to the probes' epochs."""
    found = []
    for case in read_json(bench.records_path("cuda"))["lines"]["published rows"]["rows"]:
        of, each = row(f"cocostuff27/{case['case']}"), {k: v / case["images"] for k, v in case["stages"].items()}
        config = of.config
        clusterbook, head = each["clusterbook"] / config.clusterbook.epochs, each["head"] / config.head.epochs
        found.append(Measured(of, each["features"], clusterbook, head, 0.0, each["probes"] / config.probe.epochs))
    return found


def basis() -> str:
    """Return in words what the projections rest on: how many crops, on which device, and when."""
    if record_path().exists():
        record = read_json(record_path())
        stages = [stage for s in record["sections"].values() for stage in s.get("stages", {}).values()]
        crops, device, date = min(stage["crops"] for stage in stages), record["device"], record["date"]
        return f"at least {crops:,} crops a stage on one {device}, {date[:10]}"
    line = read_json(bench.records_path("cuda"))["lines"]["published rows"]
    crops = min(case["images"] for case in line["rows"])
    return f"whole fits of {crops:,} crops on one {line['environment']['accelerator']}, {line['date'][:10]}"
