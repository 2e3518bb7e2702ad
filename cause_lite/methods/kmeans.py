"""k-means on features: full and spherical, on fewer whitened channels, on means over neighbours, with fewer clusters.

Gaussian mixtures and agglomerative clustering start from the same vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from sklearn.cluster import AgglomerativeClustering
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from cause_lite.backbones.feature_store import PatchStore
from cause_lite.backbones.kmeans import SAMPLE, STARTS, kmeans, minibatch_kmeans
from cause_lite.methods.method import Predictor, Training, Views, drawn, enlarged, register
from cause_lite.runtime.settings import Count, Positive, Settings

OfPatches = Callable[[Tensor], Tensor]  # patches (..., D) -> their scores or projections
AGGLOMERATED = 5_000  # vectors that are joined in pairs, at most: memory grows with their square


class KMeansOptions(Settings):
    """How vectors are prepared and grouped.

    Attributes
    ----------
    grouping
        Lloyd's k-means; mini-batch k-means; a Gaussian mixture of diagonal covariances; agglomerative clustering by
        Ward's criterion, whose clusters' means predict.
    clusters
        How many; None: one for each class.
    starts
        Of k-means and of the mixture; the best is kept.
    channels, whiten
        Principal components to keep (None: all), and whether each is scaled to deviation 1.
    context
        Patches to each side over which features are averaged first.
    """

    grouping: Literal["lloyd", "minibatch", "mixture", "agglomerative"] = "lloyd"
    clusters: Positive | None = None
    starts: Positive = STARTS
    channels: Positive | None = None
    whiten: bool = False
    context: Count = 0


@register("kmeans", KMeansOptions)
def learn(training: Training, options: KMeansOptions) -> Predictor:
    """Group at most 30,000 patches of length 1; a pixel goes to the nearest centre, or likeliest component."""
    vectors = unit_patches(training.features, training.seed, options.context)
    project = projection(vectors, options)
    projected = F.normalize(project(vectors), dim=-1)
    scores = grouped(projected, options.clusters or training.classes, training.seed, options)

    def predict(views: Views, size: tuple[int, int]) -> Tensor:
        patches = project(averaged(views.mean(), options.context))
        if options.grouping == "mixture":
            return enlarged(scores(F.normalize(patches, dim=-1)), size)
        return enlarged(scores(patches), size)  # an affine function of a cosine: as well before enlarging as after

    return predict


def grouped(vectors: Tensor, clusters: int, seed: int, options: KMeansOptions) -> OfPatches:
    """Return what scores the clusters of vectors (..., D): (..., K), by the grouping of unit vectors (n, D)."""
    with threadpool_limits(1):
        if options.grouping == "mixture":
            return mixture(vectors, clusters, seed, options.starts)
        if options.grouping == "agglomerative":
            some = vectors[torch.randperm(len(vectors), generator=drawn(seed))[:AGGLOMERATED]]
            groups = torch.from_numpy(AgglomerativeClustering(clusters).fit_predict(some.numpy()))
            centres = torch.stack([some[groups == group].mean(0) for group in range(clusters)])
        elif options.grouping == "minibatch":
            centres = minibatch_kmeans(vectors, clusters, seed)
        else:
            centres = kmeans(vectors, clusters, seed, options.starts)
    unit = F.normalize(centres, dim=-1)
    return lambda patches: patches @ unit.T


def mixture(vectors: Tensor, clusters: int, seed: int, starts: int) -> OfPatches:
    """Return the log-likelihood of each component of a Gaussian mixture, which starts from k-means centres."""
    means = kmeans(vectors, clusters, seed, starts).numpy()
    model = GaussianMixture(clusters, covariance_type="diag", means_init=means, reg_covar=1e-4, random_state=seed)
    model.fit(vectors.numpy())
    mean, precision = torch.from_numpy(model.means_), torch.from_numpy(model.precisions_)
    offset = torch.from_numpy(np.log(model.weights_)) + (precision.log() - precision * mean.square()).sum(1) / 2
    return lambda patches: patches @ (precision * mean).T - patches.square() @ precision.T / 2 + offset


def projection(vectors: Float[Tensor, "n d"], options: KMeansOptions) -> OfPatches:
    """Return the projection on the principal components that the options ask for; without any, the identity."""
    if options.channels is None and not options.whiten:
        return lambda patches: patches
    mean = vectors.mean(0)
    values, axes = torch.linalg.eigh((vectors - mean).T @ (vectors - mean) / len(vectors))
    kept = slice(len(values) - min(options.channels or len(values), len(values)), None)
    values, axes = values[kept].clamp(min=1e-12), axes[:, kept]
    scale = values.rsqrt() if options.whiten else torch.ones_like(values)
    return lambda patches: (patches - mean) @ axes * scale


def unit_patches(store: PatchStore, seed: int, context: int) -> Float[Tensor, "n d"]:
    """Return at most 30,000 patches of length 1, in double precision, averaged over their neighbours."""
    if not context:
        return F.normalize(store.sample(SAMPLE, drawn(seed)).double(), dim=-1)
    side, generator = round(store.shape[1] ** 0.5), drawn(seed)
    images = torch.randperm(len(store), generator=generator)
    each = -(-SAMPLE // len(images))
    found = []
    for image in images:
        grid = F.normalize(store[image[None]].double(), dim=-1).unflatten(1, (side, side))
        patches = averaged(grid, context).flatten(0, 2)
        found.append(patches[torch.randperm(len(patches), generator=generator)[:each]])
    return F.normalize(torch.cat(found)[:SAMPLE], dim=-1)


def averaged(grid: Float[Tensor, "b h w d"], context: int) -> Float[Tensor, "b h w d"]:
    """Return each patch as the mean of those up to `context` patches away; at an edge, of those there are."""
    if not context:
        return grid
    maps = F.avg_pool2d(grid.permute(0, 3, 1, 2), 2 * context + 1, 1, context, count_include_pad=False)
    return maps.permute(0, 2, 3, 1)
