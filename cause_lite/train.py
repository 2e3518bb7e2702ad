"""The three steps in order: clusterbook, head, probes."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite import frontdoor, mediator
from cause_lite.backbones.backbone import Backbone
from cause_lite.backbones.feature_store import PatchStore, cached_features
from cause_lite.config import FitConfig
from cause_lite.datasets import Split
from cause_lite.head import ema_update
from cause_lite.lab import as_released
from cause_lite.loop import Learner, NotFiniteError, draw_pick, optimise
from cause_lite.probe import ClusterProbe, LinearProbe, labelled_loss
from cause_lite.runtime import parallel
from cause_lite.runtime.device import repeatable
from cause_lite.runtime.files import UserError
from cause_lite.runtime.journal import Journal
from cause_lite.runtime.precision import autocast
from cause_lite.segmenter import Segmenter, build_head

NO_JOURNAL = Journal()


def start_codebook(features: PatchStore, config: FitConfig, generator: torch.Generator) -> Tensor:
    """Codes (K, D): noise in (-1/K, 1/K) as released ("uniform"), unit vectors of random patches ("patches"), or
    spherical k-means centres ("kmeans").
    """
    concepts, (count, patches, dim) = config.num_concepts, features.shape
    if config.clusterbook_init == "kmeans":
        return patch_kmeans(features, concepts, int(torch.randint(2**31 - 1, (1,), generator=generator)))
    if config.clusterbook_init == "uniform":
        return (2 * torch.rand(concepts, dim, generator=generator) - 1) / concepts
    image = torch.randint(count, (concepts,), generator=generator)
    patch = torch.randint(patches, (concepts,), generator=generator)
    return F.normalize(features.at(image, patch).float(), dim=-1)


def fit_clusterbook(
    features: PatchStore, config: FitConfig, generator: torch.Generator, device: torch.device | str = "cpu",
    journal: Journal = NO_JOURNAL,
) -> tuple[Tensor, list[float]]:  # fmt: skip
    """Step 1: features (N, P, D) -> codebook (K, D) and the loss of each step."""
    learned = nn.ParameterList([start_codebook(features, config, generator).to(device)])
    optimizer = torch.optim.Adam(learned, lr=config.clusterbook_rate)

    def loss_of(which: Tensor, batch: Tensor) -> Tensor:
        seen = draw_pick(batch, config, generator)(batch)
        return mediator.modularity_loss(seen, learned[0], config.temperature, config.objective)

    learner = Learner(nn.ModuleList([learned]), [optimizer])
    epochs = config.clusterbook_epochs
    losses = optimise("Clusterbook", features, config, epochs, learner, loss_of, generator, device, journal)
    return learned[0].detach(), losses


def fit_head(
    features: PatchStore, codebook: Tensor, config: FitConfig, generator: torch.Generator,
    journal: Journal = NO_JOURNAL,
) -> tuple[nn.Module, list[float]]:  # fmt: skip
    """Step 2: the teacher head, an average of a student trained by concept-wise contrast."""
    dim, device = features.shape[2], codebook.device
    head = build_head(config.head, dim, config.reduced_dim, features.shape[1], codebook, config.dropout)
    width = config.projection_dim or config.reduced_dim
    projection = nn.Linear(config.reduced_dim, width) if config.projection_dim else nn.Identity()
    student = nn.ModuleDict({"head": head, "projection": projection}).to(device)
    teacher = copy.deepcopy(student).requires_grad_(False).train(config.teacher_dropout)
    if config.compiled:
        student["head"].reduce.compile()
    bank = frontdoor.ConceptBank(len(codebook), width, config.bank_capacity, device) if config.bank_capacity else None
    optimizer = torch.optim.Adam(student.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    parallel.part_ways(config.seed)
    new: dict[str, Tensor] = {}

    def loss_of(which: Tensor, batch: Tensor) -> Tensor:
        pick = draw_pick(batch, config, generator)
        with autocast(config.precision, device):  # the heads alone: losses stay in full precision
            reduced = student["head"](batch, pick)
            with torch.no_grad():
                aimed = teacher["projection"](teacher["head"](batch, pick))
        new["seen"], new["aimed"] = parallel.gathered(pick(batch)), parallel.gathered(aimed.float())
        projected = (reduced, projection) if config.projection_dim else reduced
        return frontdoor.concept_contrastive_loss(
            new["seen"], codebook, projected, new["aimed"], bank, config.contrastive_temperature,
            config.positive_threshold, config.negative_threshold, first=len(batch) * parallel.processes().process_index,
        )  # fmt: skip

    def after() -> None:
        ema_update(teacher, student, config.ema_decay)
        if bank is None:
            return
        concepts = mediator.quantize(new["seen"], codebook)[1].flatten()
        bank.update(new["aimed"].flatten(0, 1), concepts, generator, config.bank_share)

    learner = Learner(
        nn.ModuleList([student]),
        [optimizer],
        student,
        config.clip,
        beside={"teacher": teacher} | ({"bank": bank} if bank else {}),
    )
    name = f"Head {config.head}"
    losses = optimise(
        name, features, config, config.head_epochs, learner, loss_of, generator, device, journal, after
    )  # fmt: skip
    return teacher["head"].eval(), losses


def head_outputs(head: nn.Module, features: PatchStore, folder: Path) -> PatchStore:
    """The head's output (N, P, R) for features (N, P, D), in evaluation mode; kept in `folder` within the budget."""
    device = next(head.parameters()).device

    @torch.no_grad()
    def compute(which: Tensor) -> Tensor:
        return head.eval()(features[which].float().to(device)).cpu()

    shape = (*features.shape[:2], head.reduce.linear.out_features)
    return PatchStore(Path(folder) / "outputs", shape, torch.float32, compute, "Head outputs")


