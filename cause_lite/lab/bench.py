"""Measuring: ours and a baseline in alternation, as ratios within one process, and peak memory.

The lines themselves, and the plain forms they compare with, are in the checkout's benchmarks/.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cause_lite.runtime import provenance
from cause_lite.runtime.device import choose_device
from cause_lite.runtime.files import project_dir, read_json, write_json


def private_bytes() -> int:
    """What this process holds alone: resident memory without mapped files."""
    held = psutil.Process().memory_info()
    return held.rss - getattr(held, "shared", 0)


def seconds(work: Callable[[], object]) -> float:
    """Until the device has done all of it too."""
    start = time.perf_counter()
    work()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def watched(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one run, and its peak memory above what was held before, in MB.

    Where the device counts its own (CUDA), what torch took of its memory; else private memory, looked at each 2 ms.
    """
    gc.collect()
    module = torch.get_device_module()
    if torch.accelerator.is_available() and hasattr(module, "reset_peak_memory_stats"):
        module.reset_peak_memory_stats()
        held, taken = module.memory_allocated(), seconds(work)
        return taken, round((module.max_memory_allocated() - held) / 1e6, 1)
    if sys.platform == "linux":  # freed memory that the allocator kept would hide new use
        ctypes.CDLL(None).malloc_trim(0)
    start, seen, done = private_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(private_bytes() - start)

    with ThreadPoolExecutor(1) as watcher:
        watcher.submit(watch)
        try:
            taken = seconds(work)
        finally:
            done.set()
    return taken, round(max(seen) / 1e6, 1)


def compare(ours: Callable[[], object], baseline: Callable[[], object], rounds: int) -> dict:
    """Median seconds of both, the median ratio baseline / ours with its range, and both peaks in MB.

    One unmeasured run of ours warms up; then a round is ours, then the baseline. The last round
    watches the memory too, which costs both sides a few hundredths of their time.
    """
    ours()
    times = [(seconds(ours), seconds(baseline)) for _ in range(rounds - 1)]
    mine, my_megabytes = watched(ours)
    theirs, their_megabytes = watched(baseline)
    times.append((mine, theirs))
    ratios = [theirs / mine for mine, theirs in times]
    return {
        "seconds": statistics.median(t[0] for t in times), "baseline_seconds": statistics.median(t[1] for t in times),
        "ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios), "rounds": rounds,
        "megabytes": my_megabytes, "baseline_megabytes": their_megabytes,
    }  # fmt: skip


class Operand(NamedTuple):
    """The form of a tensor, without its numbers."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def tensor(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device).fill_(0.01)


PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::convolution")


class MatrixProducts(TorchDispatchMode):
    """Notes every matrix product of the block, so that the same products can be run alone."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.name().split(".")[0]
        if name in PRODUCTS or "scaled_dot_product" in name:
            form = tuple(Operand(a.shape, a.stride(), a.dtype, a.device) if isinstance(a, Tensor) else a for a in args)
            self.calls.append((func, form, kwargs))
        return func(*args, **kwargs)

    def replay(self) -> Callable[[], None]:
        """A function that runs all noted products, on operands of the same shapes, and nothing else."""
        operands = {a: a.tensor() for _, form, _ in self.calls for a in form if isinstance(a, Operand)}
        ready = [(f, [operands[a] if isinstance(a, Operand) else a for a in form], k) for f, form, k in self.calls]

        @torch.no_grad()
        def run() -> None:
            for func, args, kwargs in ready:
                func(*args, **kwargs)

        return run


def load_lines() -> dict[str, Callable[[], Iterator[dict]]]:
    """The benchmark's lines by name."""
    return importlib.import_module("cause_lite.lab.bench_lines").LINES


def records_path(device: str = "cpu") -> Path:
    """The bench's records of a kind of device: cpu, cuda, mps."""
    return project_dir() / "data" / "records" / f"bench-{device}.json"


def run(name: str, work: Callable[[], Iterator[dict]]) -> Iterator[dict]:
    """The rows of one line as they are measured; the line's record is written when it is done."""
    rows = []
    for row in work():
        rows.append({key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()})
        yield rows[-1]
    path = records_path(choose_device("auto").type)
    lines = read_json(path)["lines"] if path.exists() else {}
    about = {
        "rows": rows, "about": " ".join(work.__doc__.split()), "threads": torch.get_num_threads(),
        "commit": provenance.commit(), "environment": provenance.environment(), "date": provenance.now(),
    }  # fmt: skip
    write_json(path, {"lines": lines | {name: about}})
