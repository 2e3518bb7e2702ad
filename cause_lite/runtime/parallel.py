"""Several processes as one (`torchrun`, `accelerate launch`): what each takes of a batch, and how they agree.

One process is the case of one share; there is no second code path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object, reduce
from torch import Tensor, nn

from cause_lite.runtime.files import UserError


def processes() -> PartialState:
    """This process among all (`num_processes`, `process_index`); gloo without a GPU, NCCL with one."""
    return PartialState(cpu=not torch.cuda.is_available())


def share(batch: Tensor) -> Tensor:
    """This process's part of a batch: one of `num_processes` equal runs of rows, by rank.

    Raises UserError when the batch does not divide.
    """
    count, index = processes().num_processes, processes().process_index
    if len(batch) % count:
        raise UserError(f"a batch of {len(batch)} does not divide among {count} processes; change either")
    return batch.view(count, -1, *batch.shape[1:])[index]


def gather_tensors(part: Tensor) -> Tensor:
    """The parts of all processes (n, ...), joined in rank order; without gradient."""
    return gather(part.detach().contiguous())


def mean(value: Tensor) -> Tensor:
    """The mean over processes."""
    return reduce(value.detach(), "mean")


def total(value: Tensor) -> Tensor:
    """The sum over processes."""
    return reduce(value, "sum")


def gather_objects(value: object) -> list:
    """One plain object of each process, in rank order."""
    return gather_object([value])


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over processes: equal shares then give the whole batch's gradient."""
    if processes().num_processes > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = reduce(parameter.grad, "mean")


def seed_per_process(seed: int) -> None:
    """Let chance differ between processes from here on (dropout); one process keeps its stream."""
    if processes().process_index:
        torch.manual_seed(seed + 1_000_003 * processes().process_index)


def main_process_first() -> AbstractContextManager:
    """The first process runs the block before the others do, for files that all of them then read."""
    return processes().main_process_first()


def run_on_main_process(work: Callable[[], None]) -> None:
    """Only the first process does this; the others wait until it is done."""
    if processes().is_main_process:
        work()
    processes().wait_for_everyone()
