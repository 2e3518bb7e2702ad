"""Seed every draw; save and restore the global random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def seed_all(seed: int) -> torch.Generator:
    """Seed the global state, which draws initial weights and dropout, and return a generator for every other draw."""
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[torch.Generator]:
    """Seed everything within the block; put the global state back after it."""
    with torch.random.fork_rng(devices=[]):
        yield seed_all(seed)


def random_state() -> dict[str, Tensor]:
    """Return the state of torch's global generators, by kind of device."""
    return {"cpu": torch.get_rng_state()} | {kind: module.get_rng_state() for kind, module in _accelerator()}


def restore_random_state(state: dict[str, Tensor]) -> None:
    """Put back what `random_state` returned, for the kinds of device that are there."""
    torch.set_rng_state(state["cpu"])
    for kind, module in _accelerator():
        if kind in state:
            module.set_rng_state(state[kind])


def _accelerator() -> Iterator[tuple[str, object]]:
    """Yield the kind of accelerator that is there and torch's module for it, if one is."""
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator().type
        yield kind, torch.get_device_module(kind)
