"""Select a device, name it, hand it tensors without waiting, and make its work repeat to the bit."""

from __future__ import annotations

import contextlib
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from cause_lite.runtime import parallel
from cause_lite.runtime.files import UserError


def choose_device(name: str, precision: str = "fp32") -> torch.device:
    """Return the device of a name, `auto`, `cpu`, `cuda` or `mps`; `auto` takes an accelerator where there is one.

    Apple's GPUs have no double precision: with `fp64` the CPU takes the place of `mps`, and a warning says so.

    Raises
    ------
    UserError
        When the name is another one, or this machine has no such device.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, no CUDA product repeats to the bit
    if name == "auto" and parallel.processes().num_processes > 1:
        return parallel.processes().device
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if name not in available:
        raise UserError(f"--device {name}: must be one of auto, {', '.join(available)}")
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


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work on one thread of the processor within the block, where sums have one order and bits repeat."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def this_device() -> str:
    """Return the accelerator's name, or the processor's with the instructions that torch uses on it."""
    device = choose_device("auto")
    if device.type != "cpu":
        return device_name(device)
    return f"{_processor()} ({torch.backends.cpu.get_cpu_capability()})"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


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
def deterministic(device: torch.device) -> Iterator[None]:
    """Let CUDA add in a fixed order within the block: the same work gives the same bits."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type == "cuda":  # a CPU repeats anyway; other kinds lack deterministic forms of some operations
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
