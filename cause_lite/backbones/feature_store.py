"""Patch vectors of many images: kept on disk as far as a budget goes, computed again beyond it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cause_lite.backbones.backbone import Backbone
from cause_lite.datasets.images import Lazy
from cause_lite.runtime import parallel
from cause_lite.runtime.files import UserError, cache_dir, write_whole
from cause_lite.runtime.progress import track

Item = TypeVar("Item")
BATCH = 32


def disk_budget() -> float:
    """Bytes that one file of patch vectors may take: $CAUSE_FEATURE_BUDGET gigabytes (50), and half the free disk."""
    wanted = os.environ.get("CAUSE_FEATURE_BUDGET", "50")
    try:
        return min(float(wanted) * 1e9, shutil.disk_usage(cache_dir()).free / 2)
    except ValueError as error:
        raise UserError(f"CAUSE_FEATURE_BUDGET={wanted!r}: give a number of gigabytes") from error


class PatchStore:
    """Vectors (N, P, D) of N images, read by image numbers. The first `kept` lie in a memory-mapped file.

    `compute` turns image numbers (n,) into vectors (n, P, D) of `dtype`; it is called in order once to
    fill the file, and later for images beyond the budget. Memory does not grow with N.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        compute: Callable[[Tensor], Tensor],
        note: str,
    ) -> None:
        self._compute, self.shape, self.dtype = compute, torch.Size(shape), dtype
        self.kept = min(len(self), int(disk_budget() / (self.shape[1:].numel() * dtype.itemsize)))
        path = path.with_name(f"{path.name}-{self.kept}.npy")
        with parallel.main_process_first():
            self._held = self._open(path) if self.kept else torch.empty(0, *self.shape[1:], dtype=dtype)
            if self._held is None:
                write_whole(path, lambda part: self._fill(part, note))
                self._held = self._open(path)

    def _open(self, path: Path) -> Tensor | None:
        """The file's tensor; None when it is absent, cut short or of another shape."""
        with contextlib.suppress(OSError, ValueError):
            held = torch.from_numpy(np.load(path, mmap_mode="c"))
            if held.shape == (self.kept, *self.shape[1:]) and held.dtype == self.dtype:
                return held
        return None

    def _fill(self, part: Path, note: str) -> None:
        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        held = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=(self.kept, *self.shape[1:]))
        for which in track(torch.arange(self.kept).split(BATCH), note):
            held[which.numpy()] = self._compute(which).numpy()
        held.flush()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: slice | Int[Tensor, " n"]) -> Float[Tensor, "n p d"]:
        """The vectors of some images, in the order asked for."""
        which = torch.arange(len(self))[which] if isinstance(which, slice) else which
        if bool((which < self.kept).all()):
            return self._held[which]
        found = torch.empty(len(which), *self.shape[1:], dtype=self.dtype)
        stored = which < self.kept
        found[stored] = self._held[which[stored]]
        places = (~stored).nonzero()[:, 0]
        for place in places.split(BATCH):
            found[place] = self._compute(which[place])
        return found

    def at(self, image: Int[Tensor, " n"], patch: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Single patches, by image and patch number."""
        found = torch.empty(len(image), self.shape[2], dtype=self.dtype)
        order = image.argsort(stable=True)
        for rows in order.split(1024):
            numbers, inverse = image[rows].unique(return_inverse=True)
            for low in range(0, len(numbers), BATCH):
                mine = (inverse >= low) & (inverse < low + BATCH)
                found[rows[mine]] = self[numbers[low : low + BATCH]][inverse[mine] - low, patch[rows[mine]]]
        return found

    def sample(self, rows: int, generator: torch.Generator, images: int = 2000) -> Float[Tensor, "n d"]:
        """At most `rows` patches from at most `images` images, drawn without replacement of images."""
        count, patches, _ = self.shape
        chosen = torch.randperm(count, generator=generator)[:images]
        picked = torch.randperm(len(chosen) * patches, generator=generator)[:rows]
        return self.at(chosen[picked // patches], picked % patches)


def cached_features(backbone: Backbone, images: np.ndarray | Lazy, note: str) -> PatchStore:
    """Half-precision features of images (N, H, W, 3) uint8; the file's key covers the weights and the pixels
    (of images on demand: the files' names, sizes and times)."""
    digest = hashlib.sha256(backbone.fingerprint().encode() + str(images.shape).encode())
    if isinstance(images, Lazy):
        digest.update(images.fingerprint().encode())
    else:
        for start in range(0, len(images), 256):
            digest.update(np.ascontiguousarray(images[start : start + 256]))
    path = cache_dir() / "features" / digest.hexdigest()[:20]
    patches = (images.shape[1] // backbone.patch) * (images.shape[2] // backbone.patch)
    shape = (len(images), patches, backbone.dim)
    return PatchStore(path, shape, torch.float16, lambda which: backbone.features(images[which.numpy()]), note)


def module_outputs(module: nn.Module, store: PatchStore, folder: Path) -> PatchStore:
    """Return a module's outputs (N, P, R) for stored vectors (N, P, D), in evaluation mode; their file is in `folder`.

    The module, such as a segmentation head, takes and returns (n, P, *); its parameters name the device.
    """
    device = next(module.parameters()).device

    @torch.no_grad()
    def compute(which: Tensor) -> Tensor:
        return module.eval()(store[which].float().to(device)).cpu()

    width = compute(torch.arange(1)).shape[2]
    return PatchStore(folder / "outputs", (*store.shape[:2], width), torch.float32, compute, "Head outputs")


def prefetched(items: Iterable[Item], load: Callable[[Item], Tensor]) -> Iterator[tuple[Item, Tensor]]:
    """(item, load(item)) in order, each loaded in a thread while its predecessor is in use."""
    with ThreadPoolExecutor(1) as loader:
        waiting = None
        for item in items:
            coming = (item, loader.submit(load, item))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = coming
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def shares(
    store: PatchStore, batches: Iterable[Tensor], device: torch.device
) -> Iterator[tuple[Int[Tensor, " n"], Float[Tensor, "n p d"]]]:
    """Yield this process's image numbers of each batch and their vectors on the device, each read ahead."""
    numbers = (parallel.share(batch) for batch in batches)
    for which, vectors in prefetched(numbers, lambda which: store[which].float()):
        yield which, vectors.to(device)
