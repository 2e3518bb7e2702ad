"""A step reads nothing back from its device, so that a GPU is never waited for, and learns what it learns on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import quick_config
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from cause_lite import loop, steps
from cause_lite.backbones import PatchStore
from cause_lite.fast import contrast
from cause_lite.loop import Session
from cause_lite.runtime import journal as runtime_journal
from cause_lite.runtime.journal import Journal, NotFiniteError

WAITS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount")
MASKED = ("index", "index_put", "index_put_", "_index_put_impl_")


class Waits(TorchDispatchMode):
    """Count the operations of the block that would wait for a GPU: a value, or a shape that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        masks = args[1] if name in MASKED else ()
        masked = any(isinstance(mask, torch.Tensor) and mask.dtype == torch.bool for mask in masks)
        self.count += name in WAITS or masked
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "work, waits",
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool((x > 0).any()), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: (x > 0).nonzero(), 1),
        (lambda x: torch.bincount(x.long().clamp(min=0)), 1),
        (lambda x: x[torch.arange(2)] + torch.where(x > 0, x, 0)[:2], 0),
    ],
)
def test_the_counter_counts(work, waits):
    with Waits() as counter:
        work(torch.randn(5))
    assert counter.count == waits


def ahead(patched: pytest.MonkeyPatch) -> None:
    """Take the forms of a device that works ahead."""
    for module in (runtime_journal, contrast):
        patched.setattr(module, "works_ahead", lambda device: True)


def stored(folder: Path, count: int = 12) -> PatchStore:
    vectors = torch.randn(count, 64, 6, generator=torch.Generator().manual_seed(0))
    return PatchStore(folder / "vectors", vectors.shape, torch.float32, vectors.__getitem__, "Vectors")


def session(changes: dict[str, object] | None = None, journal: Journal | None = None) -> Session:
    torch.manual_seed(0)
    small = {"optimisation.batch_size": 3, "head.reduced_dim": 5, "head.projection_dim": 32, "clusterbook.concepts": 8}
    config = quick_config(small | {"head.epochs": 2, "clusterbook.epochs": 2} | (changes or {}))
    return Session(config, torch.Generator().manual_seed(0), torch.device("cpu"), journal or Journal())


CODES = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
LABELS = np.arange(12 * 64).reshape(12, 8, 8) % 5 - 1
STAGES: dict[str, Callable[[PatchStore], list[float]]] = {
    "head, mlp": lambda store: steps.fit_head(store, CODES, session({"head.kind": "mlp"}))[1],
    "head, tr": lambda store: steps.fit_head(store, CODES, session({"head.kind": "tr"}))[1],
    "head, mlp, bf16": lambda store: steps.fit_head(
        store, CODES, session({"head.kind": "mlp", "optimisation.precision": "bf16"})
    )[1],
    "clusterbook": lambda store: steps.fit_clusterbook(store, session())[1],
    "cluster probe": lambda store: steps.fit_cluster_probe(store, 3, session({"head.reduced_dim": 6}))[1],
    "linear probe": lambda store: steps.fit_linear_probe(store, LABELS, 4, session())[1],
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_waits_for_nothing_and_the_last_reads_all_losses(stage, tmp_path, monkeypatch):
    """Adam's own counter is left out: it stays on the CPU. Both forms have the same losses."""
    step = torch.optim.Adam.step

    def uncounted(*arguments: Any, **named: Any) -> Any:
        with _disable_current_modes():
            return step(*arguments, **named)

    store, wanted = stored(tmp_path), STAGES[stage](stored(tmp_path))
    monkeypatch.setattr(torch.optim.Adam, "step", uncounted)
    ahead(monkeypatch)
    shares = loop.shares

    def read_before(*arguments: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        with _disable_current_modes():  # numbers of images stay on the CPU, where they are sorted by what is stored
            return list(shares(*arguments))

    monkeypatch.setattr(loop, "shares", read_before)
    read: list[int] = []

    class Counted(loop.Stage):
        def read(self) -> list[float]:
            read.append(counter.count)
            with _disable_current_modes():
                return super().read()

    monkeypatch.setattr(loop, "Stage", Counted)
    with Waits() as counter:
        losses = STAGES[stage](store)
    assert counter.count == 0
    assert len(read) == 1 and len(losses) == len(wanted) >= 8
    assert losses == pytest.approx(wanted, rel=1e-4)


def test_a_loss_that_is_not_finite_is_named_when_it_is_read(tmp_path, monkeypatch):
    """By its step and images, also where a save came between."""
    ahead(monkeypatch)

    def failed(journal: Journal | None = None) -> NotFiniteError:
        given, batches = session({"clusterbook.init": "patches"}, journal), []
        layer = torch.nn.Linear(1, 1, bias=False)

        def loss_of(numbers: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
            batches.append(numbers.tolist())
            return layer.weight.sum() * (torch.nan if len(batches) == 3 else 1)

        with pytest.raises(NotFiniteError) as raised:
            loop.optimise("Walk", stored(tmp_path), 2, loop.Learner.adam(layer, 0.1), loss_of, given)
        assert raised.value.images == batches[2]
        return raised.value

    assert "the loss is nan at step 3;" in str(failed())
    assert "at step 3 (state in" in str(failed(Journal(tmp_path, every=0)))
    assert not (tmp_path / "Walk.pt").exists() or torch.load(tmp_path / "Walk.pt")["losses"].__len__() < 3
