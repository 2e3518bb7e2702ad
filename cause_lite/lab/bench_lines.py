"""The lines of `cause-lite bench`: each returns rows of a table, measured in one process."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite import checkpoints, mediator
from cause_lite.backbones.backbone import IMAGE_MEAN, IMAGE_STD, Backbone
from cause_lite.backbones.feature_store import cached_features
from cause_lite.backbones.loading import load_backbone
from cause_lite.backbones.vit import VitBackbone
from cause_lite.datasets import Split, load_split
from cause_lite.fast import contrast as fast_contrast
from cause_lite.fast import modularity as fast_modularity
from cause_lite.frontdoor import ConceptBank
from cause_lite.lab import bench_baselines as baselines
from cause_lite.lab import crf
from cause_lite.lab.bench import MatrixProducts, compare, seconds, watched
from cause_lite.lab.recipes import recipe, row
from cause_lite.loop import Session
from cause_lite.metrics import ClusterMetrics
from cause_lite.runtime.device import choose_device
from cause_lite.runtime.randomness import seed_all
from cause_lite.steps import fit_head
from cause_lite.train import Fitted, fit

IMAGES, PATCHES, CHANNELS, CONCEPTS, REDUCED, PROJECTED = 16, 100, 384, 2048, 90, 2048  # the release's step


DEVICE = choose_device("auto")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def step(loss: Callable[[], Tensor], *leaves: Tensor) -> Callable[[], float]:
    """Forward and backward; the value, so that both sides can be compared."""

    def run() -> float:
        for leaf in leaves:
            leaf.grad = None
        value = loss()
        value.backward()
        return value.item()

    return run


def fast_modularity_loss(features: Tensor, codebook: Tensor) -> Tensor:
    return mediator.modularity_loss(features, codebook, shared_concept=fast_modularity.shared_concept)


def modularity() -> Iterator[dict]:
    """One step of the clusterbook, against the B x K x P x P tensor."""
    features, codebook = drawn(IMAGES, PATCHES, CHANNELS), drawn(CONCEPTS, CHANNELS, seed=1).requires_grad_()
    ours = step(lambda: fast_modularity_loss(features, codebook), codebook)
    plain = step(lambda: mediator.modularity_loss(features, codebook), codebook)
    yield {"case": "16 x 100 patches, K = 2048", "difference": abs(ours() - plain())} | compare(ours, plain, rounds=3)


def modularity_growth() -> Iterator[dict]:
    """The same step by patches and concepts; the plain form would need B x K x P x P x 4 bytes and more."""
    for patches in (100, 400, 1600):
        for concepts in (512, 1024, 2048, 4096):
            features = drawn(IMAGES, patches, CHANNELS)
            codebook = drawn(concepts, CHANNELS, seed=1).requires_grad_()
            ours = step(lambda f=features, c=codebook: fast_modularity_loss(f, c), codebook)
            ours()
            yield {
                "case": f"{patches} patches, K = {concepts}", "patches": patches, "concepts": concepts,
                "seconds": min(seconds(ours) for _ in range(2)), "megabytes": watched(ours)[1],
                "plain_gigabytes": IMAGES * concepts * patches**2 * 4 / 1e9,
            }  # fmt: skip


class Contrast:
    """One step of the contrastive loss with a bank of `capacity` vectors a concept, all of it in use."""

    def __init__(self, capacity: int) -> None:
        self.features, self.codebook = drawn(IMAGES, PATCHES, CHANNELS), drawn(CONCEPTS, CHANNELS, seed=1)
        self.reduced = drawn(IMAGES, PATCHES, REDUCED, seed=2).requires_grad_()
        torch.manual_seed(0)
        self.projection = nn.Linear(REDUCED, PROJECTED).to(DEVICE)
        self.teacher = drawn(IMAGES, PATCHES, PROJECTED, seed=3)
        self.bank = ConceptBank(CONCEPTS, PROJECTED, capacity, DEVICE)
        generator = torch.Generator().manual_seed(4)
        for rows in self.bank.vectors.split(8192):
            rows.copy_(F.normalize(torch.randn(rows.shape, generator=generator), dim=1))
        self.bank.filled += capacity
        self.owners = torch.arange(CONCEPTS, device=DEVICE).repeat_interleave(capacity)
        self.leaves = (self.reduced, *self.projection.parameters())

    def step(self, loss: Callable, bank: Callable[[], object], low_rank: bool = False) -> Callable[[], float]:
        """Of a loss and what it reads as the bank; `low_rank` tells it what the projections are computed from."""

        def value() -> Tensor:
            projected = (self.reduced, self.projection) if low_rank else self.projection(self.reduced)
            return loss(self.features, self.codebook, projected, self.teacher, bank())

        return step(value, *self.leaves)


def contrast() -> Iterator[dict]:
    """One step of the head's loss: a loop over images, the release's concatenated bank, and the products alone."""
    for capacity, rounds in ((5, 3), (20, 2), (100, 1)):
        case = Contrast(capacity)
        wide = case.step(fast_contrast.concept_contrastive_loss, lambda case=case: case.bank)
        ours = case.step(fast_contrast.concept_contrastive_loss, lambda case=case: case.bank, low_rank=True)
        fair = case.step(baselines.contrastive_loss, lambda case=case: (case.bank.vectors, case.owners))
        name = f"bank of 2048 x {capacity}"
        yield {"case": f"{name}, a loop over images", "difference": abs(ours() - fair())} | compare(ours, fair, rounds)
        yield {"case": f"{name}, without the low rank, a loop over images"} | compare(wide, fair, 1)
        with MatrixProducts() as products:
            ours()
        yield {"case": f"{name}, its matrix products alone"} | compare(ours, products.replay(), 3)
        if capacity <= 20:
            released = baselines.ReleasedBank(case.bank.vectors, case.codebook, capacity)
            yield {"case": f"{name}, as released"} | compare(
                ours, case.step(baselines.contrastive_loss, released.contents), 1
            )


@contextmanager
def empty_cache() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, CAUSE_CACHE=folder):
        yield


def sized_as_vit_s8() -> Backbone:
    """A ViT-S/8 in size, with random weights: they cost what trained ones do."""
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=128, patch_size=8, embed_dim=384, depth=12, num_heads=6, num_classes=0)
    return VitBackbone(vit, "vit-s8", IMAGE_MEAN, IMAGE_STD)


def whole_fit() -> Iterator[dict]:
    """All three steps from nothing, against one pass of the backbone and the matrix products of step 2."""
    train = load_split("scenes", "train")
    for name, backbone, count in (
        ("bundled", load_backbone("scenes").to(DEVICE), 320),
        ("ViT-S/8 in size", sized_as_vit_s8().to(DEVICE), 96),
    ):
        some = dataclasses.replace(train, images=train.images[:count], labels=train.labels[:count])
        for head in ("mlp", "tr"):
            config = recipe("scenes", head)
            with empty_cache():
                fitted = fit(config, some, backbone)
                one_pass = seconds(partial(_one_pass, backbone, some.images))
                features = cached_features(backbone, some.images, "Features")
                with torch.random.fork_rng(devices=[]), MatrixProducts() as products:
                    fit_head(features, fitted.segmenter.codebook, Session(config, seed_all(0), DEVICE))
            floor = one_pass + seconds(products.replay())
            total = sum(fitted.seconds.values())
            yield {
                "case": f"{name}, {head}", "seconds": total, "baseline_seconds": floor, "ratio": total / floor,
                "one_pass": one_pass, "products": floor - one_pass, "stages": fitted.seconds, "images": len(some),
            }  # fmt: skip


def published_rows() -> Iterator[dict]:
    """The three steps of published rows at their own sizes and epochs, on 640 crops of noise and random weights."""
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(640, 322, 322, 3), dtype=np.uint8)
    labels = rng.integers(27, size=images.shape[:3], dtype=np.int8)
    for key in ("dino-s8-mlp", "dino-s8-tr", "dino-b8-tr", "dinov2-b14-tr"):
        config = row(f"cocostuff27/{key}").config
        backbone = VitBackbone(
            timm.create_model(config.backbone, num_classes=0, dynamic_img_size=True), key, IMAGE_MEAN, IMAGE_STD
        ).to(DEVICE)
        part = (slice(None), slice(config.data.size), slice(config.data.size))
        crops = Split("noise", "train", tuple(map(str, range(27))), images[part], labels[part])
        with empty_cache():
            fit(config, dataclasses.replace(crops, images=images[part][:32], labels=labels[part][:32]), backbone)
        with empty_cache():
            fitted: list[Fitted] = []
            total, megabytes = watched(lambda f=fitted, c=(config, crops, backbone): f.append(fit(*c)))
        yield {
            "case": key, "seconds": total, "megabytes": megabytes, "images": len(images), "stages": fitted[0].seconds,
        }  # fmt: skip


def _one_pass(backbone: Backbone, images: np.ndarray) -> None:
    for start in range(0, len(images), 32):
        backbone.features(images[start : start + 32])


def fit_memory() -> Iterator[dict]:
    """Peak private memory of a fit by the number of images, at one batch size."""
    backbone, train = load_backbone("scenes").to(DEVICE), load_split("scenes", "train")
    config = recipe("scenes", "mlp").replace({"head.epochs": 1, "probe.epochs": 1})
    for count in (500, 2000, 8000):
        with tempfile.TemporaryDirectory() as folder, empty_cache():
            images, labels = (
                _repeated(a, count, Path(folder) / f"{n}.npy") for n, a in enumerate((train.images, train.labels))
            )
            split = Split("scenes", "train", train.classes, images, labels)
            yield {
                "case": f"{count} images",
                "images": count,
                "megabytes": watched(lambda s=split: fit(config, s, backbone))[1],
            }


def _repeated(array: np.ndarray, count: int, path: Path) -> np.ndarray:
    """A memory-mapped file of `count` rows, the array's over and over."""
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=array.dtype, shape=(count, *array.shape[1:]))
    for start in range(0, count, len(array)):
        mapped[start : start + len(array)] = array[: count - start]
    mapped.flush()
    return np.load(path, mmap_mode="r")