def start_probe(
    outputs: Callable[[], PatchStore], num_classes: int, config: FitConfig, generator: torch.Generator
) -> ClusterProbe:
    """A cluster probe before training: spherical k-means centres ("kmeans"), or noise as released ("uniform").

    `outputs` makes the head's outputs (N, P, R), which k-means alone looks at.
    """
    probe = ClusterProbe(num_classes, config.reduced_dim)
    if config.probe_init == "kmeans":
        seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
        probe.centres.data = patch_kmeans(outputs(), num_classes, seed)
    return probe


def fit_cluster_probe(
    segments: PatchStore, num_classes: int, config: FitConfig, generator: torch.Generator,
    device: torch.device | str = "cpu", journal: Journal = NO_JOURNAL,
) -> tuple[ClusterProbe, list[float]]:  # fmt: skip
    """Step 3: class-sized clusters in the head's space (N, P, R), with no label.

    Maximises modularity within images, or the mean cosine over all patches.
    """
    probe = start_probe(lambda: segments, num_classes, config, generator).to(device)
    optimizer = torch.optim.Adam(probe.parameters(), lr=config.probe_rate)

    def loss_of(which: Tensor, batch: Tensor) -> Tensor:
        if config.probe_objective == "cosine":
            return probe.loss(batch)
        seen = draw_pick(batch, config, generator)(batch)
        return mediator.modularity_loss(seen, probe.centres, config.temperature, config.objective)

    learner = Learner(nn.ModuleList([probe]), [optimizer], halving=config.probe_halving)
    return probe, optimise(
        "Cluster probe", segments, config, config.probe_epochs, learner, loss_of, generator, device, journal
    )


def patch_labels(labels: np.ndarray, side: int) -> Tensor:
    """Label maps (N, H, W) -> the label at the centre of each of side x side patches, (N, side^2)."""
    step = labels.shape[1] // side
    centres = np.arange(side) * step + step // 2
    return torch.from_numpy(labels[:, centres[:, None], centres].reshape(len(labels), -1).astype(np.int64))


def fit_linear_probe(
    segments: PatchStore, labels: np.ndarray, num_classes: int, config: FitConfig, generator: torch.Generator,
    device: torch.device | str = "cpu", unit: bool = False, journal: Journal = NO_JOURNAL,
) -> tuple[LinearProbe, list[float]]:  # fmt: skip
    """Step 3's diagnostic: a linear classifier on frozen vectors, the one place where labels are read.

    With `unit`, the vectors are scaled to length 1 first.
    """
    probe, side = LinearProbe(num_classes, segments.shape[2]).to(device), round(segments.shape[1] ** 0.5)
    optimizer = torch.optim.Adam(probe.parameters(), lr=config.linear_rate)

    def loss_of(which: Tensor, batch: Tensor) -> Tensor:
        target = patch_labels(labels[which.numpy()], side).to(device)
        logits = probe(F.normalize(batch, dim=-1) if unit else batch)
        return labelled_loss(logits.flatten(0, 1), target.flatten())

    learner = Learner(nn.ModuleList([probe]), [optimizer], halving=config.probe_halving)
    return probe, optimise(
        "Linear probe", segments, config, config.probe_epochs, learner, loss_of, generator, device, journal
    )


