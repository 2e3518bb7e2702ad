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
from cause_lite.backbones.centred import CentredBackbone, subtract
from cause_lite.datasets.images import LazyRows
from cause_lite.runtime import parallel
from cause_lite.runtime.files import UserError, cache_dir, write_whole
from cause_lite.runtime.progress import track

Item = TypeVar("Item")
BATCH = 32


def disk_budget() -> float:
    """Return the bytes that one file of patch vectors may take.

    $CAUSE_FEATURE_BUDGET says how many gigabytes (50 by default); half of the free disk is the limit in any case.
    Raises UserError when the variable holds no number.
    """
    gigabytes = os.environ.get("CAUSE_FEATURE_BUDGET", "50")
    try:
        return min(float(gigabytes) * 1e9, shutil.disk_usage(cache_dir()).free / 2)
    except ValueError as error:
        raise UserError(f"CAUSE_FEATURE_BUDGET={gigabytes!r}: expected a number of gigabytes") from error


class PatchStore:
    """Vectors (N, P, D) of N images, read by image numbers; memory does not grow with N.

    The vectors of the first `stored` images lie in a memory-mapped file; those of the others are computed at each
    reading.

    Parameters
    ----------
    path
        The file's path, to which the number of stored images and `.npy` are added.
    shape
        Images, patches and channels: (N, P, D).
    dtype
        The type of the vectors.
    compute
        Image numbers (n,) -> vectors (n, P, D) of `dtype`; called in order once to fill the file.
    note
        What the progress bar says while the file is filled.
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
        self.stored = min(len(self), int(disk_budget() / (self.shape[1:].numel() * dtype.itemsize)))
        path = path.with_name(f"{path.name}-{self.stored}.npy")
        with parallel.main_process_first():
            empty = torch.empty(0, *self.shape[1:], dtype=dtype)
            self._vectors = self._read_or_fill(path, note) if self.stored else empty

    def _read_or_fill(self, path: Path, note: str) -> Tensor:
        """Return the file's tensor; the file is made again when it is absent, cut short or of another shape."""
        with contextlib.suppress(OSError, ValueError):
            vectors = torch.from_numpy(np.load(path, mmap_mode="c"))
            if vectors.shape == (self.stored, *self.shape[1:]) and vectors.dtype == self.dtype:
                return vectors
        write_whole(path, lambda part: self._fill(part, note))
        return torch.from_numpy(np.load(path, mmap_mode="c"))

    def _fill(self, part: Path, note: str) -> None:
        """Compute the stored images' vectors into a new file."""
        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        vectors = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=(self.stored, *self.shape[1:]))
        for numbers in track(torch.arange(self.stored).split(BATCH), note):
            vectors[numbers.numpy()] = self._compute(numbers).numpy()
        vectors.flush()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: slice | Int[Tensor, " n"]) -> Float[Tensor, "n p d"]:
        """Return the vectors of some images, in the order asked for."""
        numbers = torch.arange(len(self))[which] if isinstance(which, slice) else which
        in_file = numbers < self.stored
        if bool(in_file.all()):
            return self._vectors[numbers]
        vectors = torch.empty(len(numbers), *self.shape[1:], dtype=self.dtype)
        vectors[in_file] = self._vectors[numbers[in_file]]
        for places in (~in_file).nonzero()[:, 0].split(BATCH):
            vectors[places] = self._compute(numbers[places])
        return vectors

    def at(self, image: Int[Tensor, " n"], patch: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Return the vectors of single patches, by image and patch number."""
        vectors = torch.empty(len(image), self.shape[2], dtype=self.dtype)
        for rows in image.argsort(stable=True).split(1024):
            numbers, inverse = image[rows].unique(return_inverse=True)
            for low in range(0, len(numbers), BATCH):
                in_batch = (inverse >= low) & (inverse < low + BATCH)
                images = self[numbers[low : low + BATCH]]
                vectors[rows[in_batch]] = images[inverse[in_batch] - low, patch[rows[in_batch]]]
        return vectors

    def sample(self, rows: int, generator: torch.Generator, images: int = 2000) -> Float[Tensor, "n d"]:
        """Return at most `rows` patches from at most `images` images, each drawn without replacement."""
        count, patches, _ = self.shape
        chosen = torch.randperm(count, generator=generator)[:images]
        picked = torch.randperm(len(chosen) * patches, generator=generator)[:rows]
        return self.at(chosen[picked // patches], picked % patches)


class CentredStore(PatchStore):
    """Another store's vectors less a centre (D,), subtracted as they are read."""

    def __init__(self, store: PatchStore, centre: Float[Tensor, " d"]) -> None:
        self._store, self._centre = store, centre
        self.shape, self.dtype, self.stored = store.shape, store.dtype, store.stored

    def __getitem__(self, which: slice | Int[Tensor, " n"]) -> Float[Tensor, "n p d"]:
        """Return the vectors of some images, in the order asked for."""
        return subtract(self._store[which], self._centre)


def cached_features(backbone: Backbone, images: np.ndarray | LazyRows, note: str) -> PatchStore:
    """Return half-precision features of images (N, H, W, 3) uint8, computed once and kept in the cache folder.

    The file's name is a hash of the images' content and of everything in `backbone` that decides their features. Those
    of a centred backbone are kept as the plain one's.
    """
    if isinstance(backbone, CentredBackbone):
        return CentredStore(cached_features(backbone.plain, images, note), backbone.centre)
    digest = hashlib.sha256(backbone.fingerprint().encode() + str(images.shape).encode())
    if isinstance(images, LazyRows):
        digest.update(images.fingerprint().encode())
    else:
        for start in range(0, len(images), 256):
            digest.update(np.ascontiguousarray(images[start : start + 256]).data)
    path = cache_dir() / "features" / digest.hexdigest()[:20]
    patches = (images.shape[1] // backbone.patch) * (images.shape[2] // backbone.patch)
    shape = (len(images), patches, backbone.dim)
    return PatchStore(path, shape, torch.float16, lambda numbers: backbone.features(images[numbers.numpy()]), note)


def module_outputs(module: nn.Module, store: PatchStore, folder: Path) -> PatchStore:
    """Return a module's outputs (N, P, R) for stored vectors (N, P, D), in evaluation mode; their file is in `folder`.

    The module, such as a segmentation head, takes and returns (n, P, *); its parameters name the device.
    """
    device = next(module.parameters()).device

    @torch.no_grad()
    def compute(numbers: Tensor) -> Tensor:
        return module.eval()(store[numbers].float().to(device)).cpu()

    width = compute(torch.arange(1)).shape[2]
    return PatchStore(folder / "outputs", (*store.shape[:2], width), torch.float32, compute, "Head outputs")


def prefetched(items: Iterable[Item], load: Callable[[Item], Tensor]) -> Iterator[tuple[Item, Tensor]]:
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


def shares(
    store: PatchStore, batches: Iterable[Tensor], device: torch.device
) -> Iterator[tuple[Int[Tensor, " n"], Float[Tensor, "n p d"]]]:
    """Yield this process's image numbers of each batch and their vectors on the device, each read ahead."""
    parts = (parallel.share(batch) for batch in batches)
    for numbers, vectors in prefetched(parts, lambda numbers: store[numbers].float()):
        yield numbers, vectors.to(device)
