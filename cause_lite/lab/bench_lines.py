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
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite import checkpoints, mediator
from cause_lite.backbones.backbone import IMAGE_MEAN, IMAGE_STD, Backbone
from cause_lite.backbones.feature_store import cached_features
from cause_lite.backbones.loading import load_backbone
from cause_lite.backbones.vit import VitBackbone
from cause_lite.config import FitConfig
from cause_lite.datasets import Split, load_split
from cause_lite.datasets.images import LazyRows
from cause_lite.fast import contrast as fast_contrast
from cause_lite.fast import modularity as fast_modularity
from cause_lite.frontdoor import ConceptBank
from cause_lite.lab import bench_baselines as baselines
from cause_lite.lab import crf
from cause_lite.lab.bench import MatrixProducts, compare_loads, measure, seconds
from cause_lite.lab.recipes import recipe, row
from cause_lite.lab.runs import label_maps
from cause_lite.loop import Session
from cause_lite.metrics import ClusterMetrics
from cause_lite.runtime.device import choose_device, seed_all, state_kept
from cause_lite.runtime.files import empty_cache
from cause_lite.steps import fit_head
from cause_lite.train import Fitted, fit

IMAGES, PATCHES, CHANNELS, CONCEPTS, REDUCED, PROJECTED = 16, 100, 384, 2048, 90, 2048  # the release's step
CLASSES = 27
DEVICE = choose_device("auto")


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal numbers on the device, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def step(loss: Callable[[], Tensor], *leaves: Tensor) -> Callable[[], float]:
    """Return a function that runs `loss` forward and backward, and returns its value, to compare both sides by."""

    def run() -> float:
        for leaf in leaves:
            leaf.grad = None
        value = loss()
        value.backward()
        return value.item()

    return run


def fast_modularity_loss(features: Tensor, codebook: Tensor) -> Tensor:
    """Return `mediator.modularity_loss` in the form that training uses."""
    return mediator.modularity_loss(features, codebook, shared_concept=fast_modularity.shared_concept)


def modularity() -> Iterator[dict]:
    """Measure one step of the clusterbook, against the plain `modularity_loss` and its B x K x P x P tensor."""
    features, codebook = normal(IMAGES, PATCHES, CHANNELS), normal(CONCEPTS, CHANNELS, seed=1).requires_grad_()
    ours = step(partial(fast_modularity_loss, features, codebook), codebook)
    plain = step(partial(mediator.modularity_loss, features, codebook), codebook)
    difference = abs(ours() - plain())
    for case in compare_loads("16 x 100 patches, K = 2048", ours, plain, rounds=3):
        yield case | {"difference": difference}


def modularity_growth() -> Iterator[dict]:
    """Measure the same step by patches and concepts; the plain form would need B x K x P x P x 4 bytes and more."""
    for patches in (100, 400, 1600):
        for concepts in (512, 1024, 2048, 4096):
            features = normal(IMAGES, patches, CHANNELS)
            codebook = normal(concepts, CHANNELS, seed=1).requires_grad_()
            ours = step(partial(fast_modularity_loss, features, codebook), codebook)
            ours()
            yield {
                "case": f"{patches} patches, K = {concepts}",
                "patches": patches,
                "concepts": concepts,
                "seconds": min(seconds(ours) for _ in range(2)),
                "megabytes": measure(ours).megabytes,
                "plain_gigabytes": IMAGES * concepts * patches**2 * 4 / 1e9,
            }


