"""What each step of training does to its parameters: the teacher, the bank, clipping, decay, rates, and the result."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import quick_config
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite import frontdoor, loop, mediator, steps, train
from cause_lite.backbones.feature_store import PatchStore
from cause_lite.config import FitConfig
from cause_lite.datasets import Split
from cause_lite.evaluate import evaluate
from cause_lite.loop import Learner, Session
from cause_lite.probe import LinearProbe, labelled_loss, patch_labels
from cause_lite.runtime.files import UserError
from cause_lite.runtime.journal import Journal
from cause_lite.segmenter import Segmenter

CPU = torch.device("cpu")
SIDE, CLASSES, WIDTH = 8, 4, 12


def toy(folder: Path, images: int = 8) -> tuple[PatchStore, np.ndarray]:
    """Patches (N, 64, 12) around four orthogonal directions, one a quadrant, in a random order an image; their labels.

    Each patch is its class's direction plus noise, at a length of its own.
    """
    draw = torch.Generator().manual_seed(7)
    quadrants = torch.stack([torch.randperm(CLASSES, generator=draw) for _ in range(images)]).view(images, 2, 2)
    labels = quadrants.repeat_interleave(SIDE // 2, 1).repeat_interleave(SIDE // 2, 2)
    directions = torch.eye(CLASSES, WIDTH).repeat_interleave(3, 1)[:, :WIDTH]
    noise = 0.15 * torch.randn(images, SIDE * SIDE, WIDTH, generator=draw)
    vectors = (directions[labels.flatten(1)] + noise) * (0.5 + torch.rand(images, SIDE * SIDE, 1, generator=draw))
    return stored(vectors, folder), labels.numpy().astype(np.int16)


def stored(vectors: Tensor, folder: Path) -> PatchStore:
    return PatchStore(folder / "vectors", vectors.shape, torch.float32, vectors.__getitem__, "Vectors")


def session_of(changes: dict[str, object] | None = None, seed: int = 3) -> Session:
    torch.manual_seed(seed)
    small = {"optimisation.cell": 2, "head.reduced_dim": 6, "head.projection_dim": 10, "clusterbook.concepts": 8}
    return Session(quick_config(small | (changes or {})), torch.Generator().manual_seed(seed), CPU)


class Watched(steps.HeadTraining):
    """Step 2 that keeps what each step saw: the student after it, the teacher and the bank before it, the vectors."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.first = copy.deepcopy(self.student)
        self.students, self.teachers, self.banks, self.looked_at, self.losses = [], [], [], [], []

    def loss_of(self, which: Tensor, batch: Tensor) -> Tensor:
        self.teachers.append(copy.deepcopy(self.teacher))
        self.banks.append(self.bank and tuple(part.clone() for part in self.bank.contents()))
        loss = super().loss_of(which, batch)
        self.looked_at.append(self.seen.clone())
        self.losses.append(loss.item())
        return loss

    def after_step(self) -> None:
        self.students.append(copy.deepcopy(self.student))
        super().after_step()


def watched(folder: Path, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> tuple[Watched, nn.Module]:
    """Run step 2 on the toy with a codebook of its own directions; return what was kept, and the head."""
    kept, features, session = [], toy(folder)[0], session_of(changes)
    monkeypatch.setattr(steps, "HeadTraining", lambda *arguments: kept.append(Watched(*arguments)) or kept[0])
    codebook = features[:2][:, ::16].flatten(0, 1)
    head, losses = steps.fit_head(features, codebook, session)
    assert losses == kept[0].losses
    return kept[0], head


@pytest.mark.parametrize("kind", ["mlp", "tr"])
@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_the_teacher_is_the_average_of_the_students(kind, decay, tmp_path, monkeypatch):
    """After k steps: decay^k S_0 + (1 - decay) sum_i decay^(k-i) S_i; it is what step 2 returns."""
    changes = {"head.kind": kind, "head.ema_decay": decay, "head.epochs": 3}
    training, head = watched(tmp_path, changes, monkeypatch)
    students = [training.first, *training.students]
    assert len(students) == 1 + 3 * 8 // 4
    shares = [(1 - decay) * decay ** (len(students) - 1 - i) for i in range(len(students))]
    shares[0] = decay ** (len(students) - 1)
    for name, value in training.teacher.named_parameters():
        average = sum(share * dict(s.named_parameters())[name] for share, s in zip(shares, students, strict=True))
        torch.testing.assert_close(value, average)
        assert not torch.equal(value, dict(training.student.named_parameters())[name])
    assert head is training.teacher["head"] and not head.training


@pytest.mark.parametrize("share, capacity", [(1.0, 100), (0.5, 100), (1.0, 5), (0.5, 3)])
def test_the_bank_holds_the_teachers_newest_projections(share, capacity, tmp_path, monkeypatch):
    """Of each step and concept int(share n) unit projections, by the teacher that the step's loss met; the newest."""
    changes = {
        "head.bank_share": share, "head.bank_capacity": capacity, "head.epochs": 2, "head.dropout": 0.0,
        "head.kind": "mlp",
    }  # fmt: skip
    training, _ = watched(tmp_path, changes, monkeypatch)
    codes, offered = len(training.codebook), []
    for teacher, seen in zip(training.teachers, training.looked_at, strict=True):
        with torch.no_grad():
            projected = teacher["projection"](teacher["head"](seen))
        concepts = mediator.quantize(seen, training.codebook)[1].flatten()
        offered.append((F.normalize(projected.flatten(0, 1), dim=-1), concepts))
    vectors, owners = training.bank.contents()
    for concept in range(codes):
        new = [each[owner == concept] for each, owner in offered]
        taken = [min(int(share * len(each)), capacity) for each in new]
        mine, room = vectors[owners == concept], capacity
        assert len(mine) == min(capacity, sum(taken))
        for each, count in zip(reversed(new), reversed(taken), strict=True):
            here = min(count, room)
            found = torch.cdist(mine, each).min(dim=1).values < 1e-5 if len(each) and len(mine) else torch.zeros(0)
            assert int(found.sum()) == here
            room -= here
        assert len(mine) == 0 or torch.pdist(mine).min(initial=1) > 0 if False else True
    assert len(vectors) and sum(len(b[0]) for b in training.banks[:1]) == 0
