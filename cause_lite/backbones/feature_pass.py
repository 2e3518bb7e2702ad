"""Pass images through a backbone in order: read ahead by worker processes, computed in large batches, handed back late.

Begin with `FeaturePass`. On a GPU three things happen at once: worker processes decode and cut the next images, the GPU
computes a batch, and this process takes the batch before it off the GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cause_lite.backbones.backbone import Backbone
from cause_lite.datasets.images import LazyRows
from cause_lite.runtime import parallel
from cause_lite.runtime.device import bytes_free, to_device

Item = TypeVar("Item")
Result = TypeVar("Result")
BATCH = 32  # images at once on a CPU
LARGEST_BATCH = 128  # and on a GPU, whose rate grows no further
SHARE_OF_MEMORY = 0.5  # of a GPU's free memory that a batch may take
MOST_WORKERS = 16


class Computed:
    """Vectors (n, P, D) of images that a function computes from their numbers (n,), at most `batch` at once."""

    batch = BATCH

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        self._compute = compute

    def __call__(self, numbers: Int[Tensor, " n"]) -> Float[Tensor, "n p d"]:
        """Return the vectors of some images, on the CPU."""
        return self._compute(numbers)

    def ahead(self, batches: Sequence[Int[Tensor, " n"]]) -> Iterator[Float[Tensor, "n p d"]]:
        """Yield the vectors of each batch, on any device; what they are computed from is read ahead."""
        return map(self, batches)


class FeaturePass(Computed):
    """Half-precision features of images (N, H, W, 3) uint8.

    Parameters
    ----------
    backbone, images
        What computes, on its device, and of what.
    workers
        Processes that decode and cut images; None: chosen by `reading_workers`. With 0 a thread does it.
    """

    def __init__(self, backbone: Backbone, images: np.ndarray | LazyRows, workers: int | None = None) -> None:
        super().__init__(lambda numbers: backbone.features(images[numbers.numpy()]))
        self._backbone, self._images = backbone, images
        self._workers = reading_workers(images, backbone.device) if workers is None else workers
        self.batch = batch_that_fits(backbone, images)

    def ahead(self, batches: Sequence[Int[Tensor, " n"]]) -> Iterator[Float[Tensor, "n p d"]]:
        """Yield the features of each batch on the backbone's device."""
        device = self._backbone.device
        for images in read_ahead(self._images, batches, self._workers, device):
            if device.type == "cpu":
                yield self._backbone.features(images.numpy())
            else:
                yield self._backbone.device_features(to_device(images, device))


def reading_workers(images: np.ndarray | LazyRows, device: torch.device) -> int:
    """Return how many processes are to read images: none where they lie in memory, or where the CPU computes."""
    if device.type == "cpu" or not isinstance(images, LazyRows):
        return 0
    return max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // parallel.processes().num_processes - 1))


def batch_that_fits(backbone: Backbone, images: np.ndarray | LazyRows) -> int:
    """Return how many images to compute at once: `BATCH` on a CPU; on CUDA what fits, found with eight images."""
    device, shape = backbone.device, images.shape[1:]
    if device.type != "cuda" or not len(images):
        return BATCH
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    backbone.device_features(torch.zeros(8, *shape, dtype=torch.uint8, device=device))
    taken = torch.cuda.max_memory_allocated(device) - before
    return largest_batch(bytes_free(device), max(1, taken / 8))


def largest_batch(free: float, each: float, most: int = LARGEST_BATCH) -> int:
    """Return the largest power of two up to `most` of images of `each` bytes that fit into a share of `free` bytes.

    Powers of two, so that the batch, and with it the last bits of features, does not follow every change of memory.
    """
    batch = most
    while batch > 1 and batch * each > SHARE_OF_MEMORY * free:
        batch //= 2
    return batch


class _Batches(Dataset):
    """The images of each batch of numbers, for a loader's workers."""

    def __init__(self, images: np.ndarray | LazyRows, batches: Sequence[Tensor]) -> None:
        self._images, self._batches = images, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> UInt8[Tensor, "n h w 3"]:
        return torch.from_numpy(np.ascontiguousarray(self._images[self._batches[number].numpy()]))


def read_ahead(
    images: np.ndarray | LazyRows, batches: Sequence[Int[Tensor, " n"]], workers: int, device: torch.device
) -> Iterator[UInt8[Tensor, "n h w 3"]]:
    """Yield the images of each batch in order, decoded and cut by `workers` processes, or by a thread without any.

    They are in pinned memory where they go to CUDA.
    """
    parts = _Batches(images, batches)
    if workers and len(parts):
        options: dict[str, Any] = {"pin_memory": device.type == "cuda", "prefetch_factor": 2}
        yield from DataLoader(parts, batch_size=None, num_workers=min(workers, len(parts)), **options)
    else:
        yield from (rows for _, rows in prefetched(range(len(parts)), parts.__getitem__))


def prefetched(items: Iterable[Item], load: Callable[[Item], Result]) -> Iterator[tuple[Item, Result]]:
    """Yield (item, load(item)) in order, each loaded in a thread while its predecessor is in use."""
    with ThreadPoolExecutor(1) as loader:
        previous = None
        for item in items:
            current = (item, loader.submit(load, item))
            if previous is not None:
                yield previous[0], previous[1].result()
            previous = current
        if previous is not None:
            yield previous[0], previous[1].result()


def on_host(vectors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield tensors on the CPU, each once its successor is queued on the device, so that the device never idles."""
    arrived = None
    for tensor in vectors:
        following = _queue_copy(tensor)
        if arrived is not None:
            yield arrived()
        arrived = following
    if arrived is not None:
        yield arrived()


def _queue_copy(tensor: Tensor) -> Callable[[], Tensor]:
    """Queue a copy to the CPU, and return a function that waits for it."""
    if tensor.device.type != "cuda":
        return tensor.cpu
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record()

    def arrived() -> Tensor:
        event.synchronize()
        return host

    return arrived
