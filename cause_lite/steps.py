"""The three steps: clusterbook, head, probes. Each takes features and a session, and returns what it learned."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite import frontdoor, mediator
from cause_lite.backbones import PatchStore
from cause_lite.config import FitConfig
from cause_lite.datasets import Split
from cause_lite.fast import contrast as fast_contrast
from cause_lite.fast import modularity as fast_modularity
from cause_lite.head import ema_update
from cause_lite.initialise import initial_codebook, initial_probe
from cause_lite.loop import Learner, Session, draw_selection, optimise
from cause_lite.probe import ClusterProbe, LinearProbe, labelled_loss, patch_labels
from cause_lite.runtime import parallel
from cause_lite.runtime.precision import autocast
from cause_lite.segmenter import build_head


def configured_modularity_loss(vectors: Tensor, codes: Tensor, config: FitConfig) -> Tensor:
    """Return the modularity loss of vectors (B, P, D) by codes (K, D), in the form that the settings ask for."""
    fast = config.optimisation.fast_losses
    shared_concept = fast_modularity.shared_concept if fast else mediator.shared_concept
    settings = config.clusterbook
    return mediator.modularity_loss(vectors, codes, settings.temperature, settings.objective, shared_concept)


def fit_clusterbook(features: PatchStore, session: Session) -> tuple[Tensor, list[float]]:
    """Step 1: return the codebook (K, D) learned from features (N, P, D), and the loss of each step."""
    settings = session.config.clusterbook
    codes = nn.Parameter(initial_codebook(features, session.config, session.generator).to(session.device))
    learned = nn.ParameterList([codes])

    def loss_of(which: Tensor, batch: Tensor) -> Tensor:
        return configured_modularity_loss(draw_selection(batch, session)(batch), codes, session.config)

    learner = Learner(nn.ModuleList([learned]), [torch.optim.Adam(learned, lr=settings.learning_rate)])
    losses = optimise("Clusterbook", features, settings.epochs, learner, loss_of, session)
    return codes.detach(), losses


class HeadTraining:
    """Step 2's state: student and teacher (head and projection), the concept bank, and one step's loss."""

    def __init__(self, features: PatchStore, codebook: Tensor, session: Session) -> None:
        settings, dim = session.config.head, features.shape[2]
        head = build_head(settings.kind, dim, settings.reduced_dim, features.shape[1], codebook, settings.dropout)
        width = settings.projection_dim or settings.reduced_dim
        projection = nn.Linear(settings.reduced_dim, width) if settings.projection_dim else nn.Identity()
        self.session, self.settings, self.codebook = session, settings, codebook
        self.student = nn.ModuleDict({"head": head, "projection": projection}).to(codebook.device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).train(settings.teacher_dropout)
        if session.config.optimisation.compiled:
            self.student["head"].reduce.compile()
        self.bank = None
        if settings.bank_capacity:
            self.bank = frontdoor.ConceptBank(len(codebook), width, settings.bank_capacity, codebook.device)
        self.seen = self.aimed = torch.empty(0)

    def loss_of(self, which: Tensor, batch: Tensor) -> Tensor:
        """Return the contrastive loss of this process's features (b, P, D)."""
        select = draw_selection(batch, self.session)
        # The heads alone run in half precision: losses stay in full.
        with autocast(self.session.config.optimisation.precision, batch.device):
            reduced = self.student["head"](batch, select)  # (b, Q, R)
            with torch.no_grad():
                aimed = self.teacher["projection"](self.teacher["head"](batch, select))  # (b, Q, J)
        self.seen, self.aimed = parallel.gather_tensors(select(batch)), parallel.gather_tensors(aimed.float())
        settings, first = self.settings, len(batch) * parallel.processes().process_index
        given = (self.bank, settings.temperature, settings.positive_threshold, settings.negative_threshold)
        if self.session.config.optimisation.fast_losses:
            contrast = fast_contrast.concept_contrastive_loss
            projected = (reduced, self.student["projection"]) if settings.projection_dim else reduced
        else:
            contrast, projected = frontdoor.concept_contrastive_loss, self.student["projection"](reduced.float())
        return contrast(self.seen, self.codebook, projected, self.aimed, *given, first=first)

    def after_step(self) -> None:
        """Move the teacher towards the student; let the bank take in the teacher's new projections."""
        ema_update(self.teacher, self.student, self.settings.ema_decay)
        if self.bank is not None:
            concepts = mediator.quantize(self.seen, self.codebook)[1].flatten()
            self.bank.update(self.aimed.flatten(0, 1), concepts, self.session.generator, self.settings.bank_share)


