"""Select a device, name it, and make its work repeat to the bit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from cause_lite.runtime import parallel
from cause_lite.runtime.files import UserError


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `mps` -> a device that is there. Raises UserError for another."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, no CUDA product repeats to the bit
    if name == "auto" and parallel.processes().num_processes > 1:
        return parallel.processes().device
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if there[kind]))
    if name not in there:
        raise UserError(f"--device {name}: choose from auto, {', '.join(there)}")
    if not there[name]:
        raise UserError(f"--device {name}: this machine has none that torch can use; try --device cpu")
    return torch.device(name)


def device_name(place: torch.device) -> str:
    """What its maker calls it, such as `NVIDIA A100-SXM4-40GB`; the kind where no such name is known."""
    module = torch.get_device_module(place)
    return module.get_device_name(place) if hasattr(module, "get_device_name") else place.type


@contextlib.contextmanager
def deterministic(place: torch.device) -> Iterator[None]:
    """Within the block, CUDA adds in a fixed order: the same work, the same bits."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if place.type == "cuda":  # a CPU does anyway; other kinds lack such forms of some operations
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
