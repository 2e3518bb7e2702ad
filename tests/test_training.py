"""What each step of training does to its parameters: the teacher, the bank, clipping, decay, rates, and the result."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import quick_config
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite import frontdoor, loop, mediator, steps
from cause_lite.backbones.feature_store import PatchStore
from cause_lite.datasets import Split
from cause_lite.evaluate import evaluate
from cause_lite.loop import Session
from cause_lite.runtime.learner import Learner
from cause_lite.segmenter import Segmenter

CPU = torch.device("cpu")
SIDE, CLASSES, WIDTH = 8, 4, 12


def directions() -> Tensor:
    """Orthogonal directions (4, 12), each in three channels of its own."""
    return torch.eye(CLASSES).repeat_interleave(WIDTH // CLASSES, 1)


def toy(folder: Path, images: int = 8, noise: float = 0.15) -> tuple[PatchStore, np.ndarray]:
    """Patches (N, 64, 12) around four orthogonal directions, one a quadrant, in a random order an image; their labels.

    Each patch is its class's direction plus noise, at a length of its own.
    """
    draw = torch.Generator().manual_seed(7)
    quadrants = torch.stack([torch.randperm(CLASSES, generator=draw) for _ in range(images)]).view(images, 2, 2)
    labels = quadrants.repeat_interleave(SIDE // 2, 1).repeat_interleave(SIDE // 2, 2)
    apart = noise * torch.randn(images, SIDE * SIDE, WIDTH, generator=draw)
    vectors = (directions()[labels.flatten(1)] + apart) * (0.5 + torch.rand(images, SIDE * SIDE, 1, generator=draw))
    return stored(vectors, folder), labels.numpy().astype(np.int16)


def stored(vectors: Tensor, folder: Path) -> PatchStore:
    return PatchStore(folder / "vectors", vectors.shape, torch.float32, vectors.__getitem__, "Vectors")


def session_of(changes: dict[str, object] | None = None, seed: int = 3) -> Session:
    torch.manual_seed(seed)
    small = {"optimisation.cell": 2, "head.reduced_dim": 6, "head.projection_dim": 10, "clusterbook.concepts": 8}
    return Session(quick_config(small | (changes or {})), torch.Generator().manual_seed(seed), CPU)


def stored_in(bank: frontdoor.ConceptBank) -> tuple[Tensor, Tensor]:
    """A copy of the bank's vectors, and the concept of each."""
    keys = bank.keys()
    return keys.vectors[keys.rows].clone(), keys.concepts.clone()


def projected_by(head: steps.ProjectedHead, vectors: Tensor) -> Tensor:
    return head.projection(head.head(vectors))


class Watched(steps.HeadTraining):
    """Step 2 that keeps what each step saw: the student after it, the teacher and the bank before it, the vectors."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.first = copy.deepcopy(self.student)
        self.students, self.teachers, self.banks, self.looked_at, self.losses = [], [], [], [], []

    def loss_of(self, numbers: Tensor, batch: Tensor) -> Tensor:
        self.teachers.append(copy.deepcopy(self.teacher))
        self.banks.append(self.bank and stored_in(self.bank))
        loss = super().loss_of(numbers, batch)
        self.looked_at.append(self.selected.clone())
        self.losses.append(loss.item())
        return loss

    def after_step(self) -> None:
        self.students.append(copy.deepcopy(self.student))
        super().after_step()


def watched(folder: Path, changes: dict[str, object], codebook: Tensor | None = None) -> tuple[Watched, nn.Module]:
    """Run step 2 on the toy, with a codebook of its own directions; return what was kept, and the head."""
    kept, features, session = [], toy(folder)[0], session_of(changes)
    codebook = features[:2][:, ::16].flatten(0, 1) if codebook is None else codebook
    head, losses = steps.fit_head(features, codebook, session, lambda *given: kept.append(Watched(*given)) or kept[0])
    assert losses == kept[0].losses
    return kept[0], head


@pytest.mark.parametrize("kind", ["mlp", "tr"])
@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_the_teacher_is_the_average_of_the_students(kind, decay, tmp_path):
    """After k steps: decay^k S_0 + (1 - decay) sum_i decay^(k-i) S_i; it is what step 2 returns."""
    changes = {"head.kind": kind, "head.ema_decay": decay, "head.epochs": 3}
    training, head = watched(tmp_path, changes)
    students = [training.first, *training.students]
    assert len(students) == 1 + 3 * 8 // 4
    shares = [(1 - decay) * decay ** (len(students) - 1 - i) for i in range(len(students))]
    shares[0] = decay ** (len(students) - 1)
    for name, value in training.teacher.named_parameters():
        average = sum(share * dict(s.named_parameters())[name] for share, s in zip(shares, students, strict=True))
        torch.testing.assert_close(value, average)
        assert not torch.equal(value, dict(training.student.named_parameters())[name])
    assert head is training.teacher.head and not head.training


@pytest.mark.parametrize("share, capacity", [(1.0, 100), (0.5, 100), (1.0, 5), (0.5, 3)])
def test_the_bank_holds_the_teachers_newest_projections(share, capacity, tmp_path):
    """Of each step and concept int(share n) unit projections, by the teacher that the step's loss met; the newest."""
    changes = {"head.bank_share": share, "head.bank_capacity": capacity, "head.epochs": 2, "head.ema_decay": 0.5}
    without_chance = {"head.kind": "mlp", "head.dropout": 0.0, "head.learning_rate": 0.05}
    training, _ = watched(tmp_path, changes | without_chance)
    offered = []
    for teacher, seen in zip(training.teachers, training.looked_at, strict=True):
        projected = projected_by(teacher, seen).flatten(0, 1)
        offered.append((F.normalize(projected, dim=-1), mediator.quantize(seen, training.codebook)[1].flatten()))
    vectors, owners = stored_in(training.bank)
    for concept in range(len(training.codebook)):
        of_concept = vectors[owners == concept]
        room = capacity
        for projected, concepts in reversed(offered):
            new = projected[concepts == concept]
            wanted = min(int(share * len(new)), room)
            assert int((of_concept @ new.T > 1 - 1e-6).any(dim=1).sum()) == wanted
            room -= wanted
        assert len(of_concept) == capacity - room


