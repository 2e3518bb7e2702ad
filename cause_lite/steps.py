"""Fit the three steps: clusterbook, head, probes. Each takes features and a session, and returns what it learned."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite import frontdoor, mediator
from cause_lite.backbones.feature_store import PatchStore, module_outputs
from cause_lite.config import FitConfig
from cause_lite.datasets import Split
from cause_lite.datasets.images import LazyRows
from cause_lite.fast import contrast as fast_contrast
from cause_lite.fast import modularity as fast_modularity
from cause_lite.head import Head, build_head, ema_update
from cause_lite.initialise import initial_codebook, initial_probe
from cause_lite.loop import Session, draw_selection, optimise
from cause_lite.probe import ClusterProbe, LinearProbe, labelled_loss, patch_labels
from cause_lite.runtime import parallel
from cause_lite.runtime.device import to_device
from cause_lite.runtime.learner import Learner
from cause_lite.runtime.precision import autocast, output_type


def configured_modularity_loss(vectors: Tensor, codes: Tensor, config: FitConfig) -> Tensor:
    """Return the modularity loss of vectors (B, P, D) by codes (K, D), in the form that the settings ask for."""
    fast, settings = config.optimisation.fast_losses, config.clusterbook
    shared_concept = fast_modularity.shared_concept if fast else mediator.shared_concept
    return mediator.modularity_loss(vectors, codes, settings.temperature, settings.objective, shared_concept)


def fit_clusterbook(features: PatchStore, session: Session) -> tuple[Float[Tensor, "k d"], list[float]]:
    """Step 1: return the codebook learned from features (N, P, D), and the loss of each step."""
    settings = session.config.clusterbook
    codes = nn.Parameter(initial_codebook(features, session).to(session.device, session.dtype))

    def loss_of(numbers: Tensor, batch: Tensor) -> Tensor:
        return configured_modularity_loss(draw_selection(batch, session)(batch), codes, session.config)

    learner = Learner.adam(nn.ParameterList([codes]), settings.learning_rate)
    losses = optimise("Clusterbook", features, settings.epochs, learner, loss_of, session)
    return codes.detach(), losses


class ProjectedHead(nn.Module):
    """A head, and the projection of its output (B, P, R) that the contrast compares: linear to J, or none."""

    def __init__(self, head: Head, reduced_dim: int, projection_dim: int | None) -> None:
        super().__init__()
        self.head = head
        self.projection = nn.Linear(reduced_dim, projection_dim) if projection_dim else nn.Identity()


class HeadTraining:
    """The state of step 2: student and teacher, the concept bank, and the last batch, which the bank stores next."""

    def __init__(self, features: PatchStore, codebook: Tensor, session: Session) -> None:
        settings, dim = session.config.head, features.shape[2]
        sizes = dim, settings.reduced_dim, features.shape[1]
        width = settings.projection_dim or settings.reduced_dim
        self.session, self.settings, self.codebook = session, settings, codebook
        self.student = session.build(
            lambda: ProjectedHead(
                build_head(settings.kind, *sizes, codebook, settings.dropout), sizes[1], settings.projection_dim
            )
        )
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).train(settings.teacher_dropout)
        if session.config.optimisation.compiled:
            self.student.head.reduce.compile()
        self.bank = None
        if settings.bank_capacity:
            bank = frontdoor.ConceptBank(len(codebook), width, settings.bank_capacity, codebook.device)
            self.bank = bank.to(session.dtype)
        self.thresholds = frontdoor.threshold_cosines(
            codebook, settings.positive_threshold, settings.negative_threshold, settings.threshold_kind
        )
        self.learned: nn.Module = self.student
        self.selected = self.projected_teacher = torch.empty(0)

    def loss_of(self, numbers: Tensor, batch: Tensor) -> Tensor:
        """Return the contrastive loss of this process's features (b, P, D)."""
        select, student, settings = draw_selection(batch, self.session), self.student, self.settings
        # The heads alone run in half precision: losses stay in full.
        with autocast(self.session.config.optimisation.precision, batch.device):
            reduced = student.head(batch, select)  # (b, Q, R)
            with torch.no_grad():
                projected_teacher = self.teacher.projection(self.teacher.head(batch, select))  # (b, Q, J)
        self.selected = parallel.gather_tensors(select(batch))  # (B, Q, D)
        self.projected_teacher = parallel.gather_tensors(projected_teacher.to(batch.dtype))  # (B, Q, J)
        projected: Tensor | tuple[Tensor, nn.Module]
        contrast: Callable[..., Tensor] = fast_contrast.concept_contrastive_loss
        projected = (reduced, student.projection) if settings.projection_dim else reduced
        if not self.session.config.optimisation.fast_losses:
            contrast, projected = frontdoor.concept_contrastive_loss, student.projection(reduced.to(batch.dtype))
        arguments = self.selected, self.codebook, projected, self.projected_teacher, self.bank
        first = len(batch) * parallel.processes().process_index
        return contrast(*arguments, settings.temperature, *self.thresholds, first=first)

    def after_step(self) -> None:
        """Move the teacher towards the student; store the teacher's new projections in the bank."""
        ema_update(self.teacher, self.student, self.settings.ema_decay)
        if self.bank is not None:
            concepts = mediator.quantize(self.selected, self.codebook)[1].flatten()
            self.bank.update(
                self.projected_teacher.flatten(0, 1), concepts, self.session.generator, self.settings.bank_share
            )


