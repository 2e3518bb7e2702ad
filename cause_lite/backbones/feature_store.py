"""Patch vectors of many images: kept on disk as far as a budget goes, computed again beyond it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cause_lite.backbones.backbone import Backbone
from cause_lite.backbones.centred import CentredBackbone, subtract
from cause_lite.backbones.feature_pass import BATCH, Computed, FeaturePass, on_host, prefetched
from cause_lite.datasets.images import LazyRows
from cause_lite.runtime import parallel
from cause_lite.runtime.device import to_device
from cause_lite.runtime.files import UserError, cache_dir, write_whole
from cause_lite.runtime.progress import track

try:
    import fcntl
except ImportError:  # Windows, which refuses by itself to remove a file that is in use
    fcntl = None  # type: ignore[assignment]


def file_budget() -> float:
    """Return the bytes that a file of patch vectors may take: $CAUSE_FEATURE_BUDGET gigabytes, 50 by default."""
    gigabytes = os.environ.get("CAUSE_FEATURE_BUDGET", "50")
    try:
        return float(gigabytes) * 1e9
    except ValueError as error:
        raise UserError(f"CAUSE_FEATURE_BUDGET={gigabytes!r}: expected a number of gigabytes") from error


def disk_budget(files: int = 1, taken: float = 0.0) -> float:
    """Return the disk bytes left for one of a fit's files of vectors, when the others take `taken`; half stay free."""
    return min(files * file_budget() - taken, shutil.disk_usage(cache_dir()).free / 2)


def make_room(folder: Path, needed: float) -> None:
    """Remove the vectors in a folder that were used least recently, but for files in use, until one more file fits.

    It fits when all files together take at most twice `file_budget`, and no more than half of the free disk is needed.
    """
    with contextlib.suppress(OSError):  # another process makes room too
        files = sorted(folder.glob("*.npy"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in files)
        for path in files:
            if total + needed <= 2 * file_budget() and 2 * needed <= shutil.disk_usage(folder).free:
                break
            if not in_use(path):
                total -= path.stat().st_size
                path.unlink()


def in_use(path: Path) -> bool:
    """Return whether a process has taken a file into use, as `take_into_use` does."""
    with path.open("rb") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def take_into_use(path: Path) -> BinaryIO:
    """Mark a file as in use for as long as what is returned stays open, and as used now."""
    file = path.open("rb")
    with contextlib.suppress(OSError):  # a file system that knows no locks, or a cache that may only be read
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_SH)
        os.utime(path)
    return file


class PatchStore:
    """Vectors (N, P, D) of N images, read by image numbers; memory does not grow with N.

    The vectors of the first `stored` images lie in a memory-mapped file; those of the others are computed at each
    reading. A file that is there already is used, unless twice as many images may be stored by now.

    Parameters
    ----------
    path
        The file's path, to which `.npy` is added.
    shape
        Images, patches and channels: (N, P, D).
    dtype
        The type of the vectors.
    compute
        Image numbers (n,) -> vectors (n, P, D) of `dtype`, or `Computed`; called in order once to fill the file.
    note
        What the progress bar says while the file is filled.
    stored
        How many images may be stored; None: as many as `disk_budget` allows.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        compute: Callable[[Tensor], Tensor],
        note: str,
        stored: int | None = None,
    ) -> None:
        self._source = compute if isinstance(compute, Computed) else Computed(compute)
        self.shape, self.dtype = torch.Size(shape), dtype
        most = images_within(disk_budget(), shape, dtype) if stored is None else stored
        path = path.with_name(f"{path.name}.npy")
        with parallel.main_process_first():
            kept = self._read(path)
            if len(kept) < len(self) and most >= min(len(self), max(1, 2 * len(kept))):
                write_whole(path, lambda part: self._fill(part, most, note))
                kept = self._read(path)
            self._vectors, self.stored = kept, len(kept)

    def _read(self, path: Path) -> Tensor:
        """Return the file's vectors, none when it is absent, cut short or of another shape; the file is in use then."""
        with contextlib.suppress(OSError, ValueError, EOFError):
            vectors = torch.from_numpy(np.load(path, mmap_mode="c"))
            if vectors.shape[1:] == self.shape[1:] and len(vectors) <= len(self) and vectors.dtype == self.dtype:
                self._in_use = take_into_use(path)
                return vectors
        return torch.empty(0, *self.shape[1:], dtype=self.dtype)

    def _fill(self, part: Path, count: int, note: str) -> None:
        """Compute the first images' vectors into a new file."""
        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        vectors = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=(count, *self.shape[1:]))
        batches = torch.arange(count).split(self._source.batch)
        computed = on_host(vectors.to(self.dtype) for vectors in self._source.ahead(batches))
        for numbers, part_of in zip(batches, track(computed, note, total=len(batches)), strict=True):
            vectors[numbers.numpy()] = part_of.numpy()
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
        for places in (~in_file).nonzero()[:, 0].split(self._source.batch):
            vectors[places] = self._source(numbers[places])
        return vectors

    def stream(
        self, batches: Sequence[Int[Tensor, " n"]], device: torch.device
    ) -> Iterator[tuple[Int[Tensor, " n"], Float[Tensor, "n p d"]]]:
        """Yield each batch's image numbers and vectors on a device, in the store's type; what is read is read ahead.

        Each image of a batch is read or computed once, and what is computed on the device stays there.
        """
        absent = [numbers[numbers >= self.stored].split(self._source.batch) for numbers in batches]
        computed = self._source.ahead([part for parts in absent for part in parts if len(part)])
        read = prefetched(batches, lambda numbers: staged(self._vectors[numbers[numbers < self.stored]], device))
        for (numbers, in_file), parts in zip(read, absent, strict=True):
            vectors = to_device(in_file, device)
            if len(in_file) < len(numbers):
                rest = torch.cat([next(computed).to(device, self.dtype) for _ in parts])
                # The stored ones come first, so their order is brought back.
                order = (numbers >= self.stored).long().argsort(stable=True).argsort()
                vectors = torch.cat([vectors, rest])[to_device(order, device)]
            yield numbers, vectors

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

    def stream(
        self, batches: Sequence[Int[Tensor, " n"]], device: torch.device
    ) -> Iterator[tuple[Int[Tensor, " n"], Float[Tensor, "n p d"]]]:
        """Yield each batch's image numbers and centred vectors on a device."""
        centre = self._centre.to(device)
        for numbers, vectors in self._store.stream(batches, device):
            yield numbers, (vectors.float() - centre).to(self.dtype)


