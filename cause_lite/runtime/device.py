"""Select a device, name it, hand it tensors without waiting; seed its draws, and make its work repeat to the bit."""

from __future__ import annotations

import contextlib
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cause_lite.runtime import parallel
from cause_lite.runtime.files import UserError


def choose_device(name: str, precision: str = "fp32") -> torch.device:
    """Return the device of a name, `auto`, `cpu`, `cuda` or `mps`; `auto` takes an accelerator where there is one.

    Apple's GPUs have no double precision: with `fp64` the CPU takes the place of `mps`, and a warning says so.

    Raises UserError when the name is another one, or this machine has no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, no CUDA product repeats to the bit
    if name == "auto" and parallel.processes().num_processes > 1:
        return parallel.processes().device
    if name == "auto":
        name = next(kind for kind in available if available[kind])
    if name not in available:
        raise UserError(f"--device {name}: must be one of auto, cpu, cuda, mps")
    if not available[name]:
        raise UserError(f"--device {name}: this machine has none that torch can use; try --device cpu")
    if name == "mps" and precision == "fp64":
        warnings.warn("Apple's GPUs have no double precision, so the CPU computes", stacklevel=2)
        name = "cpu"
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Return a device's product name, such as `NVIDIA A100-SXM4-40GB`; its kind where torch knows no name."""
    module = torch.get_device_module(device)
    return module.get_device_name(device) if hasattr(module, "get_device_name") else device.type


def processor_name() -> str:
    """Return the product name of this machine's processor; its kind where the system tells no name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def this_device() -> str:
    """Return the accelerator's name, or the processor's with the instructions that torch uses on it."""
    device = choose_device("auto")
    if device.type != "cpu":
        return device_name(device)
    return f"{processor_name()} ({torch.backends.cpu.get_cpu_capability()})"


def works_ahead(device: torch.device) -> bool:
    """Return whether a device works through a queue, so that reading a value back makes this process wait for it.

    Where it does, training keeps to forms in which no shape and no branch depends on a value.
    """
    return device.type != "cpu"


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; the copy is queued there, from pinned memory on CUDA, and nobody waits for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def bytes_free(device: torch.device) -> int:
    """Return the bytes of a CUDA device that new tensors can take: free, or kept by torch without use."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work on one thread of the processor within the block, where sums have one order and bits repeat."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Let CUDA add in a fixed order within the block: the same work gives the same bits."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type == "cuda":  # a CPU repeats anyway; other kinds lack deterministic forms of some operations
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def seed_all(seed: int) -> torch.Generator:
    """Seed the global state, which draws initial weights and dropout, and return a generator for every other draw."""
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed for a library that has a random state of its own."""
    return int(torch.randint(2**31 - 1, (1,), generator=generator))


@contextlib.contextmanager
def state_kept() -> Iterator[None]:
    """Restore the global random state after the block, that of an accelerator too."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[torch.Generator]:
    """Seed every draw within the block; restore the global state after it."""
    with state_kept():
        yield seed_all(seed)


def random_state() -> dict[str, Tensor]:
    """Return the state of torch's global generators, by kind of device."""
    return {kind: module.get_rng_state() for kind, module in _random_modules().items()}


def restore_random_state(state: dict[str, Tensor]) -> None:
    """Restore what `random_state` returned, for the kinds of device that this machine has."""
    for kind, module in _random_modules().items():
        if kind == "cpu" or kind in state:
            module.set_rng_state(state[kind])


def _random_modules() -> dict[str, Any]:
    """Return the modules that hold global random states, by kind of device: torch's own, and the accelerator's."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return {"cpu": torch} | ({accelerator.type: torch.get_device_module(accelerator)} if accelerator else {})
