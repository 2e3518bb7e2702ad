"""Measure the stages of a published row on this device: crops a second, memory, the longest kernels, and waits.

Images are noise and weights random, which cost what real ones do. Begin with `measure_row`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from cause_lite.backbones.backbone import IMAGE_MEAN, IMAGE_STD
from cause_lite.backbones.feature_pass import Computed, FeaturePass
from cause_lite.backbones.feature_store import PatchStore
from cause_lite.backbones.vit import VitBackbone
from cause_lite.config import FitConfig
from cause_lite.head import build_head
from cause_lite.lab import bench, cost
from cause_lite.lab.recipes import Row
from cause_lite.loop import Session, batch_size
from cause_lite.runtime import parallel
from cause_lite.runtime.device import deterministic
from cause_lite.steps import fit_cluster_probe, fit_clusterbook, fit_head, fit_linear_probe

CLASSES = 27
KERNELS = 10  # the longest ones, by the device's time in them
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16 operations a second, as NVIDIA states them
Work = Callable[[int], object]  # takes so many steps of a stage


@dataclasses.dataclass(frozen=True)
class Extent:
    """How much is measured of each stage: crops at most, for about `seconds`, once `warm_up` steps have been taken.

    `adapt` changes a row's settings (given the patch), `narrow` the sizes of its backbone; a miniature changes both.
    """

    crops: int
    seconds: float
    warm_up: int
    adapt: Callable[[FitConfig, int], FitConfig] = lambda config, patch: config
    narrow: dict[str, Any] = dataclasses.field(default_factory=dict)


class Noise(Computed):
    """Normal vectors (n, P, D) on a device, the same for every batch: a step is measured without its reading."""

    def __init__(self, shape: tuple[int, int], device: torch.device, most: int) -> None:
        self._pool = torch.randn(most, *shape, generator=torch.Generator().manual_seed(0)).half().to(device)
        super().__init__(lambda numbers: self._pool[: len(numbers)].cpu())
        self.batch = most

    def ahead(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield vectors for each batch, on the device."""
        return (self._pool[: len(numbers)] for numbers in batches)

    def store(self, steps: int) -> PatchStore:
        """Return vectors of the images of so many steps, none of them on the disk."""
        shape = (steps * self.batch, *self._pool.shape[1:])
        return PatchStore(Path("noise"), shape, torch.float16, self, "Noise", stored=0)


