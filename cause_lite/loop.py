"""Run the loop that all stages share: shuffled batches, a gradient step each, over processes, resumable to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from cause_lite import mediator
from cause_lite.backbones.feature_store import PatchStore, shares
from cause_lite.config import FitConfig
from cause_lite.head import Selection
from cause_lite.runtime import parallel
from cause_lite.runtime.device import to_device, works_ahead
from cause_lite.runtime.files import UserError
from cause_lite.runtime.journal import Journal, Stage
from cause_lite.runtime.learner import Learner
from cause_lite.runtime.progress import track

READ_EVERY = 50  # steps after which the losses of a device that works ahead are read


class NotFiniteError(UserError):
    """A loss is NaN or infinite; `images` holds the numbers of the images that it was computed on."""

    def __init__(self, message: str, images: list[int]) -> None:
        super().__init__(message)
        self.images = images


@dataclass(frozen=True)
class Session:
    """What every stage of one fit shares: settings, the generator of its draws, the device, and the journal."""

    config: FitConfig
    generator: torch.Generator
    device: torch.device
    journal: Journal = field(default_factory=Journal)


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
        this process, and its losses are read only every `READ_EVERY` steps: there, further steps may have been taken.
    """
    config, journal = session.config, session.journal
    scaler = torch.amp.GradScaler(session.device.type, enabled=config.optimisation.precision == "fp16")
    order = training_order(len(store), config, epochs, session.generator)
    stage = Stage(name, {"scaler": scaler, **learner.parts()}, session.generator, order)
    journal.restore(stage)
    batches = stage.order.split(min(batch_size(config), len(store))) if len(stage.order) else ()
    steps_per_epoch = max(1, len(batches) // max(1, epochs))
    stage.settle = partial(_read_losses, stage, batches, journal)
    read_every = READ_EVERY if works_ahead(session.device) else 1
    left = batches[len(stage.losses) :]
    for numbers, batch in track(shares(store, left, session.device), name, total=len(left)):
        learner.set_rates(stage.steps // steps_per_epoch)
        loss = loss_of(numbers, batch)
        stage.unread.append(parallel.mean(loss))
        if len(stage.unread) == read_every or stage.steps == len(batches):
            stage.settle()
        learner.step(loss, scaler)
        after_step()
        journal.step(stage, end=stage.steps == len(batches))
    return stage.losses


def _read_losses(stage: Stage, batches: Sequence[Tensor], journal: Journal) -> None:
    """Read the losses that are still on the device; raise NotFiniteError at the first that is NaN or infinite."""
    first = 1 + len(stage.losses)
    for step, loss in enumerate(stage.read(), first):
        if not math.isfinite(loss):
            file = journal.save_failed(stage)
            where = f"at step {step}" + (f" (state in {file})" if file else "")
            advice = "look at its images, lower the rate, or use --precision fp32"
            images = parallel.share(batches[step - 1]).tolist()
            raise NotFiniteError(f"{stage.name}: the loss is {loss} {where}; {advice}", images)