def scoring() -> Iterator[dict]:
    """The confusion of 20 maps of 320 x 320 pixels, against a loop over clusters and classes."""
    preds, target = (
        torch.randint(27, (20, 320, 320), generator=torch.Generator().manual_seed(s)).to(DEVICE) for s in (0, 1)
    )
    same = torch.equal(_confusion(preds, target), baselines.confusion(preds, target, 27))
    yield {"case": "27 classes", "difference": 0.0 if same else 1.0} | compare(
        lambda: _confusion(preds, target), lambda: baselines.confusion(preds, target, 27), rounds=5
    )


def refinement() -> Iterator[dict]:
    """The dense CRF on scenes enlarged to 320 pixels: a process a core, and at half the resolution."""
    some = load_split("scenes", "val").images[:16]
    segmenter = checkpoints.load("scenes")
    maps = segmenter.segment_features(segmenter.backbone.features(some))
    sides = {side: np.stack([np.asarray(Image.fromarray(i).resize((side, side))) for i in some]) for side in (160, 320)}
    similar = {side: segmenter.similarities(maps, (side, side)) for side in sides}
    whole, halved = (partial(crf.refine_batch, similar[side], sides[side]) for side in (320, 160))
    unary = torch.log_softmax(3 * similar[320], dim=1).numpy()

    def single() -> np.ndarray:
        return np.stack([crf.refined_labels(image, u) for image, u in zip(sides[320], unary, strict=True)])

    same = np.array_equal(whole().numpy(), single())
    yield {"case": "all cores, one core", "agreement": float(same), "images": 16} | compare(whole, single, rounds=2)
    enlarged = F.interpolate(halved()[:, None].float(), scale_factor=2)[:, 0].long()
    agreement = float((enlarged == whole()).float().mean())
    yield {"case": "half size, full size", "agreement": agreement, "images": 16} | compare(halved, whole, rounds=2)


def _confusion(preds: Tensor, target: Tensor) -> Tensor:
    metrics = ClusterMetrics(27).to(preds.device)
    metrics.update(preds, target)
    return metrics.confusion


LINES = {
    "modularity": modularity,
    "modularity growth": modularity_growth,
    "contrast": contrast,
    "scoring": scoring,
    "crf": refinement,
    "whole fit": whole_fit,
    "memory of a fit": fit_memory,
} | ({"published rows": published_rows} if DEVICE.type != "cpu" else {})
