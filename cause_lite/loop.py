"""Run the loop that all stages share: shuffled batches, a gradient step each, over processes, resumable to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from cause_lite import mediator
from cause_lite.backbones.feature_store import PatchStore, shares
from cause_lite.config import FitConfig
from cause_lite.head import Selection
from cause_lite.runtime import parallel
from cause_lite.runtime.device import to_device
from cause_lite.runtime.journal import Journal, Stage, read_losses, steps_between_reads
from cause_lite.runtime.learner import Learner
from cause_lite.runtime.precision import drawn_in_double, working_type
from cause_lite.runtime.progress import track

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Session:
    """What every stage of one fit shares: settings, the generator of its draws, the device, and the journal."""

    config: FitConfig
    generator: torch.Generator
    device: torch.device
    journal: Journal = field(default_factory=Journal)

    @property
    def dtype(self) -> torch.dtype:
        """The type of parameters, vectors and losses."""
        return working_type(self.config.optimisation.precision)

    def build(self, make: Callable[[], Module]) -> Module:
        """Return a new module on the device, in the fit's type; on every processor its weights start alike."""
        with drawn_in_double():
            return make().to(self.device, self.dtype)


def training_order(count: int, config: FitConfig, epochs: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Draw the numbers of images in the order of training; each epoch's last short batch is dropped."""
    size = min(batch_size(config), count)
    images = count if config.optimisation.ddp == "averaged" else max(size, count // 4)
    whole = images // size * size
    drawn = [torch.randperm(count, generator=generator)[:whole] for _ in range(epochs)]
    return torch.cat(drawn) if drawn else torch.empty(0, dtype=torch.long)


def batch_size(config: FitConfig) -> int:
    """Return the images a step, of all processes together; as released, a single process's quarter."""
    size = config.optimisation.batch_size
    return size if config.optimisation.ddp == "averaged" else max(1, size // 4)


def draw_selection(batch: Tensor, session: Session) -> Selection:
    """Draw one patch of each cell of this process's images (b, P, D); return the function that selects them.

    Every process draws for the images of all processes, so that their generators stay alike.
    """
    images, cell = len(batch) * parallel.processes().num_processes, session.config.optimisation.cell
    draws = mediator.draw_cells(images, batch.shape[1], cell, session.generator)
    shared = to_device(parallel.share(draws.view(images, -1)).flatten(), batch.device)
    return partial(mediator.sample_grid, cell=cell, draws=shared)


def optimise(
    name: str,
    store: PatchStore,
    epochs: int,
    learner: Learner,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    session: Session,
    after_step: Callable[[], None] = lambda: None,
) -> list[float]:
    """Run one stage of training and return the loss of each step, a mean over processes.

    Parameters
    ----------
    name, store
        The stage's name, on the progress bar and in the journal, and its patch vectors (N, P, D).
    loss_of
        Takes this process's image numbers (b,) and their vectors (b, P, D) on the device; returns the loss.
    after_step
        Runs after each step.

    Raises
    ------
    NotFiniteError
        Before a step on a loss that is NaN or infinite; the state is saved for inspection first. A GPU works ahead of
        this process, and its losses are read every few steps: there, further steps may have been taken.
    """
    config, journal = session.config, session.journal
    scaler = torch.amp.GradScaler(session.device.type, enabled=config.optimisation.precision == "fp16")
    order = training_order(len(store), config, epochs, session.generator)
    stage = Stage(name, {"scaler": scaler, **learner.parts()}, session.generator, order)
    journal.restore(stage)
    batches = stage.order.split(min(batch_size(config), len(store))) if len(stage.order) else ()
    steps_per_epoch = max(1, len(batches) // max(1, epochs))
    stage.settle = partial(read_losses, stage, batches, journal)
    left = batches[len(stage.losses) :]
    for numbers, batch in track(shares(store, left, session.device), name, total=len(left)):
        learner.set_rates(stage.steps // steps_per_epoch)
        loss = loss_of(numbers, batch.to(session.dtype))
        stage.unread.append(parallel.mean(loss))
        if len(stage.unread) == steps_between_reads(session.device) or stage.steps == len(batches):
            stage.settle()
        learner.step(loss, scaler)
        after_step()
        journal.step(stage, end=stage.steps == len(batches))
    return stage.losses
