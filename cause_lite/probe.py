"""Step 3: a cluster probe, trained without labels, and a linear probe, a diagnostic that sees them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.runtime import parallel

IGNORED = -1


class ClusterProbe(nn.Module):
    """One vector for each class-sized cluster, in the head's space; a patch goes to the nearest by cosine."""

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.empty(num_classes, dim).uniform_(-1 / num_classes, 1 / num_classes))

    def similarity(self, x: Float[Tensor, "*b r"]) -> Float[Tensor, "*b n"]:
        """Return the cosine of each vector to each cluster."""
        return F.normalize(x, dim=-1) @ F.normalize(self.centres, dim=-1).T

    def labels(self, x: Float[Tensor, "*b r"]) -> Int[Tensor, "*b"]:
        """Return the nearest cluster of each vector, in 0..n-1."""
        return self.similarity(x).argmax(dim=-1)

    def log_probs(self, x: Float[Tensor, "*b r"], alpha: float = 3.0) -> Float[Tensor, "*b n"]:
        """Return log softmax(alpha x cosine) over clusters, which a CRF refines."""
        return F.log_softmax(alpha * self.similarity(x), dim=-1)

    def loss(self, x: Float[Tensor, "*b r"]) -> Float[Tensor, ""]:
        """Return minus the mean cosine of each (detached) vector to its nearest cluster, as in spherical k-means."""
        return -self.similarity(x.detach()).amax(dim=-1).mean()


class LinearProbe(nn.Module):
    """A linear classifier on detached head outputs: it measures, and teaches nothing but itself."""

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.classify = nn.Linear(dim, num_classes)

    def forward(self, x: Float[Tensor, "*b r"]) -> Float[Tensor, "*b n"]:
        """Return the logits of each vector, which gets no gradient."""
        return self.classify(x.detach())


def labelled_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of logits (B, n, ...) and classes (B, ...), a mean over the labels of all processes.

    Entries of class -1 do not count; the loss is 0 where nothing is labelled.
    """
    labelled = (target != IGNORED).sum().to(logits.dtype)
    weight = labelled / parallel.mean(labelled).clamp(min=1e-9)  # 1 on one process
    flat = logits.movedim(1, -1).flatten(0, -2)  # the loss of maps does not repeat to the bit on every device
    total = F.cross_entropy(flat, target.flatten(), ignore_index=IGNORED, reduction="sum")
    return weight * (total / labelled.clamp(min=1))


def patch_labels(labels: np.ndarray, side: int) -> Int[Tensor, "n p"]:
    """Return the label at the centre of each of side x side patches, (N, side^2), of label maps (N, H, W)."""
    step = labels.shape[1] // side
    centres = np.arange(side) * step + step // 2
    return torch.from_numpy(labels[:, centres[:, None], centres].reshape(len(labels), -1).astype(np.int64))
