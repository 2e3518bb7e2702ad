"""The two places where the release's labels reach what predicts, and step 3 as released as a method of studies.

Step 2: train_front_door_{mlp,tr}.py (commit ee0aa84) trains a linear probe beside the student and clips the gradient
norm of both at once. Where the clip bites, the labelled loss scales the student's step.

Step 3: in fine_tuning_{mlp,tr}.py the linear probe reads the teacher head's output without a detach, and the optimiser
holds the head's parameters. The supervised cross-entropy moves what predicts.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite import steps, train
from cause_lite.backbones import Backbone
from cause_lite.backbones.feature_store import PatchStore, module_outputs
from cause_lite.config import FitConfig
from cause_lite.datasets import Split
from cause_lite.datasets.images import LazyRows
from cause_lite.head import Head
from cause_lite.initialise import initial_probe
from cause_lite.loop import Session, draw_selection, optimise
from cause_lite.methods.cause import predictor_of
from cause_lite.methods.method import Predictor, Training, register
from cause_lite.probe import ClusterProbe, LinearProbe, labelled_loss
from cause_lite.runtime.device import deterministic, seed_all, state_kept
from cause_lite.runtime.files import UserError
from cause_lite.runtime.journal import Journal
from cause_lite.runtime.learner import Learner
from cause_lite.runtime.precision import autocast
from cause_lite.runtime.settings import Settings, Share
from cause_lite.segmenter import Segmenter
from cause_lite.steps import HeadTraining, Probes, configured_modularity_loss
from cause_lite.train import NO_JOURNAL, Fitted

WARNING = "label_flow: labels reach what predicts"  # how the warnings of both places begin


class LabelledHeadTraining(HeadTraining):
    """Step 2 with a linear probe that the release trains beside the student, on the teacher's output of every patch.

    The probe's loss sends no gradient to the student, but its gradient counts in the norm that is clipped. Every random
    draw is that of `HeadTraining`, so that the two differ in the clip alone.
    """

    def __init__(self, features: PatchStore, codebook: Tensor, session: Session, train: Split) -> None:
        super().__init__(features, codebook, session)
        if train.labels is None:
            raise UserError(f"{train.name}: head.clip_with_labels needs labels, and there are none")
        self.labels = train.labels
        with _own_draws(session.device):
            self.linear = session.build(lambda: LinearProbe(len(train.classes), self.settings.reduced_dim))
        self.learned = nn.ModuleList([self.student, self.linear])

    def loss_of(self, numbers: Tensor, batch: Tensor) -> Tensor:
        """Return the contrastive loss plus the labelled one of images `numbers` (b,) with features (b, P, D)."""
        contrast, precision = super().loss_of(numbers, batch), self.session.config.optimisation.precision
        with _own_draws(batch.device), torch.no_grad(), autocast(precision, batch.device):
            segments = self.teacher.head(batch)  # (b, P, R)
        labels = torch.from_numpy(self.labels[numbers.numpy()]).to(batch.device)
        return contrast + supervised_loss(self.linear, segments.to(batch.dtype), labels)


def fit_head(features: PatchStore, codebook: Tensor, session: Session, train: Split) -> tuple[Head, list[float]]:
    """Step 2 with the release's clipping: one norm over the student and over a linear probe that sees the labels.

    Takes and returns what `cause_lite.steps.fit_head` does, and the split whose labels are used. The losses include the
    labelled one.

    Raises
    ------
    UserError
        When there are no labels.
    """
    warnings.warn(f"{WARNING}; head.clip_with_labels scales the steps of the head by them", stacklevel=2)
    return steps.fit_head(features, codebook, session, partial(LabelledHeadTraining, train=train))


@contextmanager
def _own_draws(device: torch.device) -> Iterator[None]:
    """Put the global random state back after the block."""
    with torch.random.fork_rng([device] if device.type != "cpu" else [], device_type=device.type):
        yield


def fit_probes(head: Head, features: PatchStore, train: Split, session: Session) -> Probes:
    """Train both probes, and the head in place, on one loss: modularity plus cross-entropy with the labels.

    Dropout is on; the head and the linear probe share an optimiser with weight decay and clipping; rates halve every
    `probe.halve_every` epochs. With `probe.label_flow` "detached" everything is the same but that the head's output is
    detached before the linear probe: no loss then reaches the head, which stays as it is.

    Takes and returns what `cause_lite.steps.fit_probes` does.

    Raises
    ------
    UserError
        When there are no labels.
    """
    config = session.config
    flow = config.probe.label_flow
    if train.labels is None:
        raise UserError(f"{train.name}: probe.label_flow {flow!r} needs labels, and there are none")
    if flow != "detached":
        warnings.warn(f"{WARNING}; by probe.label_flow={flow} labels train the head", stacklevel=2)
    linear = session.build(lambda: LinearProbe(len(train.classes), config.head.reduced_dim))
    with tempfile.TemporaryDirectory() as folder:
        outputs = partial(module_outputs, head, features, Path(folder), session.dtype)
        clusters = initial_probe(outputs, train.num_clusters, session)
    losses = _fit_jointly(head, clusters, linear, features, train.labels, session)
    return clusters, linear, {"as_released": losses}


def _fit_jointly(
    head: Head,
    clusters: ClusterProbe,
    linear: LinearProbe,
    features: PatchStore,
    labels: np.ndarray | LazyRows,
    session: Session,
) -> list[float]:
    """Train head, clusters and linear probe, all in place, and return the losses."""
    config = session.config
    head.requires_grad_(True).train()
    supervised = nn.ModuleList([head, linear])
    optimizers = [
        torch.optim.Adam(supervised.parameters(), lr=config.head.learning_rate, weight_decay=config.head.weight_decay),
        torch.optim.Adam(clusters.parameters(), lr=config.probe.learning_rate),
    ]

    def loss_of(numbers: Tensor, batch: Tensor) -> Tensor:
        with autocast(config.optimisation.precision, session.device):
            segments = head(batch)
        segments = segments.to(batch.dtype)
        modular = configured_modularity_loss(draw_selection(batch, session)(segments), clusters.centres, config)
        target = torch.from_numpy(labels[numbers.numpy()]).to(session.device)
        read = segments.detach() if config.probe.label_flow == "detached" else segments
        return modular + supervised_loss(linear, read, target)

    modules = nn.ModuleList([supervised, clusters])
    learner = Learner(modules, optimizers, supervised, config.head.clip, config.probe.halve_every)
    losses = optimise("Probes as released", features, config.probe.epochs, learner, loss_of, session)
    head.eval().requires_grad_(False)
    return losses


def supervised_loss(linear: LinearProbe, segments: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of the linear probe on (B, P, R), not detached, upsampled to labels (B, H, W).

    This is the released form: classes per pixel, where `cause_lite.steps.fit_linear_probe` takes one label a patch.
    """
    side = round(segments.shape[1] ** 0.5)
    logits = linear.classify(segments).transpose(1, 2).unflatten(2, (side, side))
    logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    return labelled_loss(logits, labels.long())


