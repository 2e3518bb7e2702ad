"""The loop that all stages share: shuffled batches, one gradient step each, over processes, resumable to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from cause_lite import mediator
from cause_lite.backbones.feature_store import PatchStore, prefetched
from cause_lite.config import FitConfig
from cause_lite.head import Selection
from cause_lite.runtime import parallel
from cause_lite.runtime.files import UserError
from cause_lite.runtime.journal import Journal, Stateful
from cause_lite.runtime.progress import track


class NotFiniteError(UserError):
    """A loss is NaN or infinite; `images` are the numbers of those it was computed on."""

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


@dataclass
class Learner:
    """What one stage trains: modules whose gradients step, with the optimiser of each, and what else is state."""

    modules: nn.ModuleList
    optimizers: list[torch.optim.Optimizer]
    clipped: nn.Module | None = None
    clip: float | None = None
    halving: int | None = None
    beside: dict[str, Stateful] = field(default_factory=dict)


def training_order(count: int, config: FitConfig, epochs: int, generator: torch.Generator) -> Tensor:
    """Image numbers in the order of training, (steps * batch,); each epoch's last short batch is dropped."""
    size = min(batch_size(config), count)
    seen = count if config.optimisation.ddp == "averaged" else max(size, count // 4)
    kept = seen // size * size
    drawn = [torch.randperm(count, generator=generator)[:kept] for _ in range(epochs)]
    return torch.cat(drawn) if drawn else torch.empty(0, dtype=torch.long)


def batch_size(config: FitConfig) -> int:
    """Return the images a step, of all processes together; as released, a single process's quarter."""
    asked = config.optimisation.batch_size
    return asked if config.optimisation.ddp == "averaged" else max(1, asked // 4)


def draw_selection(batch: Tensor, session: Session) -> Selection:
    """Draw one patch of each cell; return the draw as a function of this process's (B, P, D).

    Every process draws for the images of all of them, so that all draw the same.
    """
    images, cell = len(batch) * parallel.processes().num_processes, session.config.optimisation.cell
    draws = mediator.draw_cells(images, batch.shape[1], cell, session.generator)
    return partial(mediator.sample_grid, cell=cell, draws=parallel.share(draws.view(images, -1)).flatten())


def optimise(
    stage: str,
    store: PatchStore,
    epochs: int,
    learner: Learner,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    session: Session,
    after: Callable[[], None] = lambda: None,
) -> list[float]:
    """Run one stage and return the loss of each step (a mean over processes).

    Parameters
    ----------
    stage
        Its name, on the progress bar and in the journal.
    store
        Vectors (N, P, D).
    epochs, learner
        How long, and what learns.
    loss_of
        Takes this process's image numbers (b,) and their vectors (b, P, D) on the device; returns the loss.
    session
        Configuration, random draws, device and journal.
    after
        Runs once a step is taken.

    Raises
    ------
    NotFiniteError
        Before a step on a loss that is NaN or infinite; its state is saved first.
    """
    config, generator, journal = session.config, session.generator, session.journal
    scaler = torch.amp.GradScaler(session.device.type, enabled=config.optimisation.precision == "fp16")
    parts = {"learner": learner.modules, "scaler": scaler} | learner.beside
    parts |= {f"optimizer{i}": optimizer for i, optimizer in enumerate(learner.optimizers)}
    rates = [optimizer.param_groups[0]["lr"] for optimizer in learner.optimizers]
    saved = journal.restore(stage, parts, generator)
    order = training_order(len(store), config, epochs, generator) if saved is None else saved["order"]
    losses = [] if saved is None else saved["losses"]
    batches = order.split(min(batch_size(config), len(store))) if len(order) else ()
    steps_per_epoch = max(1, len(batches) // max(1, epochs))
    for which, batch in _loaded(store, batches[len(losses) :], stage, session.device):
        _halve_rates(learner, rates, len(losses) // steps_per_epoch)
        loss = loss_of(which, batch)
        losses.append(float(parallel.mean(loss)))
        if not math.isfinite(losses[-1]):
            kept = journal.save_failed(stage, parts, generator, order, losses)
            where = f" (state in {kept})" if kept else ""
            message = f"{stage}: the loss is {losses[-1]} at step {len(losses)}{where}"
            advice = "look at its images, lower the rate, or use --precision fp32"
            raise NotFiniteError(f"{message}; {advice}", which.tolist())
        _take_step(learner, loss, scaler)
        after()
        journal.step(stage, parts, generator, order, losses, end=len(losses) == len(batches))
    return losses


def _loaded(
    store: PatchStore, batches: tuple[Tensor, ...], note: str, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's (image numbers, vectors on the device), each batch read while the last one is in use."""
    parts = (parallel.share(which) for which in track(batches, note))
    for which, batch in prefetched(parts, lambda which: store[which].float()):
        yield which, batch.to(device)


def _halve_rates(learner: Learner, rates: list[float], epoch: int) -> None:
    for optimizer, rate in zip(learner.optimizers, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.5 ** (epoch // learner.halving) if learner.halving else 1)


def _take_step(learner: Learner, loss: Tensor, scaler: torch.amp.GradScaler) -> None:
    for optimizer in learner.optimizers:
        optimizer.zero_grad()
    scaler.scale(loss).backward()
    parallel.average_gradients(learner.modules.parameters())
    if learner.clipped is not None and learner.clip:
        scaler.unscale_(learner.optimizers[0])
        nn.utils.clip_grad_norm_(learner.clipped.parameters(), learner.clip)
    for optimizer in learner.optimizers:
        scaler.step(optimizer)
    scaler.update()
