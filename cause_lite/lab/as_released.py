"""The release's step 3, in which labels train the head that is evaluated. For the audit and for parity only.

In fine_tuning_{mlp,tr}.py (commit ee0aa84) the linear probe reads the teacher head's output without a detach,
and the optimiser holds the head's parameters: the supervised cross-entropy moves what predicts.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite import mediator
from cause_lite.backbones.feature_store import PatchStore
from cause_lite.config import FitConfig
from cause_lite.datasets import Split
from cause_lite.loop import Learner, draw_pick, optimise
from cause_lite.probe import ClusterProbe, LinearProbe, labelled_loss
from cause_lite.runtime.files import UserError
from cause_lite.runtime.journal import Journal
from cause_lite.runtime.precision import autocast

WARNING = "label_flow=as_released: labels train the head that is evaluated; its scores are not unsupervised"


def fit_probes(
    head: nn.Module, clusters: ClusterProbe, linear: LinearProbe, features: PatchStore, train: Split,
    config: FitConfig, generator: torch.Generator, journal: Journal,
) -> list[float]:  # fmt: skip
    """Train both probes and the head in place, on one loss: modularity plus cross-entropy with the labels.

    Dropout is on; the head and the linear probe share an optimiser with weight decay and clipping; rates
    halve every `probe_halving` epochs. Returns the loss of each step. Raises UserError when there are no labels.
    """
    if train.labels is None:
        raise UserError(f"{train.name}: label_flow=as_released needs labels, and there are none")
    warnings.warn(WARNING, stacklevel=2)
    device = next(head.parameters()).device
    head.requires_grad_(True).train()
    supervised = nn.ModuleList([head, linear])
    optimizers = [
        torch.optim.Adam(supervised.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay),
        torch.optim.Adam(clusters.parameters(), lr=config.probe_rate),
    ]

    def loss_of(which: Tensor, batch: Tensor) -> Tensor:
        with autocast(config.precision, device):
            segments = head(batch)
        segments = segments.float()
        grouped = draw_pick(batch, config, generator)(segments)
        modular = mediator.modularity_loss(grouped, clusters.centres, config.temperature, config.objective)
        return modular + supervised_loss(linear, segments, torch.from_numpy(train.labels[which.numpy()]).to(device))

    learner = Learner(
        nn.ModuleList([supervised, clusters]), optimizers, supervised, config.clip, halving=config.probe_halving
    )
    losses = optimise(
        "Probes as released", features, config, config.probe_epochs, learner, loss_of, generator, device, journal
    )
    head.eval().requires_grad_(False)
    return losses


def supervised_loss(linear: LinearProbe, segments: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the linear probe on (B, P, R), not detached, upsampled to labels (B, H, W)."""
    side = round(segments.shape[1] ** 0.5)
    logits = linear.classify(segments).transpose(1, 2).unflatten(2, (side, side))
    logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    return labelled_loss(logits, labels.long())
