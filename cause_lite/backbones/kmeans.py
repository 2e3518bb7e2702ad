"""Find the centres of vectors by k-means, in double precision: full, or in mini-batches as an ablation."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from cause_lite.backbones.feature_store import PatchStore

STARTS = 10
SAMPLE = 30_000  # vectors that are clustered, at most
SAME = 1e-9  # relative: two starts whose sums of squares differ by less have found the same clusters


def kmeans(vectors: Float[Tensor, "n d"], clusters: int, seed: int, starts: int = STARTS) -> Float[Tensor, "k d"]:
    """Return the centres of the best of some runs of Lloyd's algorithm from k-means++ starts; the first of equal ones.

    It works on one thread in double precision, so that sums have one order: the centres are the same to some twelve
    digits on every processor.
    """
    rows, least, centres = vectors.double().numpy(), np.inf, np.empty(0)
    with threadpool_limits(1):
        for start in np.random.default_rng(seed).integers(2**31 - 1, size=starts):
            found = KMeans(clusters, n_init=1, random_state=int(start)).fit(rows)
            if found.inertia_ < least * (1 - SAME):
                least, centres = found.inertia_, found.cluster_centers_
    return torch.from_numpy(centres)


def minibatch_kmeans(vectors: Float[Tensor, "n d"], clusters: int, seed: int) -> Float[Tensor, "k d"]:
    """Return the centres of mini-batch k-means (scikit-learn, the best of 5 starts), whose runs differ widely."""
    with threadpool_limits(1):
        fitted = MiniBatchKMeans(clusters, batch_size=4096, n_init=5, random_state=seed).fit(vectors.double().numpy())
    return torch.from_numpy(fitted.cluster_centers_)


def patch_kmeans(store: PatchStore, clusters: int, seed: int, starts: int = STARTS) -> Float[Tensor, "k d"]:
    """Return the centres of k-means on at most `SAMPLE` patch vectors, each scaled to length 1."""
    return kmeans(unit_sample(store, SAMPLE, seed), clusters, seed, starts)


def patch_minibatch_kmeans(store: PatchStore, clusters: int, seed: int) -> Float[Tensor, "k d"]:
    """Return the centres of mini-batch k-means on at most 100,000 patch vectors, each scaled to length 1."""
    return minibatch_kmeans(unit_sample(store, 100_000, seed), clusters, seed)


def unit_sample(store: PatchStore, most: int, seed: int) -> Float[Tensor, "n d"]:
    """Return at most so many patch vectors of a store (N, P, D), scaled to length 1 in double precision."""
    return F.normalize(store.sample(most, torch.Generator().manual_seed(seed)).double(), dim=-1)
