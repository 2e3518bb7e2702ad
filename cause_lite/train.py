"""The three steps in order: clusterbook, head, probes."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite import frontdoor, mediator
from cause_lite.backbone import Backbone
from cause_lite.datasets import IGNORED, Split
from cause_lite.head import ema_update
from cause_lite.patches import PatchStore, cached_features, prefetched
from cause_lite.probe import ClusterProbe, LinearProbe
from cause_lite.progress import track
from cause_lite.segmenter import Segmenter, build_head


@dataclass(frozen=True)
class FitConfig:
    """Everything that decides a fit. Defaults are the release's (its code, commit ee0aa84), one GPU."""

    data: str = "scenes"
    backbone: str = "scenes"
    head: str = "tr"
    seed: int = 0
    size: int = 320
    batch_size: int = 16
    num_concepts: int = 2048
    temperature: float = 0.1
    reduced_dim: int = 90
    projection_dim: int = 2048
    bank_capacity: int = 100
    positive_threshold: float = 0.3
    negative_threshold: float = 0.1
    contrastive_temperature: float = 0.07
    ema_decay: float = 0.99
    dropout: float = 0.1
    cell: int = 4
    clusterbook_init: str = "uniform"
    clusterbook_rate: float = 4e-3
    clusterbook_epochs: int = 1
    head_epochs: int = 2
    probe_epochs: int = 5
    learning_rate: float = 4e-3
    weight_decay: float = 1e-4
    clip: float = 2.0
    probe_init: str = "uniform"
    probe_objective: str = "modularity"
    probe_rate: float = 4e-3
    linear_rate: float = 4e-3


def batches(count: int, size: int, epochs: int, generator: torch.Generator, note: str):
    """Shuffled index batches over several epochs, with a progress bar; the last short one is dropped."""
    size = min(size, count)
    per_epoch = count // size
    order = torch.cat([torch.randperm(count, generator=generator)[: per_epoch * size] for _ in range(epochs)])
    yield from track(order.split(size), note)


