"""Reproduce a row of a published table: check what it needs, fit or load it, score it, keep its record.

Begin with `reproduce_row`. `rehearse` runs every row on miniatures.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import psutil
import timm
from accelerate.utils import patch_environment

from cause_lite import checkpoints, datasets
from cause_lite.backbones.loading import load_backbone, local_weights
from cause_lite.backbones.released import RELEASED
from cause_lite.config import FitConfig
from cause_lite.datasets.images import images_fingerprint
from cause_lite.datasets.loading import incomplete
from cause_lite.datasets.registry import PUBLISHED
from cause_lite.lab import rehearsal
from cause_lite.lab.cost import expected_cost
from cause_lite.lab.pictures import image_grid, labelled
from cause_lite.lab.recipes import Row, evaluation_split, rows
from cause_lite.lab.runs import fit_to, label_maps, load_evaluation, load_training, name_clusters, score_segmenter
from cause_lite.methods import as_released
from cause_lite.metrics import ClusterMetrics, Scores
from cause_lite.runtime import parallel, provenance
from cause_lite.runtime.device import choose_device, device_name
from cause_lite.runtime.files import UserError, cache_dir, data_dir, project_dir, read_json, write_json, write_whole
from cause_lite.segmenter import Segmenter

KINDS = {"released": "released checkpoint", "clean": "our clean run", "as_released": "our as-released run"}
PICTURE_IMAGES = 6  # that a run's picture shows


def missing_requirements(row: Row, kind: str = "clean", rehearsed: bool = False) -> list[str]:
    """List what a run of a row needs and this machine does not have, each with what to do."""
    missing, layout = [], PUBLISHED[row.config.data.name]
    if not layout.archives:
        try:
            for split in ("train", "val"):
                layout.files(row.config.data.name, split)
        except UserError:
            missing.append(layout.terms.format(root=layout.root))
    if kind == "released" and (absent := [f for f in released_files(row).values() if not f.is_file()]):
        names = ", ".join(f.name for f in absent)
        missing.append(
            f"the authors' {names}: fetch them by the links in the README of ByungKwanLee/"
            f"Causal-Unsupervised-Segmentation and put them into {absent[0].parent}"
        )
    name = row.config.backbone.name
    if not local_weights(name) and name not in RELEASED and not timm.is_model_pretrained(name):
        missing.append(f"weights of {name}: put a file into {data_dir() / 'weights'}")
    return missing if rehearsed else missing + _missing_room(row, kind)


def _missing_room(row: Row, kind: str) -> list[str]:
    """List the disk and the memory that a run at full size needs beyond what this machine has."""
    missing, cost = [], expected_cost(row, kind)
    if shutil.disk_usage(cache_dir()).free < (needed := min(cost.feature_bytes, 5e9)):
        missing.append(f"disk: features need {needed / 1e9:.0f} GB in {cache_dir()}; free some or set CAUSE_CACHE")
    if psutil.virtual_memory().total < min(cost.memory_bytes, 8e9):
        missing.append(f"memory: about {cost.memory_bytes / 1e9:.0f} GB for a batch, and in training the bank")
    return missing


def released_files(row: Row) -> dict[str, Path]:
    """Return where the authors' three files of a row are looked for: `segment`, `cluster` and `modular`."""
    folder, head = data_dir() / "released" / row.table / row.name, row.config.head.kind
    names = {"segment": f"segment_{head}.pth", "cluster": f"cluster_{head}.pth", "modular": "modular.npy"}
    return {key: folder / name for key, name in names.items()}


def configured(row: Row, kind: str, seed: int) -> FitConfig:
    """Return the row's settings for a kind of run."""
    released = {"head.clip_with_labels": True, "probe.label_flow": "as_released", "optimisation.ddp": "as_released"}
    return row.config.replace({**(released if kind == "as_released" else {}), "seed": seed})


def reproduce_row(
    row: Row,
    seed: int,
    kind: str,
    device: str,
    say: Callable[[str], None],
    crf: bool = True,
    adapt: Callable[[FitConfig], FitConfig] = lambda config: config,
    rehearsed: bool = False,
    drawn: bool = True,
) -> dict:
    """Fetch a row's data, fit it or load what was released, and score it.

    Where it is to be `drawn`, a picture of a few results is written beside where the record goes. What the data set
    lacks on this machine is told in the record as `lacking`, and then nothing is drawn; a rehearsal's lacks nothing.
    Raises UserError listing everything that is missing, before anything starts.
    """
    if missing := missing_requirements(row, kind, rehearsed):
        raise UserError(f"{row.key}: cannot start; missing: " + "; ".join(missing))
    start, config = time.perf_counter(), adapt(configured(row, kind, seed))
    datasets.prepare(config.data.name, say)
    segmenter = fitted(row, config, kind, device).to(choose_device(device, config.optimisation.precision))
    scores = score_segmenter(segmenter, config, crf)
    seconds = time.perf_counter() - start
    metrics = scores["crf" if crf else "cluster"]
    iou = metrics.compute()["iou"]
    record: dict = _score_pair(metrics.compute()) | {
        "method": f"CAUSE-{config.head.kind.upper()}",
        "data": config.data.name,
        "split": evaluation_split(config.data.name),
        "seed": seed,
        "iou": [None if np.isnan(value) else round(100 * float(value), 3) for value in iou],
        "confusion": metrics.confusion.tolist(),
        "seconds": round(seconds, 1),
        "config": config.model_dump(),
        "config_hash": provenance.config_hash(config),
        "commit": provenance.commit(),
        "environment": provenance.environment(),
        "date": provenance.now(),
        "row": row.key,
        "kind": kind,
        "rehearsal": rehearsed,
        "crf": crf,
        "device": device_name(choose_device(device)),
        "without_crf": _score_pair(scores["cluster"].compute()),
        "linear": _score_pair(scores["linear"].unmatched()),
        "linear_matched": _score_pair(scores["linear"].compute()),
        "published": row.published,
        "lacking": "" if rehearsed else incomplete(config.data.name),
    }
    if drawn and not record["lacking"]:
        picture = record_path(record).with_suffix(".png")
        parallel.run_on_main_process(lambda: _draw(segmenter, config, scores["cluster"], picture))
    return record