def fit_head(
    features: PatchStore, codebook: Tensor, session: Session, training_of: Callable[..., HeadTraining] = HeadTraining
) -> tuple[Head, list[float]]:
    """Step 2: return the teacher head, an average of a student trained by concept-wise contrast, and the losses."""
    training, settings = training_of(features, codebook, session), session.config.head
    other_state: dict[str, nn.Module] = {"teacher": training.teacher}
    if training.bank is not None:
        other_state["bank"] = training.bank
    parallel.seed_per_process(session.config.seed)
    learner = Learner.adam(
        training.learned, settings.learning_rate, settings.weight_decay, settings.clip, other_state=other_state
    )
    name = f"Head {settings.kind}"
    losses = optimise(name, features, settings.epochs, learner, training.loss_of, session, training.after_step)
    return training.teacher.head.eval(), losses


def fit_cluster_probe(segments: PatchStore, num_classes: int, session: Session) -> tuple[ClusterProbe, list[float]]:
    """Step 3: return class-sized clusters in the head's space (N, P, R), found with no label, and the losses.

    By `probe.objective`: maximise modularity within images, or the mean cosine over all patches.
    """
    settings = session.config.probe
    probe = initial_probe(lambda: segments, num_classes, session)

    def loss_of(numbers: Tensor, batch: Tensor) -> Tensor:
        if settings.objective == "cosine":
            return probe.loss(batch)
        return configured_modularity_loss(draw_selection(batch, session)(batch), probe.centres, session.config)

    learner = Learner.adam(probe, settings.learning_rate, halve_every=settings.halve_every)
    return probe, optimise("Cluster probe", segments, settings.epochs, learner, loss_of, session)


def fit_linear_probe(
    segments: PatchStore, labels: np.ndarray | LazyRows, num_classes: int, session: Session, unit: bool = False
) -> tuple[LinearProbe, list[float]]:
    """Step 3's diagnostic: return a linear classifier of frozen vectors, and the losses. Labels are read here alone.

    With `unit`, the vectors are scaled to length 1 first.
    """
    settings, side = session.config.probe, round(segments.shape[1] ** 0.5)
    probe = session.build(lambda: LinearProbe(num_classes, segments.shape[2]))

    def loss_of(numbers: Tensor, batch: Tensor) -> Tensor:
        target = to_device(patch_labels(labels[numbers.numpy()], side), session.device)
        logits = probe(F.normalize(batch, dim=-1) if unit else batch)
        return labelled_loss(logits.flatten(0, 1), target.flatten())

    learner = Learner.adam(probe, settings.linear_rate, halve_every=settings.halve_every)
    return probe, optimise("Linear probe", segments, settings.epochs, learner, loss_of, session)


Probes = tuple[ClusterProbe, LinearProbe, dict[str, list[float]]]


def fit_probes(head: Head, features: PatchStore, train: Split, session: Session) -> Probes:
    """Step 3 on a finished head: return both probes and the losses by name."""
    classes = len(train.classes)
    linear, losses = session.build(lambda: LinearProbe(classes, session.config.head.reduced_dim)), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        segments = module_outputs(head, features, Path(folder), output_type(session.config.optimisation.precision))
        clusters, cluster_losses = fit_cluster_probe(segments, train.num_clusters, session)
        if train.labels is not None:
            linear, losses = fit_linear_probe(segments, train.labels, classes, session)
    return clusters, linear, {"cluster": cluster_losses, "linear": losses}