class Contrast:
    """One step of the contrastive loss with a bank of `capacity` vectors a concept, all of it in use."""

    def __init__(self, capacity: int, concepts: int = CONCEPTS, projected: int = PROJECTED) -> None:
        self.features, self.codebook = normal(IMAGES, PATCHES, CHANNELS), normal(concepts, CHANNELS, seed=1)
        self.reduced = normal(IMAGES, PATCHES, REDUCED, seed=2).requires_grad_()
        torch.manual_seed(0)
        self.projection = nn.Linear(REDUCED, projected).to(DEVICE)
        self.teacher = normal(IMAGES, PATCHES, projected, seed=3)
        self.bank = ConceptBank(concepts, projected, capacity, DEVICE)
        generator = torch.Generator().manual_seed(4)
        for rows in self.bank.vectors.split(8192):
            rows.copy_(F.normalize(torch.randn(rows.shape, generator=generator), dim=1))
        self.bank.filled += capacity
        self.owners = torch.arange(concepts, device=DEVICE).repeat_interleave(capacity)
        self.leaves = (self.reduced, *self.projection.parameters())

    def fast(self, low_rank: bool = True) -> Callable[[], float]:
        """Return a step as training takes it; `low_rank` tells the loss what the projections are computed from."""

        def loss() -> Tensor:
            projected = (self.reduced, self.projection) if low_rank else self.projection(self.reduced)
            return fast_contrast.concept_contrastive_loss(
                self.features, self.codebook, projected, self.teacher, self.bank
            )

        return step(loss, *self.leaves)

    def loop(self) -> Callable[[], float]:
        """Return a step by a loop over images, on the same bank."""
        return self._loop(lambda: (self.bank.vectors, self.owners))

    def as_released(self, capacity: int) -> Callable[[], float]:
        """Return a step by a loop over images, on a bank that is joined anew each time."""
        return self._loop(baselines.ReleasedBank(self.bank.vectors, self.codebook, capacity).contents)

    def _loop(self, bank: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], float]:
        def loss() -> Tensor:
            projected = self.projection(self.reduced)
            return baselines.contrastive_loss(self.features, self.codebook, projected, self.teacher, bank())

        return step(loss, *self.leaves)


def contrast() -> Iterator[dict]:
    """Measure one step of the head's loss, against a loop, the release's joined bank, and its products alone."""
    for capacity, rounds in ((5, 3), (20, 2), (100, 1)):
        sides = Contrast(capacity)
        ours, loop, name = sides.fast(), sides.loop(), f"bank of 2048 x {capacity}"
        difference = abs(ours() - loop())
        for case in compare_loads(f"{name}, a loop over images", ours, loop, rounds):
            yield case | {"difference": difference}
        wide = sides.fast(low_rank=False)
        yield from compare_loads(f"{name}, without the low rank, a loop over images", wide, loop, 1)
        with MatrixProducts() as products:
            ours()
        yield from compare_loads(f"{name}, its matrix products alone", ours, products.replay(), 3)
        if capacity <= 20:
            yield from compare_loads(f"{name}, as released", ours, sides.as_released(capacity), 1)


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
        config = row(f"cocostuff27/{key}").config
        vit = timm.create_model(config.backbone, num_classes=0, dynamic_img_size=True)
        assert isinstance(vit, VisionTransformer)
        backbone = VitBackbone(vit, key, IMAGE_MEAN, IMAGE_STD).to(DEVICE)
        part = (slice(None), slice(config.data.size), slice(config.data.size))
        crops = Split("noise", "train", tuple(map(str, range(CLASSES))), images[part], labels[part])
        with empty_cache():
            fit(config, _first(crops, 32), backbone)
        fits: list[Fitted] = []
        with empty_cache():
            total, megabytes = measure(partial(_keep_fit, fits, config, crops, backbone))
        about = {"images": len(images), "stages": fits[0].seconds}
        yield {"case": key, "seconds": total, "megabytes": megabytes} | about


def _keep_fit(fits: list[Fitted], config: FitConfig, train: Split, backbone: Backbone) -> None:
    fits.append(fit(config, train, backbone))


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
    ours, loop = partial(_confusion, preds, target), partial(baselines.confusion, preds, target, CLASSES)
    difference = 0.0 if torch.equal(ours(), loop()) else 1.0
    for case in compare_loads(f"{CLASSES} classes", ours, loop, rounds=5):
        yield case | {"difference": difference}


def _confusion(preds: Tensor, target: Tensor) -> Tensor:
    metrics = ClusterMetrics(CLASSES).to(preds.device)
    metrics.update(preds, target)
    return metrics.confusion


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
    for case in compare_loads("all cores, one core", whole, single, rounds=2):
        yield case | {"agreement": agreement, "images": len(images)}
    enlarged = F.interpolate(half()[:, None].float(), scale_factor=2)[:, 0].long()
    agreement = float((enlarged == whole()).float().mean())
    for case in compare_loads("half size, full size", half, whole, rounds=2):
        yield case | {"agreement": agreement, "images": len(images)}


LINES: dict[str, Callable[[], Iterator[dict]]] = {
    "modularity": modularity,
    "modularity growth": modularity_growth,
    "contrast": contrast,
    "scoring": scoring,
    "crf": refinement,
    "whole fit": whole_fit,
    "memory of a fit": fit_memory,
} | ({"published rows": published_rows} if DEVICE.type != "cpu" else {})