def _draw(segmenter: Segmenter, config: FitConfig, metrics: ClusterMetrics, path: Path) -> None:
    """Draw images of the evaluation split, what is predicted in them (without the CRF), and the truth."""
    split = load_evaluation(config)
    images, labels = split.images[:PICTURE_IMAGES], label_maps(split)[:PICTURE_IMAGES]
    predictions = [name_clusters(segmenter.segment(image), metrics) for image in images]
    maps = [[labelled(label_map, split.classes) for label_map in row] for row in (predictions, labels)]
    figure = image_grid([list(images), *maps], ["image", "predicted", "truth"])
    write_whole(path, lambda part: figure.savefig(part, dpi=100))
    plt.close(figure)


def fitted(row: Row, config: FitConfig, kind: str, device: str) -> Segmenter:
    """Return the authors' checkpoint, or the row's fit, fitted now if it is not in the cache.

    A fit is taken from the cache for the same settings, training images and backbone.
    """
    if kind == "released":
        files = released_files(row)
        segmenter = checkpoints.load_released(files["segment"], files["cluster"], files["modular"])
        segmenter.backbone = load_backbone(config.backbone, positions="authors")
        segmenter.size = config.scored_size
        return segmenter
    images, backbone = load_training(config).images, load_backbone(config.backbone).fingerprint()
    made_of = hashlib.sha256(f"{images.shape} {images_fingerprint(images)} {backbone}".encode()).hexdigest()[:12]
    folder = cache_dir() / "rows" / row.key / f"{kind}-{config.seed}-{provenance.config_hash(config)}-{made_of}"
    if not (folder / "fit.json").exists():
        fit_to(config, folder, device)
    return checkpoints.load(folder)


def _score_pair(scores: Scores) -> dict[str, float]:
    return {"miou": round(scores["miou"], 4), "pacc": round(scores["pacc"], 4)}


def records_dir(rehearsed: bool = False) -> Path:
    """Return where the records of rows lie; a rehearsal's lie in the build, never beside results."""
    root = project_dir()
    return root / "_build" / "rehearsal" if rehearsed else root / "data" / "records" / "rows"


def record_path(record: dict) -> Path:
    """Return the file of a run's record."""
    return records_dir(record["rehearsal"]) / record["row"] / f"{record['kind']}-{record['seed']}.json"


def record_address(record: dict) -> str:
    """Return where the record can be read in the public repository."""
    return f"{provenance.repository()}/blob/main/{record_path(record).relative_to(project_dir()).as_posix()}"


def write_record(record: dict) -> Path:
    """Write a run's record, and return its file."""
    path = record_path(record)
    write_json(path, record)
    return path


def read_records(row: Row, rehearsed: bool = False) -> Iterator[dict]:
    """Yield the records of a row, in the order of their names.

    Raises UserError when a rehearsal's record lies among results, or the reverse.
    """
    for path in sorted((records_dir(rehearsed) / row.key).glob("*.json")):
        record = read_json(path)
        if record.get("row") != row.key:
            raise UserError(f"{path}: `row` must be {row.key}, not {record.get('row')!r}; remove the file")
        if record.get("rehearsal") is not rehearsed:
            raise UserError(f"{path}: `rehearsal` must be {json.dumps(rehearsed)} in this folder; remove the file")
        yield record


def rehearse(say: Callable[[str], None], device: str = "cpu") -> Iterator[dict]:
    """Run every row in every kind on miniature data sets and narrow random backbones in official formats.

    The clean fit of a row, written in the form of the authors' files, stands in for their checkpoint.
    """
    published = rows()
    with tempfile.TemporaryDirectory() as folder:
        stage = {"CAUSE_DATA": f"{folder}/data", "CAUSE_CACHE": f"{folder}/cache"}
        rehearsal.write_stage(Path(folder) / "data", {row.config.backbone.name for row in published})
        for row, kind in itertools.product(published, KINDS):
            with patch_environment(**stage):
                record = _rehearse_row(row, kind, device)
            yield record
    say(f"{len(published)} rows went through, from their official files to a score; none of these numbers is a result")


def _rehearse_row(row: Row, kind: str, device: str) -> dict:
    shrink = partial(rehearsal.miniature, patch=load_backbone(row.config.backbone).patch)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=as_released.WARNING)  # what that kind is about
        if kind == "released":
            clean = fitted(row, shrink(configured(row, "clean", 0)), "clean", device)
            rehearsal.write_released(clean, released_files(row))
        record = reproduce_row(row, 0, kind, device, lambda text: None, adapt=shrink, rehearsed=True)
    write_record(record)
    return record
