"""Measure the stages of a published row on this device: crops a second, memory, the longest kernels, and waits.

Images are noise and weights random, which cost what real ones do. Begin with `measure_row`.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from cause_lite.runtime.device import deterministic, seed_all
from cause_lite.steps import fit_cluster_probe, fit_clusterbook, fit_head, fit_linear_probe

CLASSES = 27
KERNELS = 10  # the longest ones, by the device's time in them
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16 operations a second, as NVIDIA states them


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

    def store(self, images: int) -> PatchStore:
        """Return vectors of so many images, none of them on the disk."""
        shape = (images, *self._pool.shape[1:])
        return PatchStore(Path("noise"), shape, torch.float16, self, "Noise", stored=0)


def peak(device: torch.device) -> float | None:
    """Return the bf16 operations a second that the maker states for a device; None where they are not listed."""
    if device.type != "cuda":
        return None
    return next((value for name, value in PEAKS.items() if name in torch.cuda.get_device_name(device)), None)


def measure_row(row: Row, device: torch.device, extent: Extent) -> dict:
    """Return what a row's stages take: crops a second of each, and of one step its memory, kernels and waits."""
    backbone = noise_backbone(row, extent).to(device)
    config = extent.adapt(row.config, backbone.patch)
    backbone.prepare(config.optimisation.precision)
    patches = (config.data.size // backbone.patch) ** 2
    with deterministic(device):
        stages = {"features": measure_pass(config, backbone, extent)}
        for name, work in stage_works(config, patches, backbone.dim, device).items():
            stages[name] = measure_stage(work, config, device, extent)
    return {"case": row.name, "config": config.model_dump(mode="json"), "stages": stages}


def compiled_pass(row: Row, device: torch.device, extent: Extent) -> dict:
    """Return the rate of a row's backbone, compiled."""
    backbone = noise_backbone(row, extent).to(device)
    config = extent.adapt(row.config, backbone.patch)
    backbone.prepare(config.optimisation.precision, compiled=True)
    return measure_pass(config, backbone, extent)


def noise_backbone(row: Row, extent: Extent) -> VitBackbone:
    """Return a row's backbone with random weights."""
    name = row.config.backbone if timm.is_model(row.config.backbone) else cost.TIMM_TWINS[row.config.backbone]
    vit = timm.create_model(name, num_classes=0, dynamic_img_size=True, **extent.narrow)
    assert isinstance(vit, VisionTransformer)
    return VitBackbone(vit, row.name, IMAGE_MEAN, IMAGE_STD)


def measure_pass(config: FitConfig, backbone: VitBackbone, extent: Extent) -> dict:
    """Return the rate of the backbone alone, on images that are read ahead from memory."""
    size = config.data.size // backbone.patch * backbone.patch
    images = np.random.default_rng(0).integers(256, size=(512, size, size, 3), dtype=np.uint8)
    source, crops = FeaturePass(backbone, images), 0
    batches = [numbers % len(images) for numbers in torch.arange(extent.crops).split(source.batch)]
    rate, clock = 0.0, None
    with measured_memory(backbone.device) as memory:
        for number, vectors in enumerate(source.ahead(batches)):
            if number < extent.warm_up:
                continue
            if clock is None:
                synchronise()
                clock = time.perf_counter()
                continue
            crops += len(vectors)
            if time.perf_counter() - clock > extent.seconds:
                break
        synchronise()
        rate = crops / max(1e-9, time.perf_counter() - (clock or 0.0))
    patches = (size // backbone.patch) ** 2
    operations = cost.backbone_operations(backbone.dim, patches, len(backbone.vit.blocks))
    best = peak(backbone.device)
    shares = {"fraction_of_peak": rate * operations / best} if best else {}
    about = {"crops": crops, "crops_a_second": rate, "batch": source.batch, "teraflops": rate * operations / 1e12}
    kernels = longest_kernels(lambda: list(source.ahead(batches[:1])))
    return about | shares | {"megabytes": memory[0], "kernels": kernels}


def stage_works(
    config: FitConfig, patches: int, dim: int, device: torch.device
) -> dict[str, Callable[[int], tuple[object, list[float]]]]:
    """Return for each stage what takes a number of its steps, on noise."""
    size, width = batch_size(config), config.head.reduced_dim
    features, outputs = (Noise((patches, channels), device, size) for channels in (dim, width))
    codebook = torch.randn(config.clusterbook.concepts, dim, generator=torch.Generator().manual_seed(1)).to(device)
    labels = np.random.default_rng(0).integers(CLASSES, size=(64, config.data.size, config.data.size), dtype=np.int8)
    once = {"clusterbook.epochs": 1, "head.epochs": 1, "probe.epochs": 1, "optimisation.ddp": "averaged"}
    changed = config.replace(once)

    def session() -> Session:
        return Session(changed, seed_all(0), device)

    class Labels:
        """Label maps of any number of images."""

        def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
            return labels[numbers % len(labels)]

    def linear(steps: int) -> tuple[object, list[float]]:
        return fit_linear_probe(outputs.store(steps * size), Labels(), CLASSES, session())  # type: ignore[arg-type]

    return {
        "clusterbook": lambda steps: fit_clusterbook(features.store(steps * size), session()),
        "head": lambda steps: fit_head(features.store(steps * size), codebook, session()),
        "cluster probe": lambda steps: fit_cluster_probe(outputs.store(steps * size), CLASSES, session()),
        "linear probe": linear,
        "outputs": lambda steps: head_outputs(config, codebook, features, steps),
    }


def head_outputs(config: FitConfig, codebook: Tensor, features: Noise, steps: int) -> tuple[object, list[float]]:
    """Compute the head's outputs of every patch, as step 3 does once, and drop them."""
    store = features.store(steps * batch_size(config))
    head = build_head(config.head.kind, store.shape[2], config.head.reduced_dim, store.shape[1], codebook).eval()
    head.to(codebook.device)
    losses = []
    for _, vectors in store.stream(torch.arange(len(store)).split(batch_size(config)), codebook.device):
        with torch.no_grad():
            head(vectors).half()
        losses.append(0.0)
    return head, losses


def measure_stage(
    work: Callable[[int], tuple[object, list[float]]], config: FitConfig, device: torch.device, extent: Extent
) -> dict:
    """Return crops a second of a stage, and of its steps the memory, the longest kernels, and how often they waited."""
    size = batch_size(config)
    work(extent.warm_up)
    one, few = (bench.seconds(partial(work, steps)) for steps in (1, 1 + extent.warm_up))
    step = max(1e-6, (few - one) / extent.warm_up)
    steps = max(2, min(extent.crops // size, int(extent.seconds / step)))
    with measured_memory(device) as memory:
        seconds = bench.seconds(partial(work, 1 + steps)) - one
    return {
        "crops": steps * size,
        "crops_a_second": steps * size / max(1e-9, seconds),
        "milliseconds_a_step": 1e3 * seconds / steps,
        "megabytes": memory[0],
        "waits_a_step": waits(work, steps=20, device=device),
        "kernels": longest_kernels(lambda: work(1)),
    }


def synchronise() -> None:
    """Wait until the device has done all that is queued."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


@contextmanager
def measured_memory(device: torch.device) -> Iterator[list[float]]:
    """Yield a list that holds, after the block, the block's peak of a CUDA device's memory in MB; 0 elsewhere."""
    found: list[float] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    found.append(round(torch.cuda.max_memory_allocated(device) / 1e6, 1) if device.type == "cuda" else 0.0)


def waits(work: Callable[[int], object], steps: int, device: torch.device) -> float | None:
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
    on_device = torch.cuda.is_available()
    activities = [ProfilerActivity.CUDA] if on_device else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiled:
        work()
        synchronise()

    def took(event: object) -> float:
        return getattr(event, "self_device_time_total" if on_device else "self_cpu_time_total", 0.0)

    longest = sorted(profiled.key_averages(), key=took, reverse=True)[:KERNELS]
    return [{"name": e.key[:120], "calls": e.count, "milliseconds": round(took(e) / 1e3, 4)} for e in longest]