def fit(config: FitConfig, split: Split, backbone: Backbone, journal: Journal = NO_JOURNAL) -> Fitted:
    """Fit a segmenter with the second and third step that the settings name; otherwise as `cause_lite.train.fit`."""
    second = partial(fit_head, train=split) if config.head.clip_with_labels else steps.fit_head
    third = steps.fit_probes if config.probe.label_flow == "clean" else fit_probes
    return train.fit(config, split, backbone, journal, third, second)


class ReleasedOptions(Settings):
    """Step 3 as released, on the head of the clean fit.

    Attributes
    ----------
    flow
        The release's, in which labels train the head, or the same loop with the head's output detached.
    labels
        Each image's own; those of other images; or of other images with their pixels shuffled.
    share
        Of the images that keep their labels, at least one.
    step3
        Settings that differ from the recipe's in step 3 alone, such as {"probe.epochs": 80}. The head and the linear
        probe learn at `head.learning_rate`, the clusters at `probe.learning_rate`.
    """

    flow: Literal["as_released", "detached"] = "as_released"
    labels: Literal["own", "other images", "shuffled pixels"] = "own"
    share: Share = 1.0
    step3: dict[str, Any] = Field(default_factory=dict)


@register("as_released", ReleasedOptions, needs=("labels",))
def learn(training: Training, options: ReleasedOptions) -> Predictor:
    """Return the predictor of the clean fit's head after the release's step 3."""
    config = training.config.replace(options.step3 | {"probe.label_flow": options.flow})
    segmenter = training.fitted(training.config)
    assert training.labels is not None
    labels = relabelled(np.asarray(training.labels[:]), options, np.random.default_rng(training.seed))
    pictures = np.broadcast_to(np.uint8(0), (len(labels), 1, 1, 3))  # which step 3 does not look at
    train_split = Split(config.data.name, "train", tuple(map(str, range(training.classes))), pictures, labels)
    return predictor_of(with_third_step(segmenter, training.features, train_split, config))


def with_third_step(base: Segmenter, features: PatchStore, split: Split, config: FitConfig) -> Segmenter:
    """Return a segmenter after another third step; `base` itself is left as it is."""
    head, device = copy.deepcopy(base.head), base.codebook.device
    with state_kept(), deterministic(device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=WARNING)  # it is what is asked for
        clusters, linear, _ = fit_probes(head, features, split, Session(config, seed_all(config.seed), device))
    return Segmenter(head, base.codebook, clusters, linear, base.backbone, base.size, base.classes).eval()


def relabelled(labels: np.ndarray, options: ReleasedOptions, rng: np.random.Generator) -> np.ndarray:
    """Return the label maps (N, H, W) that the options ask for; -1 where an image keeps none."""
    if options.labels != "own":
        labels = labels[rng.permutation(len(labels))]
    if options.labels == "shuffled pixels":
        labels = rng.permuted(labels.reshape(len(labels), -1), axis=1).reshape(labels.shape)
    if options.share == 1:
        return labels
    kept, some = rng.permutation(len(labels))[: max(1, round(options.share * len(labels)))], np.full_like(labels, -1)
    some[kept] = labels[kept]
    return some
