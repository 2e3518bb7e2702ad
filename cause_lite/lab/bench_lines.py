"""The lines of `cause-lite bench`: each yields the rows of a table, measured in one process.

`LINES` names them. Their docstrings are kept with the records.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from cause_lite import checkpoints
from cause_lite.backbones.backbone import IMAGE_MEAN, IMAGE_STD, Backbone
from cause_lite.backbones.feature_store import cached_features
from cause_lite.backbones.loading import load_backbone
from cause_lite.backbones.vit import VitBackbone
from cause_lite.config import FitConfig
from cause_lite.datasets import Split, load_split
from cause_lite.datasets.images import LazyRows
from cause_lite.lab import crf
from cause_lite.lab.bench import MatrixProducts, compare, compare_loads, measure, seconds
from cause_lite.lab.bench_losses import contrast, modularity, modularity_growth
from cause_lite.lab.recipes import recipe, row
from cause_lite.lab.runs import label_maps
from cause_lite.loop import Session
from cause_lite.metrics import ClusterMetrics
from cause_lite.runtime.device import choose_device, seed_all, state_kept
from cause_lite.runtime.files import empty_cache
from cause_lite.steps import fit_head
from cause_lite.train import Fitted, fit

CLASSES = 27
DEVICE = choose_device("auto")


def sized_as_vit_s8() -> Backbone:
    """Return a backbone of the size of a ViT-S/8 with random weights, which cost what trained ones do."""
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=128, patch_size=8, embed_dim=384, depth=12, num_heads=6, num_classes=0)
    return VitBackbone(vit, "vit-s8", IMAGE_MEAN, IMAGE_STD)


def whole_fit() -> Iterator[dict]:
    """Measure all three steps from nothing, against one pass of the backbone and the matrix products of step 2."""
    train = load_split("scenes", "train")
    for name, backbone, count in (
        ("bundled", load_backbone("scenes").to(DEVICE), 320),
        ("ViT-S/8 in size", sized_as_vit_s8().to(DEVICE), 96),
    ):
        for head in ("mlp", "tr"):
            row = _fit_and_floor(recipe("scenes", head), _first(train, count), backbone)
            yield {"case": f"{name}, {head}"} | row


def _fit_and_floor(config: FitConfig, train: Split, backbone: Backbone) -> dict:
    with empty_cache():
        fitted = fit(config, train, backbone)
        one_pass = seconds(partial(_one_pass, backbone, train.images))
        features = cached_features(backbone, train.images, "Features")
        with state_kept(), MatrixProducts() as products:
            fit_head(features, fitted.segmenter.codebook, Session(config, seed_all(0), DEVICE))
    floor = one_pass + seconds(products.replay())
    total = sum(fitted.seconds.values())
    return {
        "seconds": total,
        "baseline_seconds": floor,
        "ratio": total / floor,
        "one_pass": one_pass,
        "products": floor - one_pass,
        "stages": fitted.seconds,
        "images": len(train),
    }


def double_precision() -> Iterator[dict]:
    """Measure a fit of scenes in single precision, against the same in double precision."""
    train, backbone = _first(load_split("scenes", "train"), 320), load_backbone("scenes").to(DEVICE)

    def fitted(config: FitConfig, precision: str) -> None:
        with empty_cache():
            fit(config.replace({"optimisation.precision": precision}), train, backbone)

    for head in ("mlp", "tr"):
        single, double = (partial(fitted, recipe("scenes", head), precision) for precision in ("fp32", "fp64"))
        yield {"case": f"bundled, {head}, fp64"} | compare(single, double, rounds=1)


def _one_pass(backbone: Backbone, images: np.ndarray | LazyRows) -> None:
    for start in range(0, len(images), 32):
        backbone.features(images[start : start + 32])


def _first(split: Split, count: int) -> Split:
    """Return the first images of a labelled split."""
    return dataclasses.replace(split, images=split.images[:count], labels=label_maps(split)[:count])


def published_rows() -> Iterator[dict]:
    """Measure the three steps of published rows at their sizes and epochs, on 640 crops of noise and random weights."""
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(640, 322, 322, 3), dtype=np.uint8)
    labels = rng.integers(CLASSES, size=images.shape[:3], dtype=np.int8)
    for key in ("dino-s8-mlp", "dino-s8-tr", "dino-b8-tr", "dinov2-b14-tr"):
        yield {"case": key, "images": len(images)} | _published_row(key, images, labels)


def _published_row(key: str, images: np.ndarray, labels: np.ndarray) -> dict:
    config, fits = row(f"cocostuff27/{key}").config, list[Fitted]()
    vit = timm.create_model(config.backbone.name, num_classes=0, dynamic_img_size=True)
    assert isinstance(vit, VisionTransformer)
    backbone = VitBackbone(vit, key, IMAGE_MEAN, IMAGE_STD).to(DEVICE)
    part = (slice(None), slice(config.data.size), slice(config.data.size))
    crops = Split("noise", "train", tuple(map(str, range(CLASSES))), images[part], labels[part])
    with empty_cache():
        fit(config, _first(crops, 32), backbone)
    with empty_cache():
        total, megabytes = measure(lambda: fits.append(fit(config, crops, backbone)))
    return {"seconds": total, "megabytes": megabytes, "stages": fits[0].seconds}


def fit_memory() -> Iterator[dict]:
    """Measure the peak of memory of a fit by the number of images, at one batch size."""
    backbone, train = load_backbone("scenes").to(DEVICE), load_split("scenes", "train")
    config = recipe("scenes", "mlp").replace({"head.epochs": 1, "probe.epochs": 1})
    for count in (500, 2000, 8000):
        with tempfile.TemporaryDirectory() as folder, empty_cache():
            images, labels = (
                _repeated(np.asarray(array), count, Path(folder) / f"{number}.npy")
                for number, array in enumerate((train.images, label_maps(train)))
            )
            split = Split("scenes", "train", train.classes, images, labels)
            peak = measure(partial(fit, config, split, backbone)).megabytes
        yield {"case": f"{count} images", "images": count, "megabytes": peak}


def _repeated(array: np.ndarray, count: int, path: Path) -> np.ndarray:
    """Write a file of `count` rows, the array's over and over, and return it mapped into memory."""
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=array.dtype, shape=(count, *array.shape[1:]))
    for start in range(0, count, len(array)):
        mapped[start : start + len(array)] = array[: count - start]
    mapped.flush()
    return np.load(path, mmap_mode="r")


