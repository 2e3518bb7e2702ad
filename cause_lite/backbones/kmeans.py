"""Find the centres of vectors by mini-batch k-means."""

from __future__ import annotations

import torch
from jaxtyping import Float
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from torch.nn import functional as F

from cause_lite.backbones.feature_store import PatchStore


def kmeans(vectors: Float[Tensor, "n d"], clusters: int, seed: int) -> Float[Tensor, "k d"]:
    """Return the centres of mini-batch k-means (scikit-learn, k-means++, the best of 5 starts)."""
    fitted = MiniBatchKMeans(clusters, batch_size=4096, n_init=5, random_state=seed).fit(vectors.numpy())
    return torch.from_numpy(fitted.cluster_centers_).float()


def patch_kmeans(store: PatchStore, clusters: int, seed: int, sample: int = 100_000) -> Float[Tensor, "k d"]:
    """Return the centres of k-means on at most `sample` patch vectors, each scaled to length 1."""
    vectors = store.sample(sample, torch.Generator().manual_seed(seed)).float()
    return kmeans(F.normalize(vectors, dim=-1), clusters, seed)