def fit_head(features: PatchStore, codebook: Tensor, session: Session) -> tuple[nn.Module, list[float]]:
    """Step 2: return the teacher head, an average of a student trained by concept-wise contrast, and the losses."""
    training, settings = HeadTraining(features, codebook, session), session.config.head
    student = training.student
    optimizer = torch.optim.Adam(student.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    parallel.seed_per_process(session.config.seed)
    beside = {"teacher": training.teacher} | ({"bank": training.bank} if training.bank else {})
    learner = Learner(nn.ModuleList([student]), [optimizer], student, settings.clip, beside=beside)
    name = f"Head {settings.kind}"
    losses = optimise(name, features, settings.epochs, learner, training.loss_of, session, training.after_step)
    return training.teacher["head"].eval(), losses


def head_outputs(head: nn.Module, features: PatchStore, folder: Path) -> PatchStore:
    """Return the head's output (N, P, R) for features (N, P, D), in evaluation mode, kept in `folder` by budget."""
    device = next(head.parameters()).device

    @torch.no_grad()
    def compute(which: Tensor) -> Tensor:
        return head.eval()(features[which].float().to(device)).cpu()

    shape = (*features.shape[:2], head.reduce.linear.out_features)
    return PatchStore(Path(folder) / "outputs", shape, torch.float32, compute, "Head outputs")


def fit_cluster_probe(segments: PatchStore, num_classes: int, session: Session) -> tuple[ClusterProbe, list[float]]:
    """Step 3: return class-sized clusters in the head's space (N, P, R), found with no label, and the losses.

    By `probe.objective`: maximise modularity within images, or the mean cosine over all patches.
    """
    settings = session.config.probe
    probe = initial_probe(lambda: segments, num_classes, session.config, session.generator).to(session.device)

    def loss_of(which: Tensor, batch: Tensor) -> Tensor:
        if settings.objective == "cosine":
            return probe.loss(batch)
        return configured_modularity_loss(draw_selection(batch, session)(batch), probe.centres, session.config)

    optimizer = torch.optim.Adam(probe.parameters(), lr=settings.learning_rate)
    learner = Learner(nn.ModuleList([probe]), [optimizer], halving=settings.halve_every)
    return probe, optimise("Cluster probe", segments, settings.epochs, learner, loss_of, session)


def fit_linear_probe(
    segments: PatchStore, labels: np.ndarray, num_classes: int, session: Session, unit: bool = False
) -> tuple[LinearProbe, list[float]]:
    """Step 3's diagnostic: return a linear classifier of frozen vectors, and the losses. Labels are read here alone.

    With `unit`, the vectors are scaled to length 1 first.
    """
    settings, side = session.config.probe, round(segments.shape[1] ** 0.5)
    probe = LinearProbe(num_classes, segments.shape[2]).to(session.device)

    def loss_of(which: Tensor, batch: Tensor) -> Tensor:
        target = patch_labels(labels[which.numpy()], side).to(session.device)
        logits = probe(F.normalize(batch, dim=-1) if unit else batch)
        return labelled_loss(logits.flatten(0, 1), target.flatten())

    optimizer = torch.optim.Adam(probe.parameters(), lr=settings.linear_rate)
    learner = Learner(nn.ModuleList([probe]), [optimizer], halving=settings.halve_every)
    return probe, optimise("Linear probe", segments, settings.epochs, learner, loss_of, session)


Probes = tuple[ClusterProbe, LinearProbe, dict[str, list[float]]]


def fit_probes(head: nn.Module, features: PatchStore, train: Split, session: Session) -> Probes:
    """Step 3 on a finished head: return both probes and the losses by name."""
    classes = len(train.classes)
    linear, losses = LinearProbe(classes, session.config.head.reduced_dim).to(session.device), []
    with tempfile.TemporaryDirectory() as folder:
        segments = head_outputs(head, features, Path(folder))
        clusters, cluster_losses = fit_cluster_probe(segments, classes, session)
        if train.labels is not None:
            linear, losses = fit_linear_probe(segments, train.labels, classes, session)
    return clusters, linear, {"cluster": cluster_losses, "linear": losses}