def scoring() -> Iterator[dict]:
    """Measure the confusion of 20 maps of 320 x 320 pixels, against a loop over clusters and classes."""
    preds, target = (
        torch.randint(CLASSES, (20, 320, 320), generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        for seed in (0, 1)
    )
    ours, loop = partial(_confusion, preds, target), partial(_looped_confusion, preds, target)
    difference = 0.0 if torch.equal(ours(), loop()) else 1.0
    yield from compare_loads(f"{CLASSES} classes", ours, loop, rounds=5, difference=difference)


def _confusion(preds: Tensor, target: Tensor) -> Tensor:
    metrics = ClusterMetrics(CLASSES).to(preds.device)
    metrics.update(preds, target)
    return metrics.confusion


def _looped_confusion(preds: Tensor, target: Tensor) -> Tensor:
    table = torch.zeros(CLASSES, CLASSES, dtype=torch.long)
    for cluster in range(CLASSES):
        for label in range(CLASSES):
            table[cluster, label] = ((preds == cluster) & (target == label)).sum()
    return table


def refinement() -> Iterator[dict]:
    """Measure the dense CRF on scenes enlarged to 320 pixels: a process a core, and at half the resolution."""
    images = load_split("scenes", "val").images[:16]
    segmenter = checkpoints.load("scenes")
    maps = segmenter.segment_features(load_backbone("scenes").features(images))
    sides = {
        side: np.stack([np.asarray(Image.fromarray(image).resize((side, side))) for image in images])
        for side in (160, 320)
    }
    similar = {side: segmenter.similarities(maps, (side, side)) for side in sides}
    whole, half = (partial(crf.refine_batch, similar[side], sides[side]) for side in (320, 160))
    log_probs = torch.log_softmax(3 * similar[320], dim=1).numpy()

    def single() -> np.ndarray:
        return np.stack([crf.refined_labels(*pair) for pair in zip(sides[320], log_probs, strict=True)])

    agreement = float(np.array_equal(whole().numpy(), single()))
    yield from compare_loads("all cores, one core", whole, single, rounds=2, agreement=agreement, images=len(images))
    enlarged = F.interpolate(half()[:, None].float(), scale_factor=2)[:, 0].long()
    agreement = float((enlarged == whole()).float().mean())
    yield from compare_loads("half size, full size", half, whole, rounds=2, agreement=agreement, images=len(images))


LINES: dict[str, Callable[[], Iterator[dict]]] = {
    "modularity": modularity,
    "modularity growth": modularity_growth,
    "contrast": contrast,
    "scoring": scoring,
    "crf": refinement,
    "whole fit": whole_fit,
    "double precision": double_precision,
    "memory of a fit": fit_memory,
} | ({"published rows": published_rows} if DEVICE.type != "cpu" else {})