def test_each_step_contrasts_with_the_batch_and_the_bank(tmp_path):
    """The loss of every step is the plain formula on what the teacher made and what the bank held before the step."""
    without_chance = {"head.kind": "mlp", "head.dropout": 0.0, "optimisation.cell": 1, "head.learning_rate": 0.05}
    training, _ = watched(tmp_path, without_chance)
    students = [training.first, *training.students]
    for number, (teacher, seen) in enumerate(zip(training.teachers, training.looked_at, strict=True)):
        projected, aimed = (projected_by(each, seen) for each in (students[number], teacher))
        loss = frontdoor.concept_contrastive_loss(seen, training.codebook, projected, aimed, training.banks[number])
        assert training.losses[number] == pytest.approx(loss.item(), rel=1e-5)
    assert len(training.banks[0][0]) == 0 < len(training.banks[1][0])


def test_without_a_bank_there_is_none(tmp_path):
    training, _ = watched(tmp_path, {"head.bank_capacity": None, "head.projection_dim": None})
    assert training.bank is None
    assert isinstance(training.student.projection, nn.Identity)


@pytest.mark.parametrize("on", [True, False])
def test_the_teachers_dropout_is_a_setting(on, tmp_path):
    training, _ = watched(tmp_path, {"head.kind": "mlp", "head.teacher_dropout": on})
    assert training.teachers[0].head.reduce.dropout.training is on
    assert training.students[0].head.reduce.dropout.training
    assert not any(parameter.requires_grad for parameter in training.teacher.parameters())


# The loop, by plain gradient descent on a loss whose gradient is known.


def walked(folder: Path, changes: dict, learn: Callable[[nn.Parameter], dict], epochs: int = 1) -> list[Tensor]:
    """Minimise 3 w_0 + 4 w_1 at rate 1 from w = (10, 10); return w after each step."""
    weight, path = nn.Parameter(torch.tensor([10.0, 10.0])), []
    holder = nn.ParameterList([weight])
    options = {"optimizers": [torch.optim.SGD(holder, lr=1.0)]} | learn(holder)
    learner, store = Learner(nn.ModuleList([holder]), **options), stored(torch.zeros(8, 1, 1), folder)

    def loss_of(numbers: Tensor, batch: Tensor) -> Tensor:
        return weight @ torch.tensor([3.0, 4.0])

    def after_step() -> None:
        path.append(weight.detach().clone())

    loop.optimise("Walk", store, epochs, learner, loss_of, session_of(changes), after_step)
    return [torch.tensor([10.0, 10.0]), *path]


def lengths(path: list[Tensor]) -> list[float]:
    return [float((after - before).norm()) for before, after in itertools.pairwise(path)]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("clip, length", [(None, 5.0), (2.0, 2.0), (7.0, 5.0)])
def test_the_clip_bounds_a_steps_length(precision, clip, length, tmp_path):
    """Where it bites, the gradient keeps its direction; no gradient outlives its step."""
    path = walked(tmp_path, {"optimisation.precision": precision}, lambda w: {"clipped": w, "clip": clip})
    assert lengths(path) == pytest.approx([length, length], rel=1e-4)
    assert (path[0] - path[1]).tolist() == pytest.approx([0.6 * length, 0.8 * length], rel=1e-4)


