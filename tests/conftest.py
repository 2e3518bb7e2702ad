"""Shared fixtures: the reference vectors, and small data that stands in for the real thing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from cause_lite.backbones.backbone import IMAGE_MEAN, IMAGE_STD, Backbone
from cause_lite.backbones.vit import VitBackbone, build_vit
from cause_lite.config import FitConfig
from cause_lite.datasets import Split, scenes
from cause_lite.runtime.device import one_thread

REFERENCE = Path(__file__).parent / "reference"

# The same examples in every run; `pytest --hypothesis-profile=search` looks for new ones.
settings.register_profile("repeat", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile("repeat")


@pytest.fixture(name="one_thread")
def on_one_thread():
    """One thread, on which a product of matrices has the same bits whatever the number of rows."""
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Every test run keeps its caches to itself."""
    monkeypatch.setenv("CAUSE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def reference():
    """name -> the arrays of a reference file as tensors."""

    def read(name: str) -> dict[str, torch.Tensor]:
        with np.load(REFERENCE / f"{name}.npz") as arrays:
            return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}

    return read


def few_images() -> Split:
    views = [scenes.render(0, "train", index) for index in range(24)]
    labels = np.stack([v.labels for v in views]).astype(np.int16)
    return Split("scenes", "train", scenes.FINE_CLASSES, np.stack([v.image for v in views]), labels)


@pytest.fixture(scope="session")
def few_scenes() -> Split:
    return few_images()


def random_backbone() -> Backbone:
    """A small ViT with seeded random weights."""
    torch.manual_seed(0)
    return VitBackbone(build_vit(grid=16, patch=8, width=32, depth=1, heads=2), "small", IMAGE_MEAN, IMAGE_STD)


@pytest.fixture(scope="session")
def small_backbone() -> Backbone:
    return random_backbone()


def quick_config(changes: dict[str, object] | None = None) -> FitConfig:
    """A recipe small enough for a test, with `changes` such as {"head.kind": "mlp"}."""
    small = {
        "data.name": "scenes",
        "data.size": 128,
        "data.crops": "none",
        "backbone": "scenes",
        "optimisation.batch_size": 4,
        "optimisation.cell": 4,
        "clusterbook.concepts": 32,
        "head.reduced_dim": 16,
        "head.projection_dim": 32,
        "head.bank_capacity": 4,
        "probe.epochs": 2,
        "probe.halve_every": None,
    }
    return FitConfig().replace(small | (changes or {}))


@pytest.fixture
def quick() -> FitConfig:
    return quick_config()


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference over the largest magnitude."""
    return float((found - wanted).abs().max() / wanted.abs().max())
