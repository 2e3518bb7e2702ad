"""A row of a published table, from nothing to its record: what is needed, the three steps, the scores."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import psutil
import timm

from cause_lite import checkpoints, datasets
from cause_lite.backbones.loading import load_backbone, local_weights
from cause_lite.backbones.released import RELEASED
from cause_lite.config import FitConfig
from cause_lite.datasets import downloads
from cause_lite.datasets.official import OFFICIAL
from cause_lite.lab import as_released, rehearsal
from cause_lite.lab.comparison import CAUSE, as_record
from cause_lite.lab.cost import expected_cost
from cause_lite.lab.pictures import image_grid, labelled
from cause_lite.lab.recipes import Row, rows
from cause_lite.lab.runs import fit_to, load_evaluation, name_clusters, score_segmenter
from cause_lite.metrics import ClusterMetrics
from cause_lite.runtime import parallel, provenance
from cause_lite.runtime.device import choose_device, device_name
from cause_lite.runtime.files import UserError, cache_dir, data_dir, project_dir, read_json, write_json, write_whole
from cause_lite.segmenter import Segmenter

KINDS = {"released": "released checkpoint", "clean": "our clean run", "as_released": "our as-released run"}


def lacking(row: Row, kind: str = "clean", as_rehearsal: bool = False) -> list[str]:
    """What a run of the row needs and this machine has not, each with what to do; what can be downloaded is no lack.

    A rehearsal runs on miniatures, so it is asked for its files but not for the room of the full data set.
    """
    found, about = [], OFFICIAL[row.config.data.name]
    if about.folder in downloads.BY_HAND:
        try:
            for split in ("train", "val"):
                about.files(row.config.data.name, split, data_dir())
        except UserError:
            found.append(downloads.BY_HAND[about.folder].format(root=data_dir() / about.folder))
    if kind == "released" and (absent := [f for f in released_files(row).values() if not f.is_file()]):
        names = ", ".join(f.name for f in absent)
        found.append(
            f"the authors' {names}: fetch them by the links in the README of ByungKwanLee/"
            f"Causal-Unsupervised-Segmentation and put them into {absent[0].parent}"
        )
    name = row.config.backbone
    if not local_weights(name) and name not in RELEASED and not timm.is_model_pretrained(name):
        found.append(f"weights of {name}: put a file into {data_dir() / 'weights'}")
    return found if as_rehearsal else found + _lacking_room(row, kind)


def _lacking_room(row: Row, kind: str) -> list[str]:
    """What a run at full size wants of disk and memory and this machine has not."""
    found, cost = [], expected_cost(row, kind)
    if shutil.disk_usage(cache_dir()).free < (wanted := min(cost.feature_bytes, 5e9)):
        found.append(f"disk: features want {wanted / 1e9:.0f} GB in {cache_dir()}; free some or set CAUSE_CACHE")
    if psutil.virtual_memory().total < min(cost.memory_bytes, 8e9):
        found.append(f"memory: about {cost.memory_bytes / 1e9:.0f} GB for a batch, and in training the bank")
    return found


def released_files(row: Row) -> dict[str, Path]:
    """Where the authors' three files of a row are looked for."""
    folder, head = data_dir() / "released" / row.table / row.name, row.config.head.kind
    names = {"segment": f"segment_{head}.pth", "cluster": f"cluster_{head}.pth", "modular": "modular.npy"}
    return {key: folder / name for key, name in names.items()}


def configured(row: Row, kind: str, seed: int) -> FitConfig:
    """The row's settings for a kind of run."""
    leaks = {"probe.label_flow": "as_released", "optimisation.ddp": "as_released"} if kind == "as_released" else {}
    return row.config.replace({**leaks, "seed": seed})


def reproduce_row(
    row: Row, seed: int, kind: str, device: str, say: Callable[[str], None], crf: bool = True,
    adapt: Callable[[FitConfig], FitConfig] = lambda config: config, as_rehearsal: bool = False,
) -> dict:  # fmt: skip
    """Fetch, fit (or load what was released), score with and without CRF -> the run's record.

    A picture of a few results is written beside where the record goes. Raises UserError listing everything that is
    lacking, before anything starts.
    """
    if missing := lacking(row, kind, as_rehearsal):
        raise UserError(f"{row.key}: cannot start; lacking: " + "; ".join(missing))
    config, start = adapt(configured(row, kind, seed)), time.perf_counter()
    datasets.prepare(config.data.name, say)
    segmenter = fitted(row, config, kind, device).to(choose_device(device))
    scores = score_segmenter(segmenter, config, crf)
    scored = scores["crf" if crf else "cluster"]
    seconds = time.perf_counter() - start
    record = as_record(CAUSE[config.head.kind], config, scored, seconds) | {
        "row": row.key, "kind": kind, "rehearsal": as_rehearsal, "crf": crf,
        "device": device_name(choose_device(device)),
        "without_crf": _pair(scores["cluster"].compute()), "linear": _pair(scores["linear"].unmatched()),
        "linear_matched": _pair(scores["linear"].compute()), "published": row.published,
    }  # fmt: skip
    parallel.run_on_main_process(
        lambda: _draw(segmenter, config, scores["cluster"], record_path(record).with_suffix(".png"))
    )
    return record