def loaded(
    store: PatchStore, config: FitConfig, epochs: int, generator: torch.Generator, note: str,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Shuffled (image numbers, their vectors on the device), each batch read while the last one is in use."""
    numbers = batches(len(store), config.batch_size, epochs, generator, note)
    for which, batch in prefetched(numbers, lambda which: store[which].float()):
        yield which, batch.to(device)


def start_codebook(features: PatchStore, config: FitConfig, generator: torch.Generator) -> Tensor:
    """Codes (K, D): unit vectors of random patches ("patches"), or noise in (-1/K, 1/K) as released ("uniform")."""
    concepts, (count, patches, dim) = config.num_concepts, features.shape
    if config.clusterbook_init == "uniform":
        return (2 * torch.rand(concepts, dim, generator=generator) - 1) / concepts
    image = torch.randint(count, (concepts,), generator=generator)
    patch = torch.randint(patches, (concepts,), generator=generator)
    return F.normalize(features.at(image, patch).float(), dim=-1)


def fit_clusterbook(
    features: PatchStore, config: FitConfig, generator: torch.Generator, device: torch.device | str = "cpu"
) -> tuple[Tensor, list[float]]:
    """Step 1: features (N, P, D) -> codebook (K, D) and the loss of each step."""
    codebook = nn.Parameter(start_codebook(features, config, generator).to(device))
    optimizer = torch.optim.Adam([codebook], lr=config.clusterbook_rate)
    losses = []
    for _, batch in loaded(features, config, config.clusterbook_epochs, generator, "Clusterbook", device):
        draws = mediator.draw_cells(len(batch), batch.shape[1], config.cell, generator)
        loss = mediator.modularity_loss(mediator.sample_grid(batch, config.cell, draws), codebook, config.temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return codebook.detach(), losses


def fit_head(
    features: PatchStore, codebook: Tensor, config: FitConfig, generator: torch.Generator
) -> tuple[nn.Module, list[float]]:
    """Step 2: the teacher head, an average of a student trained by concept-wise contrast."""
    dim, device = features.shape[2], codebook.device
    head = build_head(config.head, dim, config.reduced_dim, features.shape[1], codebook, config.dropout)
    student = nn.ModuleDict({"head": head, "projection": nn.Linear(config.reduced_dim, config.projection_dim)})
    student = student.to(device)
    teacher = copy.deepcopy(student).requires_grad_(False)
    bank = frontdoor.ConceptBank(len(codebook), config.projection_dim, config.bank_capacity, device)
    optimizer = torch.optim.Adam(student.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    losses = []
    for _, batch in loaded(features, config, config.head_epochs, generator, f"Head {config.head}", device):
        draws = mediator.draw_cells(len(batch), batch.shape[1], config.cell, generator)
        pick = partial(mediator.sample_grid, cell=config.cell, draws=draws)
        seen, reduced = pick(batch), student["head"](batch, pick)
        with torch.no_grad():
            aimed = teacher["projection"](teacher["head"](batch, pick))
        loss = frontdoor.concept_contrastive_loss(
            seen, codebook, (reduced, student["projection"]), aimed, bank, config.contrastive_temperature,
            config.positive_threshold, config.negative_threshold,
        )  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), config.clip)
        optimizer.step()
        ema_update(teacher, student, config.ema_decay)
        bank.update(aimed.flatten(0, 1), mediator.quantize(seen, codebook)[1].flatten(), generator)
        losses.append(loss.item())
    return teacher["head"].eval(), losses


def head_outputs(head: nn.Module, features: PatchStore, folder: Path) -> PatchStore:
    """The head's output (N, P, R) for features (N, P, D), in evaluation mode; kept in `folder` within the budget."""
    device = next(head.parameters()).device

    @torch.no_grad()
    def compute(which: Tensor) -> Tensor:
        return head.eval()(features[which].float().to(device)).cpu()

    shape = (*features.shape[:2], head.reduce.linear.out_features)
    return PatchStore(Path(folder) / "outputs", shape, torch.float32, compute, "Head outputs")


def fit_cluster_probe(
    segments: PatchStore, num_classes: int, config: FitConfig, generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> tuple[ClusterProbe, list[float]]:  # fmt: skip
    """Step 3: class-sized clusters in the head's space (N, P, R), with no label.

    Starts from spherical k-means centres (`probe_init` = "kmeans") or, as the release does, from
    uniform noise ("uniform"), and maximises modularity within images or cosine over all patches.
    """
    probe = ClusterProbe(num_classes, segments.shape[2])
    if config.probe_init == "kmeans":
        seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
        probe.centres.data = patch_kmeans(segments, num_classes, seed)
    probe = probe.to(device)
    optimizer = torch.optim.Adam(probe.parameters(), lr=config.probe_rate)
    losses = []
    for _, batch in loaded(segments, config, config.probe_epochs, generator, "Cluster probe", device):
        if config.probe_objective == "modularity":
            draws = mediator.draw_cells(len(batch), batch.shape[1], config.cell, generator)
            loss = mediator.modularity_loss(
                mediator.sample_grid(batch, config.cell, draws), probe.centres, config.temperature
            )
        else:
            loss = probe.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return probe, losses


def patch_labels(labels: np.ndarray, side: int) -> Tensor:
    """Label maps (N, H, W) -> the label at the centre of each of side x side patches, (N, side^2)."""
    step = labels.shape[1] // side
    centres = np.arange(side) * step + step // 2
    return torch.from_numpy(labels[:, centres[:, None], centres].reshape(len(labels), -1).astype(np.int64))


def fit_linear_probe(
    segments: PatchStore, labels: np.ndarray, num_classes: int, config: FitConfig, generator: torch.Generator,
    device: torch.device | str = "cpu", unit: bool = False,
) -> tuple[LinearProbe, list[float]]:  # fmt: skip
    """Step 3's diagnostic: a linear classifier on frozen vectors, the one place where labels are read.

    With `unit`, the vectors are scaled to length 1 first.
    """
    probe, side = LinearProbe(num_classes, segments.shape[2]).to(device), round(segments.shape[1] ** 0.5)
    optimizer = torch.optim.Adam(probe.parameters(), lr=config.linear_rate)
    losses = []
    for which, batch in loaded(segments, config, config.probe_epochs, generator, "Linear probe", device):
        target = patch_labels(labels[which.numpy()], side).to(device)
        logits = probe(F.normalize(batch, dim=-1) if unit else batch)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return probe, losses


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


def fit(config: FitConfig, train: Split, backbone: Backbone) -> Fitted:
    """All three steps on one split. Labels, where there are any, train the linear probe and nothing else."""
    clock = Stopwatch()
    features = cached_features(backbone, train.images, f"Features of {train.name}/{train.split}")
    clock.lap("features")
    with torch.random.fork_rng(devices=[]):
        generator = seed_all(config.seed)
        codebook, clusterbook_losses = fit_clusterbook(features, config, generator, backbone.mean.device)
        clock.lap("clusterbook")
        head, head_losses = fit_head(features, codebook, config, generator)
        clock.lap("head")
        clusters, linear, probe_losses = fit_probes(head, features, train, config)
        clock.lap("probes")
    segmenter = Segmenter(head, codebook, clusters, linear, backbone, config.size, train.classes).eval()
    return Fitted(segmenter, {"clusterbook": clusterbook_losses, "head": head_losses} | probe_losses, clock.laps)


def seed_all(seed: int) -> torch.Generator:
    """A generator for every draw of ours; initial weights and dropout draw from the global state, seeded too."""
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def fit_probes(
    head: nn.Module, features: PatchStore, train: Split, config: FitConfig
) -> tuple[ClusterProbe, LinearProbe, dict[str, list[float]]]:
    """Step 3 on a finished head. Seeded anew, so that the probes do not depend on how much chance the head used."""
    generator, classes, device = seed_all(config.seed), len(train.classes), next(head.parameters()).device
    linear, linear_losses = LinearProbe(classes, config.reduced_dim).to(device), []
    with tempfile.TemporaryDirectory() as folder:
        segments = head_outputs(head, features, Path(folder))
        clusters, cluster_losses = fit_cluster_probe(segments, classes, config, generator, device)
        if train.labels is not None:
            linear, linear_losses = fit_linear_probe(segments, train.labels, classes, config, generator, device)
    return clusters, linear, {"cluster": cluster_losses, "linear": linear_losses}


class Stopwatch:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 2), now