def test_the_clip_is_that_of_the_clipped_module_alone(tmp_path):
    assert lengths(walked(tmp_path, {}, lambda w: {"clipped": nn.Linear(1, 1), "clip": 2.0})) == [5.0, 5.0]
    assert lengths(walked(tmp_path, {}, lambda w: {"clip": 2.0})) == [5.0, 5.0]


@pytest.mark.parametrize(
    "halving, rates",
    [
        (None, [1] * 10),
        (1, [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625]),
        (2, [1] * 4 + [0.5] * 4 + [0.25] * 2),
        (3, [1] * 6 + [0.5] * 4),
    ],
)
def test_rates_halve_after_whole_epochs(halving, rates, tmp_path):
    """Five epochs of two steps, of 8 images by batches of 4."""
    path = walked(tmp_path, {}, lambda w: {"halve_every": halving}, epochs=5)
    assert lengths(path) == pytest.approx([5 * rate for rate in rates])


def test_a_single_epoch_has_one_rate(tmp_path):
    assert lengths(walked(tmp_path, {}, lambda w: {"halve_every": 1})) == [5.0, 5.0]


def test_every_optimiser_steps_at_its_own_rate(tmp_path):
    def learn(holder: nn.ParameterList) -> dict:
        return {"optimizers": [torch.optim.SGD(holder, lr=rate) for rate in (1.0, 0.5)], "halve_every": 1}

    path = walked(tmp_path, {}, learn, epochs=2)
    assert lengths(path) == pytest.approx([7.5, 7.5, 3.75, 3.75])


def test_weight_decay_shrinks_what_has_no_gradient(tmp_path):
    """Where no patch has a positive the loss is 0; Adam's first step of the decay alone is the rate, towards 0."""
    alone = {"head.kind": "mlp", "head.positive_threshold": 1.0, "head.negative_threshold": 1.0, "head.epochs": 1}
    for decay in (0.0, 0.1):
        rate = {"head.learning_rate": 1e-3, "head.weight_decay": decay, "head.clip": None}
        training, _ = watched(tmp_path, alone | rate, torch.eye(WIDTH))
        assert training.losses == [0.0, 0.0]
        for name, before in training.first.named_parameters():
            after = dict(training.students[0].named_parameters())[name]
            wanted = 1e-3 * before.sign() if decay else torch.zeros_like(before)
            torch.testing.assert_close(before - after, wanted, rtol=0.02, atol=1e-7)