def images_within(budget: float, shape: tuple[int, int, int], dtype: torch.dtype) -> int:
    """Return how many of N images' vectors (N, P, D) fit into a budget of bytes."""
    return min(shape[0], max(0, int(budget / (shape[1] * shape[2] * dtype.itemsize))))


def staged(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor where a copy to the device can start from: pinned memory for CUDA."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def cached_features(backbone: Backbone, images: np.ndarray | LazyRows, note: str, output_bytes: int = 0) -> PatchStore:
    """Return half-precision features of images (N, H, W, 3) uint8, computed once and kept in the cache folder.

    The file's name is a hash of the images' content and of everything in `backbone` that decides their features. Those
    of a centred backbone are kept as the plain one's. Files that were used least recently make room for a new one.

    Parameters
    ----------
    output_bytes
        Bytes that the head's output of a patch will take: features leave room for these on the disk.
    """
    if isinstance(backbone, CentredBackbone):
        return CentredStore(cached_features(backbone.plain, images, note, output_bytes), backbone.centre)
    digest = hashlib.sha256(backbone.fingerprint().encode() + str(images.shape).encode())
    if isinstance(images, LazyRows):
        digest.update(images.fingerprint().encode())
    else:
        for start in range(0, len(images), 256):
            digest.update(np.ascontiguousarray(images[start : start + 256]).data)
    path = cache_dir() / "features" / digest.hexdigest()[:20]
    patches = (images.shape[1] // backbone.patch) * (images.shape[2] // backbone.patch)
    shape, outputs = (len(images), patches, backbone.dim), len(images) * patches * output_bytes
    wanted = images_within(min(file_budget(), 2 * file_budget() - outputs), shape, torch.float16)
    if wanted and not path.with_name(f"{path.name}.npy").exists():
        make_room(path.parent, 2 * wanted * patches * backbone.dim)
    stored = min(wanted, images_within(disk_budget(), shape, torch.float16))
    return PatchStore(path, shape, torch.float16, FeaturePass(backbone, images), note, stored)


class ModuleOutputs(Computed):
    """What a module in evaluation mode makes of stored vectors (N, P, D); its parameters name the device."""

    def __init__(self, module: nn.Module, store: PatchStore, dtype: torch.dtype) -> None:
        super().__init__(lambda numbers: next(self.ahead([numbers])).cpu())
        self._module, self._store, self._dtype = module, store, dtype

    def ahead(self, batches: Sequence[Int[Tensor, " n"]]) -> Iterator[Float[Tensor, "n p r"]]:
        """Yield the outputs of each batch, on the module's device."""
        like = next(self._module.parameters())
        for _, vectors in self._store.stream(batches, like.device):
            with torch.no_grad():
                outputs = self._module.eval()(vectors.to(like.dtype)).to(self._dtype)
            yield outputs  # outside the block, which would reach whoever reads this


def module_outputs(
    module: nn.Module, store: PatchStore, folder: Path, dtype: torch.dtype = torch.float32
) -> PatchStore:
    """Return a module's outputs (N, P, R) for stored vectors (N, P, D), in evaluation mode; their file is in `folder`.

    The module, such as a segmentation head, takes and returns (n, P, *). The outputs may take what the stored vectors
    left of the disk's budget.
    """
    source = ModuleOutputs(module, store, dtype)
    shape = (*store.shape[:2], source(torch.arange(1)).shape[2])
    taken = store.stored * store.shape[1:].numel() * store.dtype.itemsize
    stored = images_within(disk_budget(2, min(taken, file_budget())), shape, dtype)
    return PatchStore(folder / "outputs", shape, dtype, source, "Head outputs", stored)


def shares(
    store: PatchStore, batches: Sequence[Tensor], device: torch.device
) -> Iterator[tuple[Int[Tensor, " n"], Float[Tensor, "n p d"]]]:
    """Yield this process's image numbers of each batch and their vectors on the device, each read ahead."""
    return store.stream([parallel.share(batch) for batch in batches], device)
