"""What to run on a GPU whenever one is at hand: rates of every stage, ratios, scaling; then pre-training.

Begin with `run`, which `cause-lite gpu-run` calls. Every section is written as soon as it is done; one that fails is
noted in the record, and the rest goes on. `MINIATURE` goes through all of it in seconds on a CPU.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cause_lite.backbones.feature_pass import read_ahead, reading_workers
from cause_lite.backbones.pretrain import pretrain_and_export
from cause_lite.backbones.pretrain_photos import PhotosConfig
from cause_lite.config import FitConfig
from cause_lite.datasets import photo_parts
from cause_lite.datasets.images import LazyRows, Squaring
from cause_lite.datasets.picture_files import stored_rgb
from cause_lite.fast import modularity
from cause_lite.lab import bench, bench_losses, cost
from cause_lite.lab.gpu_stages import Extent, compiled_pass, measure_row, peak
from cause_lite.lab.recipes import row
from cause_lite.lab.rehearsal import miniature
from cause_lite.runtime import parallel, provenance
from cause_lite.runtime.device import choose_device, device_name
from cause_lite.runtime.files import read_json, write_json, write_whole

RECORD = cost.record_path().name
STATE = "pretrain.pt"
ENDLESS = 10**9  # steps at the constant rate, whose number time decides
EXPORT = 30.0  # seconds that centring and writing take at most


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run measures, and at which size."""

    rows: tuple[str, ...]
    extent: Extent
    compiled: tuple[str, ...]  # rows whose pass is measured compiled too
    patches: int  # of an image, in the ratio of the modularity
    concepts: int
    capacity: int
    projected: int
    photographs: int  # to decode and cut
    recipe: PhotosConfig
    option: tuple[str, ...] = ()  # of `cause-lite gpu-run`, which chooses this plan


def _adapt(config: FitConfig, patch: int) -> FitConfig:
    return miniature(config, patch).replace({"data.eval_size": None})


ROWS = ("dino-b8-tr", "dino-s8-mlp", "dinov2-b14-tr")
FULL = Plan(ROWS, Extent(20_480, 20.0, 5), ROWS[:1], 100, 2048, 100, 2048, 2000, PhotosConfig())
MINIATURE = Plan(
    ROWS[:2],
    Extent(96, 0.1, 1, _adapt, {"embed_dim": 32, "depth": 1, "num_heads": 2}),
    (),
    16,
    32,
    4,
    256,
    6,
    PhotosConfig(channels=(8, 8, 8, 8), views=((0, 64, 4),), hidden=16, projection=8, regions=3, cooldown=1),
    ("--miniature",),
)


def run(
    out: Path, minutes: float, plan: Plan, device: str = "auto", photos: Path | None = None, say: Callable = print
) -> dict:
    """Measure everything of a plan, then pre-train for what is left of `minutes`; return the record."""
    end, at = time.monotonic() + 60 * minutes, choose_device(device)
    record = about(at)
    sections: dict[str, Callable[[], object]] = {"ratios": partial(ratios, plan), "reading": partial(reading, plan)}
    for name in plan.rows:
        sections[name] = partial(measure_row, row(f"cocostuff27/{name}"), at, plan.extent)
    for name in plan.compiled:
        sections[f"{name}, its pass compiled"] = partial(compiled_pass, row(f"cocostuff27/{name}"), at, plan.extent)
    sections["scaling"] = partial(scaling, plan)
    sections["pretraining"] = partial(pretraining, plan.recipe, out, device, end, photos)
    for name, work in sections.items():
        began = time.monotonic()
        try:
            record["sections"][name] = work()
        except Exception as error:  # the machine is lent for minutes: what else can be measured is
            record["failed"][name] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        say(f"{name}: {time.monotonic() - began:.0f} s" + (" FAILED" if name in record["failed"] else ""))
        write_json(out / RECORD, record)
    return record


def about(device: torch.device) -> dict:
    """Return what the numbers depend on beside the work: device, driver, versions, commit and date."""
    return {
        "device": device_name(device),
        "devices": max(1, torch.cuda.device_count()),
        "driver": driver(),
        "peak_teraflops": (peak(device) or 0.0) / 1e12 or None,
        "kernels_compile": modularity.kernels_work(device),
        "environment": provenance.environment(),
        "commit": provenance.commit(),
        "date": provenance.now(),
        "sections": {},
        "failed": {},
    }