def recorded_rates(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """The rate and the weight decay of each step of Adam from here on."""
    rates, step = [], torch.optim.Adam.step

    def noted(optimizer: torch.optim.Adam, *arguments: object, **options: object) -> object:
        rates.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]))
        return step(optimizer, *arguments, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    return rates


def test_each_step_of_the_method_has_its_own_rate(tmp_path, monkeypatch):
    """8 images by batches of 4 are two steps an epoch; only the probes' rates halve."""
    features, labels = toy(tmp_path)
    codes = {"clusterbook.learning_rate": 0.1, "clusterbook.epochs": 3}
    heads = {"head.learning_rate": 0.2, "head.epochs": 2, "head.weight_decay": 0.01, "head.kind": "mlp"}
    probes = {"probe.learning_rate": 0.4, "probe.linear_rate": 0.8, "probe.epochs": 2, "probe.halve_every": 1}
    session = session_of(codes | heads | probes)
    rates = recorded_rates(monkeypatch)
    codebook, losses = steps.fit_clusterbook(features, session)
    _, head_losses = steps.fit_head(features, codebook, session)
    _, cluster_losses = steps.fit_cluster_probe(features, CLASSES, small_space(session))
    _, linear_losses = steps.fit_linear_probe(features, labels, CLASSES, session)
    assert [len(each) for each in (losses, head_losses, cluster_losses, linear_losses)] == [6, 4, 4, 4]
    halved = [(rate, 0) for rate in (0.4, 0.4, 0.2, 0.2, 0.8, 0.8, 0.4, 0.4)]
    assert rates == [(0.1, 0)] * 6 + [(0.2, 0.01)] * 4 + halved


def small_space(session: Session) -> Session:
    """The session of probes in the toy's own space."""
    return dataclasses.replace(session, config=session.config.replace({"head.reduced_dim": WIDTH}))


# What training is for: each step against its own beginning, on four separable directions.


def purity(index: Tensor, labels: np.ndarray) -> float:
    """The share of patches of their group's commonest class."""
    counts = torch.zeros(int(index.max()) + 1, CLASSES)
    counts.index_put_((index.flatten(), classes_of(labels).flatten()), torch.tensor(1.0), accumulate=True)
    return float(counts.amax(1).sum() / counts.sum())


def classes_of(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels).long().flatten(1)


def separation(vectors: Tensor, labels: np.ndarray) -> float:
    """The mean cosine of two patches of one class, less that of two patches of different classes."""
    unit, classes = F.normalize(vectors.flatten(0, 1), dim=-1), classes_of(labels).flatten()
    cosines, same = unit @ unit.T, classes[:, None] == classes
    return float(cosines[same].mean() - cosines[~same].mean())


def test_the_clusterbook_finds_the_directions(tmp_path):
    """The mean of three beginnings."""
    features, labels = toy(tmp_path, noise=0.4)
    found = []
    for epochs in (0, 20):
        changes = {"clusterbook.epochs": epochs, "clusterbook.learning_rate": 0.02}
        codes = [steps.fit_clusterbook(features, session_of(changes, seed))[0] for seed in range(3)]
        found.append(np.mean([purity(mediator.quantize(features[:], code)[1], labels) for code in codes]))
    assert found[1] > max(0.95, found[0] + 0.1)


@pytest.mark.parametrize("kind", ["mlp", "tr"])
def test_the_head_draws_a_concept_together(kind, tmp_path):
    """TR gets noisy patches for a codebook: with the directions themselves, its queries would be the answer."""
    features, labels = toy(tmp_path, noise=0.4)
    codebook, apart = directions() if kind == "mlp" else features[:2][:, ::8].flatten(0, 1), []
    for epochs in (0, 10):
        settings = {"head.kind": kind, "head.epochs": epochs, "head.ema_decay": 0.8}
        heads = [steps.fit_head(features, codebook, session_of(settings, seed))[0] for seed in range(3)]
        apart.append(np.mean([separation(head(features[:]), labels) for head in heads]))
    assert apart[1] > apart[0] + 0.1


def test_the_probe_raises_modularity(tmp_path):
    features, _ = toy(tmp_path)
    rates = {"probe.learning_rate": 0.05, "probe.halve_every": None, "probe.epochs": 20}
    losses = [steps.fit_cluster_probe(features, CLASSES, small_space(session_of(rates, seed)))[1] for seed in range(3)]
    assert np.mean([one[-4:] for one in losses]) < np.mean([one[:4] for one in losses]) - 0.02


def test_the_probes_find_the_classes(tmp_path):
    """The mean of three beginnings, since clusters can be caught where two share a class."""
    features, labels = toy(tmp_path)
    found = {"cluster": [], "linear": []}
    for epochs in (0, 20):
        rates = {"probe.learning_rate": 0.05, "probe.linear_rate": 0.05, "probe.halve_every": None}
        changes = {"probe.epochs": epochs, "probe.objective": "cosine"} | rates
        sessions = [small_space(session_of(changes, seed)) for seed in range(3)]
        clusters = [steps.fit_cluster_probe(features, CLASSES, session)[0] for session in sessions]
        linear = [steps.fit_linear_probe(features, labels, CLASSES, session)[0] for session in sessions]
        found["cluster"].append(np.mean([purity(probe.labels(features[:]), labels) for probe in clusters]))
        right = [(probe(features[:]).argmax(-1) == classes_of(labels)).float().mean().item() for probe in linear]
        found["linear"].append(np.mean(right))
    assert found["linear"][1] > 0.99 > found["linear"][0] + 0.3
    assert found["cluster"][1] > found["cluster"][0] + 0.1


def accuracies(features: PatchStore, labels: np.ndarray, epochs: int, seed: int) -> tuple[float, float]:
    """The cluster's and the linear probe's pixel accuracy after the three steps, each of so many epochs."""
    split = Split("toy", "train", tuple("abcd"), np.zeros((len(labels), SIDE, SIDE, 3), np.uint8), labels)
    long = dict.fromkeys(("clusterbook.epochs", "head.epochs", "probe.epochs"), epochs)
    rates = {"probe.learning_rate": 0.05, "probe.linear_rate": 0.05, "clusterbook.learning_rate": 0.02}
    session = session_of({"head.kind": "mlp", "probe.objective": "cosine"} | long | rates, seed)
    codebook = steps.fit_clusterbook(features, session)[0]
    head = steps.fit_head(features, codebook, session)[0]
    clusters, linear, _ = steps.fit_probes(head, features, split, session)
    segmenter = Segmenter(head, codebook, clusters, linear, size=SIDE, classes=split.classes)
    scores = evaluate(segmenter, features[:], None, labels, CLASSES)
    return scores["cluster"].compute()["pacc"], scores["linear"].unmatched()["pacc"]


def test_a_fit_beats_its_own_beginning(tmp_path):
    """The three steps in a row, each on what the one before it learned; the mean of three seeds."""
    before, after = (np.mean([accuracies(*toy(tmp_path), epochs, s) for s in range(3)], axis=0) for epochs in (0, 10))
    assert (after > before + 10).all()
