"""What CAUSE is compared with, and what labels would give, scored by the same harness."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from cause_lite.backbones.feature_store import PatchStore
from cause_lite.backbones.kmeans import kmeans, patch_kmeans
from cause_lite.config import FitConfig
from cause_lite.datasets import Split
from cause_lite.datasets.images import LazyRows
from cause_lite.lab.runs import label_maps
from cause_lite.loop import Session
from cause_lite.metrics import ClusterMetrics
from cause_lite.probe import IGNORED, patch_labels
from cause_lite.runtime.device import seeded
from cause_lite.runtime.files import UserError
from cause_lite.steps import fit_linear_probe

SAMPLE = 100_000  # pixels or patches that a baseline learns from, at most
FULL_SAMPLE = 30_000  # ... that full k-means does
STARTS = 10  # of full k-means; the best is kept
TOLERANCE = 1e-4  # of the logistic regression: the largest entry of the gradient of the mean loss
ITERATIONS = 5_000  # of L-BFGS, at most
WIDE = 256  # channels from which vectors are scored before they are enlarged
BATCH = 10  # images whose pixels are predicted at once
Patches = Callable[[slice], Tensor]  # images -> patch vectors on their grid (B, h, w, D), the mean of both views


def colour_and_height(images: np.ndarray, weight: float) -> Tensor:
    """Return red, green and blue in 0..1 and `weight` x height in 0..1, (N, H, W, 4), of images (N, H, W, 3) uint8."""
    count, height, width, _ = images.shape
    rows = torch.linspace(0, weight, height).view(1, height, 1, 1).expand(count, height, width, 1)
    return torch.cat([torch.from_numpy(images).float() / 255, rows], dim=3)


def score_colour_kmeans(train: Split, test: Split, seed: int, weight: float = 0.5) -> ClusterMetrics:
    """Score mini-batch k-means (the best of 5 starts) on the colour and height of single pixels."""
    classes, every = len(test.classes), 4
    rng = np.random.default_rng(seed)
    some = np.sort(rng.permutation(len(train))[:2000])
    parts = [train.images[some[start : start + 20]] for start in range(0, len(some), 20)]
    pixels = torch.cat([colour_and_height(part, weight)[:, ::every, ::every].flatten(0, 2) for part in parts])
    centres = kmeans(pixels[torch.from_numpy(rng.permutation(len(pixels))[:SAMPLE])], classes, seed)
    metrics, labels = ClusterMetrics(classes), label_maps(test)
    for start in range(0, len(test), 20):
        pixels = colour_and_height(test.images[start : start + 20], weight)
        metrics.update(nearest(pixels, centres), torch.from_numpy(labels[start : start + 20]))
    return metrics


def nearest(vectors: Tensor, centres: Tensor) -> Tensor:
    """Return the number of the nearest of centres (K, D) to each vector (..., D), Euclidean."""
    return closeness(vectors, centres).argmax(-1)


def closeness(vectors: Tensor, centres: Tensor) -> Tensor:
    """Return |v|^2 - |v - c|^2 of vectors (..., D) and centres (K, D): (..., K), largest at the nearest centre."""
    return 2 * vectors @ centres.T - centres.square().sum(1)


@dataclass(frozen=True)
class TestFeatures:
    """Backbone features of a split (N, P, D) and of its mirror images."""

    plain: PatchStore
    mirrored: PatchStore

    def patches(self, part: slice, unit: bool = False) -> Tensor:
        """Return the mean of both views, (B, h, w, D); with `unit`, of vectors scaled to length 1."""
        side = round(self.plain.shape[1] ** 0.5)
        views = [store[part].float().unflatten(1, (side, side)) for store in (self.plain, self.mirrored)]
        if unit:
            views = [F.normalize(view, dim=-1) for view in views]
        return (views[0] + views[1].flip(2)) / 2

    def unit_patches(self, part: slice) -> Tensor:
        """Return the mean of both views of unit features, (B, h, w, D)."""
        return self.patches(part, unit=True)

    def maps(self, part: slice, size: tuple[int, int]) -> Tensor:
        """Return the mean of both views of unit features, scaled up bilinearly to (B, H, W, D)."""
        return enlarged(self.unit_patches(part), size)

    def scores(self, part: slice, size: tuple[int, int], affine: Callable[[Tensor], Tensor]) -> Tensor:
        """Return an affine function, (..., D) -> (..., K), of `maps` at each pixel: (B, H, W, K)."""
        return pixel_scores(self.unit_patches(part), size, affine)


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (B, h, w, D) scaled up bilinearly to (B, H, W, D)."""
    wide = F.interpolate(maps.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
    return wide.permute(0, 2, 3, 1)


def pixel_scores(patches: Tensor, size: tuple[int, int], affine: Callable[[Tensor], Tensor]) -> Tensor:
    """Return an affine function, (..., D) -> (..., K), of patches (B, h, w, D) scaled up: (B, H, W, K).

    Bilinear weights add up to 1, so wide vectors are scored before they are enlarged: the same scores but for their
    last bits. Narrow ones, cheap to enlarge, keep the order in which records were made.
    """
    if patches.shape[3] < WIDE:
        return affine(enlarged(patches, size))
    return enlarged(affine(patches), size)


def score_feature_kmeans(
    train: PatchStore, test: TestFeatures, labels: np.ndarray | LazyRows, classes: int, seed: int
) -> ClusterMetrics:
    """Score mini-batch k-means (the best of 5 starts) on unit features (N, P, D), by which the cluster probe starts.

    It is Euclidean: neither the centres nor the mean of both views are scaled to length 1.
    """
    centres = patch_kmeans(train, classes, seed)
    return _scored(lambda vectors: closeness(vectors, centres), test.unit_patches, labels, classes)


def score_full_kmeans(
    train: PatchStore, test: TestFeatures, labels: np.ndarray | LazyRows, classes: int, seed: int
) -> ClusterMetrics:
    """Score full k-means (Lloyd's algorithm, the best of 10 starts) on unit features (N, P, D), with unit centres.

    It learns from at most 30,000 patches. A pixel goes to the centre of the largest cosine.
    """
    vectors = F.normalize(train.sample(FULL_SAMPLE, torch.Generator().manual_seed(seed)).float(), dim=-1)
    found = KMeans(classes, n_init=STARTS, random_state=seed).fit(vectors.numpy())
    centres = F.normalize(torch.from_numpy(found.cluster_centers_).float(), dim=-1)
    return _scored(lambda vectors: vectors @ centres.T, test.unit_patches, labels, classes)


def score_supervised(
    train: PatchStore,
    train_labels: np.ndarray | LazyRows,
    test: TestFeatures,
    labels: np.ndarray | LazyRows,
    classes: int,
    config: FitConfig,
) -> ClusterMetrics:
    """Score the linear probe of step 3, trained with every label on unit features (not matched).

    A few epochs of gradient steps bound nothing: what labels give is `score_logistic`.
    """
    with seeded(config.seed) as generator:
        session = Session(config, generator, torch.device("cpu"))
        probe = fit_linear_probe(train, train_labels, classes, session, unit=True)[0]

    return _scored(torch.no_grad()(probe.forward), test.unit_patches, labels, classes)


def score_logistic(
    train: PatchStore,
    train_labels: np.ndarray | LazyRows,
    patches: Patches,
    labels: np.ndarray | LazyRows,
    classes: int,
    seed: int,
) -> ClusterMetrics:
    """Score what labels give: a converged multinomial logistic regression on standardised vectors (not matched).

    It learns from at most 100,000 labelled patches, by the class at the centre of each. The classes of the prediction
    are taken as they are.

    Parameters
    ----------
    train, train_labels
        Vectors (N, P, D) and label maps (N, H, W) of the training images.
    patches
        Takes a slice of the scored images; returns their vectors (B, h, w, D).
    labels
        Label maps of the scored images, (M, H, W).
    classes
        How many classes there are.
    seed
        Of the draw of patches.
    """
    vectors, targets = labelled_sample(train, train_labels, seed)
    model = fit_logistic(vectors, targets)
    scaler, regression = model[0], model[1]
    weight = torch.from_numpy(regression.coef_ / scaler.scale_).float()  # (n, D)
    bias = torch.from_numpy(regression.intercept_).float() - weight @ torch.from_numpy(scaler.mean_).float()
    known = torch.from_numpy(regression.classes_)
    return _scored(lambda vectors: vectors @ weight.T + bias, patches, labels, classes, known)


def labelled_sample(store: PatchStore, labels: np.ndarray | LazyRows, seed: int) -> tuple[Tensor, Tensor]:
    """Return at most 100,000 labelled patches (n, D) of a store (N, P, D) and their classes (n,)."""
    truth = patch_labels(np.asarray(labels[:]), round(store.shape[1] ** 0.5))
    image, patch = (truth != IGNORED).nonzero(as_tuple=True)
    drawn = torch.randperm(len(image), generator=torch.Generator().manual_seed(seed))[:SAMPLE]
    return store.at(image[drawn], patch[drawn]).float(), truth[image[drawn], patch[drawn]]


def fit_logistic(vectors: Tensor, targets: Tensor) -> Pipeline:
    """Fit a multinomial logistic regression (scikit-learn, L-BFGS, C = 1) on standardised vectors (n, D).

    Raises
    ------
    UserError
        When it does not converge.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, tol=TOLERANCE, max_iter=ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            return model.fit(vectors.numpy(), targets.numpy())
        except ConvergenceWarning as error:
            message = f"logistic regression: no convergence to {TOLERANCE} within {ITERATIONS} iterations"
            raise UserError(f"{message}; standardise the vectors or take fewer classes") from error


def _scored(
    affine: Callable[[Tensor], Tensor],
    patches: Patches,
    labels: np.ndarray | LazyRows,
    classes: int,
    names: Tensor | None = None,
) -> ClusterMetrics:
    """Return the metrics of the largest of the scores of each pixel; `names` are the classes that these stand for."""
    metrics = ClusterMetrics(classes)
    for start in range(0, len(labels), BATCH):
        part = slice(start, start + BATCH)
        largest = pixel_scores(patches(part), (labels.shape[1], labels.shape[2]), affine).argmax(-1)
        metrics.update(largest if names is None else names[largest], torch.from_numpy(labels[part]))
    return metrics
