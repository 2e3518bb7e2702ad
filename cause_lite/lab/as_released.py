"""The release's step 3, in which labels train the head that is evaluated. For the audit and for parity only.

In fine_tuning_{mlp,tr}.py (commit ee0aa84) the linear probe reads the teacher head's output without a detach,
and the optimiser holds the head's parameters: the supervised cross-entropy moves what predicts.
"""

from __future__ import annotations

import tempfile
import warnings
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.backbones.feature_store import PatchStore, module_outputs
from cause_lite.datasets import Split
from cause_lite.initialise import initial_probe
from cause_lite.loop import Session, draw_selection, optimise
from cause_lite.probe import ClusterProbe, LinearProbe, labelled_loss
from cause_lite.runtime.files import UserError
from cause_lite.runtime.learner import Learner
from cause_lite.runtime.precision import autocast
from cause_lite.steps import Probes, configured_modularity_loss

WARNING = "label_flow=as_released: labels train the head that is evaluated; its scores are not unsupervised"


def fit_probes(head: nn.Module, features: PatchStore, train: Split, session: Session) -> Probes:
    """Train both probes and the head (in place) on one loss: modularity plus cross-entropy with the labels.

    Dropout is on; the head and the linear probe share an optimiser with weight decay and clipping; rates
    halve every `probe.halve_every` epochs. Takes and returns what `cause_lite.steps.fit_probes` does.

    Raises
    ------
    UserError
        When there are no labels.
    """
    if train.labels is None:
        raise UserError(f"{train.name}: label_flow=as_released needs labels, and there are none")
    warnings.warn(WARNING, stacklevel=2)
    config, classes = session.config, len(train.classes)
    linear = LinearProbe(classes, config.head.reduced_dim).to(session.device)
    with tempfile.TemporaryDirectory() as folder:
        outputs = partial(module_outputs, head, features, Path(folder))
        clusters = initial_probe(outputs, classes, config, session.generator).to(session.device)
    losses = _fit_jointly(head, clusters, linear, features, train, session)
    return clusters, linear, {"as_released": losses}


def _fit_jointly(
    head: nn.Module, clusters: ClusterProbe, linear: LinearProbe, features: PatchStore, train: Split, session: Session
) -> list[float]:
    config = session.config
    head.requires_grad_(True).train()
    supervised = nn.ModuleList([head, linear])
    rates = {"lr": config.head.learning_rate, "weight_decay": config.head.weight_decay}
    optimizers = [
        torch.optim.Adam(supervised.parameters(), **rates),
        torch.optim.Adam(clusters.parameters(), lr=config.probe.learning_rate),
    ]

    def loss_of(which: Tensor, batch: Tensor) -> Tensor:
        with autocast(config.optimisation.precision, session.device):
            segments = head(batch)
        segments = segments.float()
        modular = configured_modularity_loss(draw_selection(batch, session)(segments), clusters.centres, config)
        labels = torch.from_numpy(train.labels[which.numpy()]).to(session.device)
        return modular + supervised_loss(linear, segments, labels)

    modules = nn.ModuleList([supervised, clusters])
    learner = Learner(modules, optimizers, supervised, config.head.clip, config.probe.halve_every)
    losses = optimise("Probes as released", features, config.probe.epochs, learner, loss_of, session)
    head.eval().requires_grad_(False)
    return losses


def supervised_loss(linear: LinearProbe, segments: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of the linear probe on (B, P, R), not detached, upsampled to labels (B, H, W)."""
    side = round(segments.shape[1] ** 0.5)
    logits = linear.classify(segments).transpose(1, 2).unflatten(2, (side, side))
    logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    return labelled_loss(logits, labels.long())