def kmeans(vectors: Tensor, clusters: int, seed: int) -> Tensor:
    """Centres (K, D) of k-means (scikit-learn, k-means++)."""
    found = MiniBatchKMeans(clusters, batch_size=4096, n_init=5, random_state=seed).fit(vectors.numpy())
    return torch.from_numpy(found.cluster_centers_).float()


def patch_kmeans(store: PatchStore, clusters: int, seed: int, sample: int = 100_000) -> Tensor:
    """Centres (K, D) of k-means on at most `sample` patches, scaled to length 1."""
    vectors = store.sample(sample, torch.Generator().manual_seed(seed)).float()
    return kmeans(F.normalize(vectors, dim=-1), clusters, seed)


@dataclass(frozen=True)
class Fitted:
    """A fitted segmenter with the loss of every step and the seconds of every stage."""

    segmenter: Segmenter
    losses: dict[str, list[float]]
    seconds: dict[str, float]


def fit(config: FitConfig, train: Split, backbone: Backbone, journal: Journal = NO_JOURNAL) -> Fitted:
    """All three steps on one split.

    Labels, where there are any, train the linear probe and nothing else, unless `label_flow` is "as_released".
    Raises UserError naming the images of a step whose loss is not finite.
    """
    try:
        with torch.random.fork_rng(devices=[]), repeatable(backbone.mean.device):
            return _three_steps(config, train, backbone, journal)
    except NotFiniteError as error:
        named = ", ".join(train.name_of(number) for number in error.images)
        raise UserError(f"{error}: {named}") from error


def _three_steps(config: FitConfig, train: Split, backbone: Backbone, journal: Journal) -> Fitted:
    clock = Stopwatch()
    backbone.prepare(config.precision, config.compiled)
    features = cached_features(backbone, train.images, f"Features of {train.name}/{train.split}")
    clock.lap("features")
    generator = seed_all(config.seed)
    codebook, clusterbook_losses = fit_clusterbook(features, config, generator, backbone.mean.device, journal)
    clock.lap("clusterbook")
    head, head_losses = fit_head(features, codebook, config, generator, journal)
    clock.lap("head")
    clusters, linear, probe_losses = fit_probes(head, features, train, config, journal)
    clock.lap("probes")
    segmenter = Segmenter(head, codebook, clusters, linear, backbone, config.scored_size, train.classes).eval()
    return Fitted(segmenter, {"clusterbook": clusterbook_losses, "head": head_losses} | probe_losses, clock.laps)


def seed_all(seed: int) -> torch.Generator:
    """A generator for every draw of ours; initial weights and dropout draw from the global state, seeded too."""
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[torch.Generator]:
    """`seed_all` for a block; the global state is as before after it."""
    with torch.random.fork_rng(devices=[]):
        yield seed_all(seed)


def fit_probes(
    head: nn.Module, features: PatchStore, train: Split, config: FitConfig, journal: Journal = NO_JOURNAL
) -> tuple[ClusterProbe, LinearProbe, dict[str, list[float]]]:
    """Step 3 on a finished head. Seeded anew, so that the probes do not depend on how much chance the head used."""
    generator, classes, device = seed_all(config.seed), len(train.classes), next(head.parameters()).device
    linear, linear_losses = LinearProbe(classes, config.reduced_dim).to(device), []
    with tempfile.TemporaryDirectory() as folder:
        outputs = partial(head_outputs, head, features, Path(folder))
        if config.label_flow == "as_released":
            clusters = start_probe(outputs, classes, config, generator).to(device)
            losses = as_released.fit_probes(head, clusters, linear, features, train, config, generator, journal)
            return clusters, linear, {"as_released": losses}
        segments = outputs()
        clusters, cluster_losses = fit_cluster_probe(segments, classes, config, generator, device, journal)
        if train.labels is not None:
            linear, linear_losses = fit_linear_probe(
                segments, train.labels, classes, config, generator, device, journal=journal
            )
    return clusters, linear, {"cluster": cluster_losses, "linear": linear_losses}


class Stopwatch:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 2), now