def driver() -> str | None:
    """Return the version of the NVIDIA driver; None where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def ratios(plan: Plan) -> dict:
    """Return a step of the clusterbook and of the head's loss against the plain forms, and the largest difference."""
    ours, plain = bench_losses.modularity_sides(plan.patches, plan.concepts)
    found = {"modularity": bench.compare(ours, plain, 5) | {"difference": abs(ours() - plain())}}
    sides = bench_losses.Contrast(plan.capacity, plan.concepts, plan.projected)
    ours, loop = sides.fast(), sides.loop()
    found["contrast"] = bench.compare(ours, loop, 5) | {"difference": abs(ours() - loop())}
    with bench.MatrixProducts() as products:
        ours()
    return found | {"contrast, its products alone": bench.compare(ours, products.replay(), 5)}


def reading(plan: Plan) -> dict:
    """Return crops a second that processes decode and cut, five from a JPEG of 640 x 480, and the disk's rates."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(min(plan.photographs, 64))]
        for path in paths:
            small = Image.fromarray(rng.integers(256, size=(60, 80, 3), dtype=np.uint8))
            small.resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=95)
        files = tuple(paths[number % len(paths)] for number in range(plan.photographs))
        images = LazyRows(files, stored_rgb, Squaring(320, "five"))
        workers = reading_workers(images, torch.device("cuda"))
        crops = read_ahead(images, torch.arange(len(images)).split(64), workers, torch.device("cpu"))
        seconds = bench.seconds(lambda: sum(map(len, crops)))
        size = 2**20 * max(1, plan.photographs // 4)
        written, read = disk_seconds(b"0" * size, Path(folder) / "rate")
    rates = {"written_gigabytes_a_second": size / written / 1e9, "read_gigabytes_a_second": size / read / 1e9}
    return {"crops": len(images), "crops_a_second": len(images) / seconds, "workers": workers} | rates


def disk_seconds(content: bytes, path: Path) -> tuple[float, float]:
    """Return the seconds to write a file through to the disk, and to read it from there."""
    start = time.perf_counter()
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter()
        if hasattr(os, "posix_fadvise"):  # else the system answers from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    again = time.perf_counter()
    path.read_bytes()
    return written - start, time.perf_counter() - again


def scaling(plan: Plan) -> dict:
    """Return the first row's rates on all GPUs at once; nothing where there is one GPU."""
    count = torch.cuda.device_count()
    if count < 2:
        return {"devices": count}
    with tempfile.TemporaryDirectory() as folder:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        asked = ["-m", "cause_lite", "gpu-run", "--shared", "--out", folder, *plan.option]
        subprocess.run([sys.executable, *launch, *asked], check=True, capture_output=True, text=True)
        return {"devices": count, "stages": read_json(Path(folder) / RECORD)["stages"]}


def shared_row(out: Path, plan: Plan) -> None:
    """Measure the first row in each of several processes, a GPU each; the first writes rates of all together."""
    processes = parallel.processes()
    measured = measure_row(row(f"cocostuff27/{plan.rows[0]}"), processes.device, plan.extent)
    # In the steps the processes share each batch, so one's rate of crops is that of all.
    rates = {name: stage["crops_a_second"] for name, stage in measured["stages"].items()}
    rates["features"] = sum(parallel.gather_objects(rates["features"]))
    parallel.run_on_main_process(lambda: write_json(out / RECORD, {"stages": rates}))


def pretraining(recipe: PhotosConfig, out: Path, device: str, end: float, photos: Path | None) -> dict:
    """Pre-train on the photographs until `end` (of `time.monotonic`), going on from earlier parts, and export.

    Takes steps at the constant rate until what is left is needed for the branch, at the pace so far; one step at least.
    The state is written in parts, from which the next run goes on, on another machine too.
    """
    with tempfile.TemporaryDirectory() as scratch:
        state = Path(scratch) / STATE
        if photos is not None:
            photo_parts.unpack_parts(photos)
            if any(photos.glob(f"{STATE}.*")):
                photo_parts.join_parts(photos, state)
        run = dataclasses.replace(recipe, steps=ENDLESS).start(device)
        if state.exists():
            run.resume(state)
        begun, first, needed = time.monotonic(), run.step, 0.0
        while run.step == first or time.monotonic() + needed + EXPORT < end:
            run.advance()
            needed = recipe.cooldown * (time.monotonic() - begun) / (run.step - first)
        run.save(state)
        pretrain_and_export(dataclasses.replace(recipe, steps=run.step), Path(scratch), device)
        parts = photo_parts.split_file(state, out)
        for name in ("network.safetensors", "network.json", "README.md"):
            write_whole(out / name, partial(shutil.copyfile, Path(scratch) / name))
    return {"steps": run.step, "parts": [part.name for part in parts]}


def default_out() -> Path:
    """Return the folder of records, where the book looks for this one."""
    return cost.record_path().parent
