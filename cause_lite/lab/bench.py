"""Measure work and a baseline in alternation: ratios of their times within one process, and peaks of memory.

Begin with `compare`. `bench_lines` declares what `cause-lite bench` measures by these means.
"""

from __future__ import annotations

import ctypes
import gc
import inspect
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cause_lite.runtime import provenance
from cause_lite.runtime.device import choose_device
from cause_lite.runtime.files import project_dir, read_json, write_json


def private_bytes() -> int:
    """Return the resident memory of this process without what it shares with others, such as mapped files."""
    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes, until the device has done all of it too."""
    start = time.perf_counter()
    work()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start


class Measurement(NamedTuple):
    """The seconds of one run, and its peak of memory above what was in use before, in MB."""

    seconds: float
    megabytes: float


def measure(work: Callable[[], object]) -> Measurement:
    """Run `work` once, and measure its time and its peak of memory.

    Where the device counts its own memory (CUDA), the peak is what torch took of it; else it is that of the private
    memory of this process, sampled each 2 ms.
    """
    gc.collect()
    module = torch.get_device_module()
    if torch.accelerator.is_available() and hasattr(module, "reset_peak_memory_stats"):
        module.reset_peak_memory_stats()
        before, duration = module.memory_allocated(), seconds(work)
        return Measurement(duration, round((module.max_memory_allocated() - before) / 1e6, 1))
    if sys.platform == "linux":  # freed memory that the allocator kept would hide new use
        ctypes.CDLL(None).malloc_trim(0)
    before, samples, done = private_bytes(), [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.002):
            samples.append(private_bytes() - before)

    with ThreadPoolExecutor(1) as sampler:
        sampler.submit(sample)
        try:
            duration = seconds(work)
        finally:
            done.set()
    return Measurement(duration, round(max(samples) / 1e6, 1))


def compare(ours: Callable[[], object], baseline: Callable[[], object], rounds: int) -> dict:
    """Time two pieces of work in turn.

    One unmeasured run of ours warms up; then a round is ours, then the baseline. The last round samples the memory
    too, which costs both sides a few hundredths of their time. Return median seconds of both, the median ratio
    baseline / ours with its range over rounds, and both peaks in MB.
    """
    ours()
    times = [(seconds(ours), seconds(baseline)) for _ in range(rounds - 1)]
    last, last_baseline = measure(ours), measure(baseline)
    times.append((last.seconds, last_baseline.seconds))
    ratios = [of_baseline / of_ours for of_ours, of_baseline in times]
    return {
        "seconds": statistics.median(of_ours for of_ours, _ in times),
        "baseline_seconds": statistics.median(of_baseline for _, of_baseline in times),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "rounds": rounds,
        "megabytes": last.megabytes,
        "baseline_megabytes": last_baseline.megabytes,
    }


BUSY = ", busy cores"  # ends the name of a case that was measured beside another process


@contextmanager
def busy_cores() -> Iterator[None]:
    """Let one other process multiply matrices within the block, on as many threads as torch takes by default."""
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    other = context.Process(target=_multiply_forever, args=(started,), daemon=True)
    other.start()
    try:
        while not started.wait(1):
            if other.exitcode is not None:
                raise RuntimeError(f"the process that keeps the cores busy ended with status {other.exitcode}")
        yield
    finally:
        other.kill()
        other.join()


def _multiply_forever(started: Event) -> None:
    matrix = torch.full((1024, 1024), 1e-3)
    while True:
        matrix @ matrix
        started.set()


def compare_loads(
    case: str, ours: Callable[[], object], baseline: Callable[[], object], rounds: int, **known: float
) -> Iterator[dict]:
    """Yield the row of a case as `compare` measures it, and on a CPU a second one, measured with busy cores.

    Both rows also hold what is `known` of the case.
    """
    yield {"case": case} | compare(ours, baseline, rounds) | known
    if choose_device("auto").type == "cpu":  # an accelerator is not shared with the other process
        with busy_cores():
            row = compare(ours, baseline, rounds)
        yield {"case": case + BUSY} | row | known


class Operand(NamedTuple):
    """The form of a tensor, without its numbers."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def tensor(self) -> Tensor:
        """Return a tensor of this form."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device).fill_(0.01)


PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::convolution")


class MatrixProducts(TorchDispatchMode):
    """Note every matrix product of the block, so that the same products can be run alone."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the operation; note it with the forms of its operands where it is a matrix product."""
        kwargs, name = kwargs or {}, func.name().split(".")[0]
        if name in PRODUCTS or "scaled_dot_product" in name:
            form = tuple(Operand(a.shape, a.stride(), a.dtype, a.device) if isinstance(a, Tensor) else a for a in args)
            self.calls.append((func, form, kwargs))
        return func(*args, **kwargs)

    def replay(self) -> Callable[[], None]:
        """Return a function that runs all noted products, on operands of the same forms, and nothing else."""
        operands = {a: a.tensor() for _, form, _ in self.calls for a in form if isinstance(a, Operand)}
        ready = [(f, [operands[a] if isinstance(a, Operand) else a for a in form], k) for f, form, k in self.calls]

        @torch.no_grad()
        def run() -> None:
            for func, args, kwargs in ready:
                func(*args, **kwargs)

        return run


def records_path(device: str = "cpu") -> Path:
    """Return the file of the bench's records on a kind of device: cpu, cuda or mps."""
    return project_dir() / "data" / "records" / f"bench-{device}.json"


def run(name: str, line: Callable[[], Iterator[dict]]) -> Iterator[dict]:
    """Yield the rows of a line as they are measured; its record is written when all of them are done."""
    rows = []
    for row in line():
        rows.append({key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()})
        yield rows[-1]
    path = records_path(choose_device("auto").type)
    lines = read_json(path)["lines"] if path.exists() else {}
    record = {
        "rows": rows,
        "about": " ".join((inspect.getdoc(line) or "").split()),
        "threads": torch.get_num_threads(),
        "commit": provenance.commit(),
        "environment": provenance.environment(),
        "date": provenance.now(),
    }
    write_json(path, {"lines": lines | {name: record}})
