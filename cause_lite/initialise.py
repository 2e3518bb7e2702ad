"""Choose where learning starts: codes of the clusterbook, centres of the cluster probe."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cause_lite.backbones import PatchStore
from cause_lite.backbones.kmeans import patch_kmeans
from cause_lite.config import FitConfig
from cause_lite.probe import ClusterProbe
from cause_lite.runtime.device import draw_seed


def initial_codebook(features: PatchStore, config: FitConfig, generator: torch.Generator) -> Float[Tensor, "k d"]:
    """Return the codes before training, by `clusterbook.init`.

    They are noise in (-1/K, 1/K) ("uniform", as released), random patches of the features (N, P, D), scaled to
    length 1 ("patches"), or k-means centres of the features ("kmeans").
    """
    concepts, (count, patches, dim) = config.clusterbook.concepts, features.shape
    if config.clusterbook.init == "kmeans":
        return patch_kmeans(features, concepts, draw_seed(generator))
    if config.clusterbook.init == "uniform":
        return (2 * torch.rand(concepts, dim, generator=generator) - 1) / concepts
    image = torch.randint(count, (concepts,), generator=generator)
    patch = torch.randint(patches, (concepts,), generator=generator)
    return F.normalize(features.at(image, patch).float(), dim=-1)


def initial_probe(
    outputs: Callable[[], PatchStore], num_classes: int, config: FitConfig, generator: torch.Generator
) -> ClusterProbe:
    """Return a cluster probe before training, by `probe.init`: noise ("uniform", as released) or k-means centres.

    `outputs` computes the head's outputs (N, P, R), which k-means alone needs.
    """
    probe = ClusterProbe(num_classes, config.head.reduced_dim)
    if config.probe.init == "kmeans":
        probe.centres.data = patch_kmeans(outputs(), num_classes, draw_seed(generator))
    return probe
