"""Seed every draw; save and restore the global random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def seed_all(seed: int) -> torch.Generator:
    """Seed the global state, which draws initial weights and dropout, and return a generator for every other draw."""
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed for a library that has a random state of its own."""
    return int(torch.randint(2**31 - 1, (1,), generator=generator))


@contextmanager
def state_kept() -> Iterator[None]:
    """Restore the global state after the block, that of an accelerator too."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)


@contextmanager
def seeded(seed: int) -> Iterator[torch.Generator]:
    """Seed every draw within the block; restore the global state after it."""
    with state_kept():
        yield seed_all(seed)


def random_state() -> dict[str, Tensor]:
    """Return the state of torch's global generators, by kind of device."""
    return {"cpu": torch.get_rng_state()} | {kind: module.get_rng_state() for kind, module in _accelerators()}


def restore_random_state(state: dict[str, Tensor]) -> None:
    """Restore what `random_state` returned, for the kinds of device that this machine has."""
    torch.set_rng_state(state["cpu"])
    for kind, module in _accelerators():
        if kind in state:
            module.set_rng_state(state[kind])


def _accelerators() -> Iterator[tuple[str, Any]]:
    """Yield the kind of this machine's accelerator and torch's module for it; nothing where there is none."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        yield accelerator.type, torch.get_device_module(accelerator)