def _draw(segmenter: Segmenter, config: FitConfig, metrics: ClusterMetrics, path: Path, count: int = 6) -> None:
    """Images of the evaluation split, what is predicted in them (without the CRF), and the truth."""
    some = load_evaluation(config)
    images, labels = some.images[:count], some.labels[:count]
    named = [name_clusters(segmenter.segment(image), metrics) for image in images]
    maps = [[labelled(of_one, some.classes) for of_one in maps] for maps in (named, labels)]
    figure = image_grid([list(images), *maps], ["image", "predicted", "truth"])
    write_whole(path, lambda part: figure.savefig(part, dpi=100))
    plt.close(figure)


def fitted(row: Row, config: FitConfig, kind: str, device: str) -> Segmenter:
    """The authors' checkpoint, or the row's fit by these settings, made now if it is not in the cache."""
    if kind == "released":
        segmenter = checkpoints.load_released(**released_files(row))
        segmenter.backbone = load_backbone(config.backbone, positions="authors")
        segmenter.size = config.scored_size
        return segmenter
    folder = cache_dir() / "rows" / row.key / f"{kind}-{config.seed}-{provenance.config_hash(config)}"
    if not (folder / "fit.json").exists():
        fit_to(config, folder, device)
    return checkpoints.load(folder)


def _pair(scores: dict) -> dict[str, float]:
    return {key: round(scores[key], 4) for key in ("miou", "pacc")}


def records_dir(rehearsed: bool = False) -> Path:
    """Where the records of rows lie; a rehearsal's lie in the build, never beside results."""
    root = project_dir()
    return root / "_build" / "rehearsal" if rehearsed else root / "data" / "records" / "rows"


def record_path(record: dict) -> Path:
    return records_dir(record["rehearsal"]) / record["row"] / f"{record['kind']}-{record['seed']}.json"


def record_address(record: dict) -> str:
    """Where the record can be read in the public repository."""
    return f"{provenance.repository()}/blob/main/{record_path(record).relative_to(project_dir()).as_posix()}"


def write_record(record: dict) -> Path:
    path = record_path(record)
    write_json(path, record)
    return path


def read_records(row: Row, rehearsed: bool = False) -> Iterator[dict]:
    """The records of a row. Raises UserError when a rehearsal's record lies among results, or the reverse."""
    for path in sorted((records_dir(rehearsed) / row.key).glob("*.json")):
        record = read_json(path)
        if record.get("rehearsal") is not rehearsed or record.get("row") != row.key:
            raise UserError(f"{path}: is no record of {row.key}{', or is one of a rehearsal'}; remove it")
        yield record


@contextlib.contextmanager
def _folders(**named: str) -> Iterator[None]:
    """Within the block, the environment's folders are these."""
    before = {name: os.environ.pop(name, None) for name in named}
    os.environ.update(named)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def rehearse(say: Callable[[str], None], device: str = "cpu") -> Iterator[dict]:
    """Every row end to end and in every kind, on miniature data sets and narrow random backbones in official formats.

    The clean fit of a row, written in the form of the authors' files, is what stands in for their checkpoint.
    """
    found = rows()
    with (
        tempfile.TemporaryDirectory() as folder,
        _folders(CAUSE_DATA=f"{folder}/data", CAUSE_CACHE=f"{folder}/cache"),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=as_released.WARNING)  # what that kind is about
        rehearsal.write_stage(Path(folder) / "data", {row.config.backbone for row in found})
        for row, kind in itertools.product(found, KINDS):
            adapt = partial(rehearsal.rehearsed, patch=load_backbone(row.config.backbone).patch)
            if kind == "released":
                clean = fitted(row, adapt(configured(row, "clean", 0)), "clean", device)
                rehearsal.write_released(clean, released_files(row))
            record = reproduce_row(row, 0, kind, device, lambda text: None, adapt=adapt, as_rehearsal=True)
            write_record(record)
            yield record
    say(f"{len(found)} rows went through, from their official files to a score; none of these numbers is a result")
