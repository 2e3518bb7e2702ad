"""Several processes as one (`torchrun`, `accelerate launch`): what each takes of a batch, and how they agree.

One process is the case of one share; there is no second code path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object, reduce
from torch import Tensor, nn

from cause_lite.runtime.files import UserError


def processes() -> PartialState:
    """Return this process among all (`num_processes`, `process_index`); gloo without a GPU, NCCL with one."""
    return PartialState(cpu=not torch.cuda.is_available())


def share(batch: Tensor) -> Tensor:
    """Return this process's rows of a batch: one of `num_processes` equal runs, in the order of processes.

    Raises UserError when the batch does not divide.
    """
    count, index = processes().num_processes, processes().process_index
    if len(batch) % count:
        raise UserError(f"a batch of {len(batch)} does not divide among {count} processes; change either")
    return batch.view(count, -1, *batch.shape[1:])[index]


def gather_tensors(rows: Tensor) -> Tensor:
    """Return the rows (n, ...) of all processes, in the order of processes, without gradient."""
    return gather(rows.detach().contiguous())


def gather_objects(value: object) -> list[Any]:
    """Return the plain objects that each process passes, in the order of processes."""
    return gather_object([value])


def mean(value: Tensor) -> Tensor:
    """Return the mean over processes, without gradient."""
    return reduce(value.detach(), "mean")


def total(value: Tensor) -> Tensor:
    """Return the sum over processes."""
    return reduce(value, "sum")


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over processes: equal shares then give the whole batch's gradient."""
    if processes().num_processes > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = reduce(parameter.grad, "mean")


def seed_per_process(seed: int) -> None:
    """Give every process but the first a random state of its own, for dropout; the first keeps its state."""
    if processes().process_index:
        torch.manual_seed(seed + 1_000_003 * processes().process_index)


def main_process_first() -> AbstractContextManager[None]:
    """Run the block in the first process before the others, for files that it writes and all of them read."""
    return processes().main_process_first()


def run_on_main_process(work: Callable[[], object]) -> None:
    """Run `work` in the first process alone; the others wait until it is done."""
    if processes().is_main_process:
        work()
    processes().wait_for_everyone()