def peak(device: torch.device) -> float | None:
    """Return the bf16 operations a second that the maker states for a device; None where they are not listed."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((value for listed, value in PEAKS.items() if listed in name), None)


def measure_row(row: Row, device: torch.device, extent: Extent) -> dict:
    """Return what a row's stages take: crops a second of each, and of one step its memory, kernels and waits."""
    backbone, config = noise_backbone(row, device, extent)
    patches = (config.data.size // backbone.patch) ** 2
    with deterministic(device):
        stages = {"features": measure_pass(config, backbone, extent)}
        for name, work in stage_works(config, patches, backbone.dim, device).items():
            stages[name] = measure_stage(work, batch_size(config), device, extent)
    return {"case": row.name, "config": config.model_dump(mode="json"), "stages": stages}


def compiled_pass(row: Row, device: torch.device, extent: Extent) -> dict:
    """Return the rate of a row's backbone, compiled."""
    backbone, config = noise_backbone(row, device, extent, compiled=True)
    return measure_pass(config, backbone, extent)


def noise_backbone(
    row: Row, device: torch.device, extent: Extent, compiled: bool = False
) -> tuple[VitBackbone, FitConfig]:
    """Return a row's backbone with random weights, ready on a device, and the row's settings."""
    name = row.config.backbone.name
    name = name if timm.is_model(name) else cost.TIMM_TWINS[name]
    vit = timm.create_model(name, num_classes=0, dynamic_img_size=True, **extent.narrow)
    assert isinstance(vit, VisionTransformer)
    backbone = VitBackbone(vit, row.name, IMAGE_MEAN, IMAGE_STD).to(device)
    config = extent.adapt(row.config, backbone.patch)
    backbone.prepare(config.optimisation.precision, compiled=compiled)
    return backbone, config


def measure_pass(config: FitConfig, backbone: VitBackbone, extent: Extent) -> dict:
    """Return the rate of the backbone alone, on images that are read ahead from memory; a step is a batch."""
    size = config.data.size // backbone.patch * backbone.patch
    images = np.random.default_rng(0).integers(256, size=(512, size, size, 3), dtype=np.uint8)
    source = FeaturePass(backbone, images)

    def work(steps: int) -> int:
        batches = torch.arange(steps * source.batch).remainder(len(images)).split(source.batch)
        return sum(map(len, source.ahead(batches)))

    measured = measure_stage(work, source.batch, backbone.device, extent) | {"batch": source.batch}
    operations = cost.backbone_operations(backbone.dim, (size // backbone.patch) ** 2, len(backbone.vit.blocks))
    rate, best = measured["crops_a_second"] * operations, peak(backbone.device)
    return measured | {"teraflops": rate / 1e12} | ({"fraction_of_peak": rate / best} if best else {})


def stage_works(config: FitConfig, patches: int, dim: int, device: torch.device) -> dict[str, Work]:
    """Return for each stage what takes a number of its steps, on noise."""
    size, side = batch_size(config), config.data.size
    label_map = np.random.default_rng(0).integers(CLASSES, size=(side, side), dtype=np.int8)
    features, outputs = (Noise((patches, width), device, size) for width in (dim, config.head.reduced_dim))
    codebook = torch.randn(config.clusterbook.concepts, dim, generator=torch.Generator().manual_seed(1)).to(device)
    once = {"clusterbook.epochs": 1, "head.epochs": 1, "probe.epochs": 1, "optimisation.ddp": "averaged"}
    changed = config.replace(once)

    def session() -> Session:
        return Session(changed, torch.Generator().manual_seed(0), device)

    def fit_linear(steps: int) -> object:
        labels = np.broadcast_to(label_map, (steps * size, side, side))
        return fit_linear_probe(outputs.store(steps), labels, CLASSES, session())

    @torch.no_grad()
    def compute_outputs(steps: int) -> None:
        head = build_head(config.head.kind, dim, config.head.reduced_dim, patches, codebook).eval().to(device)
        for _, vectors in features.store(steps).stream(torch.arange(steps * size).split(size), device):
            head(vectors.float()).half()

    return {
        "clusterbook": lambda steps: fit_clusterbook(features.store(steps), session()),
        "head": lambda steps: fit_head(features.store(steps), codebook, session()),
        "cluster probe": lambda steps: fit_cluster_probe(outputs.store(steps), CLASSES, session()),
        "linear probe": fit_linear,
        "outputs": compute_outputs,
    }


def measure_stage(work: Work, size: int, device: torch.device, extent: Extent) -> dict:
    """Return crops a second of a stage, and of its steps the memory, the longest kernels, and how often they waited.

    Parameters are what takes steps, and the crops of one.
    """
    work(extent.warm_up)
    one, few = (bench.seconds(partial(work, steps)) for steps in (1, 1 + extent.warm_up))
    step = max(1e-6, (few - one) / extent.warm_up)
    steps = max(2, min(extent.crops // size, int(extent.seconds / step)))
    steps = min(parallel.gather_objects(steps))  # as many in every process, since a step may wait for the others
    seconds, megabytes = bench.measure(partial(work, 1 + steps))
    return {
        "crops": steps * size,
        "crops_a_second": steps * size / max(1e-9, seconds - one),
        "milliseconds_a_step": 1e3 * (seconds - one) / steps,
        "megabytes": megabytes,
        "waits_a_step": waits(work, steps=20, device=device),
        "kernels": longest_kernels(lambda: work(1)),
    }


def waits(work: Work, steps: int, device: torch.device) -> float | None:
    """Return how often a step makes this process wait for CUDA, by torch's own count; None elsewhere."""
    if device.type != "cuda":
        return None
    counts = []
    for number in (1, 1 + steps):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                work(number)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchronizing" in str(each.message) for each in caught))
    return (counts[1] - counts[0]) / steps


def longest_kernels(work: Callable[[], object]) -> list[dict]:
    """Return the kernels in which the device spends most of the work's time: name, calls, and their milliseconds."""
    kind = "device" if torch.cuda.is_available() else "cpu"
    activity = ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiled:
        bench.seconds(work)

    def took(event: object) -> float:
        return getattr(event, f"self_{kind}_time_total", 0.0)

    longest = sorted(profiled.key_averages(), key=took, reverse=True)[:KERNELS]
    return [{"name": e.key[:120], "calls": e.count, "milliseconds": round(took(e) / 1e3, 4)} for e in longest]
