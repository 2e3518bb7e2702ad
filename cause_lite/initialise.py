"""Choose where learning starts: codes of the clusterbook, centres of the cluster probe."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cause_lite.backbones import PatchStore
from cause_lite.backbones.kmeans import patch_kmeans, patch_minibatch_kmeans
from cause_lite.loop import Session
from cause_lite.probe import ClusterProbe
from cause_lite.runtime.device import draw_seed


def initial_codebook(features: PatchStore, session: Session) -> Float[Tensor, "k d"]:
    """Return the codes before training, by `clusterbook.init`.

    They are noise in (-1/K, 1/K) ("uniform", as released), random patches of the features (N, P, D), scaled to
    length 1 ("patches"), or k-means centres of the features ("kmeans", one start).
    """
    settings, generator, (count, patches, dim) = session.config.clusterbook, session.generator, features.shape
    concepts = settings.concepts
    if settings.init == "kmeans":
        return patch_kmeans(features, concepts, draw_seed(generator), starts=1)
    if settings.init == "uniform":
        return (2 * torch.rand(concepts, dim, generator=generator, dtype=torch.float64) - 1) / concepts
    image = torch.randint(count, (concepts,), generator=generator)
    patch = torch.randint(patches, (concepts,), generator=generator)
    return F.normalize(features.at(image, patch).to(session.dtype), dim=-1)


def initial_probe(outputs: Callable[[], PatchStore], num_classes: int, session: Session) -> ClusterProbe:
    """Return a cluster probe before training, by `probe.init`.

    Its centres are noise ("uniform", as released), or those of k-means ("kmeans") or of mini-batch k-means
    ("minibatch") on the head's outputs (N, P, R), which `outputs` computes.
    """
    settings = session.config
    probe = session.build(lambda: ClusterProbe(num_classes, settings.head.reduced_dim))
    if settings.probe.init != "uniform":
        kmeans = patch_kmeans if settings.probe.init == "kmeans" else patch_minibatch_kmeans
        probe.centres.data.copy_(kmeans(outputs(), num_classes, draw_seed(session.generator)))
    return probe
